"""The event log: what is written, and what survives."""

import ast
import errno
import gzip
import json
import logging
import os
import stat
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ds01_spawner
from ds01_spawner.adapters import eventlog
from ds01_spawner.adapters.eventlog import MAX_LINE_BYTES, EventLog, read_events
from ds01_spawner.core.events import KINDS, OLD_KINDS, Event

NOW = 1_772_357_400.125


def at(seconds: float) -> Any:
    """Return a clock that stands still."""
    return lambda: seconds


@dataclass(frozen=True)
class Spot:
    """A value that JSON does not know."""

    uuid: str
    share: Fraction


def test_one_line_in_the_documented_schema(tmp_path: Path) -> None:
    """An event is one JSON object with the schema's keys, dated in UTC."""
    path = tmp_path / "events.jsonl"
    EventLog(path, clock=at(NOW), source="culler").record("gpu.allocate", user="ada", server="thesis", n=2)
    lines = path.read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "timestamp": "2026-03-01T09:30:00.125Z",
            "event_type": "gpu.allocate",
            "user": "ada",
            "source": "culler",
            "details": {"server": "thesis", "n": 2},
            "schema_version": "1",
        }
    ]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """The reader gives the writer's events, in order."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock=at(NOW))
    log.record("queue.enter", user="ada", kind="gpu")  # a fact may have the same name as the event's own
    log.record("gpu.allocate", user="ada", devices=("GPU-1", "GPU-2"), held=Fraction(3, 7), spot=Spot("x", Fraction(1)))
    assert list(read_events([path])) == [
        Event(NOW, "queue.enter", "ada", "hub", {"kind": "gpu"}),
        Event(
            NOW,
            "gpu.allocate",
            "ada",
            "hub",
            {"devices": ["GPU-1", "GPU-2"], "held": 3 / 7, "spot": {"uuid": "x", "share": 1.0}},
        ),
    ]
    assert log.lost == 0


@given(
    user=st.text(max_size=300),
    details=st.dictionaries(
        st.text(max_size=20),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=6,
    ),
)
def test_no_value_breaks_a_line(tmp_path_factory: pytest.TempPathFactory, user: str, details: dict[str, Any]) -> None:
    """Whatever is recorded becomes one short line of printable ASCII that reads back as one event."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    details.pop("user", None)
    EventLog(path, clock=at(NOW)).record("gpu.reject", user=user, **details)
    data = path.read_bytes()
    assert len(data) <= MAX_LINE_BYTES
    assert data.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in data[:-1])
    [event] = read_events([path])
    assert event.kind == "gpu.reject"
    assert event.user == user[:256]


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    """A name with an escape sequence and a line end is stored escaped, and read back as it was."""
    path = tmp_path / "events.jsonl"
    hostile = "\x1b[2J\r\nroot\u2028\x00"
    EventLog(path).record("auth.denied", user=hostile)
    assert b"\x1b" not in path.read_bytes()
    assert [event.user for event in read_events([path])] == [hostile]


def test_a_long_event_is_cut_not_lost(tmp_path: Path) -> None:
    """An event with a huge fact keeps its short facts, and says that something was cut."""
    path = tmp_path / "events.jsonl"
    EventLog(path).record("image.build", user="ada", log="x" * 100_000, seconds=12, many=list(range(5000)))
    assert path.stat().st_size <= MAX_LINE_BYTES
    [event] = read_events([path])
    assert event.details["seconds"] == 12
    assert event.details["truncated"] is True
    assert event.details["log"].startswith("xxxx")


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    """The log is readable by its group whatever the umask, and never by others."""
    path = tmp_path / "events.jsonl"
    before = os.umask(0o077)
    try:
        EventLog(path).record("health.check")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_rotated_file_is_left_alone(tmp_path: Path) -> None:
    """After a rotation by renaming, the next event goes to a new file of the old name."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.record("health.check", n=1)
    path.rename(tmp_path / "events.jsonl.1")
    log.record("health.check", n=2)
    path.unlink()
    log.record("health.check", n=3)
    assert [e.details["n"] for e in read_events([tmp_path / "events.jsonl.1", path])] == [1, 3]


def test_a_file_emptied_in_place_goes_on(tmp_path: Path) -> None:
    """A rotation that copies and truncates leaves no hole of zero bytes."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.record("health.check", n=1)
    os.truncate(path, 0)
    log.record("health.check", n=2)
    assert [e.details["n"] for e in read_events([path])] == [2]


