"""One decision: the ledger, the queue and the shares of use together, without a clock, a lock or a wait.

``decide`` takes one look at the host and says who gets what now, who is refused, and what everybody else is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ds01_spawner.core import limits as limits_
from ds01_spawner.core import tickets
from ds01_spawner.core.backfill import Table, forecast
from ds01_spawner.core.ledger import Change, Ledger
from ds01_spawner.core.limits import Held, Limits
from ds01_spawner.core.model import Device, DeviceState, DeviceStatus, Holder, Lease, Observation, Request
from ds01_spawner.core.placement import PLACEMENTS, Surroundings, place
from ds01_spawner.core.queue import (
    PATIENCE_SECONDS,
    Entry,
    Estimate,
    Waiting,
    describe_devices,
    describe_request,
    order,
    tell,
    why_not_yet,
)
from ds01_spawner.core.shares import DecayedUse
from ds01_spawner.core.tickets import Remembered, Ticket
from ds01_spawner.errors import DeviceRefused, DevicesUnavailable, DS01Error, InvalidOptions, LedgerBroken

HALF_LIFE_SECONDS = 7 * 24 * 3600.0
TICKET_SECONDS = 15 * 60.0

LimitsOf = Callable[[str, Collection[str]], Limits]
IdleSince = Callable[[Lease], float | None]


@dataclass(frozen=True, slots=True)
class Grant:
    """An entry that leaves the queue with devices."""

    entry: Entry
    lease: Lease
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What one look led to.

    Attributes:
        grants: who got what.
        refusals: who cannot get what was asked for, and why.
        waiting: what each of the others is told.
        changes: what the look brought to light.
    """

    grants: tuple[Grant, ...] = ()
    refusals: tuple[tuple[Entry, DS01Error], ...] = ()
    waiting: Mapping[Holder, Waiting] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything for a page, as of one look.

    Attributes:
        at: when the look was made.
        devices: every device that exists or is leased.
        leases: every lease, CPU servers included.
        queue: who waits and what they are told, next one first.
        holding: what each user with a lease has on this host.
        gpu_hours: GPU-hours used lately per user, as the queue counts them.
        notices: sentences on what does not fit together.
        problem: what could not be read, else empty.
    """

    at: float
    devices: tuple[DeviceStatus, ...]
    leases: tuple[Lease, ...]
    queue: tuple[tuple[Holder, Waiting], ...]
    holding: Mapping[str, tuple[Held, ...]]
    gpu_hours: Mapping[str, float]
    notices: tuple[str, ...]
    problem: str


class Allocation:
    """The devices of one host, decided for one hub.

    Args:
        ledger: the leases.
        placement: a name out of ``PLACEMENTS``.
        limits: a user's limits by login name and groups; ``None`` when the site has none.
        idle_since: since when a lease's server is idle, ``None`` when it is not or nobody knows.
        patience_seconds: after this long a request goes before every later one.
        half_life_seconds: of the GPU-hours that decide between equals.
        remembered: places and shares from before a restart of the hub.
        now: the time.

    Raises:
        ValueError: there is no such placement.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        placement: str = "packed",
        limits: LimitsOf | None = None,
        idle_since: IdleSince | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        half_life_seconds: float = HALF_LIFE_SECONDS,
        remembered: Remembered | None = None,
        now: float = 0.0,
    ) -> None:
        if placement not in PLACEMENTS:
            raise ValueError(f"There is no placement {placement!r}; choose one of {', '.join(PLACEMENTS)}.")
        remembered = remembered or Remembered(at=now)
        self.ledger = ledger
        self.use = DecayedUse(half_life_seconds, remembered.hours, remembered.at)
        self._placement = placement
        self._limits = limits
        self._idle_since = idle_since
        self._patience_seconds = patience_seconds
        self._entries: dict[Holder, Entry] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._tickets = {ticket.request.holder: ticket for ticket in remembered.tickets}
        self._tickets_until = now + TICKET_SECONDS
        self._sequence = max((ticket.sequence for ticket in remembered.tickets), default=0)
        self._last: dict[str, frozenset[str]] = {}
        self._released: dict[str, int] = {}
        self._waiting: Mapping[Holder, Waiting] = {}

    # -- coming and going -------------------------------------------------------------------------------------------

    def enter(self, request: Request, groups: Iterable[str], now: float) -> Entry:
        """Put a request into the queue, at its old place if it has a ticket.

        Raises:
            InvalidOptions: it is no request.
            DeviceRefused: the same server waits already.
        """
        _require_sound(request)
        holder = request.holder
        if holder in self._entries:
            raise DeviceRefused("This project is waiting for a device already. Cancel that start first.")
        ticket = self._tickets.pop(holder, None)
        if ticket is None or ticket.request != request or now > self._tickets_until:
            self._sequence += 1
            ticket = Ticket(request, now, self._sequence)
        self._groups[holder.user] = tuple(groups)
        entry = Entry(request, tuple(groups), self._limits_of(holder.user), ticket.since, ticket.sequence)
        self._entries[holder] = entry
        return entry

    def leave(self, holder: Holder) -> None:
        """Take a request out of the queue; none is no error."""
        self._entries.pop(holder, None)

    def reserve_nothing(self, request: Request, groups: Iterable[str], now: float) -> Lease:
        """Lease no device, for a CPU server; it counts toward the user's servers, and never waits.

        Raises:
            InvalidOptions: it is no request for a CPU server.
            DeviceRefused: the server has a lease already.
            LimitReached: the user may not have another server.
        """
        _require_sound(request)
        if request.count:
            raise LedgerBroken(f"{request} wants devices.")
        holder = request.holder
        self._groups[holder.user] = tuple(groups)
        self._refuse_second(holder)
        self._check(request, self._limits_of(holder.user), self.ledger.holding(holder.user))
        return self.ledger.reserve(holder, (), now)

    def release(self, holder: Holder, now: float) -> Lease | None:
        """End a lease; see ``Ledger.release``."""
        self._charge(now)
        lease = self.ledger.release(holder, now)
        if lease and lease.devices:
            self._remember(lease)
        return lease

    def refresh_limits(self) -> None:
        """Read the limits of everybody who waits again."""
        for entry in self._entries.values():
            entry.limits = self._limits_of(entry.request.holder.user)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def decide(self, seen: Observation, look: int, now: float, withheld: str = "") -> Decision:
        """Reconcile with a look, grant what can be granted, and tell the others where they stand.

        Args:
            seen: the look.
            look: its number from ``Ledger.begin_look``.
            now: the time.
            withheld: why nothing may be granted although the look succeeded; empty when it may.
        """
        self._charge(now)
        before = {lease.holder: lease for lease in self.ledger.leases if lease.devices}
        changes = self.ledger.reconcile(seen, look)
        for change in changes:
            if change.kind == "vanished" and change.holder in before:
                self._remember(before[change.holder])
        refusals = self._admit() if self._entries else []
        queue = order(self._entries.values(), self.use, now, self._patience_seconds)
        grants: list[Grant] = []
        try:
            if queue and self.ledger.free and not withheld:
                self._serve(queue, now, grants, refusals)
            left = [entry for entry in queue if entry.request.holder in self._entries]
            self._waiting = self._tell(left, now, withheld)
        except BaseException:
            for grant in grants:  # nobody will ever hear of them
                self.ledger.release(grant.lease.holder, now)
            raise
        return Decision(tuple(grants), tuple(refusals), self._waiting, changes)

    def _admit(self) -> list[tuple[Entry, DS01Error]]:
        """Refuse at once what can never be granted: by a limit, or because it does not exist."""
        refusals: list[tuple[Entry, DS01Error]] = []
        for entry in list(self._entries.values()):
            try:
                if not self.ledger.inventory_known:
                    raise DevicesUnavailable(
                        f"No GPU can be assigned, because none can be read: {self.ledger.seen.problem}"
                        " Launch on the CPU, or tell an administrator."
                    )
                if not self.ledger.whole:
                    continue
                if not entry.admitted:
                    self._refuse_second(entry.request.holder)
                    self._check(entry.request, entry.limits, self._held_and_waited_for(entry))
                    entry.admitted = True
                self._refuse_impossible(entry)
            except DS01Error as refusal:
                self.leave(entry.request.holder)
                refusals.append((entry, refusal))
        return refusals

    def _serve(
        self, queue: Iterable[Entry], now: float, grants: list[Grant], refusals: list[tuple[Entry, DS01Error]]
    ) -> None:
        ledger = self.ledger
        expected = [
            (status.device, self._ends(uuid, now)[0] if status.holder else now)
            for uuid, status in ledger.judged.items()
            if uuid not in ledger.free and status.exists
        ]
        table = Table(
            ledger.free.values(), ((d, at if math.isfinite(at) else now) for d, at in expected), ledger.inventory, now
        )
        for entry in queue:
            if table.cleared:
                return
            holder = entry.request.holder
            kinds = self._kinds(entry)
            candidates = table.candidates(entry, kinds)
            if kinds and not candidates:
                table.keep(entry, kinds)
                continue
            try:
                self._refuse_second(holder)
                entry.limits = self._limits_of(holder.user)
                self._check(entry.request, entry.limits, ledger.holding(holder.user))
            except DS01Error as refusal:
                self.leave(holder)
                refusals.append((entry, refusal))
                continue
            if not candidates:
                continue
            chosen = place(self._placement, candidates, entry.request.count, self._around(holder.user))
            table.take(entry, chosen)
            lease = ledger.reserve(holder, tuple(device.uuid for device in chosen), now)
            self.leave(holder)
            grants.append(Grant(entry, lease, chosen))

    def expected_starts(self, now: float) -> dict[str, Estimate | None]:
        """Return, for every kind of device, when somebody who asks for one now would get it, behind all who wait.

        ``None`` where that cannot be told; a kind of which one is free and nobody waits is expected now.
        """
        queue = order(self._entries.values(), self.use, now, self._patience_seconds)
        last = max((entry.sequence for entry in queue), default=0)
        times = self._times(now)
        found: dict[str, Estimate | None] = {}
        for kind in {device.kind for device, _, _ in times}:
            asks = Entry(Request(Holder("", ""), 1, kind), since=now, sequence=last + 1)
            found[kind] = forecast([*queue, asks], times, self._kinds, now)[asks.sequence]
        return found

    def _times(self, now: float) -> list[tuple[Device, float, float]]:
        """Return every device that exists, with the earliest and the latest time at which it is free."""
        ledger = self.ledger
        return [
            (status.device, *((now, now) if self._state(uuid, status) == "free" else self._ends(uuid, now)))
            for uuid, status in ledger.judged.items()
            if status.exists
        ]

    def _tell(self, queue: list[Entry], now: float, withheld: str) -> dict[Holder, Waiting]:
        if not queue:
            return {}
        ledger = self.ledger
        stuck = withheld or ("" if ledger.whole else f"The GPUs cannot be read right now: {ledger.seen.problem}")
        states = {uuid: self._state(uuid, status) for uuid, status in ledger.judged.items() if status.exists}
        estimates = {}
        if not stuck:
            estimates = forecast(queue, self._times(now), self._kinds, now)
        whys: dict[tuple[str, int, bool], str] = {}
        told: dict[Holder, Waiting] = {}
        for place_, entry in enumerate(queue, 1):
            request = entry.request
            key = (request.kind, request.min_memory_bytes, place_ > 1)
            if key not in whys:
                matching = [states[uuid] for uuid, device in ledger.inventory.existing.items() if fits(request, device)]
                whys[key] = stuck or why_not_yet(matching, before=place_ - 1)
            told[request.holder] = tell(request, (place_, len(queue)), whys[key], estimates.get(entry.sequence), now)
        return told

    # -- what decisions rest on -------------------------------------------------------------------------------------

    def _state(self, uuid: str, status: DeviceStatus) -> str:
        if uuid in self.ledger.free:
            return "free"
        if self.ledger.lease_on(uuid):
            return "leased"
        # A device that was free at the look and is not now shares hardware with one that was granted since.
        return "occupied" if status.state is DeviceState.FREE else str(status.state)

    def _ends(self, uuid: str, now: float) -> tuple[float, float]:
        """Return the earliest and the latest time at which a device that is not free is; infinite when unknown."""
        lease = self.ledger.lease_on(uuid)
        limits = self._limits_of(lease.holder.user) if lease else None
        if lease is None or limits is None:
            return (math.inf, math.inf)
        latest = math.inf
        if limits.max_runtime_seconds is not None:
            latest = max(lease.since + limits.max_runtime_seconds, now)
        earliest = latest
        if limits.idle_seconds is not None:
            idle_since = self._idle_since(lease) if self._idle_since else None
            earliest = max((now if idle_since is None else idle_since) + limits.idle_seconds, now)
        return (min(earliest, latest), latest)

    def _kinds(self, entry: Entry) -> list[str]:
        """Return the kinds of device that the entry may be served with, smallest first."""
        request, limits = entry.request, entry.limits
        if request.kind:
            return [request.kind]
        left = None
        if limits:
            left = limits_.gpu_equivalents_left(limits, request, self.ledger.holding(request.holder.user))
        sizes = {
            device.kind: (device.gpu_equivalents, device.memory_bytes)
            for device in self.ledger.inventory.existing.values()
            if fits(request, device)
            and (limits is None or limits.grants(device))
            and (left is None or request.count * device.gpu_equivalents <= left)
        }
        return sorted(sizes, key=lambda kind: (*sizes[kind], kind))

    def _around(self, user: str) -> Surroundings:
        neighbours: dict[str, int] = {}
        for uuid, device in self.ledger.inventory.existing.items():
            if device.parent and uuid not in self.ledger.free:
                neighbours[device.parent] = neighbours.get(device.parent, 0) + 1
        return Surroundings(self._last.get(user, frozenset()), neighbours, self._released)

    def _remember(self, lease: Lease) -> None:
        self._last[lease.holder.user] = frozenset(lease.devices)
        turn = max(self._released.values(), default=0) + 1
        self._released.update(dict.fromkeys(lease.devices, turn))

    def _limits_of(self, user: str) -> Limits | None:
        return self._limits(user, self._groups.get(user, ())) if self._limits else None

    def _check(self, request: Request, limits: Limits | None, holding: tuple[Held, ...]) -> None:
        if limits is None:
            return
        if request.count and not request.kind:
            # Any kind will do: if the smallest that this host has is too much, then everything is.
            sizes = [
                (device.gpu_equivalents, device.kind)
                for device in self.ledger.inventory.existing.values()
                if fits(request, device) and limits.grants(device)
            ]
            request = replace(request, kind=min(sizes)[1]) if sizes else request
        limits_.check(limits, request, holding)

    def _held_and_waited_for(self, entry: Entry) -> tuple[Held, ...]:
        """Return what the user holds, and what the user has asked for earlier and waits for."""
        user = entry.request.holder.user
        earlier = (
            Held(other.request.holder.server, other.request.count * limits_.gpu_equivalents_of(other.request.kind))
            for other in self._entries.values()
            if other.request.holder.user == user and other.sequence < entry.sequence
        )
        return (*self.ledger.holding(user), *earlier)

    def _refuse_second(self, holder: Holder) -> None:
        lease = self.ledger.lease_of(holder)
        if lease:
            raise DeviceRefused(
                f"This project still runs in container {lease.container_id[:12] or '(starting)'}. Retire it first."
            )

    def _refuse_impossible(self, entry: Entry) -> None:
        request = entry.request
        existing = self.ledger.inventory.existing.values()
        kinds: dict[str, int] = {}
        for device in existing:
            if fits(request, device) and (entry.limits is None or entry.limits.grants(device)):
                kinds[device.kind] = kinds.get(device.kind, 0) + 1
        if max(kinds.values(), default=0) < request.count:
            raise DeviceRefused(
                f"You asked for {describe_request(request)}, and this host has {describe_devices(existing)}."
                " Ask for what there is, or launch on the CPU."
            )

    def _charge(self, now: float) -> None:
        holding: dict[str, float] = {}
        for lease in self.ledger.leases:
            for uuid in lease.devices:
                user = lease.holder.user
                holding[user] = holding.get(user, 0.0) + float(self.ledger.device(uuid).gpu_equivalents)
        self.use.advance(now, holding)

    # -- reading ----------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Everybody in the queue, in no order."""
        return tuple(self._entries.values())

    @property
    def waits(self) -> bool:
        """Whether anybody is in the queue."""
        return bool(self._entries)

    def memory(self, now: float) -> str:
        """Return the text that a later hub reads to keep places and shares."""
        waiting = [Ticket(entry.request, entry.since, entry.sequence) for entry in self._entries.values()]
        unclaimed = self._tickets.values() if now <= self._tickets_until else ()
        return tickets.encode(now, (*waiting, *unclaimed), self.use.all())

    def snapshot(self) -> Snapshot:
        """Return everything for a page."""
        ledger = self.ledger
        return Snapshot(
            at=ledger.seen.at,
            devices=ledger.statuses(),
            leases=ledger.leases,
            queue=tuple((holder, told) for holder, told in self._waiting.items() if holder in self._entries),
            holding={user: ledger.holding(user) for user in sorted({lease.holder.user for lease in ledger.leases})},
            gpu_hours=self.use.all(),
            notices=ledger.notices,
            problem=ledger.seen.problem,
        )

    def validate(self) -> None:
        """Derive every rule again.

        Raises:
            LedgerBroken: one does not hold.
        """
        self.ledger.validate()
        sequences = [entry.sequence for entry in self._entries.values()]
        if len(set(sequences)) != len(sequences) or max(sequences, default=0) > self._sequence:
            raise LedgerBroken(f"Two places in the queue are one: {sequences}.")
        for holder, entry in self._entries.items():
            if entry.request.holder != holder:
                raise LedgerBroken(f"{entry} is filed under {holder}.")


def fits(request: Request, device: Device) -> bool:
    """Whether a device is of the kind and the size that a request names."""
    return request.kind in {"", device.kind} and device.memory_bytes >= request.min_memory_bytes


def _require_sound(request: Request) -> None:
    for number in (request.count, request.min_memory_bytes):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidOptions(f"{number!r} is no number of GPUs or bytes. Ask for 0, 1, 2 or more.")
