"""What containers and host processes use, device by device.  Reads an observation; holds nothing.

Nobody is trusted to hold a device only because a label says so: a label can make a device unavailable, never free.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ds01_spawner.core import labels
from ds01_spawner.core.model import Container, Device, Process

ENDED = frozenset({"exited", "dead"})
_NOTHING = frozenset({"", "none", "void", "nodevfiles"})
_INDEX = re.compile(r"\d+([.:]\d+)?")


class Inventory:
    """The devices that exist, and which of them share hardware.

    Args:
        devices: one entry per UUID; the last wins.
        absent: devices that are not there any more but still leased: what shares hardware with them is not free.
    """

    def __init__(self, devices: Iterable[Device] = (), absent: Iterable[Device] = ()) -> None:
        self.existing: dict[str, Device] = {device.uuid: device for device in devices}
        self.by_uuid: dict[str, Device] = {device.uuid: device for device in absent} | self.existing
        self.instances = tuple(device for device in self.existing.values() if device.parent)
        self._claimed: dict[tuple[str, str], frozenset[str]] = {}
        self._instances: dict[str, list[str]] = {}
        self._by_index: dict[str, list[str]] = {}
        for device in self.by_uuid.values():
            self._by_index.setdefault(device.index.partition(".")[0], []).append(device.uuid)
            if device.parent:
                self._instances.setdefault(device.parent, []).append(device.uuid)
            if "." in device.index:
                self._by_index.setdefault(device.index, []).append(device.uuid)
        self.overlaps = any(parent in self.by_uuid for parent in self._instances)

    def overlapping(self, uuid: str) -> tuple[str, ...]:
        """Return the other devices that share hardware with this one: its instances, or the GPU that it is cut from."""
        if not self.overlaps:
            return ()
        device = self.by_uuid.get(uuid)
        parent = (device.parent,) if device and device.parent in self.by_uuid else ()
        return (*self._instances.get(uuid, ()), *parent)

    def claimed_by(self, container: Container) -> frozenset[str]:
        """Return the devices that a container may use now or when it goes on.

        A container that has ended uses nothing, unless ``ds01.*`` labels say that a device was allocated to it: such an
        allocation lasts until the container is removed.
        """
        # What a container was given never changes during its life, so it is worked out once per inventory.
        key = (container.id, container.state)
        claimed = self._claimed.get(key)
        if claimed is None:
            allocated = labels.devices_of(container.labels)
            ended = container.state in ENDED and not allocated
            claims = () if ended else {*allocated, *container.devices}
            claimed = self._claimed[key] = frozenset().union(*(self.resolve(claim) for claim in claims))
        return claimed

    def named(self, uuid: str) -> frozenset[str]:
        """Return the devices that a UUID names: itself, and every instance cut from it."""
        own = (uuid,) if uuid in self.by_uuid else ()
        return frozenset((*own, *self._instances.get(uuid, ())))

    def resolve(self, claim: str) -> frozenset[str]:
        """Return the devices that a claim means.

        Args:
            claim: a UUID or the beginning of one, an index (``"0"``, ``"0:1"``), ``"all"``, or one of these as a CDI
                name (``"nvidia.com/gpu=0"``).

        Returns:
            UUIDs.  Empty for a claim to nothing, or to a device that does not exist; everything for one that cannot be
            read, because whoever gave it might mean any device.
        """
        kind, _, name = claim.strip().rpartition("=")
        word = name.casefold()
        if word in _NOTHING or (kind and not kind.endswith(("gpu", "mig", "device"))):
            return frozenset()
        if name in self.by_uuid or name in self._instances:
            return self.named(name)
        if _INDEX.fullmatch(name):
            return frozenset(self._by_index.get(name.replace(":", "."), ()))
        if word.startswith(("gpu-", "mig-")):
            return self._beginning(word)
        return frozenset(self.by_uuid)  # "all" and "-1", and whatever else cannot be read

    def _beginning(self, start: str) -> frozenset[str]:
        if start.startswith("mig-gpu-"):  # drivers before 470 wrote MIG-GPU-<uuid>/<gpu instance>/<compute instance>
            start = start.removeprefix("mig-").partition("/")[0]
        uuids = self.by_uuid.keys() | self._instances.keys()
        return frozenset().union(*(self.named(uuid) for uuid in uuids if uuid.casefold().startswith(start)))


@dataclass(frozen=True, slots=True)
class Occupant:
    """Somebody who uses a device without holding a lease on it through this hub.

    Attributes:
        owner: a person or a container's name, for show.
        what: how it is used, as the end of a sentence: ``"container x of bob"``.
    """

    owner: str
    what: str


def owner_of(container: Container) -> str:
    """Return whose container it is, for show: the user of its labels, else its name."""
    return container.labels.get(labels.USER) or container.labels.get(labels.HUB_USER) or container.name


def occupants(
    containers: Iterable[Container],
    processes: Iterable[Process],
    inventory: Inventory,
    carried: Mapping[str, Collection[str]],
    infrastructure: tuple[str, ...] = (),
) -> tuple[dict[str, Occupant], dict[str, Process]]:
    """Return who uses which device without a lease.

    Args:
        containers: every container of the host.
        processes: host processes on the devices.
        inventory: the devices.
        carried: per container that carries a lease, the devices of that lease.
        infrastructure: beginnings of the names of containers, such as a metrics exporter, that see every GPU and use
            none.  Their processes count all the same.

    Returns:
        Per device, a container that claims it; and per device, a process that belongs to no container that was given
        the device.
    """
    claims: dict[str, frozenset[str]] = {}
    by_container: dict[str, Occupant] = {}
    for container in containers:
        if infrastructure and container.name.startswith(infrastructure):
            continue
        claimed = inventory.claimed_by(container)
        if not claimed:
            continue
        claims[container.id] = claimed
        for uuid in claimed.difference(carried.get(container.id, ())):
            by_container.setdefault(uuid, _container_occupant(container))
    by_process: dict[str, Process] = {}
    for process in processes:
        near = inventory.named(process.device)
        given = claims.get(process.container_id, frozenset()).union(carried.get(process.container_id, ()))
        if given and any(uuid in given or not given.isdisjoint(inventory.overlapping(uuid)) for uuid in near):
            continue
        for uuid in near:
            by_process.setdefault(uuid, process)
    return by_container, by_process


def process_occupant(process: Process) -> Occupant:
    """Return a stray process as an occupant."""
    whose = f" of {process.owner}" if process.owner else ""
    where = f" in container {process.container_id[:12]}" if process.container_id else " outside every container"
    return Occupant(process.owner or f"process {process.pid}", f"process {process.pid}{whose}{where}")


def _container_occupant(container: Container) -> Occupant:
    user = container.labels.get(labels.USER) or container.labels.get(labels.HUB_USER)
    whose = f" of {user}" if user else ""
    return Occupant(owner_of(container), f"container {container.name}{whose}")
