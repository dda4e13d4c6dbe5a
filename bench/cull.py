"""One pass of the culler over 10, 100 and 1,000 servers, next to jupyterhub-idle-culler on the same hub.

Hub, notebook servers and Docker Engine are simulated by one process that answers over HTTP; ``/proc`` and control
groups are files; everything else is the real code, homes and users' rights included.  Run it as root: ``make bench``.
``--memory`` makes many passes instead and prints what they leave behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from jupyterhub_idle_culler import cull_idle

from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.adapters.activity import ActivityReader, DeviceMeter, EngineInspector
from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.engine import Engine
from ds01_spawner.adapters.eventlog import EventLog
from ds01_spawner.adapters.hub import Hub
from ds01_spawner.adapters.notebook import Notebooks
from ds01_spawner.adapters.nvml import SimulatedDevices, simulated_uuid
from ds01_spawner.adapters.portalnotes import LostPackages
from ds01_spawner.adapters.usernotes import UserNotes
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core import labels
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder
from ds01_spawner.services.culler.acts import Acts
from ds01_spawner.services.culler.channels import Channels
from ds01_spawner.services.culler.passes import Culler, World
from ds01_spawner.services.culler.settings import Settings

SIZES = (10, 100, 1000)
DEVICES = 8
IDLE_SECONDS = 30 * 60


def container_id(n: int) -> str:
    """Return the id of a container."""
    return f"{n + 1:064x}"


def simulate(count: int, port: int) -> None:
    """Answer for a hub, its notebook servers and the engine, in a process of its own."""
    now = datetime.now(UTC).isoformat()
    users = []
    containers = []
    for n in range(count):
        devices = (simulated_uuid("bench", n),) if n < DEVICES else ()
        record = labels.ServerLabels("bench", Holder(f"u{n}", "p"), "p", "", time.time(), devices, devices)
        state = {"container_id": container_id(n), "url": f"http://127.0.0.1:{port}"}
        server = {"name": "p", "ready": True, "pending": None, "started": now, "last_activity": now, "state": state}
        server |= {"url": f"/user/u{n}/p/", "progress_url": "", "user_options": {}}
        users.append({"name": f"u{n}", "admin": False, "groups": [], "last_activity": now, "servers": {"p": server}})
        containers.append(
            {"Id": container_id(n), "Names": [f"/c{n}"], "State": "running", "Labels": labels.encode(record)}
        )

    async def list_users(request: web.Request) -> web.Response:
        offset, limit = int(request.query.get("offset", 0)), int(request.query.get("limit", 50))
        page = users[offset : offset + limit]
        following = {"offset": offset + limit, "limit": limit} if offset + limit < count else None
        if following:
            following["url"] = str(request.url.update_query(offset=str(offset + limit)))
        return web.json_response(
            {"items": page, "_pagination": {"offset": offset, "limit": limit, "total": count, "next": following}}
        )

    async def list_kernels(_: web.Request) -> web.Response:
        return web.json_response([{"id": "k", "name": "python3", "execution_state": "idle", "last_activity": now}])

    async def list_containers(_: web.Request) -> web.Response:
        return web.json_response(containers)

    async def inspect(request: web.Request) -> web.Response:
        n = int(request.match_info["id"], 16) - 1
        prefix = f"/user/u{n}/p/"
        environment = ["JUPYTERHUB_API_TOKEN=t", f"JUPYTERHUB_SERVICE_PREFIX={prefix}"]
        state = {"Pid": n + 1, "Status": "running"}
        return web.json_response(
            {"Id": container_id(n), "State": state, "Config": {"Env": environment, "Labels": {}}, "HostConfig": {}}
        )

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.45", "version": "6.1.1"})

    app = web.Application()
    app.router.add_get("/hub/api/users", list_users)
    app.router.add_get("/hub/api/", version)
    app.router.add_get("/user/{user}/p/api/kernels", list_kernels)
    for prefix in ("", "/v1.45"):
        app.router.add_get(f"{prefix}/version", version)
        app.router.add_get(f"{prefix}/containers/json", list_containers)
        app.router.add_get(prefix + "/containers/{id}/json", inspect)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def make_host(folder: Path, count: int) -> None:
    """Make the files that the kernel would show, and the homes."""
    (folder / "proc/self/ns").mkdir(parents=True)
    (folder / "proc/self/ns/net").write_text("")
    (folder / "proc/uptime").write_text("100000 0\n")
    for n in range(count):
        process = folder / "proc" / str(n + 1)
        for name in ("net", "ns", "root/dev/pts"):
            (process / name).mkdir(parents=True)
        (process / "ns/net").write_text("")
        (process / "net/dev").write_text("a\nb\n  eth0: 100 1 0 0 0 0 0 0 50 1 0 0 0 0 0 0\n")
        (process / "stat").write_text(f"{n + 1} (python3) {' '.join(['S', *['0'] * 18])} 9000000 0\n")
        (process / "cgroup").write_text(f"0::/docker-{container_id(n)}.scope\n")
        group = folder / "cgroup" / f"docker-{container_id(n)}.scope"
        group.mkdir(parents=True)
        (group / "cpu.stat").write_text("usage_usec 1000\n")
    people = FolderAccounts(folder / "people")
    for n in range(count):
        account = people.find(f"u{n}")
        project = account.home / "workspace" / "p"
        project.mkdir()
        os.chown(project, account.uid, account.gid)


async def until_up(hub: Hub) -> None:
    """Wait until the simulation answers."""
    for _ in range(1200):
        try:
            await hub.active_servers()
        except Exception:  # noqa: BLE001 - any means not yet
            await asyncio.sleep(0.05)
        else:
            return
    raise RuntimeError("the simulation did not start")


class Site:
    """A culler on a simulated site."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hub/api"
        self.engine_options = {"base_url": f"tcp://127.0.0.1:{port}"}
        self.folder = folder

    def culler(self, hub: Hub, notebooks: Notebooks) -> Culler:
        """Put the culler together as the service does, on files in place of the kernel's."""
        settings = Settings(
            hub="bench",
            folder=self.folder / "culler",
            packages_folder=self.folder / "packages",
            events=self.folder / "events.jsonl",
        )
        threads = ThreadPoolExecutor(16)
        reader = ActivityReader(
            EngineInspector(self.engine_options),
            notebooks,
            proc=self.folder / "proc",
            cgroups=self.folder / "cgroup",
        )
        channels = Channels(reader, UserNotes(Workspaces(self.folder / "run")), {}, threads)
        events = EventLog(settings.events, source="culler")
        world = World(
            hub=hub,
            engine=Engine(network="", options=self.engine_options),
            meter=DeviceMeter(SimulatedDevices("bench", DEVICES)),
            reader=reader,
            find_account=FolderAccounts(self.folder / "people").find,
            limits=lambda user, groups: Limits(),  # noqa: ARG005
            queue=lambda: None,
            lost_packages=no_packages,
            threads=threads,
            clock=time.monotonic,
        )
        files, packages = CullerFiles(settings.folder), LostPackages(settings.packages_folder)
        acts = Acts(settings, channels, files, packages, events, clock=time.monotonic, wall=time.time)
        return Culler(settings, world, acts)


