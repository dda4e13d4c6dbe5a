"""The ledger: who holds which device, as far as this hub decides it.

A lease is reserved before its container exists and bound once it does; every look at the host is reconciled with it.
Four rules keep a device from being given twice or lost:

* a device is granted only on a look that read devices, containers and processes, and that showed it healthy, unclaimed,
  without a process, and with its memory at the baseline;
* a partial or failed look frees nothing;
* a lease ends with a release, or with a look that began after the lease was bound and does not show its container;
  never by a clock;
* a released device is granted only on a look that began after its release.

"Began after" is counted in looks, not in seconds, so that a clock that jumps changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ds01_spawner.core import claims, labels
from ds01_spawner.core.claims import Inventory, Occupant
from ds01_spawner.core.handover import Handover
from ds01_spawner.core.labels import ServerLabels
from ds01_spawner.core.limits import Held
from ds01_spawner.core.model import (
    Container,
    Device,
    DeviceState,
    DeviceStatus,
    Health,
    Holder,
    Lease,
    LeaseState,
    Observation,
    Process,
)
from ds01_spawner.core.sight import Change, Sight, is_whole, judge
from ds01_spawner.errors import LedgerBroken

MEMORY_TOLERANCE_BYTES = 512 * 2**20
REPORT_AFTER_SECONDS = 300.0


@dataclass(slots=True)
class _Entry:
    lease: Lease
    look: int  # the last look that had begun when the container was bound: it may have missed the container


class Ledger:
    """Leases of one hub, and what the last look showed.

    Args:
        hub: this hub's name in the labels; containers of other hubs are strangers.
        memory_tolerance_bytes: how much more memory than its baseline may be in use on a device that counts as clean.
            The baseline of a device is the least that was in use while it was clean, 0 before that is known.
        report_after_seconds: how long a device may be set aside before that is reported.
        infrastructure: beginnings of names of containers that see every GPU and use none, such as a metrics exporter.
    """

    def __init__(
        self,
        hub: str,
        *,
        memory_tolerance_bytes: int = MEMORY_TOLERANCE_BYTES,
        report_after_seconds: float = REPORT_AFTER_SECONDS,
        infrastructure: Iterable[str] = (),
    ) -> None:
        self.hub = hub
        self.inventory = Inventory()
        self.inventory_known = False
        self.seen = Observation(at=0.0, devices=None, containers=None, processes=None, problem="")
        self.notices: tuple[str, ...] = ()
        self._tolerance_bytes = memory_tolerance_bytes
        self._handover = Handover(report_after_seconds)
        self._infrastructure = tuple(infrastructure)
        self._entries: dict[Holder, _Entry] = {}
        self._holders: dict[str, Holder] = {}
        self._remembered: dict[str, Device] = {}
        self._claimed: dict[str, Occupant] = {}
        self._strays: dict[str, Process] = {}
        self._outsiders: dict[str, list[Container]] = {}
        self._servers: dict[str, dict[Holder, _Entry]] = {}
        self._decoded: dict[str, ServerLabels | None] = {}
        self._listed: tuple[Device, ...] = ()
        self._free: dict[str, Device] = {}
        self._judged: dict[str, DeviceStatus] = {}
        self._numbers = 0
        self._looks = 0
        self._gone: dict[str, int] = {}  # containers of ended leases, and the last look that may still have seen them
        self._seen_look = 0

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether the last look read everything that a grant needs."""
        return is_whole(self.seen)

    @property
    def free(self) -> Mapping[str, Device]:
        """Devices that may be granted on the last look, by UUID."""
        return self._free

    @property
    def judged(self) -> Mapping[str, DeviceStatus]:
        """Every device as it was right after the last look, leases granted since then not counted."""
        return self._judged

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Every lease, in the order in which the ledger learned of them."""
        return tuple(entry.lease for entry in self._entries.values())

    @property
    def settling(self) -> bool:
        """Whether a device waits to be seen clean."""
        return bool(self._handover.departures)

    def lease_of(self, holder: Holder) -> Lease | None:
        """Return the holder's lease."""
        entry = self._entries.get(holder)
        return entry.lease if entry else None

    @property
    def claimed(self) -> Collection[str]:
        """UUIDs of the devices that a container claims without carrying a lease on them, by the last look."""
        return self._claimed.keys()

    @property
    def holders(self) -> Mapping[str, Holder]:
        """The holder of every leased device, by UUID."""
        return self._holders

    def lease_on(self, uuid: str) -> Lease | None:
        """Return the lease of a device."""
        holder = self._holders.get(uuid)
        return self._entries[holder].lease if holder else None

    def device(self, uuid: str) -> Device:
        """Return a device as it was seen last; one that never was counts as a whole GPU of no size."""
        known = self.inventory.by_uuid.get(uuid) or self._remembered.get(uuid)
        return known or Device(uuid=uuid, name="unknown device", memory_bytes=0, health=Health.UNKNOWN)

    def statuses(self) -> tuple[DeviceStatus, ...]:
        """Return every device that exists or is leased."""
        return tuple(judge(self._sight()).values())

    def holding(self, user: str) -> tuple[Held, ...]:
        """Return what a user has on this host: leases of this hub, and containers that labels say are the user's."""
        held = [
            Held(entry.lease.holder.server, self._equivalents(entry.lease.devices))
            for entry in self._servers.get(user, {}).values()
        ]
        held += (
            Held(f"container {container.name}", self._equivalents(self.inventory.claimed_by(container)))
            for container in self._outsiders.get(user, ())
        )
        return tuple(held)

    def _equivalents(self, uuids: Collection[str]) -> Fraction:
        devices = [self.device(uuid) for uuid in uuids]
        # Who has a whole GPU has its instances with it.
        return sum((device.gpu_equivalents for device in devices if device.parent not in uuids), Fraction(0))

    # -- leases ---------------------------------------------------------------------------------------------------

    def reserve(self, holder: Holder, devices: Sequence[str], now: float) -> Lease:
        """Lease devices to a holder on the last look.

        Args:
            holder: who gets them; without a lease so far.
            devices: UUIDs out of ``free``; none for a CPU server.
            now: the time of the lease.

        Raises:
            LedgerBroken: a device is not free, the holder has a lease, or a newer look has begun.
        """
        if holder in self._entries:
            raise LedgerBroken(f"{holder} has a lease already: {self._entries[holder].lease}.")
        if len(set(devices)) != len(devices) or not self._free.keys() >= set(devices):
            raise LedgerBroken(f"{holder} cannot get {tuple(devices)}: free are {tuple(self._free)}.")
        if devices and self._seen_look != self._looks:
            raise LedgerBroken(f"{holder} cannot get {tuple(devices)} on look {self._seen_look} of {self._looks}.")
        taken: set[str] = set(devices)
        for uuid in devices:
            if not taken.isdisjoint(self.inventory.overlapping(uuid)):
                raise LedgerBroken(f"{tuple(devices)} share hardware with each other.")
        for uuid in devices:
            for gone in (uuid, *self.inventory.overlapping(uuid)):
                self._free.pop(gone, None)
        return self._enter(Lease(holder, tuple(devices), now), self._looks)

    def bind(self, holder: Holder, container_id: str) -> Lease:
        """Note that a container carries the holder's lease; binding again moves the lease to another container.

        Raises:
            LedgerBroken: the holder has no lease.
        """
        entry = self._entries.get(holder)
        if entry is None or not container_id:
            raise LedgerBroken(f"{holder} has no lease that container {container_id!r} could carry.")
        entry.lease = replace(entry.lease, state=LeaseState.BOUND, container_id=container_id)
        entry.look = self._looks
        return entry.lease

    def release(self, holder: Holder, now: float) -> Lease | None:
        """End the holder's lease; its devices stay set aside until a later look shows them clean.

        Call it after the container is proven gone.

        Returns:
            The lease that ended, or ``None`` when there was none.
        """
        entry = self._entries.pop(holder, None)
        if entry is None:
            return None
        del self._servers[holder.user][holder]
        if not self._servers[holder.user]:
            del self._servers[holder.user]
        for uuid in entry.lease.devices:
            del self._holders[uuid]
        if entry.lease.container_id:
            self._gone[entry.lease.container_id] = self._looks
        self._handover.leave(holder, entry.lease.devices, now, self._looks)
        return entry.lease

    def _enter(self, lease: Lease, look: int) -> Lease:
        self._numbers += 1
        lease = replace(lease, number=self._numbers)
        entry = self._entries[lease.holder] = _Entry(lease, look)
        self._servers.setdefault(lease.holder.user, {})[lease.holder] = entry
        for uuid in lease.devices:
            self._holders[uuid] = lease.holder
            self._remembered[uuid] = self.device(uuid)
        return lease

    # -- looking --------------------------------------------------------------------------------------------------

    def begin_look(self) -> int:
        """Return the number of a look that begins now; from here on nothing is granted until it is reconciled."""
        self._looks += 1
        return self._looks

    def reconcile(self, seen: Observation, look: int) -> tuple[Change, ...]:
        """Make the ledger agree with a look.

        Args:
            seen: what was seen by a look that began after ``begin_look`` returned ``look``.
            look: its number.

        Returns:
            What changed, and what is newly out of order.

        Raises:
            LedgerBroken: a newer look was reconciled before.
        """
        if not self._seen_look < look <= self._looks:
            raise LedgerBroken(f"Look {look} came after look {self._seen_look} of {self._looks}.")
        self.seen, self._seen_look = seen, look
        changes: list[Change] = []
        notices: list[str] = []
        if seen.devices is not None:
            self.inventory_known, self._listed = True, seen.devices
        self._take_inventory()
        if seen.containers is not None:
            known = self._decoded  # labels never change during a container's life
            self._decoded = {c.id: known[c.id] if c.id in known else labels.decode(c.labels) for c in seen.containers}
            changes += self._end_vanished(seen, look)
            changes += self._adopt(seen.containers, look, notices)
            self._take_inventory()  # who was adopted may hold a device that is not listed any more
            self._attribute(seen.containers, seen.processes or ())
        statuses = self._judged = judge(self._sight())
        if self.whole:
            changes += self._handover.settle(statuses, self.inventory.existing.keys(), seen, look)
        self._free = {uuid: s.device for uuid, s in statuses.items() if s.state is DeviceState.FREE}
        notices += (
            f"Device {s.device.index or uuid} of {s.holder.user}: {s.reason}"
            for uuid, s in statuses.items()
            if s.holder and s.reason
        )
        changes += (Change("notice", text) for text in notices if text not in self.notices)
        self.notices = tuple(dict.fromkeys(notices))
        return tuple(changes)

    def _take_inventory(self) -> None:
        """Make the inventory what is listed, and what is leased: whatever shares hardware with it is not free."""
        listed = {device.uuid: device for device in self._listed}
        known = listed | {uuid: self.device(uuid) for uuid in self._holders if uuid not in listed}
        if known != self.inventory.by_uuid or listed.keys() != self.inventory.existing.keys():
            absent = tuple(device for uuid, device in known.items() if uuid not in listed)
            self.inventory = Inventory(self._listed, absent)

    def _end_vanished(self, seen: Observation, look: int) -> list[Change]:
        present = {container.id for container in seen.containers or ()}
        gone = [
            entry.lease
            for entry in self._entries.values()
            if entry.lease.state is LeaseState.BOUND
            and entry.lease.container_id not in present
            and entry.look < look
            and (is_whole(seen) or not entry.lease.devices)
        ]
        for lease in gone:
            self.release(lease.holder, seen.at)
        return [
            Change("vanished", f"Container {lease.container_id[:12]} is gone.", lease.holder, lease.devices, lease)
            for lease in gone
        ]

    def _adopt(self, containers: Sequence[Container], look: int, notices: list[str]) -> list[Change]:
        """Take over containers of ours that carry a lease nobody here remembers, oldest first."""
        changes = []
        bound = self._bound()
        # A look that began before a container was removed shows it still: that is not one that nobody remembers.
        self._gone = {container: last for container, last in self._gone.items() if look <= last}
        loose = [
            (found.created_at, container.id, found, container)
            for container in containers
            if container.id not in bound
            and container.id not in self._gone
            and (found := self._ours(container))
            and not self._is_reserved_for(found)
        ]
        for _, _, found, container in sorted(loose, key=lambda item: item[:2]):
            entry = self._entries.get(found.holder)
            if entry is None:
                if rival := self._rival(found):
                    notices.append(
                        f"Container {container.name} of {found.holder.user} claims a device that is leased to"
                        f" {rival.user}: remove one of the two."
                    )
                    continue
                lease = Lease(found.holder, found.devices, found.created_at, LeaseState.BOUND, container.id)
                self._enter(lease, look)
                changes.append(
                    Change("adopted", f"Found running: container {container.name}.", found.holder, found.devices)
                )
            else:
                notices.append(
                    f"Container {container.name} is a second one for server {found.holder.server!r} of"
                    f" {found.holder.user}: remove it."
                )
        return changes

    def _rival(self, found: ServerLabels) -> Holder | None:
        wanted = set(found.devices)
        wanted.update(other for uuid in found.devices for other in self.inventory.named(uuid))
        wanted.update(other for uuid in found.devices for other in self.inventory.overlapping(uuid))
        wanted.update(self.device(uuid).parent for uuid in found.devices)
        for uuid, holder in self._holders.items():
            if uuid in wanted or self.device(uuid).parent in found.devices:
                return holder
        return None

    def _ours(self, container: Container) -> ServerLabels | None:
        found = self._decoded[container.id]
        return found if found and found.hub == self.hub else None

    def _bound(self) -> dict[str, tuple[str, ...]]:
        """Return every container that carries a bound lease, with the lease's devices."""
        return {e.lease.container_id: e.lease.devices for e in self._entries.values() if e.lease.container_id}

    def _is_reserved_for(self, found: ServerLabels) -> bool:
        """Return whether a container that no lease is bound to is the one that its holder's reservation waits for."""
        entry = self._entries.get(found.holder)
        reserved = entry is not None and entry.lease.state is LeaseState.RESERVED
        return entry is not None and reserved and set(entry.lease.devices) == set(found.devices)

    def _attribute(self, containers: Sequence[Container], processes: Sequence[Process]) -> None:
        """Work out who uses a device without a lease on it."""
        carried = self._bound()
        self._outsiders = {}
        for container in containers:
            if container.id in carried:
                continue
            found = self._ours(container)
            if found and self._is_reserved_for(found):
                carried[container.id] = self._entries[found.holder].lease.devices
            elif container.state not in claims.ENDED:
                self._outsiders.setdefault(claims.owner_of(container), []).append(container)
        self._claimed, self._strays = claims.occupants(
            containers, processes, self.inventory, carried, self._infrastructure
        )
        for uuid, process in tuple(self._strays.items()):
            lease = self.lease_on(uuid)
            starting = lease and lease.state is LeaseState.RESERVED and process.container_id
            if starting and process.container_id not in self._decoded:
                del self._strays[uuid]  # the lease's own container, started between the two halves of the look

    def _sight(self) -> Sight:
        return Sight(
            seen=self.seen,
            look=self._seen_look,
            inventory=self.inventory,
            holders=self._holders,
            claimed=self._claimed,
            strays=self._strays,
            departures=self._handover.departures,
            baseline_bytes=self._handover.baseline_bytes,
            tolerance_bytes=self._tolerance_bytes,
        )

    # -- proof ----------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Derive every rule again from the leases and the last look.

        Raises:
            LedgerBroken: one does not hold; the text says which.
        """
        held = [uuid for entry in self._entries.values() for uuid in entry.lease.devices]
        _require(len(held) == len(set(held)), f"a device is leased twice: {held}")
        _require(self._holders.keys() == set(held), f"the index {self._holders} differs from the leases {held}")
        for holder, entry in self._entries.items():
            lease = entry.lease
            _require(lease.holder == holder, f"{lease} is filed under {holder}")
            _require((lease.state is LeaseState.BOUND) == bool(lease.container_id), f"{lease} has the wrong state")
            _require(all(self._holders[uuid] == holder for uuid in lease.devices), f"{lease} lost a device")
        statuses = {status.device.uuid: status for status in self.statuses()}
        for uuid in self._free:
            _require(statuses[uuid].state is DeviceState.FREE, f"{uuid} counts as free but is {statuses[uuid]}")
            _require(uuid not in self._holders, f"{uuid} counts as free but is leased")
        _require(self.inventory.existing.keys() <= statuses.keys(), "a device has no state")
        _require(self.whole or not self._free, "devices count as free although the last look was not whole")


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        raise LedgerBroken(f"The ledger is broken: {otherwise}.")
