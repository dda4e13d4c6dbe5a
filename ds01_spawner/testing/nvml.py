"""An NVML binding made of memory: GPUs that do what is asked of them, and one scenario for each way they fail.

It stands in for the module ``pynvml``: its errors and constants are the real ones, its functions those that the project
uses.  It also watches its caller: ``sessions`` must be 0 when nobody reads, ``at_once`` never above 1.
"""
# ruff: noqa: N802, D102 - the methods of FakeNvml have the binding's names, and its reference describes them

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1024**3


@dataclass(slots=True)
class FakeProcess:
    """A process on a device; ``kind`` is ``compute``, ``graphics`` or ``mps``."""

    pid: int
    memory_bytes: int | None = GIB
    kind: str = "compute"


@dataclass(slots=True)
class FakeDevice:
    """What a whole GPU and a MIG instance have in common.

    Attributes:
        errors: what a function raises when it is called for this device, by the function's name.
        samples: utilisation samples as (seconds since the epoch, percent).
    """

    uuid: str
    name: str
    memory_bytes: int = 40 * GIB
    memory_used_bytes: int = 0
    processes: list[FakeProcess] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class FakeInstance(FakeDevice):
    """A MIG instance."""

    gpu_slices: int = 1
    compute_slices: int = 1


@dataclass(slots=True)
class FakeGpu(FakeDevice):
    """A whole GPU.

    Attributes:
        mig: whether MIG is on; ``None`` on a GPU that has no MIG.
        instances: MIG instances by slot; ``None`` is an empty slot.
        ecc_errors: uncorrectable errors; ``None`` on a GPU without ECC memory.
        remapped_rows: corrected, uncorrected, pending, failed; ``None`` on a GPU without row remapping.
        retired_pages_pending: likewise for older GPUs.
    """

    mig: bool | None = False
    instances: list[FakeInstance | None] = field(default_factory=list)
    ecc_errors: int | None = 0
    remapped_rows: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    retired_pages_pending: int | None = None


