"""Reads one GPU through an open NVML session: its devices, their health, processes and memory in use.

Every function here takes the NVML binding as ``library`` and may raise its ``NVMLError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ds01_spawner.adapters.hostprocess import container_of, owner_of
from ds01_spawner.core.model import Device, Health, Process

_SENTENCES = (
    (("NVMLError_LibraryNotFound",), "The NVIDIA driver's library (libnvidia-ml.so.1) is not installed here."),
    (
        ("NVMLError_DriverNotLoaded",),
        "The NVIDIA driver is installed but not loaded; run nvidia-smi on the host to see why.",
    ),
    (
        ("NVMLError_LibRmVersionMismatch",),
        (
            "The NVIDIA driver was upgraded while the old one was loaded; reboot the host,"
            " or reload the driver's kernel modules and restart the hub."
        ),
    ),
    (("NVMLError_GpuIsLost",), "The GPU fell off the bus; the host must be rebooted."),
    (("NVMLError_ResetRequired",), "The GPU needs a reset: nvidia-smi --gpu-reset once nothing uses it."),
    (("NVMLError_NoPermission",), "The hub may not read the GPU; check the rights on /dev/nvidia*."),
    (
        ("NVMLLibraryMismatchError", "NVMLError_FunctionNotFound"),
        "The NVIDIA driver is too old: version 510 or newer is needed.",
    ),
)


@dataclass(slots=True)
class Reading:
    """What one physical GPU holds: itself, or its MIG instances; none when MIG is on and no instance exists."""

    devices: list[Device] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    memory_used_bytes: dict[str, int] = field(default_factory=dict)


def read_gpu(library: Any, gpu: Any, uuid: str, index: int) -> Reading:
    """Read a GPU and, where MIG is on, its instances instead of it.

    Args:
        library: the NVML binding.
        gpu: the GPU's handle.
        uuid: the GPU's UUID.
        index: the driver's index, for show.

    Raises:
        NVMLError: the GPU cannot be read.
    """
    health, reason = _health(library, gpu)
    reading = Reading()
    if not _mig_enabled(library, gpu):
        whole = Device(
            uuid=uuid,
            name=str(library.nvmlDeviceGetName(gpu)),
            memory_bytes=0,
            health=health,
            reason=reason,
            index=str(index),
        )
        _add(library, gpu, whole, reading)
        return reading
    for number in range(int(library.nvmlDeviceGetMaxMigDeviceCount(gpu))):
        try:
            instance = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
        except library.NVMLError_NotFound:
            continue  # an empty slot
        device = replace(
            _mig_device(library, instance), health=health, reason=reason, parent=uuid, index=f"{index}.{number}"
        )
        _add(library, instance, device, reading)
    return reading


def say(library: Any, error: Exception) -> str:
    """Return a sentence for an NVML error, with what to do about it."""
    for names, sentence in _SENTENCES:
        if isinstance(error, tuple(getattr(library, name) for name in names)):
            return sentence
    return f"NVML answered: {error}."


def health_after(library: Any, error: Exception) -> Health:
    """Return what an error says about the GPU it came from: broken for certain, or not known."""
    broken = library.NVMLError_GpuIsLost | library.NVMLError_ResetRequired
    return Health.UNHEALTHY if isinstance(error, broken) else Health.UNKNOWN


def _add(library: Any, handle: Any, device: Device, reading: Reading) -> None:
    memory = _memory(library, handle)
    device = replace(device, memory_bytes=int(memory.total))
    reading.memory_used_bytes[device.uuid] = int(memory.used)
    try:
        reading.processes.extend(_processes(library, handle, device.uuid))
    except (library.NVMLError, library.NVMLLibraryMismatchError) as error:
        # Who uses it cannot be told, so it cannot be granted; the other GPUs can.
        if device.health is Health.HEALTHY:
            reason = f"Its processes cannot be listed. {say(library, error)}"
            device = replace(device, health=Health.UNKNOWN, reason=reason)
    reading.devices.append(device)


def _mig_enabled(library: Any, gpu: Any) -> bool:
    mode = _optional(library, lambda: library.nvmlDeviceGetMigMode(gpu))
    return mode is not None and mode[0] == 1


def _mig_device(library: Any, instance: Any) -> Device:
    """Describe a MIG instance; its profile is the end of its name, such as ``NVIDIA A100-PCIE-40GB MIG 1g.5gb``."""
    name, _, profile = str(library.nvmlDeviceGetName(instance)).partition(" MIG ")
    attributes = library.nvmlDeviceGetAttributes_v2(instance)
    slices = int(attributes.computeInstanceSliceCount) or int(attributes.gpuInstanceSliceCount)
    if not re.match(r"(\d+c\.)?\d+g\.\d+gb", profile):
        profile = f"{int(attributes.gpuInstanceSliceCount)}g.{round(int(attributes.memorySizeMB) / 1024)}gb"
    uuid = str(library.nvmlDeviceGetUUID(instance))
    return Device(uuid=uuid, name=name, memory_bytes=0, mig_profile=profile, mig_slices=slices)


def _health(library: Any, gpu: Any) -> tuple[Health, str]:
    try:
        faults = list(_faults(library, gpu))
    except library.NVMLError as error:
        return health_after(library, error), say(library, error)
    return (Health.UNHEALTHY, " ".join(faults)) if faults else (Health.HEALTHY, "")


def _faults(library: Any, gpu: Any) -> Iterator[str]:
    """Yield a sentence for each memory fault that makes results wrong or ends jobs.

    A GPU without ECC memory, or an older one without row remapping, does not offer the reading; that is no fault.
    """
    errors = _optional(
        library,
        lambda: library.nvmlDeviceGetTotalEccErrors(
            gpu, library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
        ),
    )
    if errors:
        yield f"{errors} uncorrectable memory errors since the driver was loaded; the GPU needs a reset."
    rows = _optional(library, lambda: library.nvmlDeviceGetRemappedRows(gpu))
    if rows is not None:
        _, _, pending, failed = rows
        if failed:
            yield "Damaged memory rows could not be replaced; the GPU needs repair."
        elif pending:
            yield "Damaged memory rows are replaced at the next reset; the GPU needs one."
    elif _optional(library, lambda: library.nvmlDeviceGetRetiredPagesPendingStatus(gpu)):
        yield "Damaged memory pages are retired at the next reset; the GPU needs one."


def _memory(library: Any, handle: Any) -> Any:
    # The second version leaves out what the driver reserves for itself, so an unused GPU reads near zero.
    memory = _optional(library, lambda: library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2))
    return library.nvmlDeviceGetMemoryInfo(handle) if memory is None else memory


def _processes(library: Any, handle: Any, uuid: str) -> Iterator[Process]:
    used_bytes: dict[int, int | None] = {}
    # Computing must be readable.  Graphics and MPS are kinds of their own that some GPUs and MIG instances do not have.
    listings = [
        library.nvmlDeviceGetComputeRunningProcesses(handle),
        _optional(library, lambda: library.nvmlDeviceGetGraphicsRunningProcesses(handle)) or [],
        _optional(library, lambda: library.nvmlDeviceGetMPSComputeRunningProcesses(handle)) or [],
    ]
    for listing in listings:
        for process in listing:
            known = used_bytes.get(process.pid)
            now = process.usedGpuMemory
            used_bytes[process.pid] = known if now is None else max(int(now), known or 0)
    for pid, used in sorted(used_bytes.items()):
        yield Process(pid=pid, device=uuid, memory_bytes=used, owner=owner_of(pid), container_id=container_of(pid))


def _optional(library: Any, call: Callable[[], Any]) -> Any:
    """Return what NVML answers, or ``None`` where this GPU or driver does not offer the reading."""
    not_offered = (
        library.NVMLError_NotSupported,
        library.NVMLError_FunctionNotFound,
        library.NVMLError_NoPermission,
        library.NVMLError_InvalidArgument,
        library.NVMLError_ArgumentVersionMismatch,
    )
    try:
        return call()
    except not_offered:
        return None