async def no_packages(container: str) -> tuple[str, ...]:
    """Return none; nobody is retired here."""
    del container
    return ()


async def measure(site: Site, count: int, rounds: int) -> tuple[float, float, float]:
    """Return seconds of the first pass, the median of further passes, and the median of the other culler's."""
    notebooks = Notebooks()
    async with Hub(site.url, "t") as hub:
        await until_up(hub)
        culler = site.culler(hub, notebooks)
        took: list[float] = []
        other: list[float] = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            report = await culler.run()
            took.append(time.perf_counter() - began)
            if (report.watched, report.broken, report.problem) != (count, 0, ""):
                raise RuntimeError(f"the pass was none: {report}")
            began = time.perf_counter()
            await cull_idle(site.url, "t", IDLE_SECONDS, logging.getLogger("other"), api_page_size=200)
            other.append(time.perf_counter() - began)
        unknown = [watch for watch in culler.watches if watch.newest is None or watch.newest.problem]
        if unknown:
            raise RuntimeError(f"{len(unknown)} servers could not be read: {unknown[0].newest}")
    await notebooks.close()
    return took[0], statistics.median(took[1:]), statistics.median(other[1:])


async def endure(site: Site, passes: int) -> None:
    """Make many passes and print the memory after a tenth of them, and at the end."""
    notebooks = Notebooks()
    async with Hub(site.url, "t") as hub:
        await until_up(hub)
        culler = site.culler(hub, notebooks)
        for n in range(1, passes + 1):
            await culler.run()
            if n in {passes // 10, passes // 2, passes}:
                print(f"after {n:>6} passes: {resident_mib():.1f} MiB resident", flush=True)
    await notebooks.close()


def resident_mib() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def free_port() -> int:
    """Return a port that nobody uses."""
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def on_site(count: int, work: Any) -> Any:
    """Run something on a simulated site of some servers."""
    folder = Path(tempfile.mkdtemp(prefix="ds01-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=simulate, args=(count, port), daemon=True)
    process.start()
    try:
        make_host(folder, count)
        return asyncio.run(work(Site(folder, port)))
    finally:
        process.terminate()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--rounds", type=int, default=5, help="passes per size (default: %(default)s)")
    parser.add_argument("--memory", type=int, metavar="PASSES", help="make this many passes over 10 servers instead")
    arguments = parser.parse_args()
    logging.getLogger("other").setLevel(logging.CRITICAL)
    if os.geteuid() != 0:
        print("Homes belong to several users: run this as root.", file=sys.stderr)
        return 1
    if arguments.memory:
        on_site(10, lambda site: endure(site, arguments.memory))
        return 0
    passes: dict[str, float] = {}
    others: dict[str, float] = {}
    for count in SIZES:
        first, passes[str(count)], others[str(count)] = on_site(
            count, lambda site, count=count: measure(site, count, arguments.rounds)
        )
        print(
            f"{count:>5} servers: a pass {passes[str(count)]:.3f} s (the first one {first:.3f} s),"
            f" jupyterhub-idle-culler {others[str(count)]:.3f} s",
            flush=True,
        )
    if arguments.json:
        print(json.dumps({"pass_s": passes, "idle_culler_pass_s": others}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
