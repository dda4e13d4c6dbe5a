"""The main job, shown: a hub for two people, and alice's project launched through it as the spawn form does it.

``DEMO_ONCE=1`` launches, writes a file through the running notebook server, retires, checks what must be left and what
must not, prints one line with the times, and exits.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import requests

from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.core.project import container_name, server_name
from ds01_spawner.testing.hub import Hub, running
from ds01_spawner.testing.person import LaunchFailed, Person

HERE = Path(__file__).parent
STATE = Path("/var/lib/ds01-demo")
URL = "http://127.0.0.1:8000"
PEOPLE = ("alice", "bob")
PROJECT = "First steps"
IDLE_MINUTES = 5


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"demo: {text}", flush=True)


def require_ports() -> None:
    """End with a sentence when the hub's ports are taken."""
    for port in (8000, 8001, 8002):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            raise SystemExit(
                f"demo: port {port} is in use, which the hub needs. See who has it with: ss -ltnp 'sport = :{port}'"
            ) from None


def prepare_people() -> None:
    """Give alice and bob an example project each, unless they have it."""
    accounts = FolderAccounts(STATE / "people")
    for user in PEOPLE:
        account = accounts.find(user)
        project = account.home / "workspace" / PROJECT
        if project.exists():
            continue
        shutil.copytree(HERE / "example-project", project)
        for path in [project, *project.rglob("*")]:
            os.chown(path, account.uid, account.gid)


def simulated_gpus() -> int:
    """Return how many devices to simulate: none where NVIDIA's driver is loaded."""
    if Path("/proc/driver/nvidia/version").exists():
        return 0
    say("there is no NVIDIA driver here: two simulated GPUs stand in; nothing can be computed on them")
    return 2


def containers(user: str, project: str) -> str:
    """Return the engine's line for a server's container, empty when it has none."""
    wanted = f"name=^{re.escape(container_name(user, project))}$"
    shown = '{{.Names}}, {{.Status}}, device {{.Label "ds01.gpu.uuids"}}'
    command = ["docker", "ps", "--all", "--filter", wanted, "--format", shown]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def launch(person: Person) -> None:
    """Launch the example project, telling the progress."""
    for event in person.launching(PROJECT):
        say(f"{event['progress']:3d} %  {event['message']}")


def show_once(person: Person) -> None:
    """Launch, write, retire, and check what is left."""
    account = FolderAccounts(STATE / "people").find(person.user)
    note = account.home / "workspace" / PROJECT / f"written-{secrets.token_hex(4)}.txt"
    free = person.free_devices()
    began = time.monotonic()
    launch(person)
    launched = time.monotonic()
    say(f"running: {containers(person.user, PROJECT)}")
    content = {"type": "file", "format": "text", "content": "kept\n"}
    person.notebook(PROJECT, "PUT", f"api/contents/{note.name}", json=content).raise_for_status()
    written = time.monotonic()
    person.retire(PROJECT)
    retired = time.monotonic()
    if left := containers(person.user, PROJECT):
        raise SystemExit(f"demo: the container is still there: {left}")
    if (after := person.free_devices()) != free:
        raise SystemExit(f"demo: a device is still held: {free} were free before the launch, {after} after the retire")
    if not note.is_file() or note.read_text() != "kept\n" or note.stat().st_uid != account.uid:
        raise SystemExit(f"demo: the file {note} is not as it was written")
    note.unlink()
    say(
        f"ok: launched in {launched - began:.1f} s, wrote a file in {written - launched:.1f} s, "
        f"retired in {retired - written:.1f} s"
    )


def show_and_stay(person: Person, password: str) -> None:
    """Launch, say how to log in, and wait for Ctrl-C."""
    launch(person)
    say(f"open {URL} and log in as alice or bob (bob is an admin) with the password {password}")
    say(f"alice's project is at {URL}/user/alice/{server_name(PROJECT)}/lab")
    say(f"the people's folders are in {STATE / 'people'}, the hub's log is {STATE / 'hub.log'}")
    say(f"watch an idle project being retired: leave it alone for {IDLE_MINUTES} minutes; the warning comes after 3")
    say(f"  {URL}/services/projects/ counts down, warns, and then says what happened and why")
    say("  a terminal that is open in the project shows the warning too; typing there keeps the project,")
    say("  and so does `touch /workspace/.keep-alive`; when bob holds the other GPU, the limit halves")
    say(f"  an administrator sees it with: .venv/bin/ds01-culler --dry-run --folder {STATE / 'culler'}")
    say("Ctrl-C retires what runs and stops everything")
    with suppress(KeyboardInterrupt):
        signal.pause()
    print()


def retire_everything(password: str) -> None:
    """Retire every running server through the hub, as its people would."""
    say("retiring what runs, stopping the hub")
    for user in PEOPLE:
        with suppress(requests.RequestException, StopIteration):
            person = Person(URL, user).log_in(password)
            for server in person.servers():
                person.api("DELETE", f"/users/{user}/servers/{server}")


def main() -> None:
    """Run the demo."""
    if os.geteuid() != 0:
        raise SystemExit("demo: the hub acts for several people and therefore runs as root. Run: sudo make demo")
    # A polite end is an end like Ctrl-C: what runs is retired and stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    require_ports()
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    prepare_people()
    password = secrets.token_urlsafe(6)
    hub = Hub(
        config=HERE / "demo_config.py",
        folder=STATE,
        url=URL,
        environment={
            "DS01_DEMO_PASSWORD": password,
            "DS01_DEMO_SIMULATED": str(simulated_gpus()),
            "DS01_DEMO_IDLE_MINUTES": str(IDLE_MINUTES),
        },
    )
    (STATE / "hub.log").unlink(missing_ok=True)
    say("starting the hub and its proxy")
    try:
        with running(hub):
            try:
                person = Person(URL, "alice").log_in(password)
                say(f"launching alice's project {PROJECT!r}; the first time its image is built")
                if os.environ.get("DEMO_ONCE") == "1":
                    show_once(person)
                else:
                    show_and_stay(person, password)
            finally:
                retire_everything(password)
    except (LaunchFailed, RuntimeError, requests.RequestException) as error:
        raise SystemExit(f"demo: {error}\ndemo: the hub's log is {STATE / 'hub.log'}") from error


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
