"""What a server was doing: counters read at two moments become a sample, and a sample says active, idle or unknown.

Times are monotonic seconds and always handed in, so that a wall clock that jumps changes nothing.  What could not be
read is ``None`` and stays unknown: it is never taken for zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Signal(StrEnum):
    """What can show that a server is in use; the words that users and events read."""

    GPU = "gpu"
    CPU = "cpu"
    NETWORK = "network"
    BUSY_KERNEL = "busy kernel"
    KERNEL_MESSAGES = "kernel messages"
    TYPING = "typing"


class Use(StrEnum):
    """What one signal, or one whole sample, says."""

    ACTIVE = "active"
    IDLE = "idle"
    UNKNOWN = "unknown"


class Counting(StrEnum):
    """What counts as use of a server that holds a device; each step counts less than the one before.

    A server without a device is always judged by ``ANYTHING``.
    """

    ANYTHING = "anything"
    WORK = "work"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which rate on a server is in use; a rate exactly at its threshold is use.

    Attributes:
        gpu_percent: mean utilisation of a device, 0 to 100.
        cpu_cores: processor use of the whole container, in cores.
        network_bytes_per_second: received plus sent.
    """

    gpu_percent: float = 5.0
    cpu_cores: float = 0.02
    network_bytes_per_second: float = 2**20 / 60


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One look at one leased device.

    Attributes:
        uuid: which.
        mig: whether it is a MIG instance, for which no utilisation exists.
        utilisation_percent: mean over the driver's sample buffer, ``None`` when it could not be read.
        memory_bytes: device memory in use, ``None`` when it could not be read.
        processes: host pids on it, ``None`` when they could not be read.
    """

    uuid: str
    mig: bool = False
    utilisation_percent: float | None = None
    memory_bytes: int | None = None
    processes: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel as the notebook server describes it.

    Attributes:
        id: the server's id for it.
        busy: whether it executes something.
        last_activity: the server's own time stamp; only whether it moved matters.
    """

    id: str
    busy: bool
    last_activity: str


@dataclass(frozen=True, slots=True)
class Terminal:
    """One terminal in the container.

    Attributes:
        name: unique in the container.
        last_activity: moves when somebody types; only whether it moved matters.
    """

    name: str
    last_activity: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of one server at one moment; ``None`` is unknown.

    Attributes:
        at: when, monotonic seconds.
        age_seconds: how long the container has run.
        cpu_seconds: processor time since the container began.
        network_bytes: received plus sent since the container began.
        devices: its leased devices; empty for a CPU server, ``None`` when the driver did not answer.
        kernels: its kernels, ``None`` when the notebook server did not answer.
        terminals: its terminals, ``None`` when they could not be read.
        problem: one sentence when anything could not be read, else empty.
    """

    at: float
    age_seconds: float | None = None
    cpu_seconds: float | None = None
    network_bytes: int | None = None
    devices: tuple[DeviceReading, ...] | None = None
    kernels: tuple[Kernel, ...] | None = None
    terminals: tuple[Terminal, ...] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """What one leased device did between two readings.

    Attributes:
        uuid: which.
        mig: whether it is a MIG instance.
        utilisation_percent: mean, or ``None``.
        memory_bytes: in use at the end, or ``None``.
        processes: how many at the end, or ``None``.
        changed: whether its processes or its memory changed, ``None`` when that is not known.
    """

    uuid: str
    mig: bool
    utilisation_percent: float | None
    memory_bytes: int | None
    processes: int | None
    changed: bool | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server did between two moments; ``None`` is unknown.

    Attributes:
        since: begin, monotonic seconds.
        at: end.
        step_seconds: the longest time between two readings in it; more than its length only by rounding.
        cpu_cores: processor use.
        network_bytes_per_second: received plus sent.
        devices: its leased devices; empty for a CPU server.
        kernels_busy: how many kernels were busy at the end.
        kernels_moved: whether any kernel was started or sent a message.
        typed: whether anybody typed in a terminal or opened one.
        problem: one sentence when anything could not be read, else empty.
    """

    since: float
    at: float
    step_seconds: float
    cpu_cores: float | None = None
    network_bytes_per_second: float | None = None
    devices: tuple[DeviceSample, ...] | None = None
    kernels_busy: int | None = None
    kernels_moved: bool | None = None
    typed: bool | None = None
    problem: str = ""


def compare(before: Reading, after: Reading) -> Sample:
    """Return what happened between two readings of the same container.

    A counter that went backwards belongs to something else than before, so its rate is unknown.
    """
    seconds = after.at - before.at
    if seconds <= 0:
        raise ValueError(f"the later reading is {-seconds} s older than the earlier one")
    return Sample(
        since=before.at,
        at=after.at,
        step_seconds=seconds,
        cpu_cores=_rate(before.cpu_seconds, after.cpu_seconds, seconds),
        network_bytes_per_second=_rate(before.network_bytes, after.network_bytes, seconds),
        devices=_compare_devices(before.devices, after.devices),
        kernels_busy=None if after.kernels is None else sum(kernel.busy for kernel in after.kernels),
        kernels_moved=_moved(
            None if before.kernels is None else {(k.id, k.last_activity) for k in before.kernels},
            None if after.kernels is None else {(k.id, k.last_activity) for k in after.kernels},
        ),
        typed=_moved(
            None if before.terminals is None else {(t.name, t.last_activity) for t in before.terminals},
            None if after.terminals is None else {(t.name, t.last_activity) for t in after.terminals},
        ),
        problem=after.problem,
    )


