"""Uses GPUs through the driver's own library, with nothing but Python: in a container made of a bare image, or outside.

cuda_work.py report          every device that is seen, each after a computation; one JSON object
cuda_work.py hold MIB        takes memory on the first device, says "holding", keeps it until SIGTERM
cuda_work.py busy SECONDS    computes on the first device, says "computing" and, at the end, "done"
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

NUMBERS = 1 << 20
MIB = 1 << 20

# c[i] = a[i] + b[i], in the oldest dialect that all GPUs since Volta take.
KERNEL = b"""
.version 6.4
.target sm_70
.address_size 64
.visible .entry sum_of(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u32 pn)
{
    .reg .pred %p;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %d<8>;
    ld.param.u64 %d1, [pa];
    ld.param.u64 %d2, [pb];
    ld.param.u64 %d3, [pc];
    ld.param.u32 %r1, [pn];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra DONE;
    mul.wide.u32 %d4, %r5, 4;
    add.u64 %d5, %d1, %d4;
    add.u64 %d6, %d2, %d4;
    add.u64 %d7, %d3, %d4;
    ld.global.f32 %f1, [%d5];
    ld.global.f32 %f2, [%d6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%d7], %f3;
DONE:
    ret;
}
"""


class CudaError(Exception):
    """A call of the driver failed."""


class Cuda:
    """The driver's library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)

    def __call__(self, function: str, *arguments: object) -> None:
        """Call a function of the library.

        Raises:
            CudaError: it returned an error.
        """
        result = getattr(self._library, function)(*arguments)
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            raise CudaError(f"{function}: {result} {(text.value or b'').decode()}")

    def count(self) -> int:
        """Return how many devices are seen."""
        count = ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        return count.value


class Gpu:
    """One device with its context."""

    def __init__(self, cuda: Cuda, index: int) -> None:
        self._cuda = cuda
        self._device = ctypes.c_int()
        context = ctypes.c_void_p()
        cuda("cuDeviceGet", ctypes.byref(self._device), index)
        cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        cuda("cuCtxSetCurrent", context)

    def uuid(self) -> str:
        """Return the UUID as NVML writes it."""
        raw = (ctypes.c_ubyte * 16)()
        self._cuda("cuDeviceGetUuid_v2", ctypes.byref(raw), self._device)
        return f"GPU-{uuid.UUID(bytes=bytes(raw))}"

    def name(self) -> str:
        """Return the product's name."""
        text = ctypes.create_string_buffer(128)
        self._cuda("cuDeviceGetName", text, 128, self._device)
        return text.value.decode()

    def allocate(self, size: int) -> ctypes.c_uint64:
        """Return device memory."""
        address = ctypes.c_uint64()
        self._cuda("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def adder(self) -> "Adder":
        """Return a computation that is ready to run."""
        return Adder(self._cuda, self)


class Adder:
    """Adds two vectors."""

    def __init__(self, cuda: Cuda, gpu: Gpu) -> None:
        self._cuda = cuda
        self._size = ctypes.c_size_t(4 * NUMBERS)
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        cuda("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(KERNEL))
        cuda("cuModuleGetFunction", ctypes.byref(self._function), module, b"sum_of")
        self._a, self._b, self._c = (gpu.allocate(4 * NUMBERS) for _ in range(3))
        numbers = ctypes.c_float * NUMBERS
        cuda("cuMemcpyHtoD_v2", self._a, numbers(*(float(i % 1000) for i in range(NUMBERS))), self._size)
        cuda("cuMemcpyHtoD_v2", self._b, numbers(*(float(i % 77) for i in range(NUMBERS))), self._size)

    def run(self, times: int = 1) -> None:
        """Compute, and return when it is done."""
        count = ctypes.c_uint32(NUMBERS)
        values = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in (self._a, self._b, self._c, count)]
        arguments = (ctypes.c_void_p * 4)(*values)
        grid = (NUMBERS // 256, 1, 1, 256, 1, 1)
        for _ in range(times):
            self._cuda("cuLaunchKernel", self._function, *grid, 0, None, arguments, None)
        self._cuda("cuCtxSynchronize")

    def right(self) -> bool:
        """Whether the device computed what the processor computes."""
        result = (ctypes.c_float * NUMBERS)()
        self._cuda("cuMemcpyDtoH_v2", result, self._c, self._size)
        return all(result[i] == i % 1000 + i % 77 for i in range(NUMBERS))


def report() -> dict[str, object]:
    """Return what is seen: devices through CUDA, through nvidia-smi, and as files."""
    seen: dict[str, object] = {
        "nodes": sorted(path.name for path in Path("/dev").glob("nvidia*")),
        "visible": os.environ.get("NVIDIA_VISIBLE_DEVICES"),
        "uid": os.getuid(),
    }
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
        seen["nvidia-smi"] = listed.stdout.strip().splitlines() if not listed.returncode else listed.stdout.strip()
    except OSError as error:
        seen["nvidia-smi"] = type(error).__name__
    try:
        cuda = Cuda()
        seen["devices"] = []
        for index in range(cuda.count()):
            gpu = Gpu(cuda, index)
            adder = gpu.adder()
            adder.run()
            seen["devices"].append({"uuid": gpu.uuid(), "name": gpu.name(), "computes": adder.right()})
    except (CudaError, OSError) as error:
        seen["cuda"] = str(error)
    return seen


def hold(mib: int) -> None:
    """Keep device memory until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    gpu = Gpu(Cuda(), 0)
    gpu.allocate(mib * MIB)
    print("holding", flush=True)
    ended.wait()


def busy(seconds: float) -> None:
    """Compute without a pause."""
    adder = Gpu(Cuda(), 0).adder()
    print("computing", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        adder.run(1000)
    print("done", flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "report":
        print(json.dumps(report()), flush=True)
    elif what == "hold":
        hold(int(rest[0]))
    elif what == "busy":
        busy(float(rest[0]))
    else:
        sys.exit(__doc__)
