"""The composition root: one call in ``jupyterhub_config.py`` sets a hub up, and chooses every implementation."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jupyterhub.utils import url_path_join

from ds01_spawner.adapters.accounts import FolderAccounts, LinuxAccounts
from ds01_spawner.adapters.buildcontext import BuildContexts
from ds01_spawner.adapters.buildhistory import BuildRecords
from ds01_spawner.adapters.buildkit import BuildKit
from ds01_spawner.adapters.buildlock import BuildLocks
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.engine import Engine
from ds01_spawner.adapters.eventlog import EventLog
from ds01_spawner.adapters.hostlock import HostLock
from ds01_spawner.adapters.hosttime import time_of_day
from ds01_spawner.adapters.idleclocks import IdleClocks
from ds01_spawner.adapters.imageprobe import ImageProbe
from ds01_spawner.adapters.limitsfile import HostGroups, LimitsFile, in_a_thread
from ds01_spawner.adapters.nvml import Nvml, SimulatedDevices
from ds01_spawner.adapters.observe import Observer
from ds01_spawner.adapters.packages import UvPackages
from ds01_spawner.adapters.portalnotes import Dismissed
from ds01_spawner.adapters.probecache import ProbeCache
from ds01_spawner.adapters.projectimages import ImageShelf
from ds01_spawner.adapters.runtimefolder import RuntimeFolder
from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.allocator import Allocator
from ds01_spawner.builder import Builder, BuildLimits
from ds01_spawner.core.allocation import HALF_LIFE_SECONDS
from ds01_spawner.core.idleclock import IdleClock, read_clock, read_status
from ds01_spawner.core.limits import Limits, Policy, resolve
from ds01_spawner.core.model import Holder
from ds01_spawner.core.overview import free_by_kind
from ds01_spawner.core.project import image_repository
from ds01_spawner.core.retirements import Retirement, choose, decode
from ds01_spawner.form import Outlook
from ds01_spawner.images import ProjectImages
from ds01_spawner.launcher import Launcher
from ds01_spawner.runtime import Runtime
from ds01_spawner.services.culler import register as culler_register
from ds01_spawner.services.culler import settings as culler_settings
from ds01_spawner.services.portal import register
from ds01_spawner.services.portal import settings as portal
from ds01_spawner.spawner import DS01Spawner, let_go
from ds01_spawner.startgate import StartGate


@dataclass(frozen=True)
class Site:
    """One hub's values, and the parts made of them, each when it is first needed.

    Nothing is opened before it is used, but for the servers' network: the hub listens on it.
    The attributes are the arguments of ``configure``.
    """

    hub: str
    state_folder: Path
    runtime_folder: Path
    people_folder: Path | None
    default_image: str
    trusted_images: tuple[str, ...]
    network: str
    subnet: str
    simulated_gpus: int
    limits_file: Path | None
    placement: str
    half_life_seconds: float
    starts_at_once: int
    docker: Mapping[str, Any]
    host_lock: Path | None
    infrastructure: tuple[str, ...]

    @cached_property
    def engine(self) -> Engine:
        """The Docker Engine."""
        return Engine(network=self.network, options=dict(self.docker), simulated=bool(self.simulated_gpus))

    @cached_property
    def people(self) -> LinuxAccounts | FolderAccounts:
        """The accounts."""
        return FolderAccounts(self.people_folder) if self.people_folder else LinuxAccounts()

    @cached_property
    def workspaces(self) -> Workspaces:
        """The users' folders."""
        return Workspaces(Path("/run/ds01") / self.hub)

    @cached_property
    def threads(self) -> UserThreads:
        """Where accounts and folders are used: a home that does not answer is its own person's trouble only."""
        return UserThreads()

    @cached_property
    def events(self) -> EventLog:
        """The history."""
        return EventLog(self.state_folder / "events.jsonl")

    @cached_property
    def policy(self) -> LimitsFile | None:
        """What the limits file says, ``None`` without one."""
        return (
            LimitsFile(self.limits_file, recorder=self.events, linux_groups=HostGroups(), apart=in_a_thread)
            if self.limits_file
            else None
        )

    @cached_property
    def limits(self) -> Callable[[str, Any], Limits]:
        """What a user may have."""
        if self.policy:
            return self.policy.limits
        unlimited = Policy(
            defaults=Limits(max_gpu_equivalents=None, max_gpu_slots_per_container=None, max_containers_per_user=None)
        )
        return lambda user, groups: resolve(unlimited, user, groups, time.time())

    @cached_property
    def allocator(self) -> Allocator:
        """The devices."""
        devices = SimulatedDevices(self.hub, self.simulated_gpus) if self.simulated_gpus else Nvml()
        policy = self.policy
        return Allocator(
            hub=self.hub,
            observe=Observer(devices, self.engine, time.time).observe,
            clock=time.time,
            record=self.events.record,
            placement=self.placement,
            half_life_seconds=self.half_life_seconds,
            limits=self.limits,
            limits_revision=lambda: policy.policy if policy else None,
            on_whole_look=self._retire_forgotten,
            idle_ends=IdleClocks(CullerFiles(self.state_folder / "culler"), time.time).read,
            ticket_store=TicketFile(self.state_folder / "queue.json"),
            host_lock=HostLock(self.host_lock) if self.host_lock else None,
            infrastructure=self.infrastructure,
        )

    def _retire_forgotten(self, holders: Iterable[Holder]) -> None:
        self.launcher.retire_forgotten(holders)  # which is made with the allocator, hence after it

    @cached_property
    def runtime(self) -> Runtime:
        """The notebook runtime."""
        return Runtime(
            folder=RuntimeFolder(self.runtime_folder),
            packages=UvPackages(),
            probe=ImageProbe(self.docker),
            cache=ProbeCache(self.state_folder / "images.json"),
            trusted_images=(self.default_image, *self.trusted_images),
        )

    @cached_property
    def builder(self) -> Builder:
        """The builder of projects' images."""
        builds = self.state_folder / "builds"
        return Builder(
            contexts=BuildContexts(self.workspaces, builds, threads=self.threads),
            engine=BuildKit(options=dict(self.docker)),
            history=BuildRecords(builds),
            limits=BuildLimits(),
            clock=time.time,
            record=self.events.record,
            alone=BuildLocks(builds / ".locks").held,
        )

    @cached_property
    def shelf(self) -> ImageShelf:
        """Images and their tags."""
        return ImageShelf(self.docker)

    @cached_property
    def dismissed(self) -> Dismissed:
        """The retirements that their users have seen."""
        return Dismissed(self.state_folder / "portal" / "dismissed")

    @cached_property
    def launcher(self) -> Launcher:
        """The launcher that every server of the hub shares."""
        return Launcher(
            hub=self.hub,
            accounts=self.people,
            workspaces=self.workspaces,
            threads=self.threads,
            images=ProjectImages(self.builder, self.default_image),
            runtime=self.runtime,
            allocator=self.allocator,
            engine=self.engine,
            limits=self.limits,
            gate=StartGate(self.starts_at_once),
            record=self.events.record,
            clock=time.time,
            let_go=let_go,
        )

    # -- what the spawn form asks -------------------------------------------------------------------------------------

    retire_path = f"services/{portal.SERVICE}/retire"

    async def projects(self, user: str) -> tuple[str, ...]:
        """Return the names of a user's projects."""
        return await self.threads.run(user, lambda: self.workspaces.list_projects(self.people.find(user)))

    async def outlook(self, user: str, groups: frozenset[str]) -> Outlook:
        """Return what a user could get now."""
        seen = await self.allocator.snapshot()
        return Outlook(
            free=free_by_kind(seen.devices),
            starts=self.allocator.expected_starts(),
            now=time.time(),
            limits=self.limits(user, groups),
            holding=seen.holding.get(user, ()),
        )

    async def tags(self, user: str, name: str) -> tuple[str, ...]:
        """Return the tags under which a user kept images of a project, ``latest`` left out."""
        repository = image_repository(user, name)
        return tuple(tag for tag in await self.shelf.tags(repository) if tag != "latest")

    # -- what the hub's own pages ask ---------------------------------------------------------------------------------

    @cached_property
    def culler_files(self) -> CullerFiles:
        """What the culler sees and did."""
        return CullerFiles(self.state_folder / "culler")

    async def idle_clocks(self, user: str) -> dict[str, IdleClock]:
        """Return what the culler says of a user's servers, by their names."""
        now = time.time()
        watched, _ = read_status(await asyncio.to_thread(self.culler_files.status), now)
        mine = {holder.server: entry for holder, entry in watched.items() if holder.user == user}
        return {server: read_clock(entry, lambda at: time_of_day(at, now)) for server, entry in mine.items()}

    async def retirements(self, user: str, active: Collection[str]) -> tuple[Retirement, ...]:
        """Return what the culler retired of a user's lately, without servers that are active again."""
        return await asyncio.to_thread(self._retirements, user, active)

    def _retirements(self, user: str, active: Collection[str]) -> tuple[Retirement, ...]:
        found = map(decode, self.culler_files.retired(user))
        known = [retirement for retirement in found if retirement is not None]
        return choose(known, active=active, dismissed=self.dismissed.__contains__, now=time.time())


