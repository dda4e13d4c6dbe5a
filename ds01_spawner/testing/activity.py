"""A site for the culler without hub, engine, GPUs or homes: servers do what they are told, and the world fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds01_spawner.adapters.activity import ContainerUnreadable, DeviceMeter, Place
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.adapters.nvml import DeviceLook
from ds01_spawner.adapters.outbound import NotDelivered
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.core import labels, tickets
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import DeviceReading, Kernel, Reading, Terminal
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Container, Device, Holder, Process, Request
from ds01_spawner.errors import AccountUnavailable, EngineUnavailable, HubUnavailable, ProjectRefused
from ds01_spawner.services.culler.acts import Acts
from ds01_spawner.services.culler.channels import Channels
from ds01_spawner.services.culler.passes import Culler, World
from ds01_spawner.services.culler.report import Report
from ds01_spawner.services.culler.settings import Settings

_WALL_AT_START = 1_800_000_000.0


@dataclass
class FakeServer:
    """One server, its counters, and what it does.

    Attributes:
        user: login name.
        name: the server's name and its project's.
        container_id: its container.
        started_at: when it was started, monotonic seconds.
        devices: UUIDs of its lease.
        cpu_cores: what it uses of the processors from now on.
        network_bytes_per_second: what it sends and receives.
        gpu_percent: utilisation of its devices.
        busy: whether its kernel is.
        messages: rises with every message of its kernel.
        typed: rises when somebody types.
        terminals: how many are open.
        silent: whether its notebook server does not answer.
        unreadable: whether its container cannot be read at all.
        explodes: whether reading it fails in an unforeseen way.
        terminals_explode: whether showing it something does.
        keep_alive_at: when its keep-alive was touched, monotonic seconds.
        packages: what was installed by hand in its container, ``None`` when that cannot be told.
        home_full: whether no file can be written in its project.
        files: the names of our files there.
        shown: what its terminals showed.
        stopping: whether the hub is stopping it.
    """

    user: str
    name: str
    container_id: str
    started_at: float
    devices: tuple[str, ...] = ()
    cpu_cores: float = 0.0
    network_bytes_per_second: float = 0.0
    gpu_percent: float = 0.0
    busy: bool = False
    messages: int = 0
    typed: int = 0
    terminals: int = 0
    silent: bool = False
    unreadable: bool = False
    explodes: bool = False
    terminals_explode: bool = False
    keep_alive_at: float | None = None
    packages: tuple[str, ...] | None = ()
    home_full: bool = False
    files: dict[str, str] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    stopping: bool = False
    cpu_seconds: float = 0.0
    network_bytes: float = 0.0


@dataclass
class FakeSite:
    """Hub, engine, devices, homes and clocks of a site; every failure is an attribute named after it.

    Attributes:
        servers: by container.
        device_uuids: devices that exist.
        limits: of everybody.
        now: monotonic seconds.
        wall: seconds since the epoch at ``now`` 0.
        hub_is_away: the hub does not answer.
        hub_refuses_to_stop: it answers, but stops nothing.
        engine_is_away: Docker Engine does not answer.
        driver_is_away: NVML does not answer.
        homes_are_away: nobody's home answers.
        webhook_is_away: the site's webhook does not answer.
        waiting: servers that start and wait for a device.
        starting: servers that start and wait for nothing.
        gave_up: places in the queue's file of people who left.
        stopped: what was stopped, with the time.
        sent: what the webhook got.
        events: what was recorded.
    """

    servers: dict[str, FakeServer] = field(default_factory=dict)
    device_uuids: tuple[str, ...] = ()
    limits: Limits = field(default_factory=lambda: Limits(grace_seconds=0))
    now: float = 1000.0
    wall: float = _WALL_AT_START
    hub_is_away: bool = False
    hub_refuses_to_stop: bool = False
    engine_is_away: bool = False
    driver_is_away: bool = False
    homes_are_away: bool = False
    webhook_is_away: bool = False
    waiting: tuple[Holder, ...] = ()
    starting: tuple[Holder, ...] = ()
    gave_up: tuple[Holder, ...] = ()
    stopped: list[tuple[str, float]] = field(default_factory=list)
    sent: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lost: int = 0
    _identities: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # -- what happens -------------------------------------------------------------------------------------------------

    def start(self, user: str, name: str = "thesis", *, devices: Iterable[str] = ()) -> FakeServer:
        """Start a server and return it."""
        identity = f"{next(self._identities):064x}"
        server = FakeServer(user, name, identity, self.now, tuple(devices))
        self.device_uuids = tuple(dict.fromkeys((*self.device_uuids, *server.devices)))
        self.servers[identity] = server
        return server

    def advance(self, seconds: float) -> None:
        """Let time pass and every server do what it does."""
        self.now += seconds
        for server in self.servers.values():
            server.cpu_seconds += server.cpu_cores * seconds
            server.network_bytes += server.network_bytes_per_second * seconds

    def culler(self, folder: Path, **settings: Any) -> Culler:
        """Return a culler that was just started on this site."""
        notes = folder / "packages"
        values = {
            "hub": "lab",
            "folder": folder,
            "packages_folder": notes,
            "events": folder / "events.jsonl",
            **settings,
        }
        made = Settings(**values)
        threads = ThreadPoolExecutor(1)
        channels = Channels(self, self, {"webhook": self}, threads)
        world = World(
            hub=self,
            engine=self,
            meter=DeviceMeter(self),
            reader=self,
            find_account=self._find_account,
            limits=lambda user, groups: self.limits,  # noqa: ARG005 - everybody's are the same
            queue=self._queue,
            lost_packages=self._lost_packages,
            threads=threads,
            clock=lambda: self.now,
        )
        acts = Acts(
            made,
            channels,
            CullerFiles(folder),
            LostPackages(notes),
            self,
            clock=lambda: self.now,
            wall=lambda: self.wall + self.now,
        )
        return Culler(made, world, acts)

    async def watch(self, culler: Culler, seconds: float, *, every: float = 60.0) -> list[Report]:
        """Let a culler pass for some time, at every step of it."""
        reports = []
        end = self.now + seconds
        while self.now < end:
            self.advance(min(every, end - self.now))
            reports.append(await culler.run())
        return reports

    # -- the hub ------------------------------------------------------------------------------------------------------

    async def active_servers(self) -> tuple[HubServer, ...]:
        """Return every server, and those that wait."""
        if self.hub_is_away:
            raise HubUnavailable("The hub does not answer.")
        starting = [
            HubServer(h.user, frozenset(), h.server, ready=False, pending="spawn")
            for h in (*self.waiting, *self.starting)
        ]
        return (*map(self._described, self.servers.values()), *starting)

    async def server(self, user: str, name: str) -> HubServer | None:
        """Return one server."""
        if self.hub_is_away:
            raise HubUnavailable("The hub does not answer.")
        found = (s for s in self.servers.values() if (s.user, s.name) == (user, name))
        return next(map(self._described, found), None)

    async def stop(self, user: str, name: str) -> bool:
        """Stop one."""
        if self.hub_is_away or self.hub_refuses_to_stop:
            raise HubUnavailable("The hub did not stop a server: 500.")
        for identity, server in list(self.servers.items()):
            if (server.user, server.name) == (user, name):
                del self.servers[identity]
                self.stopped.append((f"{user}/{name}", self.now))
        return True

    def _described(self, server: FakeServer) -> HubServer:
        state = {"container_id": server.container_id, "url": "http://127.0.0.1:1"}
        pending = "stop" if server.stopping else ""
        return HubServer(server.user, frozenset(), server.name, not server.stopping, pending, server.name, state)

    def _queue(self) -> str | None:
        places = [
            tickets.Ticket(Request(holder, 1), self.now, n) for n, holder in enumerate((*self.waiting, *self.gave_up))
        ]
        return tickets.encode(self.now, places, {})

    # -- the engine and the containers --------------------------------------------------------------------------------

    async def containers(self) -> tuple[Container, ...]:
        """Return every container."""
        if self.engine_is_away:
            raise EngineUnavailable("Docker Engine does not answer.")
        return tuple(
            Container(s.container_id, s.name, "running", self._labels(s), s.devices) for s in self.servers.values()
        )

    def _labels(self, server: FakeServer) -> dict[str, str]:
        holder = Holder(server.user, server.name)
        slots = tuple(str(n) for n, _ in enumerate(server.devices))
        return labels.encode(labels.ServerLabels("lab", holder, server.name, "", 0, server.devices, slots))

    async def read(self, place: Place, devices: tuple[DeviceReading, ...] | None) -> Reading:
        """Return one reading of a server."""
        await asyncio.sleep(0)
        server = self.servers.get(place.container_id)
        if server is None or server.unreadable or self.engine_is_away:
            return Reading(at=self.now, devices=devices, problem="It cannot be read.")
        if server.explodes:
            raise RuntimeError("an error that nobody foresaw")
        return Reading(
            at=self.now,
            age_seconds=self.now - server.started_at,
            cpu_seconds=server.cpu_seconds,
            network_bytes=int(server.network_bytes),
            devices=devices,
            kernels=None if server.silent else (Kernel("k", server.busy, str(server.messages)),),
            terminals=tuple(Terminal(str(n), str(server.typed)) for n in range(server.terminals)),
        )

    async def _lost_packages(self, container: str) -> tuple[str, ...] | None:
        return self.servers[container].packages

    async def show(self, place: Place, text: str) -> int:
        """Show a text in every terminal of a server."""
        server = self.servers[place.container_id]
        if server.unreadable:
            raise ContainerUnreadable("it cannot be read")
        if server.terminals_explode:
            raise RuntimeError("an error that nobody foresaw")
        server.shown += [text] * bool(server.terminals)
        return server.terminals

    def forget(self, kept: Iterable[str]) -> None:
        """Forget nothing, because nothing is remembered."""

    # -- the devices --------------------------------------------------------------------------------------------------

    async def look(self) -> DeviceLook:
        """Return every device, each with one process of its holder."""
        if self.driver_is_away:
            return DeviceLook(None, None, problem="The GPUs cannot be read.")
        holders = {uuid: n for n, server in enumerate(self.servers.values(), 1) for uuid in server.devices}
        return DeviceLook(
            tuple(Device(uuid, "Fake GPU", 40 * 2**30) for uuid in self.device_uuids),
            tuple(Process(pid, uuid, 2**30) for uuid, pid in holders.items()),
            dict.fromkeys(holders, 2**30),
        )

    async def utilisation(self, uuid: str, seconds: float) -> float | None:
        """Return what the holder of a device makes it do."""
        del seconds
        if self.driver_is_away:
            return None
        return next((s.gpu_percent for s in self.servers.values() if uuid in s.devices), 0.0)

    # -- the homes ----------------------------------------------------------------------------------------------------

    def _find_account(self, user: str) -> Account:
        if self.homes_are_away:
            raise AccountUnavailable(f"The home of {user} does not answer.")
        return Account(user, 2000, 2000, (2000,), Path("/nonexistent") / user)

    def _of(self, account: Account, project: str) -> FakeServer:
        if self.homes_are_away:
            raise AccountUnavailable(f"The home of {account.name} does not answer.")
        return next(s for s in self.servers.values() if (s.user, s.name) == (account.name, project))

    def keep_alive_seconds(self, account: Account, project: str, longest_seconds: float) -> float:
        """Return how long a keep-alive still holds."""
        touched = self._of(account, project).keep_alive_at
        return 0.0 if touched is None else max(0.0, touched + longest_seconds - self.now)

    def announce(self, account: Account, project: str, text: str) -> None:
        """Put an announcement into a project's folder."""
        server = self._of(account, project)
        if server.home_full:
            raise ProjectRefused("The disk is full: remove files you no longer need.")
        server.files["RETIRING-SOON.txt"] = text

    def withdraw(self, account: Account, project: str) -> None:
        """Remove it."""
        if any((s.user, s.name) == (account.name, project) for s in self.servers.values()):
            self._of(account, project).files.pop("RETIRING-SOON.txt", None)

    # -- the site's own channel and the history -----------------------------------------------------------------------

    async def send(self, message: Mapping[str, Any]) -> None:
        """Take a message."""
        if self.webhook_is_away:
            raise NotDelivered("the webhook cannot be reached")
        self.sent.append(message)

    def record(self, kind: str, /, *, user: str = "", **details: Any) -> None:
        """Append one event."""
        self.events.append((kind, {"user": user, **details}))

    def kinds(self) -> list[str]:
        """Return the kinds of all events, in order."""
        return [kind for kind, _ in self.events]
