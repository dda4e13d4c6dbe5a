"""What a person's page says of each project, worked out from what was seen of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction

from ds01_spawner.core.idleclock import IdleClock
from ds01_spawner.core.limits import Held, Limits, show
from ds01_spawner.core.model import DeviceState, DeviceStatus, Holder
from ds01_spawner.core.wording import duration

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class State(StrEnum):
    """What a project is doing."""

    RUNNING = "running"
    WAITING = "waiting"
    BUILDING = "building"
    STARTING = "starting"
    RETIRING = "retiring"
    UNBUILT = "build failed"
    FAILED = "failed"
    IDLE = "not running"


class Standing(StrEnum):
    """How a project's image stands to its Dockerfile."""

    CURRENT = "up to date"
    CHANGED = "Dockerfile changed"
    MISSING = "not built yet"
    DEFAULT = "the site's image"
    BROKEN = "Dockerfile has a problem"
    UNKNOWN = "checking"


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """What the hub says of a project's server.

    Attributes:
        ready: whether it can be opened.
        pending: ``"spawn"`` or ``"stop"`` while it is, else empty.
        last_activity: ISO date, empty when unknown.
    """

    ready: bool
    pending: str
    last_activity: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One project on the page.

    Attributes:
        name: exact.
        server: its server's name.
        state: what it is doing.
        image: how its image stands.
        devices: what it holds, for people; empty for none.
        clock: what the idle clock says; nothing when the culler does not watch it.
        last_used: for people; empty when unknown.
        failure: why its last launch failed, or why it ended by itself; empty when it did not.
    """

    name: str
    server: str
    state: State
    image: Standing
    devices: str = ""
    clock: IdleClock = field(default_factory=IdleClock)
    last_used: str = ""
    failure: str = ""

    @property
    def is_busy(self) -> bool:
        """Whether it will soon be something else by itself."""
        return self.state in {State.WAITING, State.BUILDING, State.STARTING, State.RETIRING}


def state_of(server: ServerSeen | None, *, is_waiting: bool, build: str, has_failed: bool = False) -> State:
    """Return what a project is doing.

    Args:
        server: the hub's word, ``None`` when it does not run.
        is_waiting: whether it is in the queue for a device.
        build: the outcome of its last build (``core.build.Outcome``), empty when there was none.
        has_failed: whether its last launch failed, or ended by itself.
    """
    if server is not None and server.pending == "stop":
        return State.RETIRING
    if server is not None and server.pending == "spawn":
        if is_waiting:
            return State.WAITING
        return State.BUILDING if build == "building" else State.STARTING
    if server is not None and server.ready:
        return State.RUNNING
    if build == "building":
        return State.BUILDING
    unbuilt = State.UNBUILT if build == "failed" else State.IDLE
    return State.FAILED if has_failed else unbuilt


def describe_held(devices: Iterable[DeviceStatus], holder: Holder) -> str:
    """Return what a server holds: ``"GPU 0, GPU 2"`` or ``"1g.10gb 0.3"``; empty for nothing."""
    mine = [status.device for status in devices if status.holder == holder]
    return ", ".join(f"{device.mig_profile or 'GPU'} {device.index}".strip() for device in mine)


def free_by_kind(devices: Iterable[DeviceStatus]) -> dict[str, tuple[int, int]]:
    """Return, for every kind, how many devices are free and how many there are; whole GPUs first."""
    counted: dict[str, tuple[int, int]] = {}
    for status in devices:
        free, every = counted.get(status.device.kind, (0, 0))
        counted[status.device.kind] = (free + (status.state is DeviceState.FREE), every + 1)
    return dict(sorted(counted.items(), key=lambda item: (item[0] != "gpu", item[0])))


def ago(when: str, now: float) -> str:
    """Return how long ago an ISO date was, for people; empty when it is none."""
    try:
        seconds = now - datetime.fromisoformat(when).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return ""
    return "just now" if seconds < _MINUTE else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Return a duration in its largest fitting unit: ``"3 minutes"``."""
    seconds = max(0.0, seconds)
    for size, word in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {word}{'s' if number != 1 else ''}"
    return "less than a minute"


def took(seconds: float) -> str:
    """Return how long something took: ``"4 s"``, ``"2 min 05 s"``, ``"1 h 10 min"``."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"


@dataclass(frozen=True, slots=True)
class Use:
    """One of a person's limits and how much of it is in use.

    Attributes:
        label: what is counted.
        used: how much.
        most: how much is allowed, ``None`` without a limit.
        sentence: both, for people.
    """

    label: str
    used: float
    most: float | None
    sentence: str

    @property
    def percent(self) -> int:
        """How much of it is used, 0 to 100."""
        return min(100, round(100 * self.used / self.most)) if self.most else 0


def describe_use(limits: Limits, holding: Sequence[Held]) -> tuple[Use, ...]:
    """Return what a person holds of what they may."""
    held = sum((server.gpu_equivalents for server in holding), start=Fraction(0))
    gpus, servers = limits.max_gpu_equivalents, limits.max_containers_per_user
    amount = show(held)
    return (
        Use(
            "GPUs",
            float(held),
            None if gpus is None else float(gpus),
            f"{amount} in use, no limit" if gpus is None else f"{amount} of {show(gpus)} in use",
        ),
        Use(
            "Projects running",
            len(holding),
            servers,
            f"{len(holding)}, no limit" if servers is None else f"{len(holding)} of {servers}",
        ),
    )


def describe_limits(limits: Limits) -> tuple[str, ...]:
    """Return what else limits each of a person's servers, one sentence each."""
    sentences = [
        f"Each project may use {limits.max_cpus:g} processors and {limits.memory_bytes / 2**30:g} GiB of memory.",
        f"It is retired after {duration(limits.idle_seconds)} without activity."
        if limits.idle_seconds is not None
        else "It is not retired for being idle.",
    ]
    if limits.max_runtime_seconds is not None:
        sentences.append(f"It runs for at most {duration(limits.max_runtime_seconds)} at a time.")
    sentences += [f"You are {exemption}." for exemption in limits.exemptions]
    return tuple(sentences)