def configure(
    c: Any,
    *,
    default_image: str,
    hub: str = "jupyterhub",
    state_folder: str | Path = "/var/lib/ds01",
    runtime_folder: str | Path | None = None,
    people_folder: str | Path | None = None,
    trusted_images: tuple[str, ...] = (),
    network: str = "ds01",
    subnet: str = "",
    simulated_gpus: int = 0,
    limits_file: str | Path | None = None,
    placement: str = "packed",
    half_life_seconds: float = HALF_LIFE_SECONDS,
    starts_at_once: int | None = None,
    docker: Mapping[str, Any] | None = None,
    culler: Mapping[str, Any] | None = MappingProxyType({}),
    host_lock: str | Path | None = None,
    infrastructure: tuple[str, ...] = (),
) -> None:
    """Set a hub up for projects: the spawner, its pages, its network, and what JupyterHub must leave to it.

    Call it once in ``jupyterhub_config.py``; values set on ``c`` after it win.

    Args:
        c: the configuration object.
        default_image: a local image for projects without a Dockerfile.
        hub: this hub's name in labels; two hubs on one host need different ones.
        state_folder: where the event log and what is known of images are kept; made when missing.
        runtime_folder: where the notebook runtime's package sets are kept; ``runtime`` in the state folder by default.
        people_folder: a folder with a home per user, for sites whose people have no account on the host; ``None`` takes
            the host's accounts.
        trusted_images: further local images of the site's own, whose Python may compile package sets.
        network: name of the bridge on which servers live; made when missing.
        subnet: of that bridge, such as ``"172.30.0.0/16"``; the engine chooses one when empty.
        simulated_gpus: how many made-up devices to hand out instead of NVIDIA's, for a trial without a GPU; each
            hub has its own.
        limits_file: YAML file of limits; without it a server gets the defaults and nobody is counted.
        placement: ``packed``, ``spread`` or ``affinity``.
        half_life_seconds: after this long GPU-hours count half when the queue decides between people of one priority.
        starts_at_once: how many notebook servers start at the same time; the number of processors by default.
        docker: arguments for docker-py's ``APIClient``; the environment decides by default.
        culler: settings of the service that retires idle servers, such as ``{"pass_seconds": 30}``, see
            ``services.culler.settings``; ``None`` for a hub that never retires a server by itself.
        host_lock: a lock file shared with another allocator of this host; only one of them chooses a device at a time.
        infrastructure: beginnings of names of containers that see every GPU and use none, such as a metrics exporter.

    Raises:
        EngineUnavailable: the hub could not serve anybody; says what to do.
        LimitsRefused: the limits file has mistakes; names every line.
    """
    state = Path(state_folder)
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    site = Site(
        hub=hub,
        state_folder=state,
        runtime_folder=Path(runtime_folder) if runtime_folder else state / "runtime",
        people_folder=Path(people_folder) if people_folder else None,
        default_image=default_image,
        trusted_images=tuple(trusted_images),
        network=network,
        subnet=subnet,
        simulated_gpus=simulated_gpus,
        limits_file=Path(limits_file) if limits_file else None,
        placement=placement,
        half_life_seconds=half_life_seconds,
        starts_at_once=starts_at_once or os.cpu_count() or 1,
        docker=dict(docker or {}),
        host_lock=Path(host_lock) if host_lock else None,
        infrastructure=tuple(infrastructure),
    )
    DS01Spawner.launcher = staticmethod(lambda: site.launcher)
    DS01Spawner.form_source = staticmethod(lambda: site)
    c.JupyterHub.spawner_class = DS01Spawner
    # Servers reach the hub at the bridge's gateway, and nobody outside the host does.
    c.JupyterHub.hub_ip = site.engine.ensure_network(subnet)
    c.JupyterHub.allow_named_servers = True
    # A hub that is restarted or upgraded leaves its people working.
    c.JupyterHub.cleanup_servers = False
    # Waiting is the launcher's business: it starts no more at once than the processors carry, and says who waits.
    c.JupyterHub.concurrent_spawn_limit = 0
    c.JupyterHub.template_paths = [str(files("ds01_spawner") / "templates" / "hub")]
    c.JupyterHub.default_url = _first_page
    c.JupyterHub.template_vars = {
        **_listed(c, "template_vars", {}),
        "projects_service": portal.SERVICE,
        # The hub calls what it finds here for every page; what these return is called by the pages that look.
        "idle_clocks": lambda _: site.idle_clocks,
        "retirements": lambda _: site.retirements,
    }
    _add_portal(c, site)
    if culler is not None:
        _add_culler(c, site, culler)


