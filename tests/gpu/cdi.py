"""A CDI specification written by hand: what NVIDIA's container toolkit would write, from the driver's own files.

For a machine that has the driver and not the toolkit.  One device per GPU, named by its UUID.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pynvml

SPEC = Path("/etc/cdi/ds01-proof.json")
INSIDE = "/usr/local/nvidia/lib"
SHARED_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
LIBRARIES = re.compile(r"(libcuda|libnvidia-(ml|ptxjitcompiler|nvvm|gpucomp|cfg))\.so(\..*)?")


def write_specification() -> dict[str, Any]:
    """Write the specification for every GPU that the driver lists, and return it.

    Raises:
        RuntimeError: the driver's files are not where the driver itself was loaded from.
    """
    pynvml.nvmlInit()
    try:
        folder = _driver_folder()
        devices = [_device(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    libraries = sorted(path for path in folder.iterdir() if LIBRARIES.fullmatch(path.name))
    if not any(path.name == "libcuda.so.1" for path in libraries):
        raise RuntimeError(f"libcuda.so.1 is not in {folder}, where libnvidia-ml.so.1 is")
    mounts = [_mount(path.resolve(), f"{INSIDE}/{path.name}") for path in libraries]
    smi = shutil.which("nvidia-smi")
    if smi:
        mounts.append(_mount(Path(smi).resolve(), "/usr/bin/nvidia-smi"))
    nodes = [{"path": f"/dev/{name}"} for name in SHARED_NODES if Path("/dev", name).exists()]
    specification = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {"env": [f"LD_LIBRARY_PATH={INSIDE}"], "deviceNodes": nodes, "mounts": mounts},
        "devices": devices,
    }
    SPEC.parent.mkdir(parents=True, exist_ok=True)
    SPEC.write_text(json.dumps(specification, indent=1))
    return specification


def _device(handle: Any) -> dict[str, Any]:
    node = f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(handle)}"
    return {"name": pynvml.nvmlDeviceGetUUID(handle), "containerEdits": {"deviceNodes": [{"path": node}]}}


def _mount(source: Path, target: str) -> dict[str, Any]:
    options = ["ro", "nosuid", "nodev", "bind"]
    return {"hostPath": str(source), "containerPath": target, "options": options}


def _driver_folder() -> Path:
    # The library that this process has loaded knows best where the driver is.
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libnvidia-ml.so" in line:
            return Path(line.split(maxsplit=5)[5]).parent
    raise RuntimeError("libnvidia-ml.so.1 is not loaded")