def judge(
    sample: Sample, counting: Counting, thresholds: Thresholds, longest_step_seconds: float
) -> tuple[Use, tuple[Signal, ...]]:
    """Say whether a server was in use, and by which signals: the active ones, or else the unknown ones.

    Args:
        sample: what is judged.
        counting: what counts; it narrows only where the sample has devices.
        thresholds: from which rate on a server is in use.
        longest_step_seconds: two readings further apart than this can show use but never its absence: a short
            burst vanishes in a long mean, and the driver's buffer does not reach back.

    Returns:
        ``ACTIVE`` when any signal shows use; ``UNKNOWN`` when none does and any that counts is unknown; else ``IDLE``.
    """
    reads = _READS[Counting.ANYTHING if sample.devices == () else counting]
    uses = [(signal, read(sample, thresholds)) for signal, read in reads]
    active = tuple(signal for signal, use in uses if use is Use.ACTIVE)
    if active:
        return Use.ACTIVE, active
    if sample.step_seconds > longest_step_seconds:
        return Use.UNKNOWN, tuple(signal for signal, _ in uses)
    unknown = tuple(signal for signal, use in uses if use is Use.UNKNOWN)
    return (Use.UNKNOWN, unknown) if unknown else (Use.IDLE, ())


def _read_cpu(sample: Sample, thresholds: Thresholds) -> Use:
    return _reaches(sample.cpu_cores, thresholds.cpu_cores)


def _read_network(sample: Sample, thresholds: Thresholds) -> Use:
    return _reaches(sample.network_bytes_per_second, thresholds.network_bytes_per_second)


def _read_busy(sample: Sample, _: Thresholds) -> Use:
    return _reaches(sample.kernels_busy, 1)


def _read_messages(sample: Sample, _: Thresholds) -> Use:
    return _shows(sample.kernels_moved)


def _read_typing(sample: Sample, _: Thresholds) -> Use:
    return _shows(sample.typed)


def _read_devices(sample: Sample, thresholds: Thresholds) -> Use:
    if sample.devices is None:
        return Use.UNKNOWN
    uses = [_read_device(device, sample, thresholds) for device in sample.devices]
    if Use.ACTIVE in uses:
        return Use.ACTIVE
    return Use.UNKNOWN if Use.UNKNOWN in uses else Use.IDLE


def _read_device(device: DeviceSample, sample: Sample, thresholds: Thresholds) -> Use:
    if not device.mig:
        if device.utilisation_percent is None and device.processes == 0:
            return Use.IDLE
        return _reaches(device.utilisation_percent, thresholds.gpu_percent)
    if device.processes is None or device.changed is None:
        return Use.UNKNOWN
    if device.changed:
        return Use.ACTIVE
    # A process that computes on a MIG instance keeps its memory and its pid, but whoever feeds it uses the processor.
    return _reaches(sample.cpu_cores, thresholds.cpu_cores) if device.processes else Use.IDLE


def _compare_devices(
    before: tuple[DeviceReading, ...] | None, after: tuple[DeviceReading, ...] | None
) -> tuple[DeviceSample, ...] | None:
    if after is None:
        return None
    earlier = {device.uuid: device for device in before or ()}
    return tuple(
        DeviceSample(
            uuid=device.uuid,
            mig=device.mig,
            utilisation_percent=device.utilisation_percent,
            memory_bytes=device.memory_bytes,
            processes=None if device.processes is None else len(device.processes),
            changed=_changed(earlier.get(device.uuid), device),
        )
        for device in after
    )


def _changed(before: DeviceReading | None, after: DeviceReading) -> bool | None:
    if before is None:
        return None
    known = [
        pair[0] != pair[1]
        for pair in ((before.processes, after.processes), (before.memory_bytes, after.memory_bytes))
        if None not in pair
    ]
    return any(known) if known else None


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    if before is None or after is None or after < before:
        return None
    return (after - before) / seconds


def _moved(before: Iterable[tuple[str, str]] | None, after: Iterable[tuple[str, str]] | None) -> bool | None:
    # One that ended is no sign of anybody: only what is new or has moved counts.
    if before is None or after is None:
        return None
    return not set(after) <= set(before)


def _reaches(value: float | None, threshold: float) -> Use:
    return _shows(None if value is None else value >= threshold)


def _shows(seen: bool | None) -> Use:  # noqa: FBT001 - three-valued, and the only argument
    if seen is None:
        return Use.UNKNOWN
    return Use.ACTIVE if seen else Use.IDLE


_READ = {
    Signal.GPU: _read_devices,
    Signal.CPU: _read_cpu,
    Signal.NETWORK: _read_network,
    Signal.BUSY_KERNEL: _read_busy,
    Signal.KERNEL_MESSAGES: _read_messages,
    Signal.TYPING: _read_typing,
}

_READS = {
    Counting.ANYTHING: tuple(_READ.items()),
    # A kernel that says busy and touches neither processor, device nor network sleeps: no reason to hold a device.
    Counting.WORK: tuple((signal, read) for signal, read in _READ.items() if signal is not Signal.BUSY_KERNEL),
    Counting.GPU: ((Signal.GPU, _read_devices),),
}
