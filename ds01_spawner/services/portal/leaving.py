"""What a person would lose by retiring a project now: running kernels, and files outside its folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from ds01_spawner.adapters.notebook import NotebookAddress, NotebookSilent
from ds01_spawner.core.activity import Kernel
from ds01_spawner.core.losses import Losses, find_losses
from ds01_spawner.core.model import Holder
from ds01_spawner.errors import EngineUnavailable

LOOK_SECONDS = 3.0
FILES: Final = "files outside /workspace"
KERNELS: Final = "notebooks that compute"

T = TypeVar("T")


class Containers(Protocol):
    """A server's container."""

    async def held_by(self, hub: str, holder: Holder) -> tuple[str, ...]:
        """Return the ids of a server's containers."""


class Changes(Protocol):
    """What is inside it."""

    async def changes(self, container: str) -> tuple[str, ...]:
        """Return paths that were added or changed."""

    async def address(self, container: str, network: str) -> NotebookAddress | None:
        """Return where its notebook server is, ``None`` when that cannot be told."""


class Kernels(Protocol):
    """What it runs."""

    async def kernels(self, address: NotebookAddress) -> tuple[Kernel, ...]:
        """Return the kernels."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Looks before a retire.

    A look never fails and never takes long, because a retire must always be possible; what could not be seen is not
    taken for nothing, though: a kernel that leaves its notebook server no processor time is exactly one that computes.

    Attributes:
        hub: this hub's name in labels.
        network: on which its servers live.
        containers: finds the container.
        changes: tells what changed in it, and where its notebook server is.
        kernels: asks that.
    """

    hub: str
    network: str
    containers: Containers
    changes: Changes
    kernels: Kernels

    async def look(self, holder: Holder) -> Losses:
        """Return what would be lost."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                found = await self.containers.held_by(self.hub, holder)
        except (TimeoutError, EngineUnavailable):
            return Losses(packages=None, unseen=(FILES, KERNELS))
        if not found:
            return Losses(packages=None)
        paths, busy = await asyncio.gather(_in_time(self.changes.changes(found[0])), _in_time(self._busy(found[0])))
        unseen = ((FILES,) if paths is None else ()) + ((KERNELS,) if busy is None else ())
        if paths is None:
            return Losses(busy or 0, packages=None, unseen=unseen)
        # In a thread: how long the list is its user decides.
        return replace(await asyncio.to_thread(find_losses, paths, busy or 0), unseen=unseen)

    async def _busy(self, container: str) -> int:
        address = await self.changes.address(container, self.network)
        return sum(kernel.busy for kernel in await self.kernels.kernels(address)) if address else 0


async def _in_time(look: Awaitable[T]) -> T | None:
    """Return what was seen, ``None`` when it could not be seen in time."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await look
    except (TimeoutError, EngineUnavailable, NotebookSilent):
        return None
