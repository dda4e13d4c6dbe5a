"""What a container is doing: processor, network, devices, kernels and terminals, put together into one reading."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import docker
import requests
from docker.errors import DockerException, NotFound

from ds01_spawner.adapters.containerprocess import CGROUPS, PROC, ContainerProcess
from ds01_spawner.adapters.notebook import NotebookAddress, NotebookSilent
from ds01_spawner.adapters.nvml import DeviceLook
from ds01_spawner.core.activity import DeviceReading, Kernel, Reading, Terminal
from ds01_spawner.core.model import Device

T = TypeVar("T")

_THREADS: Final = 4
# What a file of /proc or of a control group can do wrong: be away, or not hold what it should.
_UNREADABLE: Final = (OSError, ValueError, LookupError, StopIteration)


class Notebooks(Protocol):
    """Asks notebook servers."""

    async def kernels(self, address: NotebookAddress) -> tuple[Kernel, ...]:
        """Return a server's kernels, or raise NotebookSilent."""

    async def terminals(self, address: NotebookAddress) -> tuple[Terminal, ...]:
        """Return a server's terminals, or raise NotebookSilent."""


class Devices(Protocol):
    """The GPUs of this host."""

    async def look(self) -> DeviceLook:
        """Return what can be read now; never raises."""

    async def utilisation(self, uuid: str, seconds: float) -> float | None:
        """Return percent over the last seconds, ``None`` when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What the engine says about a running container that never changes while it runs.

    Attributes:
        pid: its main process, as the host counts.
        token: the token that the notebook server was started with; empty when there is none.
        prefix: the path under which it answers, such as ``/user/ada/thesis/``.
    """

    pid: int
    token: str
    prefix: str


class Inspector(Protocol):
    """Asks the engine about running containers."""

    async def inspect(self, container_id: str) -> Inside:
        """Return what it says, or raise ContainerUnreadable."""


class ContainerUnreadable(Exception):
    """The engine does not know the container, says that it does not run, or does not answer; the text says which."""


