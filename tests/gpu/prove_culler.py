"""Shows on a real NVIDIA GPU what the culler makes of computing, of held memory, and of work beside an unused device.

Real are the GPU, the engine, the containers with their control groups, and the culler.  The hub and the notebook
servers are played, because nothing of JupyterHub is on the machine.  Changes no setting of any GPU.  Run it through
``prove.sh prove_culler.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import cdi
import docker
from lab import Lab, Transcript, until
from prove import _describe, _import_image, _remove_containers

from ds01_spawner.adapters.activity import ActivityReader, DeviceMeter, EngineInspector
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.eventlog import EventLog, read_events
from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.adapters.notebook import NotebookAddress
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import Counting, Kernel, Terminal
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder
from ds01_spawner.services.culler.acts import Acts
from ds01_spawner.services.culler.channels import Channels
from ds01_spawner.services.culler.passes import Culler, World
from ds01_spawner.services.culler.settings import Settings

IDLE_SECONDS = 24.0
PASS_SECONDS = 4.0
HELD_MIB = 4096
BURN = "python3 -c 'while True: pass' & "


@dataclass
class PlayedHub:
    """A hub with one server, and notebook servers that nobody uses."""

    lab: Lab
    server_of: dict[Holder, str] = field(default_factory=dict)
    stopped_at: dict[Holder, float] = field(default_factory=dict)

    async def active_servers(self) -> tuple[HubServer, ...]:
        """Return every server."""
        return tuple(
            HubServer(h.user, frozenset(), h.server, True, "", state={"container_id": c, "url": "http://-"})  # noqa: FBT003
            for h, c in self.server_of.items()
        )

    async def server(self, user: str, name: str) -> HubServer | None:
        """Return one server."""
        return next((s for s in await self.active_servers() if (s.user, s.name) == (user, name)), None)

    async def stop(self, user: str, name: str) -> bool:
        """Remove its container."""
        holder = Holder(user, name)
        await self.lab.retire(holder, self.server_of.pop(holder))
        self.stopped_at[holder] = time.monotonic()
        return True

    async def kernels(self, _: NotebookAddress) -> tuple[Kernel, ...]:
        """Return one that nobody uses."""
        return (Kernel("k", busy=False, last_activity=""),)

    async def terminals(self, _: NotebookAddress) -> tuple[Terminal, ...]:
        """Return none."""
        return ()

    def keep_alive_seconds(self, account: Account, project: str, longest_seconds: float) -> float:
        """Return that there is none."""
        del account, project, longest_seconds
        return 0.0

    def announce(self, account: Account, project: str, text: str) -> None:
        """Take it."""

    def withdraw(self, account: Account, project: str) -> None:
        """Take it."""


async def no_packages(container: str) -> tuple[str, ...]:
    """Return none; nothing is installed by hand here."""
    del container
    return ()


def make_culler(lab: Lab, hub: PlayedHub, folder: Path, counting: Counting) -> tuple[Culler, DeviceMeter]:
    """Put the culler together as the service does."""
    settings = Settings(
        hub="proof",
        folder=folder,
        packages_folder=folder / "packages",
        events=folder / "events.jsonl",
        pass_seconds=PASS_SECONDS,
    )
    threads = ThreadPoolExecutor(4)
    reader = ActivityReader(EngineInspector(), hub)
    meter = DeviceMeter(lab.nvml)
    world = World(
        hub=hub,
        engine=lab.engine,
        meter=meter,
        reader=reader,
        find_account=lambda user: Account(user, 1, 1, (1,), Path("/nonexistent")),
        limits=lambda user, groups: Limits(idle_seconds=IDLE_SECONDS, grace_seconds=0, counting=counting),
        queue=lambda: None,
        lost_packages=no_packages,
        threads=threads,
        clock=time.monotonic,
    )
    events = EventLog(settings.events, source="culler")
    channels = Channels(reader, hub, {}, threads)
    files, packages = CullerFiles(folder), LostPackages(settings.packages_folder)
    acts = Acts(settings, channels, files, packages, events, clock=time.monotonic, wall=time.time)
    return Culler(settings, world, acts), meter


async def watch(culler: Culler, meter: DeviceMeter, hub: PlayedHub, seconds: float) -> None:
    """Make passes for some time, or until nothing is left to watch."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and hub.server_of:
        await culler.run()
        await asyncio.sleep(culler.next_look_seconds() / 2)
        await meter.tick(culler.devices)
        await asyncio.sleep(culler.next_look_seconds() / 2)


