"""What those who wait may expect of idle servers, from a real culler's status file, and from damaged ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.idleclocks import IdleClocks
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder
from ds01_spawner.testing.activity import FakeSite

ADA = Holder("ada", "thesis")
MINUTE = 60.0
NOW = 1_800_000_000.0


@pytest.fixture
def site() -> FakeSite:
    """Return a site with two devices, both held, where an idle server in demand ends after a quarter of an hour."""
    site = FakeSite(device_uuids=("GPU-0", "GPU-1"))
    site.start("ada", devices=["GPU-0"])
    site.start("bob", devices=["GPU-1"]).gpu_percent = 90
    return site


async def stops(site: FakeSite, folder: Path) -> dict[str, float] | None:
    """Return in how many minutes each user's server is expected to end."""
    found = await IdleClocks(CullerFiles(folder), lambda: site.wall + site.now).read()
    now = site.wall + site.now
    return None if found is None else {holder.user: (stop - now) / MINUTE for holder, stop in found.stops.items()}


async def test_the_cullers_word_is_what_counts(site: FakeSite, tmp_path: Path) -> None:
    """A server that is idle ends when the culler will end it; one in use has its whole limit before it."""
    await site.watch(site.culler(tmp_path), 6 * MINUTE)
    assert await stops(site, tmp_path) == {"ada": 10.0, "bob": 15.0}
    read = await IdleClocks(CullerFiles(tmp_path), lambda: site.wall + site.now).read()
    assert read is not None
    assert read.at == site.wall + site.now


async def test_what_the_culler_cannot_tell_is_left_out(site: FakeSite, tmp_path: Path) -> None:
    """Of a server that cannot be looked at, or is kept for ever, nobody is told that it ends soon."""
    next(iter(site.servers.values())).unreadable = True
    await site.watch(site.culler(tmp_path), 6 * MINUTE)
    assert await stops(site, tmp_path) == {"bob": 15.0}
    site.limits = Limits(idle_seconds=None, max_runtime_seconds=None)
    await site.watch(site.culler(tmp_path), 6 * MINUTE)
    assert await stops(site, tmp_path) == {}


async def test_a_clock_from_before_anybody_waited_is_not_used(site: FakeSite, tmp_path: Path) -> None:
    """While devices are plentiful an idle time is longer than it will be for somebody who waits."""
    site.device_uuids = tuple(f"GPU-{n}" for n in range(8))
    culler = site.culler(tmp_path)
    await site.watch(culler, 6 * MINUTE)
    assert await stops(site, tmp_path) == {}
    site.waiting = (Holder("eve", "thesis"),)
    await site.watch(culler, MINUTE)
    assert (await stops(site, tmp_path) or {})["ada"] == 9.0


async def test_a_culler_that_stands_still_says_nothing(site: FakeSite, tmp_path: Path) -> None:
    """After three passes without news, and when the clock was set back, its word is worth nothing."""
    assert await stops(site, tmp_path) is None
    await site.watch(site.culler(tmp_path), 6 * MINUTE)
    site.now += 3 * MINUTE
    assert await stops(site, tmp_path) is not None
    site.now += 1
    assert await stops(site, tmp_path) is None
    site.now -= 2 * 3600
    assert await stops(site, tmp_path) is None


GOOD: dict[str, Any] = {
    "at": NOW,
    "pass_seconds": 60.0,
    "took_seconds": 1.0,
    "servers": [{"user": "ada", "server": "thesis", "stop_at": NOW + 60, "in_demand": True}],
}


@pytest.mark.parametrize(
    "damage",
    [
        {"at": None},
        {"at": math.nan},
        {"pass_seconds": "often"},
        {"servers": None},
        {"servers": [{"user": "ada"}]},
        {"servers": ["ada"]},
    ],
    ids=str,
)
async def test_a_damaged_file_says_nothing(tmp_path: Path, damage: dict[str, Any]) -> None:
    """Whatever is in the file, the hub goes on and promises nothing by it."""
    files = CullerFiles(tmp_path)
    files.write_status(GOOD | damage)
    assert await IdleClocks(files, lambda: NOW).read() is None


@pytest.mark.parametrize("stop", [None, math.inf, math.nan, "soon", []])
async def test_a_damaged_time_is_no_time(tmp_path: Path, stop: object) -> None:
    """What is no moment is left out, and the others stay."""
    files = CullerFiles(tmp_path)
    servers = [{"user": "bob", "server": "x", "stop_at": stop, "in_demand": True}, *GOOD["servers"]]
    files.write_status(GOOD | {"servers": servers})
    read = await IdleClocks(files, lambda: NOW).read()
    assert read is not None
    assert dict(read.stops) == {ADA: NOW + 60}
    assert read.at == NOW - 1
