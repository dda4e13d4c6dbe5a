"""Whole passes of the culler over a fake site: what it does, what it leaves behind, what cannot make it go wrong."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.eventlog import MAX_LINE_BYTES, EventLog
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.core import retirements, wording
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import Counting
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.losses import Losses
from ds01_spawner.core.model import Holder
from ds01_spawner.errors import EngineUnavailable
from ds01_spawner.services.culler import serve
from ds01_spawner.services.culler.__main__ import main
from ds01_spawner.services.culler.channels import Channels
from ds01_spawner.services.culler.settings import Settings, SettingsRefused
from ds01_spawner.testing.activity import FakeServer, FakeSite

MINUTE = 60.0
HOUR = 3600.0


@pytest.fixture
def site() -> FakeSite:
    """Return a site with four devices and nobody on it."""
    return FakeSite(device_uuids=("GPU-0", "GPU-1", "GPU-2", "GPU-3"))


def status(folder: Path) -> dict[str, Any]:
    """Return the status file."""
    found = CullerFiles(folder).status()
    assert found is not None
    return found


def shown(folder: Path, user: str = "ada") -> dict[str, Any]:
    """Return what the status file says about the server of a user."""
    return next(server for server in status(folder)["servers"] if server["user"] == user)


async def test_an_idle_server_is_warned_on_every_channel_and_retired(site: FakeSite, tmp_path: Path) -> None:
    """Terminals, file, page and webhook say when it ends; it ends then, and its page says why."""
    server = site.start("ada", devices=["GPU-0"])
    server.terminals = 1
    culler = site.culler(tmp_path)
    await site.watch(culler, 17 * MINUTE)
    assert "thesis will be retired at" in server.shown[0]
    assert server.files["RETIRING-SOON.txt"] == server.shown[0]
    assert [message["kind"] for message in site.sent] == ["warn"]
    assert shown(tmp_path)["warned"]["channels"] == ["page", "terminals", "file", "webhook"]
    await site.watch(culler, 30 * MINUTE)
    first_look = 1000.0 + MINUTE
    assert site.stopped == [("ada/thesis", first_look + 30 * MINUTE)]
    assert site.kinds() == ["maintenance.warn", "maintenance.warn", "maintenance.idle_kill"]
    assert [message["kind"] for message in site.sent] == ["warn", "warn", "retired"]
    [ended] = CullerFiles(tmp_path).retired("ada")
    assert "Nothing has used it for 30 minutes. The limit is 30 minutes." in ended["text"]
    told = retirements.decode(ended)
    assert told is not None
    assert told.when.endswith(ended["text"].split(" at ")[1].split(".")[0])
    assert told.why[0] == "Nothing has used it for 30 minutes. The limit is 30 minutes."
    assert told.why[1] == "Limits in force: idle limit 30 minutes; longest run 24 hours."
    assert told.why[2].startswith("Use is a GPU that does 5 % or more, 2 % of one processor core, 1 MiB a minute")
    assert told.why[3] == (
        "Warnings 15 minutes and 5 minutes before: shown on the hub's pages, shown in your terminals, written to a "
        "file in the project's folder and sent as a message."
    )
    assert "<title>The last 30 minutes in 15 samples: 15 idle.</title>" in told.picture
    assert status(tmp_path)["servers"] == []


async def test_a_retirement_is_told_until_its_project_is_launched_again(site: FakeSite, tmp_path: Path) -> None:
    """While the hub still stops it, and while others launch, it stays; with the first pass of a new launch it goes."""
    for user in ("ada", "bob"):
        site.start(user)
    culler, files = site.culler(tmp_path), CullerFiles(tmp_path)
    await site.watch(culler, 40 * MINUTE)
    site.start("ada").stopping = True
    await site.watch(culler, MINUTE)
    assert [entry["user"] for entry in files.retired()] == ["ada", "bob"]
    site.starting = (Holder("ada", "thesis"),)
    await site.watch(culler, MINUTE)
    assert [entry["user"] for entry in files.retired()] == ["bob"]
    site.start("bob")
    await site.watch(culler, MINUTE)
    assert files.retired() == []


async def test_packages_that_went_with_a_container_are_noted(site: FakeSite, tmp_path: Path) -> None:
    """The project's page can offer them; a container without any ends the offer, an unknown one leaves it."""
    notes = LostPackages(tmp_path / "packages")
    for user in ("ada", "bob", "eve"):
        notes.write(user, "thesis", ("polars==1.0",))
    site.start("ada").packages = ("numpy==2.0",)
    site.start("bob").packages = None
    site.start("eve").packages = ()
    await site.watch(site.culler(tmp_path), 40 * MINUTE)
    assert notes.read("ada", "thesis") == ("numpy==2.0",)
    assert notes.read("bob", "thesis") == ("polars==1.0",)
    assert notes.read("eve", "thesis") == ()


