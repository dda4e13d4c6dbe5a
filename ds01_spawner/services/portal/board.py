"""What everybody's page is made from: one dated look at hub, devices, queue and idle clocks, shared by all viewers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ds01_spawner.adapters.hubservers import ServerRecord
from ds01_spawner.core import idleclock, retirements, tickets
from ds01_spawner.core.allocation import Snapshot
from ds01_spawner.core.model import Holder
from ds01_spawner.core.retirements import Retirement
from ds01_spawner.core.tickets import Ticket
from ds01_spawner.errors import DS01Error

FRESH_SECONDS = 1.5
STOPPED_SECONDS = 30.0


class Hub(Protocol):
    """Which servers there are."""

    async def active(self) -> dict[str, dict[str, ServerRecord]]:
        """Return those that run, by user and name."""

    async def of(self, user: str) -> dict[str, ServerRecord]:
        """Return all of one user."""


class Devices(Protocol):
    """What is held."""

    async def snapshot(self, max_age_seconds: float) -> Snapshot:
        """Return a look that is not older than this."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look.

    Attributes:
        at: epoch seconds.
        servers: those that run, start or stop, by user and name.
        snapshot: devices and leases, ``None`` when they could not be seen.
        queue: who waits, the longest first.
        clocks: the culler's word on each watched server.
        retired: what the culler ended, by user.
        problems: what could not be seen, one sentence each.
    """

    at: float
    servers: Mapping[str, Mapping[str, ServerRecord]] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    queue: tuple[Ticket, ...] = ()
    clocks: Mapping[Holder, Mapping[str, Any]] = field(default_factory=dict)
    retired: Mapping[str, tuple[Retirement, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Board:
    """Looks when somebody asks, at most every ``FRESH_SECONDS``, once for all who ask meanwhile.

    Args:
        hub: the hub.
        devices: the devices.
        queue: returns the text of the queue's ticket file, ``None`` when there is none.
        clocks: returns the culler's status, ``None`` when there is none.
        retired: returns the culler's entries of what it ended.
        clock: epoch seconds.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        devices: Devices,
        queue: Callable[[], str | None],
        clocks: Callable[[], Mapping[str, Any] | None],
        retired: Callable[[], Iterable[Mapping[str, Any]]],
        clock: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._devices = devices
        self._queue = queue
        self._clocks = clocks
        self._retired = retired
        self._clock = clock
        self._last: Look | None = None
        self._looking: asyncio.Task[Look] | None = None
        self._stopped: dict[str, tuple[float, dict[str, ServerRecord]]] = {}

    async def look(self) -> Look:
        """Return a fresh look; what could not be seen is missing from it and named in ``problems``."""
        if self._last is not None and 0 <= self._clock() - self._last.at < FRESH_SECONDS:
            return self._last
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._see())
        return await asyncio.shield(self._looking)

    def forget(self, user: str = "") -> None:
        """Let the next look be a new one, because something was just changed."""
        self._last = None
        self._stopped.pop(user, None)

    async def stopped(self, user: str, max_age_seconds: float = STOPPED_SECONDS) -> dict[str, ServerRecord]:
        """Return a user's servers that do not run, with how they ended; none when unknown."""
        at, found = self._stopped.get(user, (0.0, {}))
        if not 0 <= self._clock() - at < max_age_seconds:
            try:
                found = await self._hub.of(user)
            except DS01Error:
                return found
            self._stopped[user] = (self._clock(), found)
        return found

    async def _see(self) -> Look:
        problems: list[str] = []
        servers, snapshot, queue, (clocks, blindness), retired = await asyncio.gather(
            _or_none(self._hub.active(), problems),
            _or_none(self._devices.snapshot(FRESH_SECONDS), problems),
            asyncio.to_thread(self._read_queue),
            asyncio.to_thread(self._read_clocks),
            asyncio.to_thread(self._read_retired),
        )
        if snapshot is not None and snapshot.problem:
            problems.append(snapshot.problem)
        if blindness:
            problems.append(blindness)
        for user, before in (self._last.servers if self._last else {}).items():
            if before.keys() - (servers or {}).get(user, {}).keys():
                self._stopped.pop(user, None)  # one of theirs ended: it has something to tell
        self._last = Look(
            at=self._clock(),
            servers=servers or {},
            snapshot=snapshot,
            queue=queue,
            clocks=clocks,
            retired=retired,
            problems=tuple(problems),
        )
        return self._last

    def _read_queue(self) -> tuple[Ticket, ...]:
        try:
            text = self._queue()
            found = tickets.decode(text).tickets if text else ()
        except (OSError, ValueError):
            return ()
        return tuple(sorted(found, key=lambda ticket: ticket.sequence))

    def _read_clocks(self) -> tuple[dict[Holder, Mapping[str, Any]], str]:
        return idleclock.read_status(self._clocks(), self._clock())

    def _read_retired(self) -> dict[str, tuple[Retirement, ...]]:
        found: defaultdict[str, tuple[Retirement, ...]] = defaultdict(tuple)
        for retirement in map(retirements.decode, self._retired()):
            if retirement is not None:
                found[retirement.user] += (retirement,)
        return dict(found)


async def _or_none(look: Awaitable[Any], problems: list[str]) -> Any:
    try:
        return await look
    except DS01Error as error:
        problems.append(str(error))
        return None
