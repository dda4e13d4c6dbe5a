"""One pass: look at every server, decide, act, record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from ds01_spawner.adapters.activity import DeviceMeter, Place
from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.core import claims, labels, tickets
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import DeviceReading, Reading
from ds01_spawner.core.idleness import Delivery, Retire, decide
from ds01_spawner.core.idlerules import Demand, rules_of
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Container, Holder
from ds01_spawner.errors import DS01Error, HubUnavailable
from ds01_spawner.services.culler.acts import Acts
from ds01_spawner.services.culler.report import Report
from ds01_spawner.services.culler.settings import Settings
from ds01_spawner.services.culler.watch import Watch, decode_delivery

log = logging.getLogger("ds01_spawner.culler")

_RETIRED_AT_ONCE = 8

Lease = Callable[[tuple[str, ...]], tuple[DeviceReading, ...] | None]


class Hub(Protocol):
    """The hub."""

    async def active_servers(self) -> tuple[HubServer, ...]:
        """Return every server that is ready, starting or stopping, or raise HubUnavailable."""

    async def server(self, user: str, name: str) -> HubServer | None:
        """Return one server, ``None`` when it does not run, or raise HubUnavailable."""

    async def stop(self, user: str, name: str) -> bool:
        """Stop one and return whether it has stopped, or raise HubUnavailable."""


class Engine(Protocol):
    """The containers of this host."""

    async def containers(self) -> tuple[Container, ...]:
        """Return all of them, or raise EngineUnavailable."""


class Reader(Protocol):
    """What containers are doing."""

    async def read(self, place: Place, devices: tuple[DeviceReading, ...] | None) -> Reading:
        """Return one reading of a server; never raises."""

    def forget(self, kept: Iterable[str]) -> None:
        """Forget every container but these."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything outside that a pass looks at.

    Attributes:
        hub: the hub.
        engine: the containers.
        meter: the devices.
        reader: what containers are doing.
        find_account: a user's account, or raises AccountUnavailable; may block.
        limits: a user's limits, by login name and names of JupyterHub groups.
        queue: the text of the queue's file, ``None`` when there is none; or raises OSError.
        lost_packages: the Python packages installed by hand in a container, ``None`` when that cannot be told.
        threads: where blocking calls are made.
        clock: monotonic seconds.
    """

    hub: Hub
    engine: Engine
    meter: DeviceMeter
    reader: Reader
    find_account: Callable[[str], Account]
    limits: Callable[[str, frozenset[str]], Limits]
    queue: Callable[[], str | None]
    lost_packages: Callable[[str], Awaitable[tuple[str, ...] | None]]
    threads: Executor
    clock: Callable[[], float]


class Culler:
    """Makes passes.  What it remembers is a window per container; what it did before that it reads from its files.

    Args:
        settings: the site's.
        world: what it looks at.
        acts: what it does.
    """

    def __init__(self, settings: Settings, world: World, acts: Acts) -> None:
        self._settings = settings
        self._world = world
        self._acts = acts
        self._watches: dict[str, Watch] = {}
        self._retirements = asyncio.Semaphore(_RETIRED_AT_ONCE)
        self._standing: dict[str, Any] | None = None

    @property
    def watches(self) -> tuple[Watch, ...]:
        """Everything that is watched."""
        return tuple(self._watches.values())

    @property
    def devices(self) -> frozenset[str]:
        """Every leased device."""
        return frozenset(uuid for watch in self._watches.values() for uuid in watch.place.devices)

    def next_look_seconds(self) -> float:
        """Return when the next pass is worth making: at the next warning or end, and at the latest a pass from now."""
        longest = self._settings.pass_seconds
        steps = [watch.decision.look_in_seconds for watch in self._watches.values() if watch.decision is not None]
        nearest = min((step for step in steps if step is not None), default=longest)
        # Many servers with ends of their own must not make it one long pass.
        return max(longest / 6, min(longest, nearest))

    async def run(self) -> Report:
        """Make one pass; never raises for what one server or the world outside does."""
        began = self._world.clock()
        try:
            servers = await self._world.hub.active_servers()
        except HubUnavailable as error:
            # Nothing is looked at, so the windows get a gap, and a gap is not idleness.
            failed = Report(self._world.clock() - began, problem=str(error))
            self._acts.publish(self.watches, failed)
            return failed
        self._acts.forget_launched(servers)
        containers, engine_problem = await self._containers()
        strangers = self._match(servers, containers)
        lease = await self._world.meter.read(self.devices)
        await asyncio.gather(*(self._guarded(watch, self._look(watch, lease)) for watch in self.watches))
        demand = self._demand(servers, containers)
        for watch in self.watches:
            if not watch.problem:
                await self._guarded(watch, self._decide(watch, demand))
        told = await self._acts.tell(self.watches)

        def report() -> Report:
            broken = sum(bool(watch.problem) for watch in self.watches)
            seconds = self._world.clock() - began
            return Report(seconds, len(self._watches), broken, engine_problem, demand, tuple(strangers))

        self._acts.settle(told, self.watches, report())
        ends = [watch for watch in self.watches if isinstance(watch.decision, Retire)]
        if ends:
            await asyncio.gather(*(self._guarded(watch, self._retire(watch, demand)) for watch in ends))
            self._acts.publish(self.watches, report())
        return report()

    # -- look ---------------------------------------------------------------------------------------------------------

    async def _containers(self) -> tuple[Mapping[str, Container] | None, str]:
        try:
            return {container.id: container for container in await self._world.engine.containers()}, ""
        except DS01Error as error:
            return None, str(error)

    def _match(
        self, servers: Iterable[HubServer], containers: Mapping[str, Container] | None
    ) -> list[tuple[HubServer, str]]:
        """Bring the watches up to what the hub and the engine list, and return the servers that are not watched."""
        now = self._world.clock()
        strangers = []
        for server in servers:
            if not server.ready or server.pending:
                continue
            found = self._place(server, containers)
            if isinstance(found, str):
                strangers.append((server, found))
                continue
            place, project = found
            watch = self._watches.get(place.container_id)
            if watch is None:
                watch = self._watches[place.container_id] = Watch(server, place, project)
                watch.deliveries = self._remembered(place.container_id)
            watch.server, watch.seen_at = server, now
        # One that a page of the hub's list happened to miss is not gone yet.
        gone = [key for key, watch in self._watches.items() if now - watch.seen_at > self._settings.gap_seconds]
        pending = {(server.user, server.name) for server in servers if server.pending or not server.ready}
        gone += [key for key, watch in self._watches.items() if (watch.server.user, watch.server.name) in pending]
        if containers is not None:
            gone += [key for key in self._watches if key not in containers]
        for key in set(gone):
            del self._watches[key]
        self._world.reader.forget(self._watches)
        return strangers

    def _place(self, server: HubServer, containers: Mapping[str, Container] | None) -> tuple[Place, str] | str:
        identity, url = server.state.get("container_id"), server.state.get("url")
        if not isinstance(identity, str) or not isinstance(url, str):
            return "the hub keeps no container for it; it is not a project of this hub"
        known = self._watches.get(identity)
        if containers is None:
            return (known.place, known.project) if known else "Docker Engine does not answer"
        container = containers.get(identity)
        if container is None:
            return "its container is gone"
        record = labels.decode(container.labels)
        if record is None or (record.hub, record.holder) != (self._settings.hub, Holder(server.user, server.name)):
            return "the labels of its container are not its own"
        return Place(identity, url, record.devices), record.project

    def _remembered(self, container_id: str) -> tuple[Delivery, ...]:
        if self._standing is None:
            self._standing = self._acts.standing()
        found = self._standing.pop(container_id, None)
        entries = found if isinstance(found, list) else []
        decoded = (decode_delivery(entry, self._world.clock()) for entry in entries if isinstance(entry, dict))
        return tuple(delivery for delivery in decoded if delivery is not None)

    async def _look(self, watch: Watch, lease: Lease) -> None:
        watch.problem = ""
        watch.add(await self._world.reader.read(watch.place, lease(watch.place.devices)))
        await self._look_up(watch)

    async def _look_up(self, watch: Watch) -> None:
        """Find out what applies to a server: its user's limits, account, and keep-alive."""
        if watch.account is None:
            loop = asyncio.get_running_loop()
            find = self._world.find_account
            try:
                watch.account = await loop.run_in_executor(self._world.threads, find, watch.server.user)
                watch.note = ""
            except DS01Error as error:
                # Its keep-alive is unknown then; its longest run is not.
                watch.note = str(error)
        watch.limits = self._world.limits(watch.server.user, watch.server.groups)
        watch.rules = rules_of(
            watch.limits,
            lead_seconds=self._settings.warn_seconds,
            notice_seconds=self._settings.notice_seconds,
            gap_seconds=self._settings.gap_seconds,
        )
        watch.keep_alive_seconds = await self._acts.channels.keep_alive_seconds(watch)

    def _demand(self, servers: Iterable[HubServer], containers: Mapping[str, Container] | None) -> Demand:
        devices = self._world.meter.inventory
        held = None
        if devices is not None and containers is not None:
            inventory = claims.Inventory(devices)
            running = [container for container in containers.values() if container.state not in claims.ENDED]
            held = len({uuid for c in running for claim in c.devices for uuid in inventory.resolve(claim)})
        return Demand(held, None if devices is None else len(devices), self._waiting(servers))

    def _waiting(self, servers: Iterable[HubServer]) -> int | None:
        """Count the places in the queue whose servers are starting: the file also keeps those of people who left."""
        starting = {Holder(server.user, server.name) for server in servers if server.pending == "spawn"}
        if not starting:
            return 0
        try:
            text = self._world.queue()
            places = tickets.decode(text).tickets if text is not None else ()
        except (OSError, ValueError):
            return None
        return sum(ticket.request.holder in starting for ticket in places)

    # -- decide and act -----------------------------------------------------------------------------------------------

    async def _guarded(self, watch: Watch, work: Awaitable[None]) -> None:
        """Do something about one server; whatever goes wrong is that server's problem, and it is kept."""
        try:
            await work
        except Exception as error:
            watch.problem = f"{type(error).__name__}: {error}"
            watch.decision = None
            log.exception("%s/%s is kept, because of this:", watch.server.user, watch.server.name)

    async def _decide(self, watch: Watch, demand: Demand) -> None:
        watch.decision = decide(watch.known(), watch.rules, demand, self._world.clock())

    async def _retire(self, watch: Watch, demand: Demand) -> None:
        """Look at everything again, and end the server if that still says so."""
        async with self._retirements:
            server = await self._world.hub.server(watch.server.user, watch.server.name)
            if server is None or not server.ready or server.pending:
                return
            if server.state.get("container_id") != watch.place.container_id:
                return
            lost = await self._world.lost_packages(watch.place.container_id)
            lease = await self._world.meter.read(watch.place.devices)
            watch.replace_newest(await self._world.reader.read(watch.place, lease(watch.place.devices)))
            await self._look_up(watch)
            decision = watch.decision = decide(watch.known(), watch.rules, demand, self._world.clock())
            if not isinstance(decision, Retire):
                log.info("%s/%s is kept: the last look changed it", server.user, server.name)
                return
            began = self._world.clock()
            stopped = await self._world.hub.stop(server.user, server.name)
            took_seconds = self._world.clock() - began
            await self._acts.end(watch, decision, took_seconds=took_seconds, stopped=stopped, lost=lost)
            del self._watches[watch.place.container_id]
