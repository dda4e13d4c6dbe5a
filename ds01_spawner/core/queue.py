"""Who is next, and what a person who waits is told.

The order, which a user can check by hand:

1. whoever has waited longer than the patience (four hours, if the site says nothing else), longest wait first;
2. then by priority of the limits, higher first;
3. then by GPU-hours used lately, in whole hours, fewer first;
4. then by who asked first.

Rule 1 bounds every wait: once it applies, only those who asked earlier are ahead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Device, Request
from ds01_spawner.core.shares import DecayedUse

PATIENCE_SECONDS = 4 * 3600.0
_GIB = 2**30
Estimate = tuple[float, float]


@dataclass(slots=True, eq=False)
class Entry:
    """One request in the queue.

    Attributes:
        request: what is asked for.
        limits: the user's limits, as read last; ``None`` when the site has none.
        since: when the place was taken; kept over a hub restart.
        sequence: grows with each place taken; the order of age.
        admitted_on: the inventory on which it was found to be allowed and possible; ``None`` before.
    """

    request: Request
    limits: Limits | None = None
    since: float = 0.0
    sequence: int = 0
    admitted_on: object | None = None

    @property
    def shortest_seconds(self) -> float | None:
        """How soon its server may be retired once it runs, ``None`` when nothing says."""
        return shortest_seconds(self.limits)

    @property
    def longest_seconds(self) -> float | None:
        """When its server is retired at the latest once it runs, ``None`` when never."""
        return self.limits.max_runtime_seconds if self.limits else None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What somebody who waits is told.

    Attributes:
        request: what is waited for.
        place: 1 is next.
        of: how many wait.
        why: why it is not there yet, one sentence.
        estimate: the times between which it should start, or ``None`` when that cannot be told.
        at: when this was true.
    """

    request: Request
    place: int
    of: int
    why: str
    estimate: Estimate | None
    at: float

    @property
    def wants(self) -> str:
        """What is waited for: ``"2 GPUs with at least 40 GiB each"``."""
        return describe_request(self.request)

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        when = "No estimate: when those who hold them will leave is not known."
        if self.estimate is not None:
            first, last = (show_duration(max(at - self.at, 0.0)) for at in self.estimate)
            span = f"in about {last}" if first == last else f"in {first} to {last}"
            when = f"Expected start {span}, if nobody goes before you who is not here yet."
        return f"Place {self.place} of {self.of} in the queue for {self.wants}. {self.why} {when}"


def shortest_seconds(limits: Limits | None) -> float | None:
    """Return how soon a server with these limits may be retired after its start, ``None`` when nothing says.

    Devices are in demand while somebody waits, so idle times are shorter; but no young server is idle.
    """
    if limits is None or limits.idle_seconds is None:
        return limits.max_runtime_seconds if limits else None
    idle = max(limits.idle_seconds * limits.high_demand_idle_reduction, limits.grace_seconds)
    return idle if limits.max_runtime_seconds is None else min(idle, limits.max_runtime_seconds)


def order(entries: Iterable[Entry], use: DecayedUse, now: float, patience_seconds: float) -> list[Entry]:
    """Return the entries, next one first."""
    hours: dict[str, int] = {}

    def key(entry: Entry) -> tuple[int, int, int, int]:
        if now - entry.since > patience_seconds:
            return (0, 0, 0, entry.sequence)
        user = entry.request.holder.user
        spent = hours.get(user)
        if spent is None:
            spent = hours[user] = int(use.hours(user))
        return (1, -entry.limits.priority if entry.limits else 0, spent, entry.sequence)

    return sorted(entries, key=key)


def describe_request(request: Request) -> str:
    """Return what is asked for: ``"1 GPU"``, ``"2 instances 1g.10gb"``, ``"1 device with at least 40 GiB"``."""
    many = request.count != 1
    if request.kind == "gpu":
        what = f"{request.count} GPU{'s' if many else ''}"
    elif request.kind:
        what = f"{request.count} instance{'s' if many else ''} {request.kind}"
    else:
        what = f"{request.count} device{'s' if many else ''}"
    if request.min_memory_bytes:
        what += f" with at least {request.min_memory_bytes / _GIB:g} GiB{' each' if many else ''}"
    return what


def describe_devices(devices: Collection[Device]) -> str:
    """Return what exists: ``"4 GPUs (40 GiB)"``, per kind and size."""
    groups: dict[tuple[str, int], int] = {}
    for device in devices:
        key = (device.kind, device.memory_bytes)
        groups[key] = groups.get(key, 0) + 1
    parts = []
    for (kind, memory), count in sorted(groups.items()):
        noun = "GPU" if kind == "gpu" else f"{kind} instance"
        parts.append(f"{count} {noun}{'s' if count != 1 else ''} ({memory / _GIB:.0f} GiB)")
    return ", ".join(parts) or "no GPU"


def show_duration(seconds: float) -> str:
    """Return a duration as people say it: ``"5 min"``, ``"2 h"``, ``"2 h 30 min"``, ``"3 days"``."""
    minutes = math.ceil(seconds / 60)
    if minutes < 60:  # noqa: PLR2004  minutes of an hour
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:  # noqa: PLR2004  two days are told in hours
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"


def why_not_yet(matching: Sequence[str], before: int) -> str:
    """Say why a request is not served yet.

    Args:
        matching: the state of each device that would fit.
        before: how many who wait go first.
    """
    total = len(matching)
    free = sum(1 for state in matching if state == "free")
    if not free:
        states: dict[str, int] = {}
        for state in matching:
            states[state] = states.get(state, 0) + 1
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"None of the {total} that fit is free ({counted})."
    whom = "those before you" if before else "you until there are enough"
    return f"{free} of the {total} that fit {'is' if free == 1 else 'are'} free and kept for {whom}."
