"""Puts the portal together for a site and serves it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.services.auth import HubOAuthCallbackHandler
from jupyterhub.utils import url_path_join
from tornado.httpserver import HTTPServer
from tornado.web import Application, StaticFileHandler

from ds01_spawner.adapters.accounts import FolderAccounts, LinuxAccounts
from ds01_spawner.adapters.buildcontext import BuildContexts
from ds01_spawner.adapters.buildhistory import BuildRecords
from ds01_spawner.adapters.buildkit import BuildKit
from ds01_spawner.adapters.buildlock import BuildLocks
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.engine import Engine
from ds01_spawner.adapters.eventlog import EventLog
from ds01_spawner.adapters.hubservers import HubServers
from ds01_spawner.adapters.limitsfile import LimitsFile
from ds01_spawner.adapters.notebook import Notebooks
from ds01_spawner.adapters.nvml import Nvml, SimulatedDevices
from ds01_spawner.adapters.observe import Observer
from ds01_spawner.adapters.portalnotes import Dismissed, LostPackages
from ds01_spawner.adapters.projectimages import ImageShelf
from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.allocator import Allocator
from ds01_spawner.builder import Builder, BuildLimits
from ds01_spawner.core.limits import Limits, Policy, resolve
from ds01_spawner.images import ProjectImages
from ds01_spawner.services.portal.board import Board
from ds01_spawner.services.portal.builds import Builds
from ds01_spawner.services.portal.creation import NewProjectPage
from ds01_spawner.services.portal.devices import DevicesPage
from ds01_spawner.services.portal.dismissal import DismissPage
from ds01_spawner.services.portal.environment import (
    BuildLog,
    BuildNow,
    CancelBuild,
    EditPackages,
    ProjectPage,
    SaveDockerfile,
    Tags,
)
from ds01_spawner.services.portal.leaving import Leaving
from ds01_spawner.services.portal.pages import Health, ProjectsPage
from ds01_spawner.services.portal.parts import Parts
from ds01_spawner.services.portal.servers import RetirePage
from ds01_spawner.services.portal.settings import Settings
from ds01_spawner.services.portal.standings import Standings

log = logging.getLogger("ds01_spawner.portal")

BODY_BYTES_MAX = 4 * 2**20


@asynccontextmanager
async def assembled(settings: Settings, environment: dict[str, str]) -> AsyncIterator[Parts]:
    """Put the parts together, and close everything at the end.

    Args:
        settings: the site's.
        environment: what the hub tells its services.

    Raises:
        LimitsFileInvalid: the limits file has mistakes; names every line.
    """
    options = dict(settings.docker)
    state = settings.state_folder
    engine = Engine(network=settings.network, options=options, simulated=bool(settings.simulated_gpus))
    devices = SimulatedDevices(settings.hub, settings.simulated_gpus) if settings.simulated_gpus else Nvml()
    looker = Allocator(
        hub=settings.hub,
        observe=Observer(devices, engine, time.time).observe,
        clock=time.time,
        record=lambda *_, **__: None,  # the hub's allocator is the one that tells
    )
    limits_file = LimitsFile(settings.limits_file) if settings.limits_file else None
    workspaces, threads = Workspaces(Path("/run/ds01") / settings.hub), UserThreads()
    kit, shelf, notebooks = BuildKit(options=options), ImageShelf(options), Notebooks()
    records, events = BuildRecords(state / "builds"), EventLog(state / "events.jsonl", source="portal")
    builder = Builder(
        contexts=BuildContexts(workspaces, state / "builds", threads=threads),
        engine=kit,
        history=records,
        limits=BuildLimits(),
        clock=time.time,
        record=events.record,
        alone=BuildLocks(state / "builds" / ".locks").held,
    )
    builds = Builds(builder)
    culler = CullerFiles(state / "culler")
    async with AsyncExitStack() as stack:
        for close in (engine.close, kit.close, shelf.close, events.close):
            stack.callback(close)
        stack.push_async_callback(notebooks.close)
        stack.push_async_callback(looker.close)
        stack.push_async_callback(builds.close)
        hub = HubServers(environment["JUPYTERHUB_API_URL"], environment["JUPYTERHUB_API_TOKEN"])
        await stack.enter_async_context(hub)
        yield Parts(
            prefix=environment["JUPYTERHUB_SERVICE_PREFIX"],
            hub_prefix=url_path_join(environment["JUPYTERHUB_BASE_URL"], "hub/"),
            default_image=settings.default_image,
            people=FolderAccounts(settings.people_folder) if settings.people_folder else LinuxAccounts(),
            workspaces=workspaces,
            threads=threads,
            hub=hub,
            board=Board(
                hub=hub,
                devices=looker,
                queue=TicketFile(state / "queue.json").read,
                clocks=culler.status,
                retired=culler.retired,
                clock=time.time,
            ),
            standings=Standings(builder, time.monotonic),
            shelf=shelf,
            records=records,
            builds=builds,
            images=ProjectImages(builder, settings.default_image),
            leaving=Leaving(settings.hub, settings.network, engine, shelf, notebooks),
            notes=LostPackages(state / "portal"),
            dismissed=Dismissed(state / "portal" / "dismissed"),
            limits=limits_file.limits if limits_file else _no_limits,
            limits_file=limits_file,
            clock=time.time,
        )


def application(parts: Parts) -> Application:
    """Return the portal's pages."""
    given = {"parts": parts}
    pages: list[tuple[str, Any, dict[str, Any]]] = [
        ("", ProjectsPage, given),
        ("health", Health, given),
        ("gpus", DevicesPage, given),
        ("retire", RetirePage, given),
        ("dismiss", DismissPage, given),
        ("new", NewProjectPage, given),
        ("p/([^/]+)", ProjectPage, given),
        ("p/([^/]+)/dockerfile", SaveDockerfile, given),
        ("p/([^/]+)/packages", EditPackages, given),
        ("p/([^/]+)/build", BuildNow, given),
        ("p/([^/]+)/cancel", CancelBuild, given),
        ("p/([^/]+)/builds/([0-9A-Za-z-]{1,60})", BuildLog, given),
        ("p/([^/]+)/tags", Tags, given),
        ("oauth_callback", HubOAuthCallbackHandler, {}),
        ("static/(.*)", StaticFileHandler, {"path": str(files("ds01_spawner") / "static")}),
    ]
    return Application(
        [(url_path_join(parts.prefix, path) if path else parts.prefix, page, values) for path, page, values in pages],
        cookie_secret=secrets.token_bytes(32),
        xsrf_cookies=True,
        static_handler_class=StaticFileHandler,
    )


async def serve(settings: Settings, environment: dict[str, str]) -> None:
    """Serve until the hub says that it is enough."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with assembled(settings, environment) as parts:
        server = HTTPServer(application(parts), max_body_size=BODY_BYTES_MAX, xheaders=True)
        where = urlsplit(environment["JUPYTERHUB_SERVICE_URL"])
        server.listen(where.port or 80, where.hostname or "127.0.0.1")
        log.info("My projects are at %s", parts.prefix)
        await told.wait()
        server.stop()


def _no_limits(user: str, groups: frozenset[str]) -> Limits:
    unlimited = Policy(defaults=Limits(max_gpu_equivalents=None, max_containers_per_user=None))
    return resolve(unlimited, user, groups, time.time())
