"""Launch and retire, compared in one run on one image.

  a  ``docker run`` of our own server command, until ``/api`` answers; ``docker rm -f``
  b  JupyterHub with DockerSpawner as it comes
  c  JupyterHub with this project's spawner

for one server and for eight at once, alternating.  ``--herd`` adds many at once: how many of them come up.
Run it as root on an otherwise idle machine with a Docker Engine: ``make bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.core.project import server_name
from ds01_spawner.testing.hub import Hub, running

HERE = Path(__file__).parent
IMAGE = "ds01-bench/jupyter:latest"
DOCKERFILE = """\
FROM ds01/python:13
RUN pip install --no-cache-dir jupyterhub jupyterlab && useradd --create-home jovyan
USER jovyan
WORKDIR /home/jovyan
"""
RUNTIME = Path("/var/cache/ds01-tests/runtime")
PROJECT = "bench"
HERD_SECONDS = 150
ARMS = ("a", "b", "c")

Act = Callable[[], Awaitable[None]]


def docker(*arguments: str) -> str:
    """Run a docker command and return its output."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def busy_seconds() -> float:
    """Return the CPU seconds that this machine has worked since it was started, over all processors."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, *_ = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


async def until_answers(session: aiohttp.ClientSession, url: str, seconds: float) -> None:
    """Wait until a GET gets any answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            async with session.get(url):
                return
        except aiohttp.ClientError:
            await asyncio.sleep(0.02)
    raise TimeoutError(url)


class HubArm:
    """Launches through a hub's REST API, as its pages do."""

    def __init__(self, hub: Hub, token: str, *, named: bool) -> None:
        self.hub = hub
        self.named = named
        self._headers = {"Authorization": f"token {token}"}

    def _path(self, user: str) -> str:
        server = f"servers/{server_name(PROJECT)}" if self.named else "server"
        return f"{self.hub.url}/hub/api/users/{user}/{server}"

    async def prepare(self, session: aiohttp.ClientSession, users: list[str]) -> None:
        """Make the people known to the hub."""
        async with session.post(
            f"{self.hub.url}/hub/api/users", json={"usernames": users}, headers=self._headers
        ) as answer:
            assert answer.status in {201, 409}, await answer.text()

    async def launch(self, session: aiohttp.ClientSession, user: str) -> None:
        """Start a server and return when the hub says that it is ready."""
        body = {"user_options": {"project": PROJECT, "gpus": 0}} if self.named else None
        async with session.post(self._path(user), json=body, headers=self._headers) as answer:
            if answer.status not in {201, 202}:
                raise RuntimeError(f"{answer.status} {await answer.text()}")
            if answer.status == 201:
                return
        async with session.get(f"{self._path(user)}/progress", headers=self._headers) as stream:
            async for line in stream.content:
                if line.startswith(b"data:"):
                    event = json.loads(line.removeprefix(b"data:"))
                    if event.get("ready"):
                        return
                    if event.get("failed"):
                        raise RuntimeError(event["message"])
        raise RuntimeError("the progress ended")

    async def retire(self, session: aiohttp.ClientSession, user: str) -> None:
        """Stop a server and return when the hub has none of it."""
        async with session.delete(self._path(user), headers=self._headers) as answer:
            assert answer.status in {202, 204, 404}, await answer.text()
        while True:
            async with session.get(f"{self.hub.url}/hub/api/users/{user}", headers=self._headers) as answer:
                if not (await answer.json())["servers"]:
                    return
            await asyncio.sleep(0.05)