def test_two_writers_share_a_file(tmp_path: Path) -> None:
    """Events of several writers, in threads, are never mixed within a line."""
    path = tmp_path / "events.jsonl"
    logs = [EventLog(path, source=f"s{n}") for n in range(4)]

    def write(log: EventLog) -> None:
        for number in range(200):
            log.record("health.check", n=number, filler="y" * 500)

    threads = [threading.Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(read_events([path]))
    assert len(events) == 800
    for source in ("s0", "s1", "s2", "s3"):
        assert [e.details["n"] for e in events if e.source == source] == list(range(200))


def test_a_full_disk_loses_events_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With no space, recording does not raise; losses are counted, told once, and it goes on when there is space."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.record("health.check", n=1)

    def no_space(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(eventlog.os, "write", no_space)
        for number in range(5):
            log.record("health.check", n=number)
    assert log.lost == 5
    assert caplog.text.count("No space left") == 1
    log.record("health.check", n=9)
    assert [e.details["n"] for e in read_events([path])] == [1, 9]


def test_a_line_cut_short_by_a_full_disk_does_not_swallow_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-written line counts as lost, and the next event begins on a line of its own."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(eventlog.os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        log.record("health.check", n=1)
    assert log.lost == 1
    log.record("health.check", n=2)
    assert [e.details["n"] for e in read_events([path])] == [2]
    assert "1 lines are not events" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_kernels_own_full_device(tmp_path: Path) -> None:
    """A device that is really full is no error for the caller."""
    log = EventLog("/dev/full")
    log.record("health.check")
    assert log.lost == 1


def test_a_missing_folder_and_a_planted_link(tmp_path: Path) -> None:
    """Without a folder events are lost; a link in the file's place is not followed."""
    log = EventLog(tmp_path / "nowhere" / "events.jsonl")
    log.record("health.check")
    assert log.lost == 1
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_text("")
    linked = EventLog(tmp_path / "link")
    linked.record("health.check")
    assert linked.lost == 1
    assert (tmp_path / "target").read_text() == ""


def test_the_reader_passes_over_what_is_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Torn, foreign and absurd lines cost themselves only, and are counted."""
    good = b'{"timestamp": "2026-03-01T09:30:00Z", "event_type": "gpu.release", "user": null, "details": null}\n'
    bad = [
        b"[1, 2]\n",
        b"{}\n",
        b'"text"\n',
        b"\xff\xfe\n",
        b'{"timestamp": "yesterday", "event_type": "x"}\n',
        b'{"timestamp": 5, "event_type": "x"}\n',
        b'{"timestamp": "2026-03-01T09:30:00Z", "event_type": "x", "details": [1]}\n',
        b"[" * 5000 + b"\n",
        b'{"timestamp": "2026-03-01T09:3',
    ]
    path = tmp_path / "events.jsonl"
    path.write_bytes(good + b"\n" + b"".join(bad[:-1]) + good + bad[-1])
    events = list(read_events([path]))
    assert events == [Event(1772357400.0, "gpu.release")] * 2
    assert f"{len(bad)} lines are not events" in caplog.text


def test_rotated_compressed_and_missing_files(tmp_path: Path) -> None:
    """A report reads the files of a rotation in the order given, compressed ones too, and a missing one is none."""
    line = '{{"timestamp": "2026-03-01T09:30:0{0}", "event_type": "health.check", "details": {{"n": {0}}}}}\n'
    with gzip.open(tmp_path / "events.jsonl.2.gz", "wt") as file:
        file.write(line.format(1))
    (tmp_path / "events.jsonl").write_text(line.format(2))
    names = ["events.jsonl.2.gz", "events.jsonl.1", "events.jsonl"]
    events = list(read_events([tmp_path / name for name in names]))
    assert [e.details["n"] for e in events] == [1, 2]
    assert events[0].at == 1772357401.0  # a time without a zone is UTC


def test_both_generations_of_old_names_are_read(tmp_path: Path) -> None:
    """What earlier systems called otherwise is read under today's name, which is a known one."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for old in OLD_KINDS:
        log.record(old)
    assert [event.kind for event in read_events([path])] == list(OLD_KINDS.values())
    assert set(OLD_KINDS.values()) <= set(KINDS)


def test_every_kind_that_is_recorded_is_documented() -> None:
    """No part of the package records a kind that the vocabulary does not have."""
    used: dict[str, str] = {}
    for path in Path(ds01_spawner.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"record", "_record", "_note"} and "." in str(node.args[0].value):
                used[str(node.args[0].value)] = path.name
    assert used
    assert {kind: where for kind, where in used.items() if kind not in KINDS} == {}
