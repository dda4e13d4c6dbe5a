"""Shows on real NVIDIA GPUs what no simulation can: that a lease is worth what it says.

Uses the project's own adapters and allocator, a Docker Engine, and bare images; every statement is checked and printed.
Changes no setting of any GPU.  Run it through ``prove.sh``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import lzma
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import pynvml

sys.path.insert(0, str(Path(__file__).parent))
import cdi
from lab import HERE, HUB, UID, Lab, Transcript, host_process, true, until

from ds01_spawner.adapters.engine import cdi_devices
from ds01_spawner.adapters.eventlog import read_events
from ds01_spawner.adapters.nvml import DeviceLook
from ds01_spawner.core import labels
from ds01_spawner.core.model import Device, DeviceState, Health, Holder

REPOSITORY = HERE.parents[1]
MIB = 1 << 20
HELD_MIB = 4096
BURST = 20


async def prove_inventory(lab: Lab, say: Transcript) -> None:
    """Our inventory is what NVIDIA's own program says, quickly, and without using a device."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        look = await lab.nvml.look()
        seconds.append(time.perf_counter() - began)
    say.say(f"a look takes {min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f} ms (10 looks)")
    for device in look.devices or ():
        used = look.memory_used_bytes[device.uuid] / MIB
        say.say(
            f"{device.index}: {device.name}, {device.memory_bytes / MIB:.0f} MiB, {used:.0f} MiB in use,"
            f" {device.health}{' ' + device.reason if device.reason else ''}, kind {device.kind}"
        )
    listed = _nvidia_smi("index,uuid,name,memory.total")
    ours = {d.uuid: (d.index, d.name, d.memory_bytes // MIB) for d in look.devices or () if not d.mig_profile}
    theirs = {uuid: (index, name, int(memory)) for index, uuid, name, memory in listed}
    say.check(
        ours == theirs or len(ours) != len(look.devices or ()), "whole GPUs as nvidia-smi lists them", (ours, theirs)
    )
    say.check(look.problem == "", "nothing to report", look.problem)
    say.check(not look.processes, "no process on any device", look.processes)
    modes = dict(_nvidia_smi("index,mig.mode.current"))
    say.say(f"MIG: {modes}; persistence mode: {dict(_nvidia_smi('index,persistence_mode'))}")


def prove_contract(say: Transcript) -> None:
    """The tests that the fake driver passes are passed by the real one."""
    settings = ["-c", str(HERE / "contract.ini"), "--rootdir", str(REPOSITORY), "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *settings, "tests/contract/test_nvml.py"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = run.stdout.strip().splitlines()
    say.say(lines[-1] if lines else "no output")
    say.check(run.returncode == 0, "contract tests", "\n".join(lines[-30:]))
    say.check(not any("needs an NVIDIA GPU" in line for line in lines), "none of them skipped for want of a GPU")


async def prove_isolation(lab: Lab, say: Transcript, devices: tuple[Device, ...]) -> None:
    """Servers on all devices at once: each sees its own alone, computes on it, and is known by its processes."""
    async with AsyncExitStack() as stack:
        servers: dict[str, tuple[Holder, str]] = {}
        for number in range(len(devices)):
            holder = Holder(f"user{number}", f"project{number}")
            reservation = await stack.enter_async_context(lab.reservation(holder))
            shell = f"python3 /proof/cuda_work.py report; exec python3 /proof/cuda_work.py hold {HELD_MIB}"
            container = await lab.launch(reservation, shell)
            stack.push_async_callback(lab.retire, holder, container)
            servers[reservation.lease.devices[0]] = (holder, container)
        say.check(set(servers) == {device.uuid for device in devices}, "every device granted once", servers)
        for uuid, (holder, container) in servers.items():
            seen = json.loads(await lab.line(container, "{"))
            found = [device["uuid"] for device in seen.get("devices", [])]
            say.check(found == [uuid], f"{holder.user} sees one CUDA device, its own ({uuid})", seen)
            say.check(all(d["computes"] for d in seen.get("devices", [])), f"{holder.user} computes right", seen)
            smi = seen["nvidia-smi"]
            say.check(len(smi) == 1 and uuid in smi[0], f"nvidia-smi inside: {smi}", smi)
            nodes = [node for node in seen["nodes"] if node.removeprefix("nvidia").isdigit()]
            say.check(len(nodes) == 1 and seen["uid"] == UID, f"one device node ({nodes}), as an ordinary user", seen)
            await lab.line(container, "holding")
        look = await lab.nvml.look()
        for uuid, (holder, container) in servers.items():
            mine = [process for process in look.processes or () if process.device == uuid]
            say.check(
                [process.container_id for process in mine] == [container],
                f"NVML's process on {holder.user}'s device is traced to {holder.user}'s container",
                mine,
            )
            say.check(
                [process.owner for process in mine] == [f"uid {UID}"] and (mine[0].memory_bytes or 0) >= HELD_MIB * MIB,
                f"with its owner and its memory ({[(p.owner, (p.memory_bytes or 0) // MIB) for p in mine]} MiB)",
                mine,
            )
        await _prove_waiting(lab, say)
        lab.allocator.validate()


async def _prove_waiting(lab: Lab, say: Transcript) -> None:
    told: list[str] = []
    waiting = asyncio.create_task(lab.grant(Holder("late", "comer"), told.append))
    await until(lambda: true(told), "a place in the queue")
    say.say(f"one more asks and is told: {told[0]}")
    waiting.cancel()
    await asyncio.wait([waiting])
    snapshot = await lab.allocator.snapshot(max_age_seconds=0)
    say.check(waiting.cancelled() and not snapshot.queue, "cancelling leaves no place in the queue", snapshot.queue)


async def prove_cpu_server(lab: Lab, say: Transcript) -> None:
    """A server without a device sees none, although its image asks for all of them."""
    holder = Holder("carol", "plain")
    container = await lab.start(holder, "python3 /proof/cuda_work.py report; sleep 300")
    try:
        seen = json.loads(await lab.line(container, "{"))
        say.check(seen["visible"] == "void", "NVIDIA_VISIBLE_DEVICES=void over the image's own all", seen)
        say.check(seen["nodes"] == [], "no device node", seen)
        say.check("devices" not in seen, f"no CUDA ({seen.get('cuda')})", seen)
    finally:
        await lab.retire(holder, container)


async def prove_occupied(lab: Lab, say: Transcript, devices: tuple[Device, ...]) -> None:
    """A device that a process outside every container uses is seen as that person's, and never granted."""
    uuid = devices[0].uuid
    async with host_process(uuid, "hold", "2048") as process:
        state, reason = await lab.state(uuid)
        say.check(state is DeviceState.OCCUPIED, f"device {devices[0].index} is {state}: {reason}", (state, reason))
        look = await lab.nvml.look()
        mine = [(p.pid, p.owner, p.container_id) for p in look.processes or ()]
        say.check(mine == [(process.pid, "root", "")], f"NVML shows the process itself: {mine}", mine)
        others = len(devices) - 1
        if others:
            async with lab.reservation(Holder("dave", "rest"), others) as reservation:
                say.check(uuid not in reservation.lease.devices, f"{others} other device(s) granted, not this one")
        told: list[str] = []
        waiting = asyncio.create_task(lab.grant(Holder("erin", "all"), told.append, len(devices)))
        await until(lambda: true(told), "a place in the queue")
        say.say(f"who wants all {len(devices)} is told: {told[0]}")
        say.check(not waiting.done(), "and waits")
    took = await until(lambda: true(waiting.done()), "the grant")
    say.check(len(waiting.result()) == len(devices), f"granted {took:.1f} s after the process ended")


async def prove_handover(lab: Lab, say: Transcript, devices: tuple[Device, ...]) -> None:
    """The next person gets a device only when nothing of the last one is left on it."""
    device = devices[0]
    async with AsyncExitStack() as others:
        ann, bob = Holder("ann", "first"), Holder("bob", "second")
        await _hold_others(lab, others, devices)
        async with lab.reservation(ann) as reservation:
            container = await lab.launch(reservation, "exec python3 /proof/cuda_work.py hold 16384")
        await lab.line(container, "holding")
        told: list[str] = []
        waiting = asyncio.create_task(lab.grant(bob, told.append))
        await until(lambda: true(told), "a place in the queue")
        async with host_process(device.uuid, "hold", "1024"):
            began = time.monotonic()
            await lab.retire(ann, container)
            say.say(
                f"ann's container with 16 GiB is gone after {time.monotonic() - began:.2f} s; a stray process is left"
            )
            for _ in range(3):
                state, reason = await lab.state(device.uuid)
            say.check(state is DeviceState.SET_ASIDE, f"the device is {state}: {reason}", (state, reason))
            say.check(not waiting.done(), "bob waits")
        took = await until(lambda: true(waiting.done()), "the grant")
        say.check(waiting.result() == (device.uuid,), f"bob has it {took:.1f} s after the stray process ended")

        async with lab.reservation(ann) as reservation:
            container = await lab.launch(reservation, "exec python3 /proof/cuda_work.py hold 16384")
        await lab.line(container, "holding")
        looked: list[DeviceLook] = []
        waiting = asyncio.create_task(lab.grant(bob, lambda _: None, look=looked))
        await until(lambda: lab.waits(bob), "a place in the queue")
        began = time.monotonic()
        await lab.retire(ann, container)
        await waiting
        say.say(f"without a stray process: {time.monotonic() - began:.2f} s from retire to bob's grant")
        used = looked[0].memory_used_bytes[device.uuid] / MIB
        on_it = [process for process in looked[0].processes or () if process.device == device.uuid]
        say.check(not on_it and used < 512, f"at bob's grant: no process, {used:.0f} MiB in use", (on_it, used))


async def prove_utilisation(lab: Lab, say: Transcript, device: Device) -> None:
    """A device that computes is told from one that does not, by the driver's own samples."""
    async with host_process(device.uuid, "busy", "12") as process:
        await asyncio.sleep(8)
        busy = await lab.nvml.utilisation(device.uuid, 5)
        await process.wait()
    await asyncio.sleep(8)
    idle = await lab.nvml.utilisation(device.uuid, 5)
    say.check(busy is not None and busy > 50, f"computing: {busy and round(busy)} %", busy)
    say.check(idle is not None and idle < 5, f"not computing: {idle and round(idle)} %", idle)


async def prove_burst(lab: Lab, say: Transcript, devices: tuple[Device, ...]) -> None:
    """Twenty launches at once onto few devices: never two on one, and every one is served."""
    on_device: Counter[str] = Counter()
    most, served = 0, 0

    async def one(number: int) -> None:
        nonlocal most, served
        holder = Holder(f"student{number}", "homework")
        async with lab.reservation(holder) as reservation:
            container = await lab.launch(reservation, "python3 /proof/cuda_work.py report; sleep 300")
        [uuid] = reservation.lease.devices
        on_device[uuid] += 1
        most = max(most, *on_device.values())
        seen = json.loads(await lab.line(container, "{"))
        served += [device["uuid"] for device in seen.get("devices", [])] == [uuid]
        on_device[uuid] -= 1
        await lab.retire(holder, container)

    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(BURST)))
    lab.allocator.validate()
    say.check(most == 1, f"{BURST} servers on {len(devices)} device(s): never more than one on a device", most)
    say.check(served == BURST, f"each computed on the device of its lease, in {time.monotonic() - began:.1f} s", served)


async def _hold_others(lab: Lab, stack: AsyncExitStack, devices: tuple[Device, ...]) -> None:
    """Keep every device but the first reserved, so that whoever asks next gets or waits for that one."""
    holders = [Holder(f"filler{number}", "fill") for number in range(len(devices))]
    reservations = [await stack.enter_async_context(lab.reservation(holder)) for holder in holders]
    for holder, reservation in zip(holders, reservations, strict=True):
        if reservation.lease.devices == (devices[0].uuid,):
            await lab.allocator.release(holder)


def _nvidia_smi(query: str) -> list[tuple[str, ...]]:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [tuple(word.strip() for word in line.split(",")) for line in printed.strip().splitlines()]


def _import_image(client: docker.APIClient, archive: Path) -> str:
    # Unpacked here: the engine would need a program for it that the machine may not have.
    files = lzma.decompress(archive.read_bytes())
    changes = ["ENV NVIDIA_VISIBLE_DEVICES=all"]
    raw = client.import_image_from_data(files, repository="ds01-proof/python", tag="latest", changes=changes)
    return str(json.loads(str(raw).strip().splitlines()[-1])["status"])


def _report_of_host() -> str:
    command = [sys.executable, str(HERE / "cuda_work.py"), "report"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or run.stderr.strip()


def _describe(say: Transcript, client: docker.APIClient) -> None:
    version = client.version()
    pynvml.nvmlInit()
    driver = pynvml.nvmlSystemGetDriverVersion()
    pynvml.nvmlShutdown()
    revision = os.environ.get("DS01_REVISION", "unknown")
    say.say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, revision {revision}, Python {platform.python_version()}")
    say.say(f"Linux {platform.release()}, NVIDIA driver {driver}, Docker Engine {version['Version']}")


async def prove(archive: Path, say: Transcript) -> None:
    """Run every part; a part that breaks does not stop the next."""
    client = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
    say.title("Where")
    _describe(say, client)
    say.say(f"outside every container: {await asyncio.to_thread(_report_of_host)}")
    names = {f"nvidia.com/gpu={device['name']}" for device in cdi.write_specification()["devices"]}
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(_import_image(client, archive), Path(folder))
        lab.engine.ensure_network("")
        listed = cdi_devices(client.info())
        say.check(names <= listed, f"the engine can inject {sorted(names)}", listed)
        devices = tuple(
            d for d in (await lab.nvml.look()).devices or () if d.health is Health.HEALTHY and not d.mig_profile
        )
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("Inventory", lambda: prove_inventory(lab, say)),
            ("Contract of the fake driver, on the real one", lambda: asyncio.to_thread(prove_contract, say)),
            ("Isolation", lambda: prove_isolation(lab, say, devices)),
            ("A server without a GPU", lambda: prove_cpu_server(lab, say)),
            ("Occupied by a process of the host", lambda: prove_occupied(lab, say, devices)),
            ("Handover", lambda: prove_handover(lab, say, devices)),
            ("Utilisation", lambda: prove_utilisation(lab, say, devices[0])),
            ("Twenty at once", lambda: prove_burst(lab, say, devices)),
        ]
        for title, part in parts:
            say.title(title)
            try:
                await part()
            except Exception:  # noqa: BLE001 - the transcript shows it, and the next part runs
                say.check(holds=False, text=title, seen=traceback.format_exc())
                _remove_containers(client)
                await lab.allocator.look()
        say.title("Events")
        say.say(str(dict(Counter(event.kind for event in read_events([lab.log])))))
        await lab.allocator.close()
        _remove_containers(client)
        await lab.engine.remove_network()
        cdi.SPEC.unlink()
    if len(devices) == 1:
        say.say("one GPU only: that two servers at once see different GPUs was not shown")


def _remove_containers(client: docker.APIClient) -> None:
    for entry in client.containers(all=True, filters={"label": f"{labels.HUB}={HUB}"}):
        client.remove_container(entry["Id"], force=True, v=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("image", type=Path, help="the files of an image with Python, as a tar archive")
    transcript = Transcript()
    asyncio.run(prove(arguments.parse_args().image, transcript))
    print(f"\n{transcript.failed} statement(s) failed" if transcript.failed else "\nEvery statement holds.", flush=True)
    sys.exit(bool(transcript.failed))
