"""What a device is, by one look at the host and the leases: free, leased, occupied, set aside, unhealthy or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ds01_spawner.core.claims import Inventory, Occupant, process_occupant
from ds01_spawner.core.model import Device, DeviceState, DeviceStatus, Health, Holder, Lease, Observation, Process

_MIB = 2**20
_UNHEALTHY = {Health.UNHEALTHY: DeviceState.UNHEALTHY, Health.UNKNOWN: DeviceState.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a look brought to light.

    Attributes:
        kind: ``adopted``, ``vanished``, ``set-aside``, ``returned`` or ``notice``; between two looks also
            ``occupied-by-container``, ``occupied-by-process``, ``health`` or ``sight``.
        text: one sentence for the log.
        holder: whom it concerns.
        devices: UUIDs of the devices that it concerns.
        lease: the lease that ended, when one vanished.
    """

    kind: str
    text: str
    holder: Holder | None = None
    devices: tuple[str, ...] = ()
    lease: Lease | None = None


@dataclass(slots=True)
class Departure:
    """A device that is not known to be clean: since its last holder left, or since something unseen uses it.

    Attributes:
        holder: who held it last, if this hub knows.
        since: from when on it is set aside.
        look: the last look that had begun by then; only a later one can show that the device is clean.
        reported: whether the log has been told.
    """

    holder: Holder | None
    since: float
    look: int
    reported: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """One look and everything that decides what its devices are.

    Attributes:
        seen: the look.
        look: its number.
        inventory: the devices of the last look that could read them.
        holders: per leased device its holder.
        claimed: per device a container that claims it without carrying its lease.
        strays: per device a process that belongs to no container that was given the device.
        departures: devices that are not known to be clean.
        baseline_bytes: per device the memory in use when nobody uses it.
        tolerance_bytes: how much more than the baseline may be in use.
    """

    seen: Observation
    look: int
    inventory: Inventory
    holders: Mapping[str, Holder]
    claimed: Mapping[str, Occupant]
    strays: Mapping[str, Process]
    departures: Mapping[str, Departure]
    baseline_bytes: Mapping[str, int]
    tolerance_bytes: int


def is_whole(seen: Observation) -> bool:
    """Return whether a look read everything that a grant needs."""
    return seen.devices is not None and seen.containers is not None and seen.processes is not None


def judge(sight: Sight) -> dict[str, DeviceStatus]:
    """Return the status of every device that exists or is leased, by UUID, in the inventory's order."""
    whole = is_whole(sight.seen)
    statuses = {
        uuid: _leased(sight, device) if uuid in sight.holders else _unleased(sight, device, whole=whole)
        for uuid, device in sight.inventory.by_uuid.items()
    }
    if sight.inventory.overlaps:
        shared = {
            uuid: blocker
            for uuid, status in statuses.items()
            if status.state is DeviceState.FREE and (blocker := _blocker(sight.inventory, statuses, uuid))
        }
        for uuid, blocker in shared.items():
            statuses[uuid] = _shared(statuses[uuid].device, blocker)
    return statuses


def _leased(sight: Sight, device: Device) -> DeviceStatus:
    uuid = device.uuid
    exists = uuid in sight.inventory.existing
    claimant, stray = sight.claimed.get(uuid), sight.strays.get(uuid)
    holder = sight.holders[uuid]
    if exists and device.health is Health.HEALTHY and not (claimant or stray or sight.inventory.overlaps):
        return DeviceStatus(device, DeviceState.LEASED, holder)
    reasons = []
    if not exists:
        reasons.append("It is leased, but the host does not list it any more.")
    elif device.health is not Health.HEALTHY:
        reasons.append(device.reason or f"It is {device.health}.")
    if claimant:
        reasons.append(f"It is leased, but {claimant.what} claims it too.")
    if stray:
        reasons.append(f"It is leased, but {process_occupant(stray).what} uses it too.")
    # Never by a grant; but containers may be adopted while their devices cannot be read, and turn out to share one GPU.
    reasons += (
        f"It shares hardware with a device that is leased to {other.user}."
        for uuid_ in sight.inventory.overlapping(uuid)
        if (other := sight.holders.get(uuid_)) and other != holder
    )
    return DeviceStatus(device, DeviceState.LEASED, holder, reason=" ".join(reasons), exists=exists)


def _unleased(sight: Sight, device: Device, *, whole: bool) -> DeviceStatus:
    uuid = device.uuid
    if not whole:
        return DeviceStatus(device, DeviceState.UNKNOWN, reason=sight.seen.problem or "The host could not be read.")
    if device.health is not Health.HEALTHY:
        return DeviceStatus(device, _UNHEALTHY[device.health], reason=device.reason or f"It is {device.health}.")
    if claimant := sight.claimed.get(uuid):
        return DeviceStatus(device, DeviceState.OCCUPIED, owner=claimant.owner, reason=f"In use by {claimant.what}.")
    departure, stray = sight.departures.get(uuid), sight.strays.get(uuid)
    if stray and (departure is None or departure.holder is None):
        occupant = process_occupant(stray)
        return DeviceStatus(device, DeviceState.OCCUPIED, owner=occupant.owner, reason=f"In use by {occupant.what}.")
    if unclean := _unclean(sight, uuid, stray, departure):
        left = f"Since {departure.holder.user} left, " if departure and departure.holder else ""
        return DeviceStatus(device, DeviceState.SET_ASIDE, reason=f"{left}{unclean}.")
    return DeviceStatus(device, DeviceState.FREE)


def _unclean(sight: Sight, uuid: str, stray: Process | None, departure: Departure | None) -> str:
    """Return what keeps a device from its next holder, empty when it is as an unused device should be."""
    if stray:
        return f"{process_occupant(stray).what} still uses it"
    used = sight.seen.memory_used_bytes.get(uuid)
    if used is None:
        return "its memory in use cannot be read"
    if used > sight.baseline_bytes.get(uuid, 0) + sight.tolerance_bytes:
        return f"{used // _MIB} MiB of its memory are in use by no process that can be seen"
    if departure and departure.look >= sight.look:
        return "it was not looked at again yet"
    return ""


def _blocker(inventory: Inventory, statuses: Mapping[str, DeviceStatus], uuid: str) -> DeviceStatus | None:
    others = (statuses[other] for other in inventory.overlapping(uuid))
    return next((other for other in others if other.state is not DeviceState.FREE), None)


def _shared(device: Device, blocker: DeviceStatus) -> DeviceStatus:
    owner = blocker.holder.user if blocker.holder else blocker.owner
    other = f"device {blocker.device.index or blocker.device.uuid}"
    return DeviceStatus(
        device,
        DeviceState.OCCUPIED,
        owner=owner,
        reason=f"It shares hardware with {other}, which is {blocker.state}{f' ({owner})' if owner else ''}.",
    )
