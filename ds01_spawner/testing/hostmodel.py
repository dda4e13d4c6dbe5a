"""What must hold on a host, remembered and worked out without the allocator.

``Memory`` notes what was done to the host and what the hub said, and says from that alone which devices may be free,
which leases must exist and in what order people are served.  It shares no code with the ledger or the queue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Device, Health, Holder, Observation, Request

TICKET_SECONDS = 900.0
Means = Callable[[dict[str, Device]], set[str]]


class Violation(AssertionError):
    """The allocator did what must never happen."""


@dataclass
class Asked:
    """Somebody who waits."""

    request: Request
    since: float
    sequence: int
    admitted: bool = False


@dataclass
class Held:
    """Somebody who was given devices, and what became of them."""

    devices: tuple[str, ...]
    since: float
    container: str = ""
    bound: bool = False
    look: int = 0


@dataclass
class Seen:
    """A look that is under way, with what was true when it was made."""

    number: int
    seen: Observation
    means: dict[str, Means]
    owners: dict[str, str]
    processes: list[tuple[str, str]]
    dirty: set[str]
    ours: list[tuple[float, str, Holder, tuple[str, ...]]]


@dataclass
class Memory:
    """What happened, and what follows from it.

    Attributes:
        limits: per user.
        patience: seconds after which age alone decides.
        half_life: of used GPU-hours, seconds.
        asked: who waits.
        held: who has a lease that the hub knows.
        departed: per device the number of looks begun when its last lease ended.
        looks: looks begun.
        inventory: devices of the last readable look.
        devices: every device that a lease of now was given while it was listed.
        hours: faded GPU-hours per user.
        tickets: places that the file keeps.
    """

    limits: Mapping[str, Limits]
    patience: float
    half_life: float
    asked: dict[Holder, Asked] = field(default_factory=dict)
    held: dict[Holder, Held] = field(default_factory=dict)
    departed: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)  # ended containers: the last look that may show them
    looks: int = 0
    inventory: dict[str, Device] = field(default_factory=dict)
    inventory_known: bool = False
    devices: dict[str, Device] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    charged_at: float = 0.0
    sequence: int = 0
    tickets: dict[Holder, tuple[Request, float, int]] = field(default_factory=dict)
    tickets_until: float = 0.0
    saved: dict[Holder, tuple[Request, float, int]] = field(default_factory=dict)
    saved_hours: tuple[float, dict[str, float]] = (0.0, {})
    outside: list[tuple[str, Means]] = field(default_factory=list)
    stops: dict[Holder, float] = field(default_factory=dict)  # by the culler, of those that it watches
    stops_at: float = 0.0

    # -- facts --------------------------------------------------------------------------------------------------------

    def device(self, uuid: str) -> Device | None:
        """Return what can be known of a device."""
        return self.inventory.get(uuid) or self.devices.get(uuid)

    def share_hardware(self, one: str, other: str) -> bool:
        """Whether two devices are one, or one is cut from the other, as far as that can be known."""
        first, second = self.device(one), self.device(other)
        return one == other or bool((first and first.parent == other) or (second and second.parent == one))

    def known(self) -> dict[str, Device]:
        """Return every device that exists or is leased."""
        return {uuid: self.device(uuid) or Device(uuid, "unknown", 0) for uuid in (*self.leased(), *self.inventory)}

    def leased(self) -> dict[str, Holder]:
        """Return every leased device with its holder."""
        leased: dict[str, Holder] = {}
        for holder, held in self.held.items():
            for uuid in held.devices:
                if uuid in leased:
                    raise Violation(f"{uuid} is held by {leased[uuid]} and {holder}")
                leased[uuid] = holder
        return leased

    def equivalents(self, uuids: Iterable[str]) -> Fraction:
        """Return what devices count."""
        given = set(uuids)
        known = [d for uuid in given if not ((d := self.device(uuid)) and d.parent in given)]
        return sum((Fraction(d.mig_slices, 7) if d and d.mig_profile else Fraction(1) for d in known), Fraction(0))

    def charge(self, now: float) -> None:
        """Let use fade and grow."""
        seconds = min(max(now - self.charged_at, 0.0), 3600.0)
        self.charged_at = now
        for user in self.hours:
            self.hours[user] *= 0.5 ** (seconds / self.half_life)
        for holder, held in self.held.items():
            used = float(self.equivalents(held.devices)) * seconds / 3600
            self.hours[holder.user] = self.hours.get(holder.user, 0.0) + used

    # -- what people and hubs do --------------------------------------------------------------------------------------

    def ask(self, request: Request, now: float) -> None:
        """Somebody asks."""
        ticket = self.tickets.pop(request.holder, None)
        if ticket and ticket[0] == request and now <= self.tickets_until:
            since, sequence = ticket[1:]
        else:
            self.sequence += 1
            since, sequence = now, self.sequence
        self.asked[request.holder] = Asked(request, since, sequence)

    def save(self, now: float) -> None:
        """The file is written."""
        waiting = {holder: (asked.request, asked.since, asked.sequence) for holder, asked in self.asked.items()}
        self.saved = (self.tickets if now <= self.tickets_until else {}) | waiting
        self.saved_hours = (now, {user: round(hours, 4) for user, hours in self.hours.items() if hours > 1e-4})  # noqa: PLR2004

    def end(self, holder: Holder, now: float) -> None:
        """A lease ends."""
        self.charge(now)
        held = self.held.pop(holder, None)
        for uuid in held.devices if held else ():
            self.departed[uuid] = self.looks
        if held and held.bound:
            self.removed[held.container] = self.looks

    def crash(self, now: float) -> None:
        """The hub dies and comes back with nothing but the file and the labels."""
        self.asked.clear()
        self.held.clear()
        self.departed.clear()
        self.removed.clear()
        self.looks = 0
        self.inventory, self.inventory_known, self.devices, self.outside = {}, False, {}, []
        self.tickets = dict(self.saved)
        self.tickets_until = now + TICKET_SECONDS
        self.charged_at, hours = self.saved_hours
        self.hours = dict(hours)
        self.sequence = max((sequence for _, _, sequence in self.saved.values()), default=0)

    # -- what a look must lead to -------------------------------------------------------------------------------------

    def reconcile(self, look: Seen, now: float) -> set[str]:
        """Take in a look and return the devices that must be free by it, before anything is granted."""
        self.charge(now)
        seen = look.seen
        whole = seen.devices is not None and seen.containers is not None and seen.processes is not None
        if seen.containers is not None:
            there = {container.id for container in seen.containers}
            for holder, held in list(self.held.items()):
                gone = held.bound and held.container not in there and held.look < look.number
                if gone and (whole or not held.devices):
                    for uuid in held.devices:
                        self.departed[uuid] = self.looks
                    del self.held[holder]
        if seen.devices is not None:
            self.inventory = {device.uuid: device for device in seen.devices}
            self.inventory_known = True
        if seen.containers is not None:
            self._adopt(look)
            carrying = self._carrying(look)
            self.outside = [
                (look.owners[container.id], look.means[container.id])
                for container in seen.containers
                if container.id not in carrying and container.state not in {"exited", "dead"}
            ]
        self.devices |= {uuid: self.inventory[uuid] for uuid in self.leased() if uuid in self.inventory}
        return self._free(look) if whole else set()

    def _adopt(self, look: Seen) -> None:
        for created, container, holder, devices in sorted(look.ours, key=lambda item: item[:2]):
            leased = self.leased()
            if self.removed.get(container, -1) >= look.number:
                continue
            if holder in self.held or any(self.share_hardware(a, b) for a in devices for b in leased):
                continue
            self.held[holder] = Held(devices, created, container, bound=True, look=look.number)
            self.devices |= {uuid: self.inventory[uuid] for uuid in devices if uuid in self.inventory}

    def _carrying(self, look: Seen) -> dict[str, set[str]]:
        """Return the containers that carry a lease, with its devices."""
        carrying = {held.container: set(held.devices) for held in self.held.values() if held.bound}
        for _, container, holder, devices in look.ours:
            held = self.held.get(holder)
            if held and not held.bound and set(held.devices) == set(devices):
                carrying[container] = set(devices)
        return carrying

    def _free(self, look: Seen) -> set[str]:
        leased = self.leased()
        carrying = self._carrying(look)
        known = self.known()
        claimed = {container: means(known) for container, means in look.means.items()}
        used: set[str] = set()
        for container, uuids in claimed.items():
            used |= uuids - carrying.get(container, set())
        for device, container in look.processes:
            reached = cut_from(device, known)
            given = claimed.get(container, set()) | carrying.get(container, set())
            if not any(self.share_hardware(one, other) for one in given for other in reached):
                used |= reached
        used |= look.dirty - set(leased)
        used |= {uuid for uuid, number in self.departed.items() if number >= look.number}
        base = {
            uuid
            for uuid, device in self.inventory.items()
            if device.health is Health.HEALTHY and uuid not in used and uuid not in leased
        }
        there = set(self.inventory) | set(leased)
        return {uuid for uuid in base if all(o in base or o == uuid or not self.share_hardware(uuid, o) for o in there)}

    # -- who is next --------------------------------------------------------------------------------------------------

    def line(self, now: float) -> list[Holder] | None:
        """Return who waits, next one first; ``None`` when rounding could decide."""
        buckets = {}
        for holder in self.asked:
            hours = self.hours.get(holder.user, 0.0)
            if hours and abs(hours - round(hours)) < 1e-3:  # noqa: PLR2004
                return None
            buckets[holder] = math.floor(hours)
        tired = [h for h, asked in self.asked.items() if now - asked.since > self.patience]
        fresh = [h for h in self.asked if h not in tired]
        tired.sort(key=lambda h: self.asked[h].sequence)
        fresh.sort(key=lambda h: (-self.limits[h.user].priority, buckets[h], self.asked[h].sequence))
        return tired + fresh

    def allows(self, request: Request, *, waiting_too: int | None) -> bool:
        """Whether the limits allow a request, with what its user holds and, if a sequence is given, asked for."""
        user = request.holder.user
        servers, amount = 0, Fraction(0)
        for holder, held in self.held.items():
            if holder.user == user and holder.server != request.holder.server:
                servers += 1
                amount += self.equivalents(held.devices)
        for owner, means in self.outside:
            if owner == user:
                servers += 1
                amount += self.equivalents(means(self.known()))
        if waiting_too is not None:
            for holder, asked in self.asked.items():
                if holder.user == user and asked.sequence < waiting_too:
                    servers += 1
                    amount += asked.request.count * least(asked.request.kind)
        limits = self.limits[user]
        most = limits.max_gpu_equivalents
        too_many = servers >= (limits.max_containers_per_user or math.inf)
        if too_many or request.count > (limits.max_gpu_slots_per_container or math.inf):
            return False
        fitting = [(d.kind, self.equivalents([d.uuid])) for d in self.inventory.values() if matches(request, d)]
        enough = [each for kind, each in fitting if sum(kind == other for other, _ in fitting) >= request.count]
        each = min(enough, default=least(request.kind))
        return not request.count or most is None or request.count * each + amount <= most

    def possible(self, request: Request) -> bool:
        """Whether what is asked for exists."""
        kinds: dict[str, int] = {}
        for device in self.inventory.values():
            if matches(request, device):
                kinds[device.kind] = kinds.get(device.kind, 0) + 1
        return max(kinds.values(), default=0) >= request.count

    def promises(
        self, requests: Iterable[Request], free: set[str], now: float
    ) -> Iterator[tuple[Request, float, dict[str, float]]]:
        """Yield when each request could start at the earliest, if everybody keeps to what is known of them.

        Args:
            requests: those who wait, next one first; each keeps to the promises to those before it.
            free: devices that nobody has.
            now: the time.

        Yields:
            The request, the earliest start, and from when on it could use each device.
        """
        leased = self.leased()
        times: dict[str, float] = {}
        for uuid in self.inventory:
            times[uuid] = now
            for other, holder in leased.items():
                if uuid not in free and self.share_hardware(uuid, other):
                    limits, held = self.limits[holder.user], self.held[holder]
                    idle = held.since + soonest_idle(limits)
                    if holder in self.stops and held.since < self.stops_at:
                        idle = self.stops[holder]
                    end = min(idle, held.since + (limits.max_runtime_seconds or 0.0))
                    times[uuid] = max(times[uuid], end)
        for request in requests:
            best: tuple[float, list[str]] = (math.inf, [])
            for kind in {device.kind for device in self.inventory.values()}:
                fitting = [u for u, d in self.inventory.items() if d.kind == kind and matches(request, d)]
                fitting.sort(key=lambda u: times[u])
                if len(fitting) >= request.count:
                    best = min(best, (times[fitting[request.count - 1]], fitting[: request.count]))
            yield request, best[0], dict(times)
            limits = self.limits[request.holder.user]
            shortest = min(soonest_idle(limits), limits.max_runtime_seconds or math.inf)
            for uuid in self.inventory:
                if any(self.share_hardware(uuid, promised) for promised in best[1]):
                    times[uuid] = best[0] + shortest


def matches(request: Request, device: Device) -> bool:
    """Whether a device is what a request means."""
    return (not request.kind or request.kind == device.kind) and device.memory_bytes >= request.min_memory_bytes


def cut_from(uuid: str, known: dict[str, Device]) -> set[str]:
    """Return a device and every instance that is cut from it."""
    return {device.uuid for device in known.values() if uuid in {device.uuid, device.parent}}


def soonest_idle(limits: Limits) -> float:
    """Return how soon a server may be retired as idle: devices are in demand, but nobody is retired while young."""
    return max(0.5 * (limits.idle_seconds or math.inf), 1800.0)


def least(kind: str) -> Fraction:
    """Return the least that a device of a kind counts."""
    if kind == "gpu":
        return Fraction(1)
    return Fraction(int(kind.split("g.", maxsplit=1)[0]) if kind else 1, 7)


def ways_to_claim(device: Device) -> list[tuple[str, Means]]:
    """Return ways in which an engine names a device, each with what it means."""
    gpu = device.index.partition(".")[0]
    ways: list[tuple[str, Means]] = [
        (device.uuid, exactly(device.uuid)),
        (f"nvidia.com/gpu={device.uuid}", exactly(device.uuid)),
        ("all", set),
        (gpu, lambda known: {d.uuid for d in known.values() if d.index.partition(".")[0] == gpu}),
        ("void", nothing),
    ]
    if device.parent:
        index = device.index
        ways.append((index.replace(".", ":"), lambda known: {d.uuid for d in known.values() if d.index == index}))
        ways.append((device.parent, exactly(device.parent)))
    return ways


def exactly(*uuids: str) -> Means:
    """Return the meaning of a claim to devices and to what is cut from them."""
    return lambda known: set().union(*(cut_from(uuid, known) for uuid in uuids))


def both(one: Means, other: Means) -> Means:
    """Return the meaning of two claims together."""
    return lambda known: one(known) | other(known)


def nothing(_known: dict[str, Device]) -> set[str]:
    """Return what a claim to nothing means."""
    return set()


def require(condition: object, otherwise: str) -> None:
    """Raise a violation unless something holds."""
    if not condition:
        raise Violation(otherwise)
