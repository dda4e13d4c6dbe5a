"""Records and logs of builds on disk."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.adapters import buildhistory
from ds01_spawner.adapters.buildhistory import KEPT_BUILDS, LOG_BYTES, BuildRecords, Journal
from ds01_spawner.core.build import BuildRecord, Outcome

REPOSITORY = "ds01-alice/thesis"


class Open(BuildRecords):
    """A history whose logs are closed when a test leaves builds running."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.journals: list[Journal] = []

    def begin(self, repository: str, record: BuildRecord) -> Journal:
        """Keep the journal, to close it."""
        self.journals.append(super().begin(repository, record))
        return self.journals[-1]


def record(name: str = "20231114T221320Z-aa") -> BuildRecord:
    """Return a build that has begun."""
    return BuildRecord(name, "alice", "thesis", "r", 1000.0)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[BuildRecords]:
    """Return an empty history."""
    made = Open(tmp_path / "builds")
    yield made
    for journal in made.journals:
        journal._log.close()


def test_a_build_is_remembered(records: BuildRecords) -> None:
    """A build is in the history while it runs, and afterwards with how it ended."""
    journal = records.begin(REPOSITORY, record())
    assert records.list(REPOSITORY) == (record(),)
    ended = replace(record(), ended_at=1010.0, outcome=Outcome.BUILT, image_id="sha256:x", image_bytes=5)
    journal.end(ended)
    assert records.list(REPOSITORY) == (ended,)
    assert records.list("ds01-alice/other") == ()


def test_newest_first_and_only_so_many(records: BuildRecords) -> None:
    """The newest builds are kept, with their logs, and listed first."""
    for number in range(KEPT_BUILDS + 5):
        journal = records.begin(REPOSITORY, record(f"b{number:03}"))
        journal.write(["x"])
        journal.end(replace(record(f"b{number:03}"), outcome=Outcome.FAILED))
    listed = [found.id for found in records.list(REPOSITORY)]
    assert listed == [f"b{number:03}" for number in range(KEPT_BUILDS + 4, 4, -1)]
    assert records.read_log(REPOSITORY, "b000").text == ""
    assert records.read_log(REPOSITORY, "b010").text == "x\n"


def test_log_can_be_followed(records: BuildRecords) -> None:
    """A reader gets what is new since an offset, and learns when nothing will follow."""
    journal = records.begin(REPOSITORY, record())
    journal.write(["one", "zwö"])
    first = records.read_log(REPOSITORY, record().id)
    assert (first.text, first.has_ended) == ("one\nzwö\n", False)
    journal.write(["three"])
    second = records.read_log(REPOSITORY, record().id, first.next_offset)
    assert (second.text, second.has_ended) == ("three\n", False)
    journal.end(replace(record(), outcome=Outcome.BUILT))
    last = records.read_log(REPOSITORY, record().id, second.next_offset)
    assert (last.text, last.has_ended) == ("", True)


def test_interrupted(records: BuildRecords, tmp_path: Path) -> None:
    """A build whose hub was killed is told from one that runs, without anybody having repaired the record."""
    records.begin(REPOSITORY, record())
    assert BuildRecords(tmp_path / "builds").list(REPOSITORY)[0].outcome is Outcome.INTERRUPTED
    path = tmp_path / "builds" / REPOSITORY / f"{record().id}.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "process": buildhistory._identity(os.getppid())}))
    assert records.list(REPOSITORY)[0].outcome is Outcome.BUILDING
    for gone in (f"{2**22 + 1}:5", f"{os.getppid()}:5", "", "x", None, 1):
        path.write_text(json.dumps({**fields, "process": gone}))
        assert records.list(REPOSITORY)[0].outcome is Outcome.INTERRUPTED


def test_a_long_log_keeps_its_ends(records: BuildRecords, tmp_path: Path) -> None:
    """A log stays within its size and keeps beginning and end, whole lines only, with a note of what is missing."""
    journal = records.begin(REPOSITORY, record())
    count = 3 * LOG_BYTES // 21
    for start in range(0, count, 1000):
        journal.write([f"line {number:015d}" for number in range(start, start + 1000)])
        assert (tmp_path / "builds" / REPOSITORY / f"{record().id}.log").stat().st_size <= LOG_BYTES + 30_000
    text = records.read_log(REPOSITORY, record().id).text
    lines = text.splitlines()
    assert lines[0] == f"line {0:015d}"
    assert lines[-1].startswith("line ")
    (note,) = [line for line in lines if not line.startswith("line ")]
    kept = sum(len(line) + 1 for line in lines if line != note)
    written = (int(lines[-1].split()[1]) + 1) * 21
    assert note == f"… {written - kept:,} bytes of the log are left out here …"
    assert len({len(line) for line in lines if line != note}) == 1


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=40), max_size=5)))
def test_any_log_is_kept(tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]]) -> None:
    """Below the limit a log is what was written."""
    records = BuildRecords(tmp_path_factory.mktemp("builds"))
    journal = records.begin(REPOSITORY, record())
    for batch in batches:
        journal.write(batch)
    journal.end(replace(record(), outcome=Outcome.BUILT))
    assert records.read_log(REPOSITORY, record().id).text == "".join(f"{line}\n" for batch in batches for line in batch)


def test_writing_after_the_end_is_nothing(records: BuildRecords) -> None:
    """Lines that come after the end are lost without an error: the build's thread may be a moment late."""
    journal = records.begin(REPOSITORY, record())
    journal.end(replace(record(), outcome=Outcome.CANCELLED))
    journal.write(["late"])
    assert records.read_log(REPOSITORY, record().id).text == ""


def test_a_full_disk_does_not_fail_a_build(records: BuildRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot be written costs the log, not the build."""
    journal = records.begin(REPOSITORY, record())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buildhistory.json, "dumps", full)
    journal._log.close()
    monkeypatch.setattr(journal, "_log", type("Full", (), {"write": full, "closed": False, "close": lambda _: None})())
    journal.write(["x"])
    journal.end(replace(record(), outcome=Outcome.BUILT))


@pytest.mark.parametrize("repository", ["../x", "a/../b", "/etc/x", "a", "a/b/c", "a/b\n", "", "a/.."])
def test_hostile_repositories(records: BuildRecords, repository: str) -> None:
    """Nothing outside the folder is read or written."""
    with pytest.raises(ValueError, match="repository"):
        records.list(repository)
    with pytest.raises(ValueError, match="repository"):
        records.begin(repository, record())


@pytest.mark.parametrize("build", ["../x", "a/b", "", ".", "x\n", "20231114T221320Z-aa.json"])
def test_hostile_build_ids(records: BuildRecords, build: str) -> None:
    """A build's id from a browser leads to that build's log or nowhere."""
    records.begin(REPOSITORY, record()).write(["x"])
    assert records.read_log(REPOSITORY, build).text == ""


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outcome": "odd"}', "null", "\xff"])
def test_damaged_records_are_left_out(records: BuildRecords, tmp_path: Path, text: str) -> None:
    """A record that cannot be read is not listed, and does not hide the others."""
    records.begin(REPOSITORY, record())
    (tmp_path / "builds" / REPOSITORY / "zz.json").write_text(text, encoding="latin-1")
    assert [found.id for found in records.list(REPOSITORY)] == [record().id]


def test_only_the_hub_can_read(records: BuildRecords, tmp_path: Path) -> None:
    """Logs tell what people work on, so other users of the host cannot enter the folder."""
    records.begin(REPOSITORY, record())
    assert stat.S_IMODE((tmp_path / "builds").stat().st_mode) == 0o700
