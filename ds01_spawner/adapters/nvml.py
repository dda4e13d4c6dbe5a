"""The GPUs of this host, as NVML reports them: devices, health, processes, memory in use, utilisation.

Sources: NVIDIA's NVML reference and the binding nvidia-ml-py.  ``SimulatedDevices`` stands in on a machine without one.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pynvml

from ds01_spawner.adapters.nvmlread import Reading, health_after, read_gpu, say
from ds01_spawner.adapters.onethread import NoAnswer, OneThread
from ds01_spawner.core.model import Device, Health, Process

log = logging.getLogger(__name__)

_LOADED_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class DeviceLook:
    """One look at the GPUs.  What could not be read is ``None``, never an empty tuple.

    Attributes:
        devices: every device; empty when the host has no NVIDIA driver; ``None`` when they could not be read.
        processes: host processes on them; ``None`` when they could not be read.  A single GPU whose processes cannot be
            listed is of unknown health instead.
        memory_used_bytes: device memory in use per UUID.
        problem: one or more sentences when anything could not be read, or there is no driver; else empty.
    """

    devices: tuple[Device, ...] | None
    processes: tuple[Process, ...] | None
    memory_used_bytes: dict[str, int] = field(default_factory=dict)
    problem: str = ""


class Nvml:
    """Looks at the GPUs through NVML.

    Each look opens NVML and closes it again, so that between looks nothing of the hub keeps an admin from resetting a
    GPU or changing its MIG layout, and each look sees what is there then.  Turn on the driver's persistence mode, else
    every look wakes idle GPUs up, which takes seconds.

    A device that was there once and is not any more stays in the list, unhealthy, with the reason: a GPU that fell off
    the bus must not vanish from a ledger in silence.  MIG instances that were removed by an admin do vanish.

    Args:
        timeout_seconds: how long one look may take.
        give_up_seconds: how long a hung look keeps new ones from being tried.
        clock: seconds since the epoch; NVML dates its utilisation samples with the host's clock.
        library: the NVML binding.
        loaded_driver: a file that exists while the NVIDIA kernel driver is loaded.
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = 10.0,
        give_up_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
        library: Any = pynvml,
        loaded_driver: Path = _LOADED_DRIVER,
    ) -> None:
        self._clock = clock
        self._library = library
        self._loaded_driver = loaded_driver
        self._thread = OneThread("nvml", timeout_seconds=timeout_seconds, give_up_seconds=give_up_seconds)
        self._seen: dict[str, tuple[Device, ...]] = {}

    async def look(self) -> DeviceLook:
        """Read all devices, their health, processes and memory in use.  Never raises; see ``DeviceLook``."""
        try:
            return await self._thread.call(self._look)
        except NoAnswer as error:
            return _unreadable(f"The GPUs cannot be read: {error}. The NVIDIA driver may hang; see dmesg on the host.")
        except Exception as error:
            # The binding itself may fail in ways of its own with a driver it does not know; the hub must live on.
            log.exception("Reading the GPUs failed in an unforeseen way")
            return _unreadable(f"The GPUs cannot be read: {type(error).__name__}: {error}.")

    async def utilisation(self, uuid: str, seconds: float) -> float | None:
        """Return the share of time in which the device computed, averaged over the last seconds.

        The driver keeps samples for some ten to twenty seconds only; a longer window is averaged over what it kept.

        Args:
            uuid: the device.
            seconds: the window's length.

        Returns:
            Percent, or ``None`` when it cannot be told: always so for a MIG instance, where NVML offers no such
            reading.
        """
        try:
            return await self._thread.call(lambda: self._utilisation(uuid, seconds))
        except (NoAnswer, self._library.NVMLError) as error:
            log.debug("No utilisation of %s: %s", uuid, error)
            return None

    def _look(self) -> DeviceLook:
        library = self._library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            return self._without_session(error)
        try:
            return self._read_all(int(library.nvmlDeviceGetCount()))
        except (library.NVMLError, library.NVMLLibraryMismatchError) as error:
            return _unreadable(f"The GPUs cannot be read. {say(library, error)}")
        finally:
            self._close()

    def _without_session(self, error: Exception) -> DeviceLook:
        reason = say(self._library, error)
        absent = isinstance(error, self._library.NVMLError_LibraryNotFound) and not self._loaded_driver.exists()
        if absent and not self._seen:
            return DeviceLook(devices=(), processes=(), problem=f"No GPU can be used. {reason}")
        return _unreadable(f"The GPUs cannot be read. {reason}")

    def _read_all(self, count: int) -> DeviceLook:
        devices: list[Device] = []
        processes: list[Process] = []
        memory_used_bytes: dict[str, int] = {}
        problems: list[str] = []
        missing = dict(self._seen)
        unnamed: list[Exception] = []
        for index in range(count):
            try:
                gpu = self._library.nvmlDeviceGetHandleByIndex(index)
                uuid = str(self._library.nvmlDeviceGetUUID(gpu))
            except self._library.NVMLError as error:
                unnamed.append(error)
                continue
            known = missing.pop(uuid, ())
            reading = self._read_one(gpu, uuid, index, known)
            devices += reading.devices
            processes += reading.processes
            memory_used_bytes |= reading.memory_used_bytes
        for known in missing.values():
            health, reason = Health.UNHEALTHY, "The driver no longer lists it; see dmesg on the host."
            if unnamed:
                health, reason = health_after(self._library, unnamed[0]), say(self._library, unnamed[0])
            devices += (replace(device, health=health, reason=reason) for device in known)
        if unnamed:
            problems.append(f"{len(unnamed)} of {count} GPUs cannot be read. {say(self._library, unnamed[0])}")
        problems += (f"GPU {d.index}: {d.reason}" for d in devices if d.health is not Health.HEALTHY)
        return DeviceLook(tuple(devices), tuple(processes), memory_used_bytes, " ".join(problems))

    def _read_one(self, gpu: Any, uuid: str, index: int, known: tuple[Device, ...]) -> Reading:
        try:
            reading = read_gpu(self._library, gpu, uuid, index)
        except self._library.NVMLError as error:
            health, reason = health_after(self._library, error), say(self._library, error)
            # One that was never read has a UUID and nothing else; it is listed all the same, so that the count is true.
            last = known or (Device(uuid=uuid, name="NVIDIA GPU", memory_bytes=0, index=str(index)),)
            return Reading([replace(device, health=health, reason=reason) for device in last])
        self._seen[uuid] = tuple(reading.devices)
        return reading

    def _utilisation(self, uuid: str, seconds: float) -> float | None:
        library = self._library
        since_us = int((self._clock() - seconds) * 1_000_000)
        library.nvmlInit()
        try:
            device = library.nvmlDeviceGetHandleByUUID(uuid)
            _, samples = library.nvmlDeviceGetSamples(device, library.NVML_GPU_UTILIZATION_SAMPLES, since_us)
        finally:
            self._close()
        percents = [int(sample.sampleValue.uiVal) for sample in samples if sample.timeStamp >= since_us]
        return sum(percents) / len(percents) if percents else None

    def _close(self) -> None:
        try:
            self._library.nvmlShutdown()
        except self._library.NVMLError as error:
            log.debug("Closing NVML failed: %s", error)


