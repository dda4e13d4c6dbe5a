"""What the proofs use: the project's parts put together, a transcript, and processes outside every container."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from ds01_spawner.adapters.engine import Engine
from ds01_spawner.adapters.eventlog import EventLog
from ds01_spawner.adapters.nvml import DeviceLook, Nvml
from ds01_spawner.adapters.observe import Observer
from ds01_spawner.allocator import Allocator, Reservation
from ds01_spawner.core import labels
from ds01_spawner.core.container import Mount, ServerContainer
from ds01_spawner.core.model import DeviceState, Holder, Request

HERE = Path(__file__).parent
HUB = "proof"
NETWORK = "ds01-proof"
UID = 23456
DEADLINE_SECONDS = 90.0


class Transcript:
    """Prints statements with their outcome and counts those that do not hold."""

    def __init__(self) -> None:
        self.failed = 0
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        """Begin a part."""
        print(f"\n== {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a fact."""
        print(f"   {time.monotonic() - self._began:6.1f} s  {text}", flush=True)

    def check(self, holds: object, text: str, seen: object = "") -> None:
        """Print a statement and whether it holds."""
        self.failed += not holds
        print(f"   {'ok    ' if holds else 'FAILED'}  {text}{'' if holds else f'; seen: {seen}'}", flush=True)


class Lab:
    """The parts under proof, and what is made for it."""

    def __init__(self, image: str, folder: Path) -> None:
        self.nvml = Nvml()
        self.engine = Engine(network=NETWORK)
        self.image = image
        self.log = folder / "events.jsonl"
        self.allocator = Allocator(
            hub=HUB,
            observe=Observer(self.nvml, self.engine, time.time).observe,
            clock=time.time,
            record=EventLog(self.log).record,
            recheck_seconds=1.0,
        )

    async def start(self, holder: Holder, shell: str, devices: tuple[str, ...] = ()) -> str:
        """Create and start a container for a server and return its id."""
        record = labels.ServerLabels(HUB, holder, holder.server, "/proof", time.time(), devices)
        container = await self.engine.create(
            ServerContainer(
                name=f"{holder.server}._.{holder.user}",
                hostname=holder.server,
                image_id=self.image,
                argv=("sh", "-c", shell),
                environment={},
                user=holder.user,
                uid=UID,
                gid=UID,
                groups=(),
                home=f"/home/{holder.user}",
                working_dir="/",
                mounts=(Mount(str(HERE), "/proof", read_only=True),),
                labels=labels.encode(record),
                devices=devices,
                network=NETWORK,
                pids=512,
            ),
            {},
            {},
        )
        await self.engine.start(container)
        return container

    async def launch(self, reservation: Reservation, shell: str) -> str:
        """Do as the hub does with a reservation, and return the container's id."""
        async with reservation.creating():
            container = await self.start(reservation.lease.holder, shell, reservation.lease.devices)
            reservation.bind(container)
        return container

    async def retire(self, holder: Holder, container: str) -> None:
        """Do as the hub does at the end of a server."""
        await self.engine.remove(container, grace_seconds=0)
        await self.allocator.release(holder)

    async def line(self, container: str, begin: str) -> str:
        """Return the line of a container's output that begins so, waiting for it."""
        found: list[str] = []

        async def printed() -> bool:
            found[:] = [text for text in await self.engine.log_tail(container, 50) if text.startswith(begin)]
            return bool(found)

        await until(printed, f"{begin!r} from {container[:12]}")
        return found[-1]

    async def state(self, uuid: str) -> tuple[DeviceState, str]:
        """Return what the allocator makes of a device now, with the reason."""
        snapshot = await self.allocator.snapshot(max_age_seconds=0)
        return next((status.state, status.reason) for status in snapshot.devices if status.device.uuid == uuid)

    @asynccontextmanager
    async def reservation(self, holder: Holder, count: int = 1) -> AsyncIterator[Reservation]:
        """Reserve whole GPUs, waiting a few minutes at most."""
        request = Request(holder, count, "gpu")
        async with asyncio.timeout(300), self.allocator.reservation(request, on_wait=lambda _: None) as reservation:
            yield reservation

    async def grant(
        self, holder: Holder, told: Callable[[str], None], count: int = 1, look: list[DeviceLook] | None = None
    ) -> tuple[str, ...]:
        """Wait for devices, look at them when they are granted, and give them back unused."""
        request = Request(holder, count, "gpu")
        async with self.allocator.reservation(request, on_wait=lambda waiting: told(waiting.sentence)) as reservation:
            if look is not None:
                look.append(await self.nvml.look())
            return reservation.lease.devices

    async def waits(self, holder: Holder) -> bool:
        """Whether a holder has a place in the queue."""
        return any(who == holder for who, _ in (await self.allocator.snapshot()).queue)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> float:
    """Wait for a condition and return how long it took.

    Raises:
        TimeoutError: it did not come true.
    """
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > DEADLINE_SECONDS:
            raise TimeoutError(f"waited {DEADLINE_SECONDS:.0f} s for {what}")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


@asynccontextmanager
async def host_process(uuid: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``cuda_work.py`` outside every container on one device, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "cuda_work.py"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def true(value: object) -> bool:
    """Return whether a value is true, as a condition for ``until``."""
    return bool(value)
