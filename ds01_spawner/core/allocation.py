"""One decision: the ledger, the queue and the shares of use together, without a clock, a lock or a wait.

``decide`` takes one look at the host and says who gets what now and who is refused; ``tell`` says where the others
stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ds01_spawner.core import limits as limits_
from ds01_spawner.core import tickets
from ds01_spawner.core.backfill import Table
from ds01_spawner.core.expectation import Expectation, IdleEnds
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.limits import Held
from ds01_spawner.core.model import Device, DeviceStatus, Holder, Lease, Observation, Request
from ds01_spawner.core.news import changes_between, changes_of_sight
from ds01_spawner.core.placement import PLACEMENTS, Surroundings, place
from ds01_spawner.core.queue import PATIENCE_SECONDS, Entry, Estimate, Waiting, order
from ds01_spawner.core.rules import LimitsOf, Rules, require_sound
from ds01_spawner.core.shares import DecayedUse
from ds01_spawner.core.sight import Change
from ds01_spawner.core.tickets import Remembered, Ticket
from ds01_spawner.errors import DeviceRefused, DevicesUnavailable, DS01Error, LedgerBroken

Refused = tuple[Entry, DS01Error]

HALF_LIFE_SECONDS = 7 * 24 * 3600.0
TICKET_SECONDS = 15 * 60.0


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
        changes: what the look brought to light.
    """

    grants: tuple[Grant, ...] = ()
    refusals: tuple[Refused, ...] = ()
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
        patience_seconds: after this long a request goes before every later one.
        half_life_seconds: of the GPU-hours that decide between equals.
        remembered: places and shares from before a restart of the hub.
        now: the time.

    Attributes:
        idle_ends: what the culler said last, for estimates; ``None`` while it says nothing.

    Raises:
        ValueError: there is no such placement.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        placement: str = "packed",
        limits: LimitsOf | None = None,
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
        self.idle_ends: IdleEnds | None = None
        self._patience_seconds = patience_seconds
        self._entries: dict[Holder, Entry] = {}
        self._entries_of: dict[str, list[Entry]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._tickets = {ticket.request.holder: ticket for ticket in remembered.tickets}
        self._tickets_until = now + TICKET_SECONDS
        self._sequence = max((ticket.sequence for ticket in remembered.tickets), default=0)
        self._last: dict[str, frozenset[str]] = {}
        self._released: dict[str, int] = {}
        self._releases = 0
        self._waiting: Mapping[Holder, Waiting] = {}
        self._withheld = ""
        self._known: Mapping[str, DeviceStatus] = {}

    # -- coming and going -------------------------------------------------------------------------------------------

    def enter(self, request: Request, groups: Iterable[str], now: float) -> Entry:
        """Put a request into the queue, at its old place if it has a ticket.

        Raises:
            InvalidOptions: it is no request.
            DeviceRefused: the same server waits already.
        """
        require_sound(request)
        holder = request.holder
        if holder in self._entries:
            raise DeviceRefused("This project is waiting for a device already. Cancel that start first.")
        ticket = self._tickets.pop(holder, None)
        if ticket is None or ticket.request != request or now > self._tickets_until:
            self._sequence += 1
            ticket = Ticket(request, now, self._sequence)
        self._groups[holder.user] = tuple(groups)
        limits = self._rules().limits_of(holder.user)
        entry = Entry(request, limits, ticket.since, ticket.sequence)
        self._entries[holder] = entry
        self._entries_of.setdefault(holder.user, []).append(entry)
        return entry

    def leave(self, holder: Holder) -> None:
        """Take a request out of the queue; none is no error."""
        entry = self._entries.pop(holder, None)
        if entry:
            others = self._entries_of[holder.user]
            others.remove(entry)
            if not others:
                del self._entries_of[holder.user]

    def reserve_nothing(self, request: Request, groups: Iterable[str], now: float) -> Lease:
        """Lease no device, for a CPU server; it counts toward the user's servers, and never waits.

        Raises:
            InvalidOptions: it is no request.
            DeviceRefused: the server has a lease already.
            LimitReached: the user may not have another server.
        """
        require_sound(request)
        if request.count:
            raise LedgerBroken(f"{request} wants devices.")
        holder = request.holder
        self._groups[holder.user] = tuple(groups)
        rules = self._rules()
        rules.refuse_second(holder)
        rules.check(request, rules.limits_of(holder.user), self.ledger.holding(holder.user))
        return self.ledger.reserve(holder, (), now)

    def release(self, holder: Holder, now: float) -> Lease | None:
        """End a lease; see ``Ledger.release``."""
        self._charge(now)
        lease = self.ledger.release(holder, now)
        if lease and lease.devices:
            self._remember(lease)
        return lease

    def admit_again(self, entry: Entry) -> None:
        """Read the limits of somebody who waits again, and let the next decision refuse what they do not allow."""
        entry.limits = self._rules().limits_of(entry.request.holder.user)
        entry.admitted_on = None

    # -- deciding ---------------------------------------------------------------------------------------------------

    def decide(self, seen: Observation, look: int, now: float, withheld: str = "") -> Decision:
        """Reconcile with a look, refuse what cannot be, and grant what can.

        Args:
            seen: the look.
            look: its number from ``Ledger.begin_look``.
            now: the time.
            withheld: why nothing may be granted although the look succeeded; empty when it may.
        """
        self._charge(now)
        changes = [*changes_of_sight(self.ledger.seen, seen), *self.ledger.reconcile(seen, look)]
        if self.ledger.whole:
            changes += changes_between(self._known, self.ledger.judged, self.ledger.claimed)
            self._known = self.ledger.judged
        for change in changes:
            if change.kind == "vanished" and change.lease and change.lease.devices:
                self._remember(change.lease)
        self._withheld = withheld
        if self.ledger.seen.problem and not self.ledger.whole:
            self._withheld = f"The GPUs cannot be read right now: {self.ledger.seen.problem}"
        rules = self._rules()
        refusals = self._admit(rules)
        grants: list[Grant] = []
        if self._entries and self.ledger.free and not withheld:
            expectation = Expectation(self.ledger, rules, self.idle_ends, now)
            table = Table(self.ledger.free.values(), expectation.earliest, self.ledger.inventory, now)
            try:
                self._serve(self._line(now), table, rules, grants, refusals)
            except BaseException:
                for grant in grants:  # nobody will ever hear of them
                    self.ledger.release(grant.lease.holder, now)
                raise
        return Decision(tuple(grants), tuple(refusals), tuple(changes))

    def tell(self, now: float) -> Mapping[Holder, Waiting]:
        """Return what everybody in the queue is told, next one first, as of the last decision."""
        expectation = Expectation(self.ledger, self._rules(), self.idle_ends, now)
        self._waiting = expectation.tell(self._line(now), self._withheld)
        return self._waiting

    def _line(self, now: float) -> list[Entry]:
        return order(self._entries.values(), self.use, now, self._patience_seconds)

    def _admit(self, rules: Rules) -> list[Refused]:
        """Refuse at once what can never be granted: by a limit, or because it does not exist."""
        refusals: list[Refused] = []
        whole, inventory = self.ledger.whole, self.ledger.inventory
        for entry in tuple(self._entries.values()):
            try:
                if not self.ledger.inventory_known:
                    raise DevicesUnavailable(
                        f"No GPU can be assigned, because none can be read: {self.ledger.seen.problem}"
                        " Launch on the CPU, or tell an administrator."
                    )
                if not whole or entry.admitted_on is inventory:
                    continue
                if entry.admitted_on is None:
                    rules.refuse_second(entry.request.holder)
                    rules.check(entry.request, entry.limits, self._held_and_waited_for(entry))
                entry.admitted_on = inventory
                rules.refuse_impossible(entry.request, entry.limits)
            except DS01Error as refusal:
                self.leave(entry.request.holder)
                refusals.append((entry, refusal))
        return refusals

    def _serve(
        self, queue: Iterable[Entry], table: Table, rules: Rules, grants: list[Grant], refusals: list[Refused]
    ) -> None:
        """Grant what can be granted, in the queue's order."""
        ledger = self.ledger
        for entry in queue:
            if table.cleared:
                return
            request, holder = entry.request, entry.request.holder
            kinds = rules.kinds(request, entry.limits)
            candidates = table.candidates(entry, kinds)
            if kinds and not candidates:
                table.keep(entry, kinds)
                continue
            try:
                rules.refuse_second(holder)
                entry.limits = rules.limits_of(holder.user)
                rules.check(request, entry.limits, ledger.holding(holder.user))
            except DS01Error as refusal:
                self.leave(holder)
                refusals.append((entry, refusal))
                continue
            if not candidates:
                continue
            chosen = place(self._placement, candidates, request.count, self._around(holder.user))
            table.take(entry, chosen)
            lease = ledger.reserve(holder, tuple(device.uuid for device in chosen), table.now)
            grants.append(Grant(entry, lease, chosen))
            self.leave(holder)

    def expected_starts(self, now: float) -> dict[str, Estimate | None]:
        """Return, for every kind of device, when somebody who asks for one now would get it, behind all who wait.

        ``None`` where that cannot be told; a kind of which one is free and nobody waits is expected now.
        """
        queue = self._line(now)
        rules = self._rules()
        expectation = Expectation(self.ledger, rules, self.idle_ends, now)
        last = max((entry.sequence for entry in queue), default=0)
        found: dict[str, Estimate | None] = {}
        for kind in {device.kind for device, _, _ in expectation.times()}:
            asks = Entry(Request(Holder("", ""), 1, kind), since=now, sequence=last + 1)
            found[kind] = expectation.forecast([*queue, asks])[asks.sequence]
        return found

    # -- what decisions rest on -------------------------------------------------------------------------------------

    def _rules(self) -> Rules:
        return Rules(self.ledger, self._limits, self._groups)

    def _around(self, user: str) -> Surroundings:
        neighbours: dict[str, int] = {}
        for device in self.ledger.inventory.instances:
            if device.uuid not in self.ledger.free:
                neighbours[device.parent] = neighbours.get(device.parent, 0) + 1
        return Surroundings(self._last.get(user, frozenset()), neighbours, self._released)

    def _remember(self, lease: Lease) -> None:
        self._last[lease.holder.user] = frozenset(lease.devices)
        self._releases += 1
        self._released.update(dict.fromkeys(lease.devices, self._releases))

    def _held_and_waited_for(self, entry: Entry) -> tuple[Held, ...]:
        """Return what the user holds, and what the user has asked for earlier and waits for."""
        user = entry.request.holder.user
        earlier = (
            Held(other.request.holder.server, other.request.count * limits_.gpu_equivalents_of(other.request.kind))
            for other in self._entries_of[user]
            if other.sequence < entry.sequence
        )
        return (*self.ledger.holding(user), *earlier)

    def _charge(self, now: float) -> None:
        holding: dict[str, float] = {}
        for uuid, holder in self.ledger.holders.items():
            device = self.ledger.device(uuid)
            slices = device.mig_slices if device.mig_profile else limits_.SLICES_PER_GPU
            holding[holder.user] = holding.get(holder.user, 0.0) + slices / limits_.SLICES_PER_GPU
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
            if entry.request.holder != holder or entry not in self._entries_of[holder.user]:
                raise LedgerBroken(f"{entry} is filed wrongly, under {holder}.")