class SimulatedDevices:
    """Made-up GPUs for a machine without NVIDIA: the demo, and tests.  Every name says that they are simulated.

    Each hub has its own: what another hub on this host does with its simulated devices is none of this one's business.

    Args:
        hub: the hub's name.
        count: how many whole GPUs.
        memory_bytes: memory of each.
        mig_profiles: instances of one more simulated GPU, such as ``("1g.5gb", "2g.10gb")``.
    """

    def __init__(
        self, hub: str, count: int, *, memory_bytes: int = 40 * 1024**3, mig_profiles: Sequence[str] = ()
    ) -> None:
        whole = [
            Device(uuid=simulated_uuid(hub, n), name="Simulated GPU", memory_bytes=memory_bytes, index=str(n))
            for n in range(count)
        ]
        instances = [
            Device(
                uuid=f"{simulated_uuid(hub, count).replace('GPU', 'MIG')}-{n}",
                name="Simulated GPU",
                memory_bytes=int(profile.partition(".")[2].removesuffix("gb")) * 1024**3,
                index=f"{count}.{n}",
                mig_profile=profile,
                mig_slices=int(profile.partition("g.")[0]),
                parent=simulated_uuid(hub, count),
            )
            for n, profile in enumerate(mig_profiles)
        ]
        self._devices = (*whole, *instances)

    async def look(self) -> DeviceLook:
        """Return the same healthy, unused devices each time."""
        return DeviceLook(self._devices, (), {device.uuid: 0 for device in self._devices})

    async def utilisation(self, uuid: str, seconds: float) -> float | None:
        """Return 0 for a whole device, because nothing can compute on it; like NVML, nothing for a MIG instance."""
        del seconds
        return 0.0 if any(device.uuid == uuid and not device.mig_profile for device in self._devices) else None


def simulated_uuid(hub: str, number: int) -> str:
    """Return the UUID of a hub's simulated GPU."""
    # A digest, because the beginning of a UUID names the device too, and one hub's name may begin like another's.
    return f"GPU-simulated-{hashlib.sha256(hub.encode()).hexdigest()[:8]}-{number}"


def _unreadable(problem: str) -> DeviceLook:
    return DeviceLook(devices=None, processes=None, problem=problem)
