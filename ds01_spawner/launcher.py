"""Launches and retires: the order of the steps, and the promise that nothing is left behind.

Everything that can take long or fail for the user's own reasons (building the image, preparing the notebook runtime)
comes before a device is reserved; the container exists before the lease is bound; and whatever ends a launch early
removes the container first and releases the lease after.  JupyterHub is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from ds01_spawner.core import labels, project
from ds01_spawner.core.account import Account
from ds01_spawner.core.container import Mount, ServerContainer
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Device, Holder, Request
from ds01_spawner.core.options import SpawnOptions
from ds01_spawner.errors import DS01Error, EngineUnavailable, ServerDied
from ds01_spawner.startgate import StartGate

log = logging.getLogger(__name__)

WORKSPACE = "/workspace"
CONNECT_RETRY_SECONDS = 0.02
ALIVE_CHECK_SECONDS = 1.0
ENGINE_RETRY_SECONDS = 5.0

T = TypeVar("T")

Say = Callable[[int, str], None]
"""Tells the user what is happening: progress from 0 to 100, and one line of text."""


# -- what is needed of the others ---------------------------------------------------------------------------------


class Image(Protocol):
    """An image that can be started."""

    @property
    def id(self) -> str: ...  # noqa: D102


class ServerCommand(Protocol):
    """How the notebook server is started in one image."""

    @property
    def argv(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def environment(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def mounts(self) -> tuple[Mount, ...]: ...  # noqa: D102
    @property
    def notices(self) -> tuple[str, ...]: ...  # noqa: D102


class Reservation(Protocol):
    """Devices that are this launch's own until the block is left, or for the container's life once bound."""

    @property
    def devices(self) -> tuple[Device, ...]: ...  # noqa: D102

    def creating(self) -> AbstractAsyncContextManager[None]:
        """Guard the creation of the container against other allocators of this host."""

    def bind(self, container_id: str) -> None:
        """The container carries the lease from now on."""


class Waiting(Protocol):
    """A place in the queue."""

    @property
    def sentence(self) -> str: ...  # noqa: D102


class Accounts(Protocol):
    """The people of this host."""

    def find(self, user: str) -> Account: ...  # noqa: D102


class UserThreads(Protocol):
    """Threads for what may take as long as a person's file server does."""

    async def run(self, user: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return what a call returns, in time or not at all."""


class Workspaces(Protocol):
    """The users' project folders."""

    def mount(self, account: Account, project: str, name: str) -> str:
        """Open a project's folder safely, make what was opened available to the engine under ``name``."""

    def unmount(self, name: str) -> None:
        """Undo ``mount``; what is not mounted is no error."""


class Images(Protocol):
    """Images of projects."""

    async def find(self, account: Account, options: SpawnOptions, user: str, say: Say) -> Image:
        """Return the project's image, built if its recipe changed."""


class Runtime(Protocol):
    """The notebook runtime."""

    async def prepare(self, image_id: str, *, on_progress: Callable[[str], None]) -> ServerCommand:
        """Say how a notebook server is started in this image."""


class Allocator(Protocol):
    """The devices."""

    def reservation(
        self, request: Request, *, on_wait: Callable[[Any], None], groups: Iterable[str]
    ) -> AbstractAsyncContextManager[Reservation]:
        """Reserve what is asked for, waiting in the queue while it is not free."""

    async def release(self, holder: Holder) -> None:
        """The holder's container is gone; no lease is no error."""


class Engine(Protocol):
    """Containers."""

    network: str

    async def create(self, server: ServerContainer, extra: dict[str, Any], extra_host: dict[str, Any]) -> str: ...  # noqa: D102
    async def start(self, container: str) -> str: ...  # noqa: D102
    async def remove(self, container: str, *, grace_seconds: int) -> None: ...  # noqa: D102
    async def held_by(self, hub: str, holder: Holder) -> tuple[str, ...]: ...  # noqa: D102
    async def explain_end(self, container: str) -> str | None: ...  # noqa: D102


# -- what is launched ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """One launch that was asked for.

    Attributes:
        holder: the user and the server.
        groups: names of the user's groups at the hub.
        options: what was asked for, validated.
        environment: what JupyterHub tells its servers.
        port: where the notebook server will listen.
        ready_path: path that it answers once it is up.
        ready_seconds: how long it may take from the container's start to that answer.
        extra: the site's additions to the engine's create call.
        extra_host: the site's additions to its host configuration.
    """

    holder: Holder
    groups: frozenset[str]
    options: SpawnOptions
    environment: Mapping[str, str]
    port: int
    ready_path: str
    ready_seconds: float
    extra: dict[str, Any] = field(default_factory=dict)
    extra_host: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launched:
    """A server that answers.

    Attributes:
        container_id: the engine's id.
        container_name: its name on the host.
        address: where the hub reaches it.
        devices: UUIDs it holds.
        workspace: the project's folder on the host.
        started_at: epoch seconds.
    """

    container_id: str
    container_name: str
    address: str
    devices: tuple[str, ...]
    workspace: str
    started_at: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is ready before a device is reserved."""

    account: Account
    image: Image
    command: ServerCommand
    limits: Limits


class Launcher:
    """Launches and retires every server of one hub.

    Args:
        hub: this hub's name on the host, in every label.
        accounts: the people.
        workspaces: their folders.
        threads: where both are used.
        images: their images.
        runtime: the notebook runtime.
        allocator: the devices.
        engine: the containers.
        limits: what a user, in these groups, may have.
        gate: how many servers start at once.
        record: writes an event: ``record(kind, user=…, server=…, **facts)``.
        clock: epoch seconds.
        let_go: whether the hub knows this server and knows that it does not run; false while it cannot tell.
    """

    def __init__(
        self,
        *,
        hub: str,
        accounts: Accounts,
        workspaces: Workspaces,
        threads: UserThreads,
        images: Images,
        runtime: Runtime,
        allocator: Allocator,
        engine: Engine,
        limits: Callable[[str, frozenset[str]], Limits],
        gate: StartGate,
        record: Callable[..., None],
        clock: Callable[[], float],
        let_go: Callable[[Holder], bool] = lambda _: False,
    ) -> None:
        self.hub = hub
        self.accounts = accounts
        self.workspaces = workspaces
        self.threads = threads
        self.images = images
        self.runtime = runtime
        self.allocator = allocator
        self.engine = engine
        self.limits = limits
        self.gate = gate
        self.record = record
        self.clock = clock
        self.let_go = let_go
        self._retries: dict[Holder, asyncio.Task[None]] = {}
        self._forgotten: dict[Holder, asyncio.Task[None]] = {}
        self._locks: WeakValueDictionary[Holder, asyncio.Lock] = WeakValueDictionary()

    def _alone(self, holder: Holder) -> asyncio.Lock:
        """One launch or retire at a time per server: the engine's calls for it never overlap."""
        lock = self._locks.get(holder)
        if lock is None:
            lock = self._locks[holder] = asyncio.Lock()
        return lock

    async def launch(self, order: Order, say: Say) -> Launched:
        """Launch a project and return when its notebook server answers.

        Raises:
            DS01Error: with the reason.  Then, as after a cancel, no container of it exists and nothing is reserved.
        """
        async with self._alone(order.holder):
            say(2, f"Opening {order.options.project}")
            account = await self.threads.run(order.holder.user, self.accounts.find, order.holder.user)
            limits = self.limits(order.holder.user, order.groups)
            image = await self.images.find(account, order.options, order.holder.user, say)
            command = await self.runtime.prepare(image.id, on_progress=lambda text: say(60, text))
            for notice in command.notices:
                say(62, notice)
            prepared = _Prepared(account, image, command, limits)
            await self._discard(order.holder)
            if retry := self._retries.pop(order.holder, None):
                retry.cancel()  # what it was to remove is gone, and it would remove what is launched now
            wanted = order.options
            request = Request(order.holder, wanted.gpus, wanted.kind, wanted.min_memory_gib * 2**30)
            async with (
                self.allocator.reservation(
                    request, on_wait=lambda waiting: say(65, waiting.sentence), groups=order.groups
                ) as reservation,
                self.gate.enter(lambda before: say(70, _starting_before(before))),
            ):
                try:
                    return await self._start(order, prepared, reservation, say)
                except BaseException:
                    await in_full(self._undo(order.holder))
                    raise

    async def _start(self, order: Order, prepared: _Prepared, reservation: Reservation, say: Say) -> Launched:
        say(75, "Creating the container")
        # A call that a thread has begun cannot be called back, so each is awaited to its end even when cancelled.
        folder = await in_full(
            self.threads.run(
                order.holder.user,
                self.workspaces.mount,
                prepared.account,
                order.options.project,
                mount_name(order.holder),
            )
        )
        server = self._describe(order, prepared, folder, reservation.devices)
        async with reservation.creating():
            container = await in_full(self.engine.create(server, order.extra, order.extra_host))
        say(80, "Starting the notebook server")
        address = await self.engine.start(container)
        reservation.bind(container)
        await self._until_ready(container, address, order)
        self.record(
            "container.start",
            user=order.holder.user,
            server=order.holder.server,
            project=order.options.project,
            container=container,
            image=prepared.image.id,
            devices=server.devices,
        )
        return Launched(
            container_id=container,
            container_name=server.name,
            address=address,
            devices=server.devices,
            workspace=server.labels[labels.WORKSPACE],
            started_at=self.clock(),
        )

    def _describe(self, order: Order, prepared: _Prepared, folder: str, devices: tuple[Device, ...]) -> ServerContainer:
        account, limits = prepared.account, prepared.limits
        home = f"/home/{account.name}"
        record = labels.ServerLabels(
            hub=self.hub,
            holder=order.holder,
            project=order.options.project,
            workspace=str(account.home / project.project_path(order.options.project)),
            created_at=self.clock(),
            devices=tuple(device.uuid for device in devices),
            slots=tuple(device.index for device in devices),
        )
        return ServerContainer(
            name=project.container_name(order.holder.user, order.options.project),
            hostname=project.hostname(order.options.project),
            image_id=prepared.image.id,
            argv=prepared.command.argv,
            environment={**order.environment, **prepared.command.environment, "HOME": home, "USER": account.name},
            user=account.name,
            uid=account.uid,
            gid=account.gid,
            groups=tuple(group for group in account.groups if group not in {0, account.gid}),
            home=home,
            working_dir=WORKSPACE,
            mounts=(Mount(folder, WORKSPACE), *prepared.command.mounts),
            labels=labels.encode(record),
            devices=record.devices,
            network=self.engine.network,
            cpus=limits.max_cpus,
            memory_bytes=limits.memory_bytes,
            shm_bytes=limits.shm_size_bytes,
            pids=limits.pids_limit,
        )

    async def _until_ready(self, container: str, address: str, order: Order) -> None:
        answer = asyncio.ensure_future(_first_answer(address, order.port, order.ready_path))
        try:
            async with asyncio.timeout(order.ready_seconds):
                while not (await asyncio.wait([answer], timeout=ALIVE_CHECK_SECONDS))[0]:
                    if why := await self.engine.explain_end(container):
                        raise ServerDied(why)
        except TimeoutError as error:
            raise ServerDied(
                f"The notebook server did not answer within {order.ready_seconds:.0f} s of its start. Launch again; "
                "if it stays so, tell an administrator."
            ) from error
        finally:
            answer.cancel()

    async def retire(self, holder: Holder, *, grace_seconds: int) -> None:
        """Remove the server's containers and release its devices; returns when the containers are gone.

        Raises:
            EngineUnavailable: they may still run, so their devices stay theirs.
        """
        async with self._alone(holder):
            await in_full(self._undo(holder, grace_seconds))

    async def retire_for_certain(self, holder: Holder) -> None:
        """Retire at once, without raising: what fails is tried again in the background until the next launch.

        For the moment when the hub forgets the server: nobody would come back to its container.
        """
        try:
            await self.retire(holder, grace_seconds=0)
        except Exception as error:  # nobody else would try again, whatever failed
            known = isinstance(error, DS01Error)
            log.warning("%s/%s is retired later: %s", holder.user, holder.server, error, exc_info=not known)
            if holder not in self._retries:
                self._retries[holder] = asyncio.create_task(self._retry_retire(holder))

    async def _retry_retire(self, holder: Holder) -> None:
        while True:
            await asyncio.sleep(ENGINE_RETRY_SECONDS)
            with suppress(Exception):
                await self.retire(holder, grace_seconds=0)
                self._retries.pop(holder, None)
                return

    def retire_forgotten(self, holders: Iterable[Holder]) -> None:
        """Retire, in the background, those servers that the hub has let go of: nobody would come back to them.

        Such a server is left when the engine is away during its retire and the hub ends before it is made up for.  One
        that is being launched or retired is left alone; what fails is done again after the next look.
        """
        for holder in holders:
            if self.let_go(holder) and not self._alone(holder).locked() and holder not in self._forgotten:
                self._forgotten[holder] = asyncio.create_task(self._retire_forgotten(holder))

    async def _retire_forgotten(self, holder: Holder) -> None:
        try:
            async with self._alone(holder):
                if self.let_go(holder):  # a launch may have come first
                    log.warning("%s/%s runs although the hub let go of it: retired", holder.user, holder.server)
                    await in_full(self._undo(holder))
        except Exception:
            log.exception("%s/%s could not be retired", holder.user, holder.server)
        finally:
            del self._forgotten[holder]

    async def explain_end(self, holder: Holder, container: str) -> str | None:
        """Say why a server's container does not run, ``None`` while it does, or may for all that is known."""
        try:
            why = await self.engine.explain_end(container)
        except EngineUnavailable as error:
            log.warning("%s/%s counts as running: %s", holder.user, holder.server, error)
            return None
        if why is not None:
            self.record("container.stop", user=holder.user, server=holder.server, container=container, why=why)
        return why

    async def _undo(self, holder: Holder, grace_seconds: int = 0) -> None:
        await self._discard(holder, grace_seconds)
        await self.allocator.release(holder)

    async def _discard(self, holder: Holder, grace_seconds: int = 0) -> None:
        # By label, not by name or memory: after a killed hub nobody remembers the id.
        for container in await self.engine.held_by(self.hub, holder):
            await self.engine.remove(container, grace_seconds=grace_seconds)
            self.record("container.remove", user=holder.user, server=holder.server, container=container)
        await asyncio.to_thread(self.workspaces.unmount, mount_name(holder))


def mount_name(holder: Holder) -> str:
    """Return the name under which a server's folder is mounted for the engine; found again without any memory."""
    return project.container_name(holder.user, holder.server)


def _starting_before(before: int) -> str:
    if before == 0:
        return "Waiting for the processors: this server is next to start"
    servers = "server starts" if before == 1 else "servers start"
    return f"Waiting for the processors: {before} {servers} before this one"


async def _first_answer(address: str, port: int, path: str) -> None:
    """Return once a server answers a GET with any status.

    One connection is held open: the socket listens before the server serves, and the first byte comes the moment that
    it does, so nothing is polled and no time is lost between polls.
    """
    while True:
        try:
            reader, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(CONNECT_RETRY_SECONDS)
            continue
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            await writer.drain()
            if await reader.read(1):
                return
        except OSError:
            pass
        finally:
            writer.close()
        await asyncio.sleep(CONNECT_RETRY_SECONDS)


async def in_full(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end even when cancelled meanwhile; the cancel is raised after."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as never retrieved
        raise cancelled
    return task.result()
