"""Who may start now, and when the others may expect to.

Requests are served in the queue's order.  One that does not fit is promised the devices that are expected first, and
those of them that are free already are kept for it.  A later request may use a kept device only if its own run limit
ends before the earlier one could start; how soon that could be is counted with the *earliest* expected end of every
holder, and with "any moment" where nothing is known.  So passing delays nobody as long as those expectations hold.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence

from ds01_spawner.core.claims import Inventory
from ds01_spawner.core.model import Device
from ds01_spawner.core.queue import Entry, Estimate

KindsOf = Callable[[Entry], Sequence[str]]
_Heap = list[tuple[float, int]]


class Table:
    """Devices on the table: open to anybody, kept for somebody, or expected later.

    Args:
        free: devices that may be granted now.
        expected: returns every other device that exists, with the earliest time at which it could be free; asked only
            if something has to be kept.
        inventory: which devices share hardware.
        now: the time.
    """

    def __init__(
        self,
        free: Iterable[Device],
        expected: Callable[[], Iterable[tuple[Device, float]]],
        inventory: Inventory,
        now: float,
    ) -> None:
        self.now = now
        self._inventory = inventory
        self._open: dict[str, dict[str, Device]] = {}
        self._kept: dict[str, dict[str, tuple[Device, float]]] = {}
        self._kept_until: dict[str, float] = {}  # the latest of them, so that most requests need not look
        self._later: dict[str, list[tuple[float, int, Device]]] = {}
        self._counter = 0
        for device in free:
            self._open.setdefault(device.kind, {})[device.uuid] = device
        self._expected: Callable[[], Iterable[tuple[Device, float]]] | None = expected

    @property
    def cleared(self) -> bool:
        """Whether nothing is left that anybody could start with now."""
        return not any(self._open.values()) and not any(self._kept.values())

    def candidates(self, entry: Entry, kinds: Iterable[str]) -> list[Device]:
        """Return devices, all of one kind, that the entry may take now without delaying who comes before it.

        Returns:
            At least as many as it asks for, or none.
        """
        least, count = entry.request.min_memory_bytes, entry.request.count
        for kind in kinds:
            found = [device for device in self._open.get(kind, {}).values() if device.memory_bytes >= least]
            if len(found) < count and entry.longest_seconds is not None:
                ends = self.now + entry.longest_seconds
                if ends <= self._kept_until.get(kind, 0.0):
                    kept = self._kept.get(kind, {}).values()
                    found += [device for device, until in kept if until >= ends and device.memory_bytes >= least]
            if len(found) >= count:
                return found
        return []

    def take(self, entry: Entry, devices: Iterable[Device]) -> None:
        """Note that the entry starts now on these devices."""
        ends = self.now + (entry.shortest_seconds or 0.0)
        for device in devices:
            if self._open.get(device.kind, {}).pop(device.uuid, None):
                self._expect(device, ends)
            self._kept.get(device.kind, {}).pop(device.uuid, None)
            for other in self._inventory.overlapping(device.uuid):
                neighbour = self._inventory.by_uuid[other]
                if self._open.get(neighbour.kind, {}).pop(other, None):
                    self._expect(neighbour, ends)
                self._kept.get(neighbour.kind, {}).pop(other, None)

    def keep(self, entry: Entry, kinds: Iterable[str]) -> None:
        """Promise the entry the devices that it could start with first; nobody later may delay that."""
        if not self._inventory.overlaps and not any(self._open.get(kind) for kind in kinds):
            return  # there is nothing to keep, and what is kept already is for somebody earlier
        if self._expected:
            for device, at in self._expected():
                self._expect(device, max(at, self.now))
            self._expected = None
        options = [promise for kind in kinds if (promise := self._promise(entry, kind))]
        if not options:
            return
        start, opened, later = min(options, key=lambda option: option[0])
        kind = (opened or later)[0].kind
        least = entry.request.min_memory_bytes
        # Any device that fits may be the first to come free, not only the one that is expected first.
        coming = [device for _, _, device in self._later.get(kind, ()) if device.memory_bytes >= least]
        if later:
            gone = {device.uuid for device in later}
            self._later[kind] = [item for item in self._later[kind] if item[2].uuid not in gone]
        ends = start + (entry.shortest_seconds or 0.0)
        for device in (*opened, *coming):
            self._set_apart(device, start)
            for other in self._inventory.overlapping(device.uuid):
                neighbour = self._inventory.by_uuid[other]
                if self._set_apart(neighbour, start):
                    self._expect(neighbour, ends)
        for device in (*opened, *later):
            self._expect(device, ends)

    def _promise(self, entry: Entry, kind: str) -> tuple[float, list[Device], list[Device]] | None:
        least, count = entry.request.min_memory_bytes, entry.request.count
        opened = [device for device in self._open.get(kind, {}).values() if device.memory_bytes >= least][:count]
        missing = count - len(opened)
        later = heapq.nsmallest(missing, (item for item in self._later.get(kind, ()) if item[2].memory_bytes >= least))
        if len(later) < missing:
            return None
        start = later[-1][0] if later else self.now
        return start, opened, [device for _, _, device in later]

    def _set_apart(self, device: Device, until: float) -> bool:
        """Keep a device, if it is on the table; what nobody could give back in time is not on it any more.

        Returns:
            Whether it was open to anybody before.
        """
        opened = self._open.get(device.kind, {}).pop(device.uuid, None) is not None
        kept = self._kept.get(device.kind, {})
        if device.uuid in kept:
            until = min(until, kept.pop(device.uuid)[1])
        elif not opened:
            return False
        if until > self.now:
            self._kept.setdefault(device.kind, {})[device.uuid] = (device, until)
            self._kept_until[device.kind] = max(until, self._kept_until.get(device.kind, 0.0))
        return opened

    def _expect(self, device: Device, at: float) -> None:
        self._later.setdefault(device.kind, []).append((at, self._number(), device))

    def _number(self) -> int:
        self._counter += 1
        return self._counter


def forecast(
    entries: Sequence[Entry],
    devices: Sequence[tuple[Device, float, float]],
    kinds_of: KindsOf,
    now: float,
    *,
    end_idle: bool,
) -> dict[int, Estimate | None]:
    """Estimate when each entry starts, if everybody leaves as expected and nobody new comes.

    Args:
        entries: in the queue's order.
        devices: every device that exists, with the earliest and the latest time at which it is free; infinite when
            that is not known.
        kinds_of: the kinds of device that an entry takes, smallest first.
        now: the time.
        end_idle: whether somebody who starts may be gone after the idle limit, or only after the run limit.

    Returns:
        Per sequence number the earliest and the latest start, or ``None`` when one of them cannot be told.
    """
    lows = _starts(entries, [(device, low) for device, low, _ in devices], kinds_of, now, shortest=end_idle)
    highs = _starts(entries, [(device, high) for device, _, high in devices], kinds_of, now, shortest=False)
    return {
        entry.sequence: (lows[entry.sequence], max(lows[entry.sequence], highs[entry.sequence]))
        if math.isfinite(lows[entry.sequence] + highs[entry.sequence])
        else None
        for entry in entries
    }


def _starts(
    entries: Sequence[Entry],
    devices: Iterable[tuple[Device, float]],
    kinds_of: KindsOf,
    now: float,
    *,
    shortest: bool,
) -> dict[int, float]:
    heaps: dict[str, _Heap] = {}
    for device, at in devices:
        heaps.setdefault(device.kind, []).append((max(at, now), device.memory_bytes))
    for heap in heaps.values():
        heapq.heapify(heap)
    starts: dict[int, float] = {}
    for entry in entries:
        options = [option for kind in kinds_of(entry) if (option := _first(heaps.get(kind, []), entry))]
        if not options:
            starts[entry.sequence] = math.inf
            continue
        start, used, heap = min(options, key=lambda option: option[0])
        starts[entry.sequence] = start
        lasts = entry.shortest_seconds if shortest else entry.longest_seconds
        end = start + (math.inf if lasts is None else lasts)
        if used == heap[:1]:
            heapq.heapreplace(heap, (end, used[0][1]))
        else:
            for item in used:
                heap[heap.index(item)] = (end, item[1])
            heapq.heapify(heap)
    return starts


def _first(heap: _Heap, entry: Entry) -> tuple[float, _Heap, _Heap] | None:
    """Return when the entry could start, the items of the heap that it would use, and the heap."""
    least, count = entry.request.min_memory_bytes, entry.request.count
    if count == 1 and heap and heap[0][1] >= least:
        return heap[0][0], heap[:1], heap
    used = heapq.nsmallest(count, (item for item in heap if item[1] >= least))
    return (used[-1][0], used, heap) if len(used) == count else None
