"""The look before a retire: busy kernels and changed files are found; what cannot be seen is not taken for nothing."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from ds01_spawner.adapters.notebook import NotebookAddress, NotebookSilent
from ds01_spawner.core.activity import Kernel
from ds01_spawner.core.losses import Losses, find_losses
from ds01_spawner.core.model import Holder
from ds01_spawner.errors import EngineUnavailable
from ds01_spawner.services.portal import leaving
from ds01_spawner.services.portal.leaving import FILES, KERNELS, Leaving

HOLDER = Holder("ada", "thesis")
ADDRESS = NotebookAddress("http://172.18.0.2:8888/user/ada/thesis/", "token")


@dataclass
class World:
    """One container with its notebook server; each part can be away, or never answer."""

    containers: tuple[str, ...] = ("c1",)
    paths: tuple[str, ...] = ()
    busy: tuple[bool, ...] = ()
    listing: Exception | None = None
    diff: Exception | None = None
    notebook: Exception | None = None
    hangs: bool = False

    async def held_by(self, hub: str, holder: Holder) -> tuple[str, ...]:
        """Return the containers."""
        if self.listing:
            raise self.listing
        return self.containers

    async def changes(self, container: str) -> tuple[str, ...]:
        """Return what changed."""
        if self.diff:
            raise self.diff
        return self.paths

    async def address(self, container: str, network: str) -> NotebookAddress | None:
        """Return where the notebook server is."""
        return ADDRESS

    async def kernels(self, address: NotebookAddress) -> tuple[Kernel, ...]:
        """Return the kernels."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.notebook:
            raise self.notebook
        return tuple(Kernel(str(number), busy, "") for number, busy in enumerate(self.busy))


async def look(world: World) -> Losses:
    """Look at it."""
    return await Leaving("hub", "net", world, world, world).look(HOLDER)


async def test_busy_kernels_and_changed_files_are_found_together() -> None:
    """Only kernels that compute count, and both kinds of loss are in one answer."""
    found = await look(World(paths=("/srv/a/b",), busy=(True, False, True)))
    assert (found.busy_kernels, found.files, found.folders, found.unseen) == (2, 1, (("/srv/a", 1),), ())


async def test_a_server_without_a_container_loses_nothing() -> None:
    """There is nothing to ask about."""
    assert not await look(World(containers=()))


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_silent_notebook_server_is_asked_about(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    """Its kernels are unknown, which is not idle; the files are counted all the same."""
    monkeypatch.setattr(leaving, "LOOK_SECONDS", 0.01)
    found = await look(World(paths=("/srv/a/b",), hangs=hangs, notebook=NotebookSilent("no answer")))
    assert found.unseen == (KERNELS,)
    assert found.files == 1
    assert found


async def test_an_engine_that_does_not_answer_is_asked_about() -> None:
    """Wherever it stops answering, nothing is called safe that was not seen."""
    away = EngineUnavailable("Docker Engine does not answer.")
    for world, unseen in ((World(listing=away), (FILES, KERNELS)), (World(diff=away, busy=(False,)), (FILES,))):
        found = await look(world)
        assert found.unseen == unseen
        assert found.packages is None


async def test_other_requests_do_not_wait_for_a_long_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the list of changes is its user decides, so it is read in a thread of its own."""
    threads = []

    def find(changed: tuple[str, ...], busy_kernels: int) -> Losses:
        threads.append(threading.current_thread())
        return find_losses(changed, busy_kernels)

    monkeypatch.setattr(leaving, "find_losses", find)
    assert (await look(World(paths=("/srv/a/b",)))).files == 1
    assert threading.main_thread() not in threads
    assert threads