def _first_page(handler: Any) -> str:
    """The page after login: my projects."""
    return f"{url_path_join(handler.settings['base_url'], 'services', portal.SERVICE)}/"


def _listed(c: Any, name: str, empty: Any) -> Any:
    """Return what the configuration holds already under a name of ``JupyterHub``."""
    found = c.JupyterHub.get(name)
    return found if isinstance(found, type(empty)) else empty


def _add_portal(c: Any, site: Site) -> None:
    settings = portal.Settings(
        hub=site.hub,
        state_folder=site.state_folder,
        network=site.network,
        default_image=site.default_image,
        people_folder=site.people_folder,
        limits_file=site.limits_file,
        simulated_gpus=site.simulated_gpus,
        docker=site.docker,
    )
    c.JupyterHub.services = [*_listed(c, "services", []), register.service(settings)]
    c.JupyterHub.load_roles = [*_listed(c, "load_roles", []), register.role()]
    c.JupyterHub.extra_user_scopes = _listed(c, "extra_user_scopes", set()) | register.ENTER


def _add_culler(c: Any, site: Site, changes: Mapping[str, Any]) -> None:
    folder = site.state_folder
    settings = culler_settings.Settings(
        hub=site.hub,
        folder=folder / "culler",
        packages_folder=folder / "portal",
        events=folder / "events.jsonl",
        people_folder=site.people_folder,
        limits_file=site.limits_file,
        queue_file=folder / "queue.json",
        simulated_gpus=site.simulated_gpus,
        docker=site.docker,
        **changes,
    )
    c.JupyterHub.services = [*_listed(c, "services", []), culler_register.service(settings)]
    c.JupyterHub.load_roles = [*_listed(c, "load_roles", []), culler_register.role()]