class DockerArm:
    """The floor: the engine alone, with the command, mounts and limits of a server that ``c`` launched."""

    def __init__(self, container: dict[str, Any], workspace: Path, folder: Path) -> None:
        self._config = container["Config"]
        self._host = container["HostConfig"]
        self._network = self._host["NetworkMode"]
        self._runtime = next(m["Source"] for m in container["Mounts"] if m["Destination"] == "/opt/ds01")
        self._workspace = workspace
        self._passwd = folder / "passwd"
        self._names: dict[str, str] = {}
        uid, gid = self._config["User"].split(":")
        home = next(item for item in self._config["Env"] if item.startswith("HOME="))[5:]
        self._passwd.write_text(f"bench:x:{uid}:{gid}::{home}:/bin/bash\n")
        self._home = f"{home}:uid={uid},gid={gid},exec"

    async def prepare(self, session: aiohttp.ClientSession, users: list[str]) -> None:
        """Nobody has to be known to the engine."""

    async def launch(self, session: aiohttp.ClientSession, user: str) -> None:
        """Run a container and return when its server answers."""
        entrypoint = self._config["Entrypoint"]
        environment = [part for item in self._config["Env"] for part in ("--env", item)]
        name = f"ds01-bench-{user}"
        self._names[user] = name
        command = [
            "docker", "run", "--detach", "--name", name, "--network", self._network, "--init",
            "--user", self._config["User"], "--workdir", self._config["WorkingDir"], "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--memory", str(self._host["Memory"]),
            "--volume", f"{self._workspace}:/workspace", "--volume", f"{self._runtime}:/opt/ds01:ro",
            "--volume", f"{self._passwd}:/etc/passwd:ro", "--tmpfs", self._home,
            *environment, "--entrypoint", entrypoint[0], IMAGE, *entrypoint[1:],
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        if await process.wait():
            raise RuntimeError("docker run failed")
        shown = f'{{{{(index .NetworkSettings.Networks "{self._network}").IPAddress}}}}'
        address = await asyncio.to_thread(docker, "inspect", "--format", shown, name)
        service = next(item for item in self._config["Env"] if item.startswith("JUPYTERHUB_SERVICE_PREFIX="))
        prefix = service.partition("=")[2]
        await until_answers(session, f"http://{address}:8888{prefix}api", 120)

    async def retire(self, session: aiohttp.ClientSession, user: str) -> None:
        """Remove the container."""
        await asyncio.to_thread(docker, "rm", "--force", self._names[user])


Arm = HubArm | DockerArm


async def timed(acts: list[Awaitable[None]]) -> float:
    """Return how long all of them took together."""
    began = time.monotonic()
    await asyncio.gather(*acts)
    return time.monotonic() - began


async def measure(arms: dict[str, Arm], rounds: int, counts: list[int]) -> dict[str, Any]:
    """Return medians of launch, retire and CPU seconds, per count and arm."""
    launch: dict[int, dict[str, list[float]]] = {n: {arm: [] for arm in arms} for n in counts}
    retire: dict[int, dict[str, list[float]]] = {n: {arm: [] for arm in arms} for n in counts}
    cpu: dict[str, list[float]] = {arm: [] for arm in arms}
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        for arm in arms.values():
            await arm.prepare(session, people(max(counts)))
        for number in range(rounds + 1):  # the first round warms caches and does not count
            for count in counts:
                for name, arm in arms.items():
                    users = people(count)
                    before = busy_seconds()
                    took = await timed([arm.launch(session, user) for user in users])
                    spent = busy_seconds() - before
                    gone = await timed([arm.retire(session, user) for user in users])
                    if number:
                        launch[count][name].append(took)
                        retire[count][name].append(gone)
                        if count == 1:
                            cpu[name].append(spent)
                    print(
                        f"round {number}: {count} x {name}: launch {took:.2f} s, retire {gone:.2f} s", file=sys.stderr
                    )
    return {
        "launch": {str(n): {a: statistics.median(v) for a, v in launch[n].items()} for n in counts},
        "retire": {str(n): {a: statistics.median(v) for a, v in retire[n].items()} for n in counts},
        "cpu_s": {a: statistics.median(v) for a, v in cpu.items()},
    }


async def herd(arms: dict[str, Arm], count: int, cpu_of_one: float) -> dict[str, float]:
    """Return how many of ``count`` servers that start at once come up, and how long ours take."""
    result: dict[str, float] = {"floor_s": count * cpu_of_one / (os.cpu_count() or 1)}
    timeout = aiohttp.ClientTimeout(total=HERD_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        for name in ("b", "c"):
            arm, users, ready = arms[name], people(count), []
            await arm.prepare(session, users)
            began = time.monotonic()

            async def one(user: str, arm: Arm = arm, ready: list[float] = ready, began: float = began) -> None:
                await arm.launch(session, user)
                ready.append(time.monotonic() - began)

            await asyncio.gather(*(one(user) for user in users), return_exceptions=True)
            result[f"{name}_ready"] = len(ready)
            if ready:
                result[f"{name}_first_s"], result[f"{name}_total_s"] = min(ready), max(ready)
            await asyncio.gather(*(arm.retire(session, user) for user in users), return_exceptions=True)
            print(f"herd of {count}: {name}: {len(ready)} came up", file=sys.stderr)
    return result


def people(count: int) -> list[str]:
    """Return login names."""
    return [f"bench-{number}" for number in range(count)]


def prepare_image() -> None:
    """Build the image that every arm uses: one with JupyterHub and JupyterLab of its own, as DockerSpawner needs."""
    subprocess.run(["docker", "buildx", "build", "--quiet", "--tag", IMAGE, "-"], input=DOCKERFILE.encode(), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


def prepare_stock_network() -> str:
    """Make the bridge of DockerSpawner's servers and return the host's address on it."""
    if "ds01-bench-stock" not in docker("network", "ls", "--format", "{{.Name}}").split():
        docker("network", "create", "ds01-bench-stock")
    return docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "ds01-bench-stock")


def make_hub(folder: Path, arm: str, port: int, token: str, gateway: str) -> Hub:
    """Return a hub of one arm."""
    state = folder / arm
    state.mkdir(mode=0o755)
    return Hub(
        config=HERE / "hub_config.py",
        folder=state,
        url=f"http://127.0.0.1:{port}",
        environment={
            "BENCH_ARM": arm,
            "BENCH_TOKEN": token,
            "BENCH_IMAGE": IMAGE,
            "BENCH_RUNTIME": str(RUNTIME),
            "BENCH_GATEWAY": gateway,
        },
    )


async def sample_container(arm: HubArm) -> dict[str, Any]:
    """Return the engine's record of a server that our hub launched."""
    async with aiohttp.ClientSession() as session:
        await arm.prepare(session, people(1))
        await arm.launch(session, people(1)[0])
        listed = docker("ps", "--quiet", "--filter", "label=ds01.hub=ds01-bench")
        record: dict[str, Any] = json.loads(docker("inspect", listed))[0]
        await arm.retire(session, people(1)[0])
    return record


def print_table(result: dict[str, Any]) -> None:
    """Print medians and ratios for a person."""
    for what in ("launch", "retire"):
        for count, row in result[what].items():
            print(
                f"{what} of {count}: a {row['a']:.2f} s, b {row['b']:.2f} s, c {row['c']:.2f} s; "
                f"c/a {row['c'] / row['a']:.2f}, c/b {row['c'] / row['b']:.2f}"
            )
    row = result["cpu_s"]
    print(f"CPU seconds to ready: a {row['a']:.2f}, b {row['b']:.2f}, c {row['c']:.2f}; c/b {row['c'] / row['b']:.2f}")
    for count, herd_row in result.get("herd", {}).items():
        print(f"{count} at once: " + ", ".join(f"{key} {value:.1f}" for key, value in herd_row.items()))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--herd", action="store_true", help="also launch 20 and 40 at once")
    parser.add_argument("--json", action="store_true", help="print the medians as one JSON object in the last line")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("bench: the hub acts for several people, so run this as root")
    token = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="ds01-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    prepare_image()
    gateway = prepare_stock_network()
    try:
        with ExitStack() as hubs:
            stock = hubs.enter_context(running(make_hub(folder, "stock", 18100, token, gateway)))
            ours = hubs.enter_context(running(make_hub(folder, "ours", 18200, token, gateway)))
            accounts = FolderAccounts(folder / "ours" / "people")
            for user in people(40):
                account = accounts.find(user)
                project = account.home / "workspace" / PROJECT
                project.mkdir()
                os.chown(project, account.uid, account.gid)
            c = HubArm(ours, token, named=True)
            sample = asyncio.run(sample_container(c))
            workspace = accounts.find(people(1)[0]).home / "workspace" / PROJECT
            arms: dict[str, Arm] = {
                "a": DockerArm(sample, workspace, folder),
                "b": HubArm(stock, token, named=False),
                "c": c,
            }
            result = asyncio.run(measure(arms, arguments.rounds, [1, 8]))
            if arguments.herd:
                cpu = result["cpu_s"]["c"]
                result["herd"] = {str(n): asyncio.run(herd(arms, n, cpu)) for n in (20, 40)}
    except RuntimeError:
        for log in folder.glob("*/hub.log"):
            print(f"the end of {log}:", *log.read_text().splitlines()[-30:], sep="\n", file=sys.stderr)
        raise
    finally:
        left = docker("ps", "--all", "--quiet", "--filter", "label=ds01.hub=ds01-bench").split()
        left += docker("ps", "--all", "--quiet", "--filter", f"ancestor={IMAGE}").split()
        if left:
            docker("rm", "--force", "--volumes", *left)
        for network in ("ds01-bench", "ds01-bench-stock"):
            subprocess.run(["docker", "network", "rm", network], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
    print_table(result)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
