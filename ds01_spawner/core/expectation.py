"""When devices should come free, and what those who wait are told about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ds01_spawner.core.backfill import forecast
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.model import Device, DeviceState, DeviceStatus, Holder, Lease
from ds01_spawner.core.queue import Entry, Estimate, Waiting, shortest_seconds, why_not_yet
from ds01_spawner.core.rules import Rules, fits


@dataclass(frozen=True, slots=True)
class IdleEnds:
    """What the culler said of the servers that it watches.

    Attributes:
        at: when it looked at them.
        stops: when it will retire a server that nothing uses from then on; those of which it cannot tell are left out.
    """

    at: float
    stops: Mapping[Holder, float]


class Expectation:
    """What can be expected at one moment.

    Args:
        ledger: the leases and the last look.
        rules: everybody's limits.
        idle_ends: the culler's word; ``None`` while there is none, and then nobody is expected to be retired as idle.
        now: the time.
    """

    def __init__(self, ledger: Ledger, rules: Rules, idle_ends: IdleEnds | None, now: float) -> None:
        self._ledger = ledger
        self._rules = rules
        self._idle_ends = idle_ends
        self._now = now
        self._ends: dict[str, Estimate] = {}
        self._free = frozenset(ledger.free)

    def earliest(self) -> list[tuple[Device, float]]:
        """Return the devices that were not free at first, each with the earliest time at which it could be.

        Where nothing is known, that is any moment.
        """
        found = []
        for uuid, status in self._ledger.judged.items():
            if uuid not in self._free and status.exists:
                lease = self._ledger.lease_on(uuid)
                found.append((status.device, self._soonest(lease) if lease else self._now))
        return found

    def times(self) -> list[tuple[Device, float, float]]:
        """Return every device that exists, with the earliest and the latest time at which it is free.

        Infinite where that is not known.
        """
        free, now = self._ledger.free, self._now
        return [
            (status.device, *((now, now) if uuid in free else self.ends(uuid)))
            for uuid, status in self._ledger.judged.items()
            if status.exists
        ]

    def ends(self, uuid: str) -> Estimate:
        """Return the earliest and the latest time at which a device is given back; infinite when that is not known."""
        lease = self._ledger.lease_on(uuid)
        if lease is None:
            return (math.inf, math.inf)
        if uuid not in self._ends:
            ends = self._ends_of(lease)
            self._ends.update(dict.fromkeys(lease.devices, ends))
        return self._ends[uuid]

    def _ends_of(self, lease: Lease) -> Estimate:
        limits = self._rules.limits_of(lease.holder.user)
        if limits is None:
            return (math.inf, math.inf)
        latest = math.inf
        if limits.max_runtime_seconds is not None:
            latest = max(lease.since + limits.max_runtime_seconds, self._now)
        stop = self._stop_of(lease)
        return (latest if stop is None else min(max(stop, self._now), latest), latest)

    def _stop_of(self, lease: Lease) -> float | None:
        """Return when the culler will retire a lease's server; what it said of an earlier server is not about this."""
        if self._idle_ends is None or self._idle_ends.at <= lease.since:
            return None
        return self._idle_ends.stops.get(lease.holder)

    def _soonest(self, lease: Lease) -> float:
        """Return the earliest end of a lease; a server whose clock is not known may be idle since it began."""
        if self._stop_of(lease) is not None:
            return self._ends_of(lease)[0]
        shortest = shortest_seconds(self._rules.limits_of(lease.holder.user))
        return self._now if shortest is None else max(lease.since + shortest, self._now)

    def tell(self, queue: Sequence[Entry], stuck: str) -> dict[Holder, Waiting]:
        """Return what everybody in the queue is told.

        Args:
            queue: next one first.
            stuck: why nothing is granted to anybody; empty when things go their way.
        """
        if not queue:
            return {}
        estimates = {} if stuck else self.forecast(queue)
        whys: dict[tuple[str, int, bool], str] = {}
        told: dict[Holder, Waiting] = {}
        for place, entry in enumerate(queue, 1):
            request = entry.request
            key = (request.kind, request.min_memory_bytes, place > 1)
            why = whys.get(key)
            if why is None:
                matching = [
                    self._state(s) for s in self._ledger.judged.values() if s.exists and fits(request, s.device)
                ]
                why = whys[key] = stuck or why_not_yet(matching, before=place - 1)
            estimate = estimates.get(entry.sequence)
            told[request.holder] = Waiting(request, place, len(queue), why, estimate, self._now)
        return told

    def forecast(self, queue: Sequence[Entry]) -> dict[int, Estimate | None]:
        """Return when everybody in the queue should start, by sequence number; ``None`` when that cannot be told."""
        return forecast(queue, self.times(), self._kinds, self._now, end_idle=self._idle_ends is not None)

    def _kinds(self, entry: Entry) -> Sequence[str]:
        return self._rules.kinds(entry.request, entry.limits)

    def _state(self, status: DeviceStatus) -> str:
        uuid = status.device.uuid
        if uuid in self._ledger.free:
            return "free"
        if self._ledger.lease_on(uuid):
            return "leased"
        # A device that was free at the look and is not now shares hardware with one that was granted since.
        return "occupied" if status.state is DeviceState.FREE else str(status.state)
