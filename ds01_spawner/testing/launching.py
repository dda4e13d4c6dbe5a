"""A launcher's surroundings in memory: an engine, people, folders, images and devices, with failures on order."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds01_spawner.core import labels
from ds01_spawner.core.account import Account
from ds01_spawner.core.container import Mount, ServerContainer
from ds01_spawner.core.model import Device, Holder, Request
from ds01_spawner.core.options import SpawnOptions
from ds01_spawner.errors import EngineUnavailable, ImageRefused, ServerDied

Step = Callable[[str], Awaitable[None]]
"""Called with the name of a step before it happens; raises, or never returns, to make it fail or hang."""


async def go_on(step: str) -> None:
    """Let every step happen."""


@dataclass
class FakeContainer:
    """One container in memory."""

    server: ServerContainer
    labels: Mapping[str, str]
    state: str = "created"
    exit_code: int = 0
    out_of_memory: bool = False
    log: tuple[str, ...] = ()


@dataclass
class FakeEngine:
    """Containers in memory that behave like Docker's.

    Attributes:
        network: name of the bridge.
        before: called before each step.
        down: while true, nothing answers.
        containers: what exists, by id.
        serve: called when a container starts, with its id; returns the address that it gets.
        gone: ids of images that somebody removed.
        image_labels: what images carry, by id; a container gets those that it is not given itself.
    """

    network: str = "fake"
    before: Step = go_on
    down: bool = False
    containers: dict[str, FakeContainer] = field(default_factory=dict)
    serve: Callable[[str], Awaitable[str]] | None = None
    gone: set[str] = field(default_factory=set)
    image_labels: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    async def _step(self, name: str) -> None:
        await self.before(name)
        if self.down:
            raise EngineUnavailable("Docker Engine does not answer. Tell an administrator.")

    async def create(self, server: ServerContainer, extra: dict[str, Any], extra_host: dict[str, Any]) -> str:
        """Create a container; its name must be free."""
        await self._step("create")
        if any(found.server.name == server.name for found in self.containers.values()):
            raise EngineUnavailable(f"Docker Engine refused: the name {server.name} is in use")
        container = f"{next(self._ids):064x}"
        if server.image_id in self.gone:
            raise ImageRefused("This project's image was replaced or removed while the launch waited. Launch again.")
        inherited = self.image_labels.get(server.image_id, {})
        self.containers[container] = FakeContainer(server, {**inherited, **server.labels})
        return container

    async def start(self, container: str) -> str:
        """Start a created container."""
        await self._step("start")
        if container not in self.containers:
            raise ServerDied("The container vanished before it started. Launch the project again.")
        self.containers[container].state = "running"
        return await self.serve(container) if self.serve else "127.0.0.1"

    async def remove(self, container: str, *, grace_seconds: int) -> None:
        """Remove a container, which may be gone."""
        await self._step("remove")
        self.containers.pop(container, None)

    async def inspect(self, container: str) -> FakeContainer | None:
        """Return a container, ``None`` when there is none."""
        await self._step("inspect")
        return self.containers.get(container)

    async def held_by(self, hub: str, holder: Holder) -> tuple[str, ...]:
        """Return the ids of a server's containers."""
        await self._step("list")
        return tuple(
            container
            for container, found in self.containers.items()
            if (record := labels.decode(found.labels)) and (record.hub, record.holder) == (hub, holder)
        )

    async def explain_end(self, container: str) -> str | None:
        """Say why a container does not run."""
        await self._step("inspect")
        found = self.containers.get(container)
        if found is None:
            return "The container was removed outside the hub. Launch the project again."
        if found.state not in {"exited", "dead"}:
            return None
        if found.out_of_memory:
            return "The server ran out of memory and the kernel ended it."
        return f"The server ended with exit code {found.exit_code}."


@dataclass
class FakePeople:
    """Everybody exists."""

    before: Step = go_on

    def find(self, user: str) -> Account:
        """Return an account."""
        return Account(user, 2000, 2000, (2000,), Path("/home") / user)


@dataclass
class FakeFolders:
    """Counts mounts instead of making them.

    Attributes:
        mounted: how often each name is mounted now.
        problem: raised by ``mount`` when set.
        stuck: raised by ``unmount`` when set.
    """

    mounted: Counter[str] = field(default_factory=Counter)
    problem: Exception | None = None
    stuck: Exception | None = None

    def mount(self, account: Account, project: str, name: str) -> str:
        """Mount a folder."""
        if self.problem is not None:
            raise self.problem
        self.mounted[name] += 1
        return f"/run/fake/{name}"

    def unmount(self, name: str) -> None:
        """Undo ``mount``."""
        if self.stuck is not None:
            raise self.stuck
        self.mounted.pop(name, None)


@dataclass(frozen=True)
class FakeImage:
    """An image that is there."""

    id: str = "sha256:fake"


@dataclass
class FakeImages:
    """Every project has an image."""

    before: Step = go_on

    async def find(
        self, account: Account, options: SpawnOptions, user: str, say: Callable[[int, str], None]
    ) -> FakeImage:
        """Return the image."""
        await self.before("build")
        return FakeImage()


@dataclass(frozen=True)
class FakeCommand:
    """How the server starts."""

    argv: tuple[str, ...] = ("serve",)
    environment: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass
class FakeRuntime:
    """Every image can serve."""

    before: Step = go_on

    async def prepare(self, image_id: str, *, on_progress: Callable[[str], None]) -> FakeCommand:
        """Return the command."""
        await self.before("runtime")
        return FakeCommand()


@dataclass
class FakeReservation:
    """Devices of one launch."""

    devices: tuple[Device, ...]
    container: str = ""

    def creating(self) -> AbstractAsyncContextManager[None]:
        """Guard nothing."""
        return nullcontext()

    def bind(self, container_id: str) -> None:
        """Let a container carry the lease."""
        self.container = container_id


@dataclass
class FakeAllocator:
    """A few devices, no queue: a request that does not fit waits until one is released.

    Attributes:
        devices: all of them.
        leases: what each holder has.
        before: called before each step.
    """

    devices: tuple[Device, ...] = (Device("GPU-0", "fake", 2**30, index="0"),)
    leases: dict[Holder, tuple[Device, ...]] = field(default_factory=dict)
    before: Step = go_on

    @asynccontextmanager
    async def reservation(
        self, request: Request, *, on_wait: Callable[[Any], None], groups: Iterable[str] = ()
    ) -> AsyncIterator[FakeReservation]:
        """Hold devices for the block, and after it when they were bound."""
        await self.before("reserve")
        while len(self._free()) < request.count:  # noqa: ASYNC110 - a fake's waiting needs no fairness
            await asyncio.sleep(0)
        reservation = FakeReservation(self._free()[: request.count])
        self.leases[request.holder] = reservation.devices
        try:
            yield reservation
        finally:
            if not reservation.container:
                self.leases.pop(request.holder, None)

    def _free(self) -> tuple[Device, ...]:
        taken = {device.uuid for devices in self.leases.values() for device in devices}
        return tuple(device for device in self.devices if device.uuid not in taken)

    async def release(self, holder: Holder) -> None:
        """Let go of a holder's devices."""
        await self.before("release")
        self.leases.pop(holder, None)
