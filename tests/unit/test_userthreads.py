"""A home that does not answer is its own person's trouble only."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds01_spawner.adapters import mounts
from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.errors import AccountUnavailable

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def server() -> Iterator[threading.Event]:
    """A file server: whoever touches it waits until it answers."""
    answers = threading.Event()
    yield answers
    answers.set()


async def test_a_call_returns_and_raises_as_it_is() -> None:
    """Results, the call's own errors and its own timeouts come through."""

    def fail() -> None:
        raise TimeoutError("the call's own")

    threads = UserThreads()
    assert await threads.run("ada", divmod, 7, 2) == (3, 1)
    with pytest.raises(TimeoutError, match="the call's own"):
        await threads.run("ada", fail)


async def test_a_silent_home_ends_in_a_sentence(server: threading.Event) -> None:
    """Nobody waits for ever."""
    with pytest.raises(AccountUnavailable, match="home folder of ada does not answer"):
        await UserThreads(seconds=0.01).run("ada", server.wait)


async def test_only_its_own_person_is_held_up(server: threading.Event) -> None:
    """Somebody else's call runs while any number of one person's hang, and theirs again once the home answers."""
    threads = UserThreads(most_per_user=3, seconds=20)
    hanging = [asyncio.create_task(threads.run("ada", server.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(AccountUnavailable, match="ada"):
        await threads.run("ada", int)
    assert await threads.run("bob", int) == 0
    server.set()
    assert await asyncio.gather(*hanging) == [True] * 3
    assert await threads.run("ada", int) == 0


async def test_what_nobody_waits_for_any_more_is_given_back(server: threading.Event) -> None:
    """A descriptor of a folder that was opened too late is closed."""
    given_back: asyncio.Queue[int] = asyncio.Queue()

    def open_late() -> int:
        server.wait()
        return 7

    threads = UserThreads(seconds=0.01)
    with pytest.raises(AccountUnavailable):
        await threads.run("ada", open_late, unclaimed=given_back.put_nowait)
    patient = UserThreads()
    cancelled = asyncio.create_task(patient.run("bob", open_late, unclaimed=given_back.put_nowait))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert given_back.empty()
    server.set()
    assert [await given_back.get(), await given_back.get()] == [7, 7]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_home_that_hangs_while_it_is_mounted_keeps_nobody_from_retiring(
    tmp_path: Path, server: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retire unmounts before it gives the device back, so that must not wait for another person's file server."""
    look = os.fstatvfs

    def look_late(descriptor: int) -> os.statvfs_result:
        if threading.current_thread().name == "ada":
            server.wait()
        return look(descriptor)

    monkeypatch.setattr(os, "fstatvfs", look_late)
    (tmp_path / "run").mkdir(mode=0o700)
    ours = mounts.Mounts(tmp_path / "run")
    folder = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    ours.mount(folder, "bob")
    ada = threading.Thread(name="ada", target=ours.mount, args=(folder, "ada"))
    ada.start()
    ours.unmount("bob")
    assert ours.mounted() == ()
    server.set()
    ada.join()
    ours.unmount("ada")
    os.close(folder)