@pytest.mark.parametrize("engine", ["answers", "is away", "hangs"])
async def test_nobody_is_kept_for_the_sake_of_a_hint(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are read from what changed in the container; where the engine cannot say it, they are unknown."""
    if engine == "hangs":
        monkeypatch.setattr(serve, "_PACKAGES_SECONDS", 0.01)

    class Shelf:
        async def changes(self, container: str) -> tuple[str, ...]:
            if engine == "is away":
                raise EngineUnavailable("Docker Engine does not answer.")
            if engine == "hangs":
                await asyncio.Event().wait()
            return ("/usr/lib/python3/dist-packages/numpy-2.0.dist-info/METADATA", f"/root/{container}")

    found = await serve._lost_packages(Shelf(), "c0ffee")  # type: ignore[arg-type]
    assert found == (("numpy==2.0",) if engine == "answers" else None)


async def test_the_watch_over_others_does_not_wait_for_a_long_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many files changed in a container its user decides, so they are told apart in a thread of its own."""
    threads = []

    class Shelf:
        async def changes(self, container: str) -> tuple[str, ...]:
            return (f"/root/{container}",)

    def find(changed: tuple[str, ...]) -> Losses:
        threads.append(threading.current_thread())
        return Losses()

    monkeypatch.setattr(serve, "find_losses", find)
    await serve._lost_packages(Shelf(), "c0ffee")  # type: ignore[arg-type]
    assert threads
    assert threading.main_thread() not in threads


async def test_an_event_carries_its_evidence_in_one_line(site: FakeSite, tmp_path: Path) -> None:
    """Samples, rule, limits and deliveries of an end fit into the event log's line, uncut."""
    site.start("ada" * 20, "p" * 100, devices=["GPU-" + "0" * 36, "GPU-" + "1" * 36])
    culler = site.culler(tmp_path)
    await site.watch(culler, 40 * MINUTE)
    kind, details = site.events[-1]
    assert kind == "maintenance.idle_kill"
    assert details["decision"]["rule"] == "idle"
    assert details["limits"]["idle_seconds"] == 1800
    assert [delivery["seconds_before"] for delivery in details["deliveries"]] == [900, 300]
    assert {sample["use"] for sample in details["samples"]} == {"idle"}
    log = tmp_path / "events.jsonl"
    EventLog(log).record(kind, **details)
    line = log.read_bytes()
    assert len(line) <= MAX_LINE_BYTES
    assert "truncated" not in json.loads(line)["details"]


async def test_activity_after_the_warning_is_answered(site: FakeSite, tmp_path: Path) -> None:
    """The user hears that it is called off, and the file is gone."""
    server = site.start("ada", devices=["GPU-0"])
    server.terminals = 1
    culler = site.culler(tmp_path)
    await site.watch(culler, 20 * MINUTE)
    server.gpu_percent = 90
    await site.watch(culler, MINUTE)
    assert "will not be retired now, because it is in use again (gpu)" in server.shown[-1]
    assert server.files == {}
    assert site.kinds() == ["maintenance.warn", "maintenance.cancel"]
    assert "warned" not in shown(tmp_path)


@pytest.mark.parametrize(
    "does",
    [
        pytest.param({"gpu_percent": 60.0}, id="training with the browser closed"),
        pytest.param({"cpu_cores": 1.0}, id="nohup loop"),
        pytest.param({"network_bytes_per_second": 1e6}, id="a big download"),
        pytest.param({"unreadable": True}, id="a container that cannot be read"),
        pytest.param({"silent": True}, id="a notebook server that does not answer"),
        pytest.param({"explodes": True}, id="an error that nobody foresaw"),
        pytest.param({"keep_alive_at": 1000.0}, id="keep-alive"),
    ],
)
async def test_who_is_kept(site: FakeSite, tmp_path: Path, does: dict[str, Any]) -> None:
    """Three hours of it end nothing."""
    server = site.start("ada", devices=["GPU-0"])
    for name, value in does.items():
        setattr(server, name, value)
    await site.watch(site.culler(tmp_path), 3 * HOUR)
    assert site.stopped == []


async def test_the_run_limit_ends_even_what_cannot_be_read(site: FakeSite, tmp_path: Path) -> None:
    """Work, keep-alive and a silent notebook server do not change the longest run; its event has a kind of its own."""
    server = site.start("ada", devices=["GPU-0"])
    server.cpu_cores, server.silent, server.keep_alive_at = 1.0, True, 1000.0
    site.limits = Limits(max_runtime_seconds=2 * HOUR, grace_seconds=0)
    await site.watch(site.culler(tmp_path), 3 * HOUR)
    assert site.stopped == [("ada/thesis", 1000.0 + 2 * HOUR)]
    assert site.kinds()[-1] == "maintenance.runtime_kill"


async def test_the_run_limit_needs_no_account(site: FakeSite, tmp_path: Path) -> None:
    """A user whom the host does not know any more is not retired as idle, but does not run for ever either."""
    site.homes_are_away = True
    site.start("ada")
    site.limits = Limits(max_runtime_seconds=2 * HOUR, grace_seconds=0)
    culler = site.culler(tmp_path)
    await site.watch(culler, HOUR)
    assert "does not answer" in shown(tmp_path)["problem"]
    await site.watch(culler, HOUR)
    assert site.stopped == [("ada/thesis", 1000.0 + 2 * HOUR)]


@pytest.mark.parametrize("away", ["hub_is_away", "engine_is_away", "driver_is_away", "homes_are_away"])
async def test_an_hour_away_leads_to_no_end(site: FakeSite, tmp_path: Path, away: str) -> None:
    """Hub, engine, driver or homes away for an hour in the middle of idleness: the idle time begins anew."""
    site.start("ada", devices=["GPU-0"])
    culler = site.culler(tmp_path)
    await site.watch(culler, 14 * MINUTE)
    setattr(site, away, True)
    reports = await site.watch(culler, HOUR)
    assert site.stopped == []
    if away in {"hub_is_away", "engine_is_away"}:
        assert all(report.problem for report in reports)
        assert status(tmp_path)["problem"]
    else:
        assert shown(tmp_path)["decision"] == "keep"
    setattr(site, away, False)
    back = site.now
    await site.watch(culler, 2 * HOUR)
    if away == "homes_are_away":
        # Its samples went on and showed idleness; only its keep-alive was unknown.  It still had to be warned.
        assert site.stopped
        assert site.stopped[0][1] >= back + 300
    else:
        # The first reading after the gap reaches over it, and shows no idleness; a GPU's reading needs no earlier one.
        first = back if away == "driver_is_away" else back + MINUTE
        assert [at for _, at in site.stopped] == [first + 30 * MINUTE]


async def test_a_busy_server_survives_blindness(site: FakeSite, tmp_path: Path) -> None:
    """A server that works all the time is not ended by anything that happens to the culler's eyes."""
    server = site.start("ada", devices=["GPU-0"])
    server.gpu_percent = 50
    culler = site.culler(tmp_path)
    for away in ("hub_is_away", "engine_is_away", "driver_is_away", "homes_are_away") * 3:
        setattr(site, away, True)
        await site.watch(culler, 20 * MINUTE)
        setattr(site, away, False)
        await site.watch(culler, 7 * MINUTE)
    assert site.stopped == []
    assert "maintenance.warn" not in site.kinds()


async def test_one_broken_server_does_not_stop_the_pass(site: FakeSite, tmp_path: Path) -> None:
    """Its neighbours are judged as always, and the broken one is counted."""
    site.start("ada").explodes = True
    site.start("bob")
    culler = site.culler(tmp_path)
    reports = await site.watch(culler, 40 * MINUTE)
    assert [name for name, _ in site.stopped] == ["bob/thesis"]
    assert reports[-1].broken == 1
    assert "nobody foresaw" in shown(tmp_path)["problem"]


async def test_a_channel_that_fails_unforeseen_is_one_that_failed(site: FakeSite, tmp_path: Path) -> None:
    """The other channels carry the warning, and the event says what happened."""
    site.start("ada").terminals_explode = True
    await site.watch(site.culler(tmp_path), 20 * MINUTE)
    assert "nobody foresaw" in site.events[0][1]["failed"]["terminals"]
    assert "webhook" in site.events[0][1]["channels"]


async def test_one_server_that_cannot_be_told_does_not_silence_the_others(
    site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while warning one server leaves its neighbour warned and judged, and itself kept."""
    say = wording.warning

    def say_or_fail(*arguments: Any, project: str, **rest: Any) -> str:
        if project == "broken":
            raise RuntimeError("an error that nobody foresaw")
        return say(*arguments, project=project, **rest)

    monkeypatch.setattr(wording, "warning", say_or_fail)
    site.start("ada", "broken")
    site.start("bob")
    await site.watch(site.culler(tmp_path), 40 * MINUTE)
    assert [name for name, _ in site.stopped] == ["bob/thesis"]


async def test_a_hub_that_does_not_stop_it_is_asked_again(site: FakeSite, tmp_path: Path) -> None:
    """A failed end is a problem of this pass; the next one tries again."""
    site.start("ada")
    culler = site.culler(tmp_path)
    site.hub_refuses_to_stop = True
    await site.watch(culler, 40 * MINUTE)
    assert "did not stop" in shown(tmp_path)["problem"]
    assert "maintenance.idle_kill" not in site.kinds()
    site.hub_refuses_to_stop = False
    await site.watch(culler, 2 * MINUTE)
    assert len(site.stopped) == 1
    assert site.kinds().count("maintenance.idle_kill") == 1


async def test_the_last_look_saves_who_came_back(
    site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody types between the pass and the end: it is not ended."""
    server = site.start("ada")
    server.terminals = 1
    culler = site.culler(tmp_path)
    await site.watch(culler, 30 * MINUTE)
    read = site.server

    async def type_then_describe(user: str, name: str) -> Any:
        server.typed += 1
        site.advance(1)
        return await read(user, name)

    monkeypatch.setattr(site, "server", type_then_describe)
    await site.watch(culler, 10 * MINUTE)
    assert site.stopped == []
    assert "maintenance.cancel" in site.kinds()


async def test_the_last_look_leaves_a_new_container_alone(
    site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user retired and launched it again in the meantime: the new container is not the one that was judged."""
    site.start("ada")
    culler = site.culler(tmp_path)
    await site.watch(culler, 30 * MINUTE)
    new = site.start("ada")

    async def describe_the_new_one(user: str, name: str) -> Any:
        return site._described(new)

    monkeypatch.setattr(site, "server", describe_the_new_one)
    await site.watch(culler, 5 * MINUTE)
    assert site.stopped == []


async def test_a_warning_counts_only_where_it_arrived(site: FakeSite, tmp_path: Path) -> None:
    """No terminal, a full disk, no webhook and no page: the server stays until one of them works."""
    server = site.start("ada")
    server.home_full = True
    site.webhook_is_away = True
    folder = tmp_path / "a file, so that no page can be written"
    folder.write_text("")
    culler = site.culler(folder)
    await site.watch(culler, 2 * HOUR)
    assert site.stopped == []
    failed = site.events[-1][1]["failed"]
    assert set(failed) == {"terminals", "file", "webhook"}
    site.webhook_is_away = False
    back = site.now
    await site.watch(culler, 10 * MINUTE)
    assert site.stopped == [("ada/thesis", back + MINUTE + 300)]


async def test_the_page_shows_a_warning_from_the_pass_on_from_which_it_counts(site: FakeSite, tmp_path: Path) -> None:
    """In the very pass that counts it as delivered, and not only in the next one."""
    site.start("ada")
    culler = site.culler(tmp_path)
    while not site.events:
        assert "warned" not in (shown(tmp_path) if site.now > 1000.0 else {})
        await site.watch(culler, MINUTE)
    assert site.events[0][1]["channels"] == ("page", "file", "webhook")
    assert shown(tmp_path)["warned"]["channels"] == ["page", "file", "webhook"]


async def test_somebody_waiting_halves_the_limit(site: FakeSite, tmp_path: Path) -> None:
    """A place in the queue counts when its server is starting, and the page says why the limit is shorter."""
    site.start("ada", devices=["GPU-0"])
    site.waiting = (Holder("bob", "thesis"),)
    culler = site.culler(tmp_path)
    await site.watch(culler, 10 * MINUTE)
    assert status(tmp_path)["demand"] == {"held": 1, "devices": 4, "waiting": 1}
    assert "The limit is 15 minutes while GPUs are scarce." in shown(tmp_path)["text"]
    await site.watch(culler, 10 * MINUTE)
    assert site.stopped == [("ada/thesis", 1000.0 + 16 * MINUTE)]


async def test_who_left_the_queue_does_not_wait(site: FakeSite, tmp_path: Path) -> None:
    """The queue's file keeps places for people who left, and not every server that starts waits for a device."""
    site.start("ada", devices=["GPU-0"])
    site.starting = (Holder("bob", "thesis"),)
    site.gave_up = (Holder("eve", "thesis"),)
    await site.watch(site.culler(tmp_path), 2 * MINUTE)
    assert status(tmp_path)["demand"]["waiting"] == 0


async def test_four_of_five_held_is_demand(site: FakeSite, tmp_path: Path) -> None:
    """80 % of the devices held halves the limit, whoever holds them."""
    site.device_uuids = ("GPU-0", "GPU-1", "GPU-2", "GPU-3", "GPU-4")
    for n in range(4):
        site.start(f"user{n}", devices=[f"GPU-{n}"])
    await site.watch(site.culler(tmp_path), 2 * MINUTE)
    assert all(server["in_demand"] for server in status(tmp_path)["servers"])


async def test_a_restarted_culler_ends_nothing_without_a_window(site: FakeSite, tmp_path: Path) -> None:
    """The new culler finds the warnings of the old one, tells the user that the clock begins anew, and watches."""
    server = site.start("ada")
    server.terminals = 1
    await site.watch(site.culler(tmp_path), 30 * MINUTE)
    restarted = site.now
    culler = site.culler(tmp_path)
    await site.watch(culler, MINUTE)
    assert "the watch over it was restarted" in server.shown[-1]
    assert server.files == {}
    await site.watch(culler, HOUR)
    assert [at for _, at in site.stopped] == [restarted + MINUTE + 30 * MINUTE]


async def test_a_warned_run_limit_survives_a_restart(site: FakeSite, tmp_path: Path) -> None:
    """The warnings of a run limit are kept in a file, so a restart neither repeats them nor delays the end."""
    site.start("ada").cpu_cores = 1
    site.limits = Limits(max_runtime_seconds=2 * HOUR)
    await site.watch(site.culler(tmp_path), 119 * MINUTE)
    assert site.kinds() == ["maintenance.warn", "maintenance.warn"]
    await site.watch(site.culler(tmp_path), 10 * MINUTE)
    assert [at for _, at in site.stopped] == [1000.0 + 2 * HOUR]
    assert site.kinds()[2:] == ["maintenance.runtime_kill"]


async def test_the_wall_clock_may_jump(site: FakeSite, tmp_path: Path) -> None:
    """A day forward and a year back change what is displayed, and end nothing."""
    server = site.start("ada")
    server.cpu_cores = 1
    culler = site.culler(tmp_path)
    for jump in (86400, -366 * 86400, 86400):
        site.wall += jump
        await site.watch(culler, 20 * MINUTE)
    assert site.stopped == []


async def test_a_keep_alive_is_recorded_once_and_shown_with_its_end(site: FakeSite, tmp_path: Path) -> None:
    """It is an event when it defers an end, not at every look."""
    server = site.start("ada")
    culler = site.culler(tmp_path)
    await site.watch(culler, 20 * MINUTE)
    server.keep_alive_at = site.now
    await site.watch(culler, 3 * HOUR)
    assert site.kinds() == ["maintenance.warn", "maintenance.cancel", "maintenance.keep"]
    assert shown(tmp_path)["keep_alive_until"] == site.wall + server.keep_alive_at + 24 * HOUR
    assert shown(tmp_path)["text"] == "Kept by its .keep-alive file."


async def test_an_unused_device_is_mentioned(site: FakeSite, tmp_path: Path) -> None:
    """CPU work on a server with a GPU is not ended; its user is told once, without a file that announces an end."""
    server = site.start("ada", devices=["GPU-0"])
    server.cpu_cores = 1
    await site.watch(site.culler(tmp_path), 3 * HOUR)
    assert site.stopped == []
    assert server.files == {}
    assert [message["text"][:46] for message in site.sent] == ["The GPU of thesis has done nothing for 30 minu"]


async def test_what_counts_is_the_limits_to_say(site: FakeSite, tmp_path: Path) -> None:
    """Where only the GPU counts, the same CPU work does not keep the server."""
    server = site.start("ada", devices=["GPU-0"])
    server.cpu_cores = 1
    site.limits = Limits(grace_seconds=0, counting=Counting.GPU)
    await site.watch(site.culler(tmp_path), HOUR)
    assert len(site.stopped) == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param({"container_id": "0" * 63 + "9"}, "its container is gone", id="no such container"),
        pytest.param({"user": "mallory"}, "labels", id="somebody else's container"),
    ],
)
async def test_a_server_whose_container_is_not_its_own_is_left_alone(
    site: FakeSite, tmp_path: Path, spoil: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub says and what the engine says must agree before anything is ended."""
    server = site.start("ada")
    true_labels = site._labels(server)
    monkeypatch.setattr(site, "_labels", lambda _: true_labels)
    if "user" in spoil:
        server.user = spoil["user"]
    else:
        described = FakeServer("ada", "thesis", spoil["container_id"], 0)
        other = site._described(described)

        async def servers() -> Any:
            return (other,)

        monkeypatch.setattr(site, "active_servers", servers)
    await site.watch(site.culler(tmp_path), HOUR)
    assert site.stopped == []
    assert why in status(tmp_path)["not_watched"][0]["why"]


async def test_a_server_that_stops_is_not_watched(site: FakeSite, tmp_path: Path) -> None:
    """While the hub stops a server nothing is decided about it."""
    server = site.start("ada")
    culler = site.culler(tmp_path)
    await site.watch(culler, 29 * MINUTE)
    server.stopping = True
    await site.watch(culler, HOUR)
    assert site.stopped == []
    assert culler.watches == ()


async def test_a_home_that_hangs_holds_up_nobody_else(site: FakeSite, tmp_path: Path) -> None:
    """Its user's keep-alive is unknown, so that server is kept; the others are judged, and it is not tried again."""
    site.start("ada")
    site.start("bob")
    free = threading.Event()
    asked: list[str] = []

    class HangingHome:
        def keep_alive_seconds(self, account: Account, project: str, longest_seconds: float) -> float:
            asked.append(account.name)
            if account.name == "ada":
                free.wait()
            return 0.0

        def announce(self, account: Account, project: str, text: str) -> None:
            """Take it."""

        def withdraw(self, account: Account, project: str) -> None:
            """Take it."""

    culler = site.culler(tmp_path)
    threads = ThreadPoolExecutor(4)
    culler._acts.channels = Channels(site, HangingHome(), {}, threads, file_seconds=0.05)
    await site.watch(culler, 40 * MINUTE)
    assert [name for name, _ in site.stopped] == ["bob/thesis"]
    assert asked.count("ada") == 1
    free.set()
    threads.shutdown()


async def test_ends_are_met_between_passes(site: FakeSite, tmp_path: Path) -> None:
    """The next pass is made when something is due, but never so soon that passes run without a pause."""
    site.start("ada")
    culler = site.culler(tmp_path)
    await site.watch(culler, 3 * MINUTE)
    site.advance(12.5 * MINUTE + 20)
    await culler.run()
    assert 10 <= culler.next_look_seconds() <= 60
    while not site.stopped:
        site.advance(culler.next_look_seconds())
        await culler.run()
        assert 10 <= culler.next_look_seconds() <= 60


@pytest.mark.parametrize("last_activity", [1801.0, 1815.5, 1830.0, 1859.0, 1860.0])
async def test_a_device_is_free_soon_after_its_limit(site: FakeSite, tmp_path: Path, last_activity: float) -> None:
    """Whenever between two looks the work stopped, the end is asked for within 75 s of the limit."""
    server = site.start("ada", devices=["GPU-0"])
    server.cpu_cores = 1.0
    culler = site.culler(tmp_path)
    while not site.stopped:
        step = culler.next_look_seconds()
        while step > 0:
            if site.now >= last_activity:
                server.cpu_cores = 0.0
            until = min(step, last_activity - site.now) if site.now < last_activity else step
            site.advance(until)
            step -= until
        await culler.run()
    lag = site.stopped[0][1] - last_activity - 30 * MINUTE
    assert 0 <= lag <= 75


async def test_memory_stays_flat(site: FakeSite, tmp_path: Path) -> None:
    """A server that works for longer than the window leaves a bounded one."""
    site.limits = Limits(max_runtime_seconds=None)
    site.start("ada").cpu_cores = 1
    culler = site.culler(tmp_path)
    await site.watch(culler, 6 * HOUR)
    assert len(culler.watches[0].samples) <= 120


async def test_the_command_line_shows_what_the_culler_sees(
    site: FakeSite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dry-run lists every server with its end and reason, --explain the clock of one, running or ended."""
    site.start("ada", devices=["GPU-0"])
    site.start("bob").cpu_cores = 1
    site.start("cleo").unreadable = True
    culler = site.culler(tmp_path)
    await site.watch(culler, 20 * MINUTE)
    monkeypatch.setattr("time.time", lambda: site.wall + site.now)
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"keep +ada/thesis +\d\d:\d\d, in 11 minutes, idle  Nothing has used it for 19 minutes. The limit is 30 "
        r"minutes. Warned: page, file, webhook\.",
        said,
    )
    # What is in use or unknown is not counted down to an end that would not come.
    assert re.search(r"keep +bob/thesis +In use \(cpu\)\.\n", said)
    assert re.search(r"keep +cleo/thesis +Kept, because not everything is known", said)
    assert main(["--explain", "ada", "thesis", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "page, file, webhook" in said
    assert re.search(r"idle limit +30 minutes\n", said)
    assert re.search(r"what counts +work\n", said)
    assert len(re.findall(r"minutes +idle +0 +0 +0\n", said)) >= 17
    await site.watch(culler, 20 * MINUTE)
    assert main(["--explain", "ada", "thesis", "--folder", str(tmp_path)]) == 4
    assert "Nothing has used it for 30 minutes" in capsys.readouterr().out
    assert main(["--explain", "eve", "x", "--folder", str(tmp_path)]) == 4
    monkeypatch.setattr("time.time", lambda: site.wall + site.now + HOUR)
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 1
    assert "It is late" in capsys.readouterr().out


async def test_the_command_line_tells_of_demand_keep_alive_and_the_longest_run(
    site: FakeSite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A halved limit with both values, a keep-alive with its end, the rule that comes first, the unwatched."""
    site.start("ada", devices=["GPU-0"]).keep_alive_at = site.now
    site.start("bob", "c" * 80).cpu_cores = 1
    site.waiting = (Holder("eve", "thesis"),)
    site.limits = Limits(max_runtime_seconds=2 * HOUR, group="student")
    await site.watch(site.culler(tmp_path), 100 * MINUTE)
    monkeypatch.setattr("time.time", lambda: site.wall + site.now)
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Devices: 1 of 4 held, 1 waiting. Idle limits are shortened." in said
    assert "in 20 minutes, longest run" in said
    assert main(["--explain", "ada", "thesis", "--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "15 minutes while devices are in demand, else 30 minutes" in said
    assert re.search(r"keep-alive +until ", said)
    assert "the group student" in said


async def test_the_command_line_answers_programs(
    site: FakeSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json prints the status, one server's entry, or how it ended; alone it is a mistake."""
    site.start("ada")
    culler = site.culler(tmp_path)
    await site.watch(culler, MINUTE)
    main(["--dry-run", "--json", "--folder", str(tmp_path)])
    assert json.loads(capsys.readouterr().out) == status(tmp_path)
    main(["--explain", "ada", "thesis", "--json", "--folder", str(tmp_path)])
    assert json.loads(capsys.readouterr().out) == shown(tmp_path)
    await site.watch(culler, 40 * MINUTE)
    assert main(["--explain", "ada", "thesis", "--json", "--folder", str(tmp_path)]) == 4
    assert json.loads(capsys.readouterr().out) == CullerFiles(tmp_path).retired()[0]
    with pytest.raises(SystemExit):
        main(["--json"])


def test_the_command_line_without_a_culler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without files there is nothing to show, without settings nothing to run; both say so."""
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 1
    assert "--folder <state folder>/culler" in capsys.readouterr().err
    assert main(["--explain", "ada", "thesis", "--folder", str(tmp_path)]) == 1
    (tmp_path / "status.json").write_text("{")
    assert main(["--dry-run", "--folder", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().err
    monkeypatch.delenv("DS01_CULLER", raising=False)
    assert main([]) == 2
    assert "DS01_CULLER" in capsys.readouterr().err


def test_settings_survive_the_environment(tmp_path: Path) -> None:
    """What configure hands over is what the service reads."""
    settings = Settings(
        hub="lab",
        folder=tmp_path,
        packages_folder=tmp_path / "packages",
        events=tmp_path / "events.jsonl",
        warn_seconds=(60.0, 20.0),
        notice_seconds=10.0,
        command=("mail", "-s"),
        docker={"base_url": "unix://x"},
    )
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"hub": "lab"}',
        '{"hub": "lab", "folder": "/x", "packages_folder": "/z", "events": "/y", "unknown": 1}',
        '{"hub": "lab", "folder": "/x", "packages_folder": "/z", "events": "/y", "pass_seconds": 0}',
        '{"hub": "lab", "folder": "/x", "packages_folder": "/z", "events": "/y", "warn_seconds": [300, 900]}',
        '{"hub": "lab", "folder": "/x", "packages_folder": "/z", "events": "/y", "webhook": "file:///etc/passwd"}',
    ],
)
def test_settings_that_cannot_be_used_are_refused(text: str) -> None:
    """The service does not start on settings that nobody meant."""
    with pytest.raises(SettingsRefused):
        Settings.from_json(text)
