"""What a person would lose by retiring a project now: running kernels, and files outside its folder."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from ds01_spawner.adapters.notebook import NotebookAddress, NotebookSilent
from ds01_spawner.core.activity import Kernel
from ds01_spawner.core.losses import Losses, find_losses
from ds01_spawner.core.model import Holder
from ds01_spawner.errors import EngineUnavailable

LOOK_SECONDS = 3.0


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
    """Looks before a retire; what cannot be seen in time is not asked about, because a retire must always be possible.

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
                if not found:
                    return Losses()
                paths, busy = await asyncio.gather(self._changes(found[0]), self._busy(found[0]))
                return find_losses(paths, busy)
        except (TimeoutError, EngineUnavailable):
            return Losses()

    async def _changes(self, container: str) -> tuple[str, ...]:
        try:
            return await self.changes.changes(container)
        except EngineUnavailable:
            return ()

    async def _busy(self, container: str) -> int:
        try:
            address = await self.changes.address(container, self.network)
            kernels = await self.kernels.kernels(address) if address else ()
        except (NotebookSilent, EngineUnavailable):
            return 0
        return sum(kernel.busy for kernel in kernels)
