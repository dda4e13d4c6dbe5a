"""The nouns that every room shares: devices, holders, requests, leases, containers, observations.

All are immutable values.  Times are seconds since the epoch (UTC) and always handed in; sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction


class Health(StrEnum):
    """Whether a device may be granted: only ``HEALTHY`` may."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Device:
    """An allocatable GPU or MIG instance.

    Attributes:
        uuid: NVML's ``GPU-…`` or ``MIG-…``; the only identity, indices change.
        name: product name, for show.
        memory_bytes: total device memory.
        health: whether it may be granted.
        reason: why it is not healthy, as a sentence; empty when it is.
        index: for show only: ``"0"`` for a GPU, ``"0.2"`` for a MIG instance (the slot names of DS01).
        mig_profile: ``"1g.10gb"`` for a MIG instance, empty for a whole GPU.
        mig_slices: compute slices of the instance, 0 for a whole GPU.
        parent: UUID of the GPU that a MIG instance is cut from, else empty.
    """

    uuid: str
    name: str
    memory_bytes: int
    health: Health = Health.HEALTHY
    reason: str = ""
    index: str = ""
    mig_profile: str = ""
    mig_slices: int = 0
    parent: str = ""

    @property
    def gpu_equivalents(self) -> Fraction:
        """1 for a whole GPU, slices/7 for a MIG instance."""
        return Fraction(self.mig_slices, 7) if self.mig_profile else Fraction(1)

    @property
    def kind(self) -> str:
        """What a user chooses between: the MIG profile, or ``"gpu"`` for a whole GPU."""
        return self.mig_profile or "gpu"


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """Who holds a device: a user's server (JupyterHub's words; the default server is ``""``)."""

    user: str
    server: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a server asks for.

    Attributes:
        holder: who asks.
        count: how many devices; 0 is a CPU server.
        kind: ``"gpu"`` for whole GPUs, or a MIG profile; ``""`` takes any kind that fits.
        min_memory_bytes: every device has at least this much memory.
    """

    holder: Holder
    count: int = 0
    kind: str = ""
    min_memory_bytes: int = 0


class LeaseState(StrEnum):
    """``RESERVED`` lives in the hub's memory only; ``BOUND`` has a container that carries it."""

    RESERVED = "reserved"
    BOUND = "bound"


@dataclass(frozen=True, slots=True)
class Lease:
    """Devices granted to one holder.

    Attributes:
        holder: who holds them.
        devices: UUIDs, in the order in which the container sees them.
        since: when they were reserved.
        state: reserved or bound.
        container_id: the container that carries the lease once bound, else empty.
        number: tells two leases of one holder apart.
    """

    holder: Holder
    devices: tuple[str, ...]
    since: float
    state: LeaseState = LeaseState.RESERVED
    container_id: str = ""
    number: int = 0


class DeviceState(StrEnum):
    """What a device is to somebody who wants one.  Each device has exactly one state; only ``FREE`` is granted."""

    FREE = "free"
    LEASED = "leased"
    OCCUPIED = "occupied"
    SET_ASIDE = "set-aside"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device and what is known about it.

    Attributes:
        device: the device; of one that left the inventory while leased, what was known last.
        state: what it is now.
        holder: who leases it, else ``None``.
        owner: who occupies it without a lease of ours, for show; else empty.
        reason: one sentence why it is not free, or what is wrong although it is leased; else empty.
        exists: whether the last readable inventory lists it; leased devices are kept here even when they vanish.
    """

    device: Device
    state: DeviceState
    holder: Holder | None = None
    owner: str = ""
    reason: str = ""
    exists: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """One container on the host, ours or a stranger's, in any state.

    Attributes:
        id: the engine's full id.
        name: its name without the leading slash.
        state: the engine's word: created, running, paused, restarting, removing, exited, dead.
        labels: every label.
        devices: what it was given, as the engine knows it: device UUIDs, indices (``"0"``), or ``"all"``;
            from its DeviceRequests and its ``NVIDIA_VISIBLE_DEVICES``.
    """

    id: str
    name: str
    state: str
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Process:
    """A host process that NVML reports on a device.

    Attributes:
        pid: host process id.
        device: UUID of the device (of the MIG instance where NVML says which).
        memory_bytes: device memory it holds; ``None`` when NVML cannot say.
        owner: login name for show; empty when unknown.
        container_id: the container it runs in, empty for a process of the host.
    """

    pid: int
    device: str
    memory_bytes: int | None = None
    owner: str = ""
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """One dated look at the host.  What could not be read is ``None``, never an empty tuple.

    Attributes:
        at: when it was made.
        devices: every device that exists, or ``None`` when the inventory could not be read.
        containers: every container of the host that could hold a device, or ``None`` when the engine did not answer.
        processes: processes on the devices, or ``None`` when they could not be read.
        memory_used_bytes: device memory in use per UUID, where it could be read.
        problem: one sentence when anything could not be read, with the cause; else empty.
    """

    at: float
    devices: tuple[Device, ...] | None
    containers: tuple[Container, ...] | None
    processes: tuple[Process, ...] | None = ()
    memory_used_bytes: dict[str, int] = field(default_factory=dict, hash=False)
    problem: str = ""
