"""A host with made-up devices and containers, a clock that is set by hand, and probes that fail on purpose."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ds01_spawner.core import labels
from ds01_spawner.core.model import Container, Device, Health, Holder, Observation, Process
from ds01_spawner.errors import DevicesUnavailable, EngineUnavailable

GIB = 2**30


class FakeClock:
    """A clock that stands still until it is told otherwise.

    Args:
        at: seconds since the epoch.
    """

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        """Return the time."""
        return self.at

    def advance(self, seconds: float) -> None:
        """Let time pass; a negative number sets the clock back, as an NTP step does."""
        self.at += seconds


def gpus(count: int, *, memory_gib: int = 40, name: str = "NVIDIA A100-PCIE-40GB") -> tuple[Device, ...]:
    """Return whole GPUs ``GPU-0``, ``GPU-1`` and so on."""
    return tuple(Device(f"GPU-{n}", name, memory_gib * GIB, index=str(n)) for n in range(count))


def mig(parent: int, profiles: Iterable[str], *, name: str = "NVIDIA A100-PCIE-40GB") -> tuple[Device, ...]:
    """Return the MIG instances ``MIG-<parent>-0`` and so on of a GPU that is not a device itself any more.

    Args:
        parent: number of the GPU.
        profiles: such as ``"1g.5gb"``.
        name: product name.
    """
    return tuple(
        Device(
            uuid=f"MIG-{parent}-{n}",
            name=name,
            memory_bytes=int(profile.partition(".")[2].removesuffix("gb")) * GIB,
            index=f"{parent}.{n}",
            mig_profile=profile,
            mig_slices=int(profile.partition("g.")[0]),
            parent=f"GPU-{parent}",
        )
        for n, profile in enumerate(profiles)
    )


def dgx_a100() -> tuple[Device, ...]:
    """Return the eight GPUs of a DGX A100."""
    return gpus(8, memory_gib=80, name="NVIDIA A100-SXM4-80GB")


def dgx_a100_partly_mig() -> tuple[Device, ...]:
    """Return a DGX A100 whose last two GPUs are cut into instances of three sizes."""
    return (
        *gpus(6, memory_gib=80, name="NVIDIA A100-SXM4-80GB"),
        *mig(6, ["3g.40gb", "3g.40gb"], name="NVIDIA A100-SXM4-80GB"),
        *mig(7, ["2g.20gb", "2g.20gb", "1g.10gb", "1g.10gb", "1g.10gb"], name="NVIDIA A100-SXM4-80GB"),
    )


@dataclass
class Host:
    """What is really there: devices, containers, processes, memory in use.

    It is what an allocator looks at, and what a test changes.

    Attributes:
        devices: per UUID.
        containers: per id.
        processes: host processes on devices.
        memory_used_bytes: per UUID; 0 where missing.
        clock: dates the observations.
    """

    devices: dict[str, Device]
    clock: Callable[[], float] = field(default_factory=FakeClock)
    containers: dict[str, Container] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    memory_used_bytes: dict[str, int] = field(default_factory=dict)
    _ids: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def of(cls, devices: Iterable[Device], clock: Callable[[], float] | None = None) -> Host:
        """Return a host with these devices and nothing else."""
        return cls({device.uuid: device for device in devices}, clock or FakeClock())

    # -- what happens on it -----------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        devices: Iterable[str] = (),
        labelled: Mapping[str, str] | None = None,
        *,
        state: str = "running",
    ) -> str:
        """Start somebody's container and return its id.

        Args:
            name: the container's name.
            devices: what the engine gave it: UUIDs, indices or ``"all"``.
            labelled: its labels.
            state: the engine's word for its state.
        """
        identity = f"{next(iter(self._ids)):012x}" * 5
        self.containers[identity] = Container(identity, name, state, dict(labelled or {}), tuple(devices))
        return identity

    def start_server(
        self, holder: Holder, devices: Iterable[str] = (), *, hub: str = "lab", state: str = "running"
    ) -> str:
        """Start a container as a hub does, with its labels, and return its id."""
        given = tuple(devices)
        labelled = labels.encode(
            labels.ServerLabels(
                hub=hub,
                holder=holder,
                project=holder.server,
                workspace=f"/home/{holder.user}/workspace/{holder.server}",
                created_at=self.clock(),
                devices=given,
                slots=tuple(self.devices[uuid].index if uuid in self.devices else "?" for uuid in given),
            )
        )
        return self.start(f"{holder.server}._.{holder.user}", given, labelled, state=state)

    def set_state(self, container: str, state: str) -> None:
        """Let the engine report another state for a container."""
        self.containers[container] = replace(self.containers[container], state=state)

    def remove(self, container: str) -> None:
        """Remove a container and the processes in it."""
        del self.containers[container]
        self.processes = [process for process in self.processes if process.container_id != container]

    def compute(self, device: str, *, container: str = "", owner: str = "", memory_bytes: int = GIB) -> Process:
        """Let a process use a device."""
        process = Process(1000 + next(iter(self._ids)), device, memory_bytes, owner, container)
        self.processes.append(process)
        return process

    def sicken(self, device: str, health: Health = Health.UNHEALTHY, reason: str = "Xid 79: fell off the bus.") -> None:
        """Let a device be unhealthy, or healthy again."""
        self.devices[device] = replace(
            self.devices[device], health=health, reason="" if health is Health.HEALTHY else reason
        )

    # -- what is seen of it -----------------------------------------------------------------------------------------

    def observation(self) -> Observation:
        """Return a look that could read everything."""
        return Observation(
            at=self.clock(),
            devices=tuple(self.devices.values()),
            containers=tuple(self.containers.values()),
            processes=tuple(self.processes),
            memory_used_bytes={uuid: self.memory_used_bytes.get(uuid, 0) for uuid in self.devices},
        )

    async def observe(self) -> Observation:
        """Look, as an adapter does: the event loop goes on meanwhile."""
        await asyncio.sleep(0)
        return self.observation()


# -- probes that fail, named after their failure -------------------------------------------------------------------


def engine_does_not_answer(seen: Observation) -> Observation:
    """The Docker Engine is down or restarting."""
    return replace(seen, containers=None, problem="Docker Engine did not answer.")


def nvml_does_not_answer(seen: Observation) -> Observation:
    """The driver hangs, was unloaded, or was upgraded under the hub."""
    return replace(seen, devices=None, processes=None, memory_used_bytes={}, problem="The GPUs cannot be read.")


def processes_cannot_be_listed(seen: Observation) -> Observation:
    """NVML lists the devices and not who uses them."""
    return replace(seen, processes=None, problem="The processes on the GPUs cannot be read.")


def memory_cannot_be_read(seen: Observation) -> Observation:
    """NVML does not say how much memory is in use."""
    return replace(seen, memory_used_bytes={})


def nothing_can_be_read(seen: Observation) -> Observation:
    """Neither the engine nor NVML answers."""
    return engine_does_not_answer(nvml_does_not_answer(seen))


def no_driver(seen: Observation) -> Observation:
    """There is no NVIDIA driver, so there are no devices."""
    return replace(seen, devices=(), processes=(), memory_used_bytes={}, problem="No GPU can be used.")


def the_probe_raises(seen: Observation) -> Observation:
    """An adapter fails with its own error."""
    raise EngineUnavailable(f"Docker Engine did not answer at {seen.at:.0f}.")


FAILURES: Mapping[str, Callable[[Observation], Observation]] = {
    failure.__name__: failure
    for failure in (
        engine_does_not_answer,
        nvml_does_not_answer,
        processes_cannot_be_listed,
        memory_cannot_be_read,
        nothing_can_be_read,
    )
}


@dataclass
class Probe:
    """Looks at a host, and fails in the way it is told to.

    Attributes:
        host: what is looked at.
        failure: changes what is seen, ``None`` while nothing fails.
        looks: how many looks were made.
        gate: a look waits for it when it is set to an event, as a slow driver makes it wait.
    """

    host: Host
    failure: Callable[[Observation], Observation] | None = None
    looks: int = 0
    gate: asyncio.Event | None = None

    async def __call__(self) -> Observation:
        """Make one look."""
        self.looks += 1
        seen = await self.host.observe()
        if self.gate:
            await self.gate.wait()
        return self.failure(seen) if self.failure else seen


@dataclass
class HostLockThatIsFree:
    """A host lock that nobody else wants.

    Attributes:
        taken: whether it is held now.
    """

    taken: bool = False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold it for a block."""
        self.taken = True
        try:
            yield
        finally:
            self.taken = False


class HostLockThatIsTaken:
    """A host lock that another allocator never gives back."""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Fail as a lock that times out."""
        raise DevicesUnavailable("The GPU lock of this host is held by another program.")
        yield


@dataclass
class Recorded:
    """An event log in memory.

    Attributes:
        events: kind and facts, oldest first.
    """

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, kind: str, /, **facts: Any) -> None:
        """Write an event."""
        self.events.append((kind, facts))

    def kinds(self) -> list[str]:
        """Return the kinds, oldest first."""
        return [kind for kind, _ in self.events]


@dataclass
class TicketsInMemory:
    """A ticket store that outlives the allocators of a test.

    Attributes:
        text: what was written last.
    """

    text: str | None = None

    def read(self) -> str | None:
        """Return the text."""
        return self.text

    def write(self, text: str) -> None:
        """Replace the text."""
        self.text = text