async def one(  # noqa: PLR0917
    lab: Lab, say: Transcript, shell: str, ready: str, counting: Counting, seconds: float
) -> dict[str, Any]:
    """Run a server that holds the device and return what became of it."""
    hub, holder = PlayedHub(lab), Holder("ada", "thesis")
    with tempfile.TemporaryDirectory() as folder:
        culler, meter = make_culler(lab, hub, Path(folder), counting)
        async with lab.reservation(holder) as reservation:
            container = await lab.launch(reservation, shell)
            await lab.line(container, ready)
            hub.server_of[holder] = container
            began = time.monotonic()
            await watch(culler, meter, hub, seconds)
            status = CullerFiles(Path(folder)).status() or {}
            samples = status["servers"][0]["samples"] if status.get("servers") else []
            if hub.server_of:
                await hub.stop(holder.user, holder.server)
                hub.stopped_at.clear()
        events = list(read_events([Path(folder) / "events.jsonl"])) if (Path(folder) / "events.jsonl").exists() else []
        samples = samples or next((e.details["samples"] for e in events if e.kind == "maintenance.idle_kill"), [])
        uuid = reservation.lease.devices[0]

        async def free() -> bool:
            look = await lab.nvml.look()
            return look.processes is not None and all(process.device != uuid for process in look.processes)

        await until(free, "the device without a process")
        say.say(f"GPU % {[s.get('gpu') for s in samples]}, cores {[s.get('cpu') for s in samples]}")
        return {
            "after": hub.stopped_at[holder] - began if holder in hub.stopped_at else None,
            "free": time.monotonic() - began,
            "kinds": [event.kind for event in events],
            "text": next((e.details["decision"]["text"] for e in events if e.kind == "maintenance.idle_kill"), ""),
            "samples": samples,
        }


def _control_groups() -> str:
    return "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"


async def prove(image: Path, say: Transcript) -> None:
    """Make every statement."""
    client = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
    say.title(
        f"The culler on Linux {platform.release()}: idle limit {IDLE_SECONDS:.0f} s, a pass every {PASS_SECONDS:.0f} s"
    )
    _describe(say, client)
    say.say(f"control groups: {_control_groups()}")
    cdi.write_specification()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(_import_image(client, image), Path(folder))
        lab.engine.ensure_network("")
        try:
            say.say((await lab.nvml.look()).devices[0].name)  # type: ignore[index]
            say.title("Computing, with nobody at the browser; only the GPU counts")
            seen = await one(
                lab, say, "exec python3 /proof/cuda_work.py busy 300", "computing", Counting.GPU, 2.5 * IDLE_SECONDS
            )
            say.check(seen["after"] is None, "it is kept", seen)
            say.check(all((s.get("gpu") or 0) > 5 for s in seen["samples"]), "each sample shows the GPU at work", seen)

            say.title("Memory held, nothing computed")
            seen = await one(
                lab,
                say,
                f"exec python3 /proof/cuda_work.py hold {HELD_MIB}",
                "holding",
                Counting.WORK,
                4 * IDLE_SECONDS,
            )
            say.check(seen["after"] is not None, "it is retired", seen)
            say.check("maintenance.warn" in seen["kinds"], f"warned first; {seen['text']}", seen)
            say.check(
                (seen["after"] or 999) <= IDLE_SECONDS + 15, f"{seen['after'] or 0:.1f} s after it went idle", seen
            )
            say.say(f"the device had no process any more {seen['free']:.1f} s after it went idle")

            say.title("Memory held, and the processor busy beside it")
            seen = await one(
                lab, say, BURN + f"exec python3 /proof/cuda_work.py hold {HELD_MIB}", "holding", Counting.WORK, 45
            )
            say.check(seen["after"] is None, "counting work: it is kept", seen)
            say.check(
                seen["kinds"].count("maintenance.warn") == 1, "and its user told once that the GPU is unused", seen
            )
            seen = await one(
                lab, say, BURN + f"exec python3 /proof/cuda_work.py hold {HELD_MIB}", "holding", Counting.GPU, 90
            )
            say.check(seen["after"] is not None, "counting the GPU alone: it is retired", seen)
        finally:
            await lab.allocator.close()
            _remove_containers(client)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("image", type=Path, help="the files of an image with Python, as a tar archive")
    transcript = Transcript()
    asyncio.run(prove(arguments.parse_args().image, transcript))
    print(f"\n{transcript.failed} statement(s) failed" if transcript.failed else "\nEvery statement holds.", flush=True)
    sys.exit(bool(transcript.failed))
