"""Puts the culler together for a site and keeps it passing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from ds01_spawner.adapters.accounts import FolderAccounts, LinuxAccounts
from ds01_spawner.adapters.activity import ActivityReader, DeviceMeter, EngineInspector
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.engine import Engine
from ds01_spawner.adapters.eventlog import EventLog
from ds01_spawner.adapters.hub import Hub
from ds01_spawner.adapters.limitsfile import LimitsFile
from ds01_spawner.adapters.notebook import Notebooks
from ds01_spawner.adapters.nvml import Nvml, SimulatedDevices
from ds01_spawner.adapters.outbound import Command, Webhook
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.adapters.projectimages import ImageShelf
from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.adapters.usernotes import UserNotes
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.losses import find_losses
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.culler.acts import Acts
from ds01_spawner.services.culler.channels import Channels, Outbound
from ds01_spawner.services.culler.passes import Culler, World
from ds01_spawner.services.culler.settings import Settings

log = logging.getLogger("ds01_spawner.culler")

_METER_SECONDS: Final = 15.0  # the driver keeps utilisation samples for not much longer
_PACKAGES_SECONDS: Final = 5.0
_FILE_THREADS: Final = 64  # more than ever work at once, because those that hang in a home cannot be called back


@asynccontextmanager
async def assembled(settings: Settings, hub_url: str, token: str) -> AsyncIterator[tuple[Culler, DeviceMeter]]:
    """Put the culler of a site together, and close everything at the end.

    Args:
        settings: the site's.
        hub_url: the hub's API.
        token: the service's own.

    Raises:
        LimitsRefused: the limits file has mistakes; names every line.
    """
    events = EventLog(settings.events, source="culler")
    inspector = EngineInspector(settings.docker)
    notebooks = Notebooks()
    engine = Engine(network="", options=dict(settings.docker))
    meter = DeviceMeter(SimulatedDevices(settings.hub, settings.simulated_gpus) if settings.simulated_gpus else Nvml())
    reader = ActivityReader(inspector, notebooks)
    threads = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="homes")
    people = FolderAccounts(settings.people_folder) if settings.people_folder else LinuxAccounts()
    outbound: dict[str, Outbound] = {}
    if settings.command:
        outbound["command"] = Command(settings.command)
    if settings.webhook:
        outbound["webhook"] = Webhook(settings.webhook)
    shelf = ImageShelf(settings.docker)
    channels = Channels(reader, UserNotes(Workspaces()), outbound, threads)
    files, packages = CullerFiles(settings.folder), LostPackages(settings.packages_folder)
    acts = Acts(settings, channels, files, packages, events, clock=time.monotonic, wall=time.time)
    queue = TicketFile(settings.queue_file).read if settings.queue_file else lambda: None
    try:
        async with Hub(hub_url, token) as hub:
            world = World(
                hub=hub,
                engine=engine,
                meter=meter,
                reader=reader,
                find_account=people.find,
                limits=_limits(settings, events),
                queue=queue,
                lost_packages=partial(_lost_packages, shelf),
                threads=threads,
                clock=time.monotonic,
            )
            yield Culler(settings, world, acts), meter
    finally:
        await notebooks.close()
        inspector.close()
        engine.close()
        shelf.close()
        events.close()
        threads.shutdown(wait=False, cancel_futures=True)


async def serve(
    culler: Culler, meter: DeviceMeter, *, pass_seconds: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Make a pass now and whenever one is worth making, for ever."""
    due = clock()
    while True:
        late = clock() - due
        if late > pass_seconds:
            log.warning("This pass is %.0f s late; servers are judged later than they should be", late)
        try:
            report = await culler.run()
            log.info("Looked at %d servers in %.2f s, %d broken", report.watched, report.seconds, report.broken)
            if report.problem:
                log.warning("Not everything could be looked at: %s", report.problem)
        except Exception:
            # The status file then ages, which is what the hub's page and the metric watch for.
            log.exception("A pass failed")
        due = clock() + culler.next_look_seconds()
        while (left := due - clock()) > 0:
            await asyncio.sleep(min(left, _METER_SECONDS))
            if due - clock() > 1:
                await meter.tick(culler.devices)


async def _lost_packages(shelf: ImageShelf, container: str) -> tuple[str, ...] | None:
    try:
        async with asyncio.timeout(_PACKAGES_SECONDS):
            return (await asyncio.to_thread(find_losses, await shelf.changes(container))).packages
    except (TimeoutError, DS01Error):
        return None  # a hint less; the device is free in time


def _limits(settings: Settings, events: EventLog) -> Callable[[str, frozenset[str]], Limits]:
    if settings.limits_file is not None:
        return LimitsFile(settings.limits_file, recorder=events).limits
    return lambda user, groups: Limits()  # noqa: ARG005 - everybody's are the same
