"""What a page says of a running project's idle clock, from what the culler wrote of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.core.idleclock import IdleClock, read_clock, read_status
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder
from ds01_spawner.testing.activity import FakeServer, FakeSite

MINUTE = 60.0


class Watched:
    """Ada's server on a fake site, looked at by the real culler.

    Args:
        folder: of the culler's files.
    """

    def __init__(self, folder: Path) -> None:
        self.site = FakeSite(device_uuids=("GPU-0", "GPU-1", "GPU-2"))
        self.site.limits = Limits(grace_seconds=0)
        self.server: FakeServer = self.site.start("ada", devices=["GPU-0"])
        self.folder = folder
        self.culler = self.site.culler(folder)
        self.began = self.site.wall + self.site.now

    async def after(self, minutes: float) -> IdleClock:
        """Return what the page says after some more minutes; times of day are minutes since the server's start."""
        await self.site.watch(self.culler, minutes * MINUTE)
        clocks, problem = read_status(CullerFiles(self.folder).status(), self.site.wall + self.site.now)
        assert problem == ""
        return read_clock(clocks[Holder("ada", "thesis")], lambda at: f"{(at - self.began) / MINUTE:g}'")


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Return a server that was started now and does nothing."""
    return Watched(tmp_path)


async def test_an_idle_server_counts_down_to_its_warning(watched: Watched) -> None:
    """Idle since when, retired when, and from the warning on what to do about it."""
    quiet = await watched.after(11)
    assert quiet == IdleClock("", ("Idle since 1'.", "Retired at 31' unless it is used: the idle limit is 30 minutes."))
    warned = await watched.after(10)
    assert warned == IdleClock(
        "Will be retired at 31'. Use it and it stays.", ("Idle since 1'.", "The idle limit is 30 minutes.")
    )
    watched.server.cpu_cores = 1.0
    used = await watched.after(1)
    assert used == IdleClock("", ("In use (cpu).", "The idle limit is 30 minutes."))


async def test_a_limit_that_is_halved_says_so(watched: Watched) -> None:
    """While somebody waits the limit of a GPU server is half as long, and both values are there."""
    watched.site.waiting = (Holder("eve", "waits"),)
    halved = await watched.after(5)
    assert halved.lines[1] == (
        "Retired at 16' unless it is used: the idle limit is 15 minutes while GPUs are scarce, instead of 30 minutes."
    )
    watched.server.gpu_percent = 90
    used = await watched.after(1)
    assert used.lines[1] == "The idle limit is 15 minutes while GPUs are scarce, instead of 30 minutes."


async def test_a_keep_alive_is_shown_with_its_end(watched: Watched) -> None:
    """While it defers the end, and while the server is in use."""
    watched.server.keep_alive_at = watched.site.now
    kept = await watched.after(40)
    assert kept.lines[0] == "Kept by its .keep-alive file until 1440'."
    watched.server.cpu_cores = 1.0
    used = await watched.after(1)
    assert used.lines[-1] == "Its .keep-alive file holds until 1440'."


async def test_the_longest_run_is_not_said_to_depend_on_use(watched: Watched) -> None:
    """Nobody is told that using a server helps where it does not."""
    watched.site.limits = Limits(grace_seconds=0, max_runtime_seconds=60 * MINUTE)
    watched.server.gpu_percent = 90
    far = await watched.after(40)
    assert far.lines == (
        "In use (gpu).",
        "Retired at 60', whatever it does: it will have run for 60 minutes, the longest that is allowed.",
    )
    near = await watched.after(10)
    assert near == IdleClock(
        "Will be retired at 60'. Save what you need.",
        ("In use (gpu).", "It will then have run for 60 minutes, the longest that is allowed."),
    )


async def test_a_gpu_that_does_nothing_is_told_for_as_long_as_it_does(watched: Watched) -> None:
    """Not only in the look at which its user was told: others may wait for what it holds."""
    watched.server.cpu_cores = 1.0
    assert (await watched.after(20)).lines[0] == "In use (cpu)."
    for minutes in (11, 30):
        told = await watched.after(minutes)
        assert re.match(r"In use \(cpu\), but its GPU has done nothing for \d+ minutes\.", told.lines[0])
    watched.server.gpu_percent = 90
    assert (await watched.after(1)).lines[0] == "In use (gpu, cpu)."


async def test_a_server_without_limits_and_an_unreadable_one(watched: Watched) -> None:
    """No end is named where there is none, and none is counted down to where nothing is known."""
    watched.site.limits = Limits(idle_seconds=None, max_runtime_seconds=None)
    assert await watched.after(2) == IdleClock("", ("No limit applies.",))
    watched.site.limits = Limits(grace_seconds=0)
    watched.server.unreadable = True
    unknown = await watched.after(2)
    assert unknown.lines[0].startswith("Kept, because not everything is known")
    assert unknown.lines[1] == "The idle limit is 30 minutes."


def status(**changes: Any) -> dict[str, Any]:
    """Return a status of a moment ago."""
    return {"at": 1000.0, "pass_seconds": 60.0, "problem": "", "servers": [{"user": "a", "server": "s"}], **changes}


def test_a_watch_that_stands_still_is_told_and_not_believed() -> None:
    """After three passes without a look nothing is said of servers, but that the watch stands still is."""
    assert read_status(status(), 1180.0) == ({Holder("a", "s"): {"user": "a", "server": "s"}}, "")
    clocks, problem = read_status(status(), 1181.0)
    assert clocks == {}
    assert "not been looked at for 3 minutes" in problem
    assert read_status(status(problem="The hub does not answer."), 1000.0)[1].endswith("The hub does not answer.")


@pytest.mark.parametrize(
    "found", [None, {}, {"at": "noon"}, status(servers=[{}]), status(servers=5), status(at=1000.0 - 86400)]
)
def test_no_watch_is_no_problem(found: dict[str, Any] | None) -> None:
    """A site without a culler, one that was switched off, and a damaged file say nothing."""
    assert read_status(found, 1000.0) == ({}, "")


def test_the_status_of_another_version_still_has_its_sentence() -> None:
    """An entry without the newer keys breaks no page."""
    assert read_clock({"text": "In use."}, str) == IdleClock("", ("In use.",))