class FakeNvml:
    """The binding.

    Args:
        gpus: what the driver lists, in its order.
        init_error: what opening a session raises.

    Attributes:
        hang_in: the name of a function that does not return until ``release`` is called.
        sessions: how many sessions are open.
        calls: how many sessions were opened.
        at_once: the most calls that were ever under way at the same time.
    """

    def __init__(self, *gpus: FakeGpu, init_error: Exception | None = None) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.hang_in = ""
        self.sessions = 0
        self.calls = 0
        self.at_once = 0
        self._under_way = 0
        self._released = threading.Event()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        # Errors and constants are the real binding's; a function that is missing here must not reach a real driver.
        if name.startswith(("NVML", "nvmlMemory_")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def release(self) -> None:
        """Let every hanging call return."""
        self.hang_in = ""
        self._released.set()

    def nvmlInit(self) -> None:
        with self._call("nvmlInit"):
            if self.init_error is not None:
                raise self.init_error
            self.sessions += 1
            self.calls += 1

    def nvmlShutdown(self) -> None:
        with self._call("nvmlShutdown"):
            self.sessions -= 1

    def nvmlDeviceGetCount(self) -> int:
        with self._call("nvmlDeviceGetCount"):
            return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        self._ask(gpu, "nvmlDeviceGetHandleByIndex")
        return gpu

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeDevice:
        with self._call("nvmlDeviceGetHandleByUUID"):
            for gpu in self.gpus:
                for device in (gpu, *gpu.instances):
                    if device is not None and device.uuid == uuid:
                        return device
            raise pynvml.NVMLError_NotFound

    def nvmlDeviceGetUUID(self, device: FakeDevice) -> str:
        self._ask(device, "nvmlDeviceGetUUID")
        return device.uuid

    def nvmlDeviceGetName(self, device: FakeDevice) -> str:
        self._ask(device, "nvmlDeviceGetName")
        return device.name

    def nvmlDeviceGetMemoryInfo(self, device: FakeDevice, version: int | None = None) -> Any:
        self._ask(device, "nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo")
        reserved = 0 if version else GIB // 2  # the first version counts what the driver keeps for itself as used
        return SimpleNamespace(total=device.memory_bytes, used=device.memory_used_bytes + reserved)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        self._ask(gpu, "nvmlDeviceGetMigMode")
        return [int(_offered(gpu.mig))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        self._ask(gpu, "nvmlDeviceGetMaxMigDeviceCount")
        return 7 if gpu.mig else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeInstance:
        self._ask(gpu, "nvmlDeviceGetMigDeviceHandleByIndex")
        instance = gpu.instances[index] if index < len(gpu.instances) else None
        if instance is None:
            raise pynvml.NVMLError_NotFound
        return instance

    def nvmlDeviceGetAttributes_v2(self, instance: FakeInstance) -> Any:
        self._ask(instance, "nvmlDeviceGetAttributes_v2")
        return SimpleNamespace(
            gpuInstanceSliceCount=instance.gpu_slices,
            computeInstanceSliceCount=instance.compute_slices,
            memorySizeMB=instance.memory_bytes // 1024**2,
        )

    def nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, error_type: int, counter_type: int) -> int:
        self._ask(gpu, "nvmlDeviceGetTotalEccErrors")
        asked = (error_type, counter_type)
        uncorrected = asked == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return int(_offered(gpu.ecc_errors)) if uncorrected else 999

    def nvmlDeviceGetRemappedRows(self, gpu: FakeGpu) -> tuple[int, int, int, int]:
        self._ask(gpu, "nvmlDeviceGetRemappedRows")
        rows: tuple[int, int, int, int] = _offered(gpu.remapped_rows)
        return rows

    def nvmlDeviceGetRetiredPagesPendingStatus(self, gpu: FakeGpu) -> int:
        self._ask(gpu, "nvmlDeviceGetRetiredPagesPendingStatus")
        return int(_offered(gpu.retired_pages_pending))

    def nvmlDeviceGetComputeRunningProcesses(self, device: FakeDevice) -> list[Any]:
        return self._processes(device, "nvmlDeviceGetComputeRunningProcesses", "compute")

    def nvmlDeviceGetGraphicsRunningProcesses(self, device: FakeDevice) -> list[Any]:
        return self._processes(device, "nvmlDeviceGetGraphicsRunningProcesses", "graphics")

    def nvmlDeviceGetMPSComputeRunningProcesses(self, device: FakeDevice) -> list[Any]:
        return self._processes(device, "nvmlDeviceGetMPSComputeRunningProcesses", "mps")

    def nvmlDeviceGetSamples(self, device: FakeDevice, sampling_type: int, since_us: int) -> tuple[int, list[Any]]:
        self._ask(device, "nvmlDeviceGetSamples")
        if isinstance(device, FakeInstance) or sampling_type != pynvml.NVML_GPU_UTILIZATION_SAMPLES:
            raise pynvml.NVMLError_NotSupported
        # The driver hands out its whole buffer when asked for times that it does not know.
        dated = [(int(at * 1_000_000), percent) for at, percent in device.samples]
        if not any(at_us > since_us for at_us, _ in dated):
            raise pynvml.NVMLError_NotFound
        found = [SimpleNamespace(timeStamp=at, sampleValue=SimpleNamespace(uiVal=percent)) for at, percent in dated]
        return 1, found

    def _processes(self, device: FakeDevice, function: str, kind: str) -> list[Any]:
        self._ask(device, function)
        return [
            SimpleNamespace(pid=process.pid, usedGpuMemory=process.memory_bytes)
            for process in device.processes
            if process.kind == kind
        ]

    def _ask(self, device: FakeDevice, function: str) -> None:
        with self._call(function):
            error = device.errors.get(function) or device.errors.get("*")
            if error is not None:
                raise error

    @contextmanager
    def _call(self, function: str) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        try:
            if function == self.hang_in:
                self._released.wait(60)
            yield
        finally:
            with self._lock:
                self._under_way -= 1


def _offered(value: Any) -> Any:
    if value is None:
        raise pynvml.NVMLError_NotSupported
    return value


def gpu(number: int = 0, **facts: Any) -> FakeGpu:
    """Return a healthy, unused GPU."""
    uuid = f"GPU-0000000{number}-aaaa-bbbb-cccc-000000000000"
    return FakeGpu(**({"uuid": uuid, "name": "NVIDIA A100-PCIE-40GB"} | facts))


def instance(number: int = 0, profile: str = "1g.5gb", **facts: Any) -> FakeInstance:
    """Return an unused MIG instance."""
    slices = int(profile.partition("g.")[0])
    shape: dict[str, Any] = {
        "uuid": f"MIG-0000000{number}-aaaa-bbbb-cccc-000000000000",
        "name": f"NVIDIA A100-PCIE-40GB MIG {profile}",
        "memory_bytes": int(profile.partition("g.")[2].removesuffix("gb")) * GIB,
        "gpu_slices": slices,
        "compute_slices": slices,
    }
    return FakeInstance(**(shape | facts))


def healthy(count: int = 2) -> FakeNvml:
    """Whole GPUs, nothing wrong."""
    return FakeNvml(*(gpu(number) for number in range(count)))


def no_driver() -> FakeNvml:
    """No NVIDIA driver is installed."""
    return FakeNvml(init_error=pynvml.NVMLError_LibraryNotFound())


def driver_not_loaded() -> FakeNvml:
    """The library is installed, its kernel module is not loaded."""
    return FakeNvml(init_error=pynvml.NVMLError_DriverNotLoaded())


def driver_upgraded() -> FakeNvml:
    """The driver was upgraded while the old kernel module stays loaded."""
    return FakeNvml(init_error=pynvml.NVMLError_LibRmVersionMismatch())


def old_driver() -> FakeNvml:
    """A driver that does not have the functions that the binding calls."""
    mismatch = pynvml.NVMLLibraryMismatchError("Unversioned function called")
    return FakeNvml(gpu(errors={"nvmlDeviceGetComputeRunningProcesses": mismatch}))


def lost() -> FakeNvml:
    """The second of two GPUs fell off the bus and the driver still lists it."""
    return FakeNvml(gpu(0), gpu(1, errors={"*": pynvml.NVMLError_GpuIsLost()}))


def uncorrectable_errors() -> FakeNvml:
    """Memory errors that cannot be corrected."""
    return FakeNvml(gpu(ecc_errors=3))


def rows_pending() -> FakeNvml:
    """Damaged rows wait for a reset."""
    return FakeNvml(gpu(remapped_rows=(0, 1, 1, 0)))


def rows_failed() -> FakeNvml:
    """Damaged rows that could not be replaced."""
    return FakeNvml(gpu(remapped_rows=(0, 9, 0, 1)))


def pages_pending() -> FakeNvml:
    """An older GPU whose damaged pages wait for a reset."""
    return FakeNvml(gpu(mig=None, remapped_rows=None, retired_pages_pending=1))


def consumer() -> FakeNvml:
    """A GPU without MIG, ECC memory or row remapping: nothing is wrong with it."""
    return FakeNvml(gpu(mig=None, ecc_errors=None, remapped_rows=None, retired_pages_pending=None))


def reset_required() -> FakeNvml:
    """The GPU answers that it needs a reset."""
    return FakeNvml(gpu(errors={"nvmlDeviceGetTotalEccErrors": pynvml.NVMLError_ResetRequired()}))


def memory_unreadable() -> FakeNvml:
    """The first of two GPUs does not say how much memory it has."""
    unknown = pynvml.NVMLError_Unknown()
    return FakeNvml(
        gpu(0, errors=dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"), unknown)), gpu(1)
    )


def processes_unreadable() -> FakeNvml:
    """The first of two GPUs does not say who uses it."""
    return FakeNvml(gpu(0, errors={"nvmlDeviceGetComputeRunningProcesses": pynvml.NVMLError_Unknown()}), gpu(1))


def mig() -> FakeNvml:
    """One whole GPU, and one cut into three instances with an empty slot between them."""
    cut = [instance(0, "1g.5gb"), None, instance(1, "2g.10gb"), instance(2, "3g.20gb")]
    return FakeNvml(gpu(0), gpu(1, mig=True, instances=cut))


def mig_without_instances() -> FakeNvml:
    """MIG is on and nothing was cut: there is no device."""
    return FakeNvml(gpu(mig=True))


def hanging() -> FakeNvml:
    """A driver that does not answer until ``release`` is called."""
    library = healthy()
    library.hang_in = "nvmlDeviceGetCount"
    return library


SCENARIOS: tuple[Callable[[], FakeNvml], ...] = (
    healthy,
    no_driver,
    driver_not_loaded,
    driver_upgraded,
    old_driver,
    lost,
    uncorrectable_errors,
    rows_pending,
    rows_failed,
    pages_pending,
    consumer,
    reset_required,
    memory_unreadable,
    processes_unreadable,
    mig,
    mig_without_instances,
)