class EngineInspector:
    """Inspects containers through Docker Engine.

    Args:
        options: arguments for ``docker.APIClient``; the environment (``DOCKER_HOST``) decides when empty.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options or {})
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="inspect")
        self._client: docker.APIClient | None = None

    async def inspect(self, container_id: str) -> Inside:
        """Return what the engine says about a running container.

        Raises:
            ContainerUnreadable: it does not run, or the engine does not answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._inspect, container_id)

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _inspect(self, container_id: str) -> Inside:
        try:
            if self._client is None:
                options = self._options or docker.utils.kwargs_from_env()
                self._client = docker.APIClient(version="auto", **options)
            found = self._client.inspect_container(container_id)
        except NotFound as error:
            raise ContainerUnreadable("its container is gone") from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise ContainerUnreadable("Docker Engine does not answer") from error
        pid = found["State"].get("Pid") or 0
        if not pid:
            raise ContainerUnreadable(f"its container is {found['State'].get('Status', 'not running')}")
        environment = dict(item.partition("=")[::2] for item in found["Config"].get("Env") or ())
        return Inside(
            pid=pid,
            token=environment.get("JUPYTERHUB_API_TOKEN", ""),
            prefix=environment.get("JUPYTERHUB_SERVICE_PREFIX", ""),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs.

    Attributes:
        container_id: the engine's full id.
        url: where the notebook server listens, scheme, host and port.
        devices: UUIDs of its lease.
    """

    container_id: str
    url: str
    devices: tuple[str, ...] = ()


class DeviceMeter:
    """Reads devices for all servers at once, and their utilisation more often than that.

    The driver keeps utilisation samples for ten to twenty seconds; a pass a minute would miss what happened between.

    Args:
        devices: the GPUs.
        buffer_seconds: over how much of the driver's buffer one value is averaged.

    Attributes:
        inventory: every device of the host at the last look, ``None`` when unknown.
    """

    def __init__(self, devices: Devices, *, buffer_seconds: float = 15.0) -> None:
        self._devices = devices
        self._buffer_seconds = buffer_seconds
        self._percents: dict[str, list[float]] = {}
        self.inventory: tuple[Device, ...] | None = None

    async def tick(self, uuids: Iterable[str]) -> None:
        """Take one utilisation value of each device, to be averaged into its next reading."""
        for uuid in sorted(set(uuids)):
            percent = await self._devices.utilisation(uuid, self._buffer_seconds)
            if percent is not None:
                self._percents.setdefault(uuid, []).append(percent)

    async def read(self, uuids: Iterable[str]) -> Callable[[tuple[str, ...]], tuple[DeviceReading, ...] | None]:
        """Look at the devices once and return what tells the reading of any lease; ``None`` for one that is unknown.

        Utilisation is the mean of the values taken since the last look.
        """
        look = await self._devices.look()
        self.inventory = look.devices
        wanted = sorted(set(uuids))
        await self.tick(wanted)
        # Only those that are asked for are begun anew: what was seen of the others is theirs until they are read.
        taken = {uuid: self._percents.pop(uuid, []) for uuid in wanted}
        means = {uuid: sum(values) / len(values) for uuid, values in taken.items() if values}
        known = {device.uuid: device for device in look.devices or ()}
        pids: dict[str, set[int]] = {}
        for process in look.processes or ():
            pids.setdefault(process.device, set()).add(process.pid)

        def reading(uuid: str) -> DeviceReading:
            device = known[uuid]
            return DeviceReading(
                uuid=uuid,
                mig=bool(device.mig_profile),
                utilisation_percent=means.get(uuid),
                memory_bytes=look.memory_used_bytes.get(uuid),
                processes=None if look.processes is None else frozenset(pids.get(uuid, ())),
            )

        return lambda lease: tuple(map(reading, lease)) if known.keys() >= set(lease) else None


class ActivityReader:
    """Reads what servers are doing.

    Args:
        inspector: the engine.
        notebooks: the notebook servers.
        clock: monotonic seconds.
        proc: where the process file system is mounted.
        cgroups: where the control groups are mounted.
    """

    def __init__(
        self,
        inspector: Inspector,
        notebooks: Notebooks,
        *,
        clock: Callable[[], float] = time.monotonic,
        proc: Path = PROC,
        cgroups: Path = CGROUPS,
    ) -> None:
        self._inspector = inspector
        self._notebooks = notebooks
        self._clock = clock
        self._proc = proc
        self._cgroups = cgroups
        self._inside: dict[str, Inside] = {}

    async def read(self, place: Place, devices: tuple[DeviceReading, ...] | None) -> Reading:
        """Return one reading of a server; never raises, what cannot be read is ``None`` and says why.

        Args:
            place: where it runs.
            devices: the reading of its lease.
        """
        blind = "" if devices is not None else "Its devices cannot be read."
        try:
            inside = await self._look_inside(place.container_id)
            host, problems = self._read_host(place, inside)
        except (ContainerUnreadable, OSError) as error:
            self._inside.pop(place.container_id, None)
            return Reading(at=self._clock(), devices=devices, problem=_sentences(blind, f"It cannot be read: {error}."))
        address = NotebookAddress(place.url.rstrip("/") + inside.prefix, inside.token)
        kernels = await self._ask(self._notebooks.kernels(address), problems)
        terminals = host.terminals
        if terminals is None:
            terminals = await self._ask(self._notebooks.terminals(address), problems)
        said = [f"Not everything can be read: {'; '.join(problems)}."] if problems else []
        return replace(host, devices=devices, kernels=kernels, terminals=terminals, problem=_sentences(blind, *said))

    async def show(self, place: Place, text: str) -> int:
        """Show a text in every terminal of a server and return in how many.

        Raises:
            ContainerUnreadable: its terminals cannot be reached.
        """
        try:
            inside = await self._look_inside(place.container_id)
            with self._process(place, inside) as process:
                return process.write_to_terminals(text)
        except OSError as error:
            raise ContainerUnreadable(f"its terminals cannot be reached ({error})") from error

    def forget(self, kept: Iterable[str]) -> None:
        """Forget every container but these."""
        for gone in self._inside.keys() - set(kept):
            del self._inside[gone]

    async def _look_inside(self, container_id: str) -> Inside:
        inside = self._inside.get(container_id)
        if inside is None:
            inside = self._inside[container_id] = await self._inspector.inspect(container_id)
        return inside

    def _process(self, place: Place, inside: Inside) -> ContainerProcess:
        return ContainerProcess(inside.pid, place.container_id, proc=self._proc, cgroups=self._cgroups)

    def _read_host(self, place: Place, inside: Inside) -> tuple[Reading, list[str]]:
        problems: list[str] = []
        with self._process(place, inside) as process:
            reading = Reading(
                at=self._clock(),
                age_seconds=_attempt(process.age_seconds, "its age", problems),
                cpu_seconds=_attempt(process.cpu_seconds, "its processor time", problems),
                network_bytes=_attempt(process.network_bytes, "its network", problems),
                # Where they fail the notebook server is asked, so this is no problem yet.
                terminals=_attempt(process.terminals, "its terminals", []),
            )
        return reading, problems

    async def _ask(self, question: Any, problems: list[str]) -> Any:
        try:
            return await question
        except NotebookSilent as error:
            problems.append(str(error))
            return None


def _attempt(read: Callable[[], T], what: str, problems: list[str]) -> T | None:
    try:
        return read()
    except _UNREADABLE as error:
        problems.append(f"{what} ({error})")
        return None


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
