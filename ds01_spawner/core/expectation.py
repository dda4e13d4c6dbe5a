"""When devices should come free, and what those who wait are told about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ds01_spawner.core.backfill import forecast
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.model import Device, DeviceState, DeviceStatus, Holder, Lease
from ds01_spawner.core.queue import Entry, Estimate, Waiting, why_not_yet
from ds01_spawner.core.rules import Rules, fits

IdleSince = Callable[[Lease], float | None]


class Expectation:
    """What can be expected at one moment.

    Args:
        ledger: the leases and the last look.
        rules: everybody's limits.
        idle_since: since when a lease's server is idle; ``None`` when it is not or nobody knows.
        now: the time.
    """

    def __init__(self, ledger: Ledger, rules: Rules, idle_since: IdleSince | None, now: float) -> None:
        self._ledger = ledger
        self._rules = rules
        self._idle_since = idle_since
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
                at = self.ends(uuid)[0] if status.holder else self._now
                found.append((status.device, at if math.isfinite(at) else self._now))
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
        earliest = latest
        if limits.idle_seconds is not None:
            idle_since = self._idle_since(lease) if self._idle_since else None
            earliest = max((self._now if idle_since is None else idle_since) + limits.idle_seconds, self._now)
        return (min(earliest, latest), latest)

    def tell(self, queue: Sequence[Entry], stuck: str) -> dict[Holder, Waiting]:
        """Return what everybody in the queue is told.

        Args:
            queue: next one first.
            stuck: why nothing is granted to anybody; empty when things go their way.
        """
        if not queue:
            return {}
        estimates = {} if stuck else forecast(queue, self.times(), self._kinds, self._now)
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
