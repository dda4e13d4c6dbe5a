"""The main job, shown: a hub for two people, and alice's project launched through it as the spawn form does it.

``DEMO_ONCE=1`` launches, writes a file through the running notebook server, retires, checks what must be left and what
must not, prints one line with the times, and exits.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import requests

from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.core.project import container_name, server_name

HERE = Path(__file__).parent
STATE = Path("/var/lib/ds01-demo")
URL = "http://127.0.0.1:8000"
PROJECT = "First steps"
HUB_SECONDS = 60
LAUNCH_SECONDS = 900


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"demo: {text}", flush=True)


def fail(text: str) -> None:
    """End the demo with a reason."""
    raise SystemExit(f"demo: {text}")


def prepare_people() -> dict[str, Path]:
    """Return the workspaces of alice and bob, each with an example project, made if missing."""
    accounts = FolderAccounts(STATE / "people")
    folders = {}
    for user in ("alice", "bob"):
        account = accounts.find(user)
        project = account.home / "workspace" / PROJECT
        if not project.exists():
            shutil.copytree(HERE / "example-project", project)
            for path in [project, *project.rglob("*")]:
                os.chown(path, account.uid, account.gid)
        folders[user] = project
    return folders


def simulated_gpus() -> int:
    """Return how many devices to simulate: none where NVIDIA's driver is loaded."""
    if Path("/proc/driver/nvidia/version").exists():
        return 0
    say("there is no NVIDIA driver here: two simulated GPUs stand in; nothing can be computed on them")
    return 2


class Browser:
    """Does what a person's browser does, with cookies and the hub's protection against forged requests."""

    def __init__(self) -> None:
        self.session = requests.Session()

    @property
    def xsrf(self) -> str:
        """The hub's token for the next form."""
        return next(cookie.value for cookie in self.session.cookies if cookie.name == "_xsrf" and cookie.path == "/hub/")

    def log_in(self, user: str, password: str) -> None:
        """Log in through the hub's form."""
        self.session.get(f"{URL}/hub/login", timeout=10).raise_for_status()
        self.session.post(
            f"{URL}/hub/login",
            data={"username": user, "password": password, "_xsrf": self.xsrf},
            timeout=10,
        ).raise_for_status()

    def free_devices(self) -> list[str]:
        """Return what the spawn form says of free devices, such as ``["2 of 2"]``."""
        return re.findall(r"\((\d+ of \d+) free\)", self.session.get(f"{URL}/hub/spawn", timeout=10).text)

    def launch(self, user: str, project: str) -> None:
        """Press the project's Launch button and tell the progress until the server is ready."""
        server = server_name(project)
        page = self.session.get(f"{URL}/hub/spawn", timeout=10).text
        if f'formaction="/hub/spawn/{user}/{server}"' not in page:
            fail(f"the spawn form does not offer {project!r}")
        answer = self.session.post(
            f"{URL}/hub/spawn/{user}/{server}",
            data={"_xsrf": self.xsrf, "project": project, "gpus": "1", "kind": "", "min_memory_gib": "0"},
            timeout=30,
        )
        if not answer.ok:
            fail(f"the launch was refused: {_alert(answer.text)}")
        self._follow_progress(user, server)

    def _follow_progress(self, user: str, server: str) -> None:
        stream = self.session.get(
            f"{URL}/hub/api/users/{user}/servers/{server}/progress",
            params={"_xsrf": self.xsrf},
            stream=True,
            timeout=LAUNCH_SECONDS,
        )
        for line in stream.iter_lines():
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line.removeprefix(b"data:"))
            say(f"{event['progress']:3d} %  {event['message']}")
            if event.get("failed"):
                fail("the launch failed")
            if event.get("ready"):
                return
        fail("the progress ended before the server was ready")

    def write_file(self, user: str, project: str, name: str, text: str) -> None:
        """Write a file through the running notebook server, as JupyterLab does."""
        base = f"{URL}/user/{user}/{server_name(project)}"
        self.session.get(f"{base}/lab", timeout=60).raise_for_status()  # the login round trip of a fresh server
        path = f"/user/{user}/{server_name(project)}/"
        token = next(c.value for c in self.session.cookies if c.name == "_xsrf" and c.path == path)
        self.session.put(
            f"{base}/api/contents/{name}",
            json={"type": "file", "format": "text", "content": text},
            headers={"X-XSRFToken": token},
            timeout=30,
        ).raise_for_status()

    def retire(self, user: str, project: str) -> None:
        """Press Stop, and wait until the hub says that the server is gone."""
        server = f"{URL}/hub/api/users/{user}/servers/{server_name(project)}"
        headers = {"X-XSRFToken": self.xsrf, "Referer": f"{URL}/hub/home"}
        answer = self.session.delete(server, headers=headers, timeout=60)
        answer.raise_for_status()
        deadline = time.monotonic() + HUB_SECONDS
        while time.monotonic() < deadline:
            model = self.session.get(f"{URL}/hub/api/users/{user}", headers=headers, timeout=10).json()
            if server_name(project) not in model["servers"]:
                return
            time.sleep(0.1)
        fail(f"the server did not end within {HUB_SECONDS} s")


def _alert(page: str) -> str:
    found = re.search(r'spawn-error-msg[^>]*>(.*?)</div>', page, re.DOTALL)
    return re.sub(r"<[^>]+>", " ", found.group(1)).strip() if found else "no reason was shown"


def start_hub(password: str, gpus: int) -> subprocess.Popen[bytes]:
    """Start hub and proxy, and return when the hub answers."""
    log = (STATE / "hub.log").open("wb")
    binaries = Path(sys.executable).parent
    hub = subprocess.Popen(
        [binaries / "jupyterhub", "-f", HERE / "demo_config.py"],
        cwd=STATE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            "DS01_DEMO_STATE": str(STATE),
            "DS01_DEMO_PASSWORD": password,
            "DS01_DEMO_SIMULATED": str(gpus),
            "DS01_DEMO_PROXY": str(binaries / "configurable-http-proxy"),
        },
    )
    deadline = time.monotonic() + HUB_SECONDS
    while time.monotonic() < deadline and hub.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{URL}/hub/api", timeout=2).ok:
                return hub
        time.sleep(0.2)
    stop_hub(hub)
    tail = (STATE / "hub.log").read_text(errors="replace").splitlines()[-25:]
    fail("the hub did not start. The end of its log:\n" + "\n".join(tail))
    raise AssertionError


def stop_hub(hub: subprocess.Popen[bytes]) -> None:
    """Stop hub and proxy: the proxy is a child of the hub, which ends it."""
    if hub.poll() is None:
        hub.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            hub.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(hub.pid, signal.SIGKILL)


def containers(user: str, project: str) -> str:
    """Return the engine's line for a server's container, empty when it has none."""
    wanted = f"name=^{re.escape(container_name(user, project))}$"
    return subprocess.run(
        ["docker", "ps", "--all", "--filter", wanted, "--format", "{{.Names}} {{.Status}} {{.Label \"ds01.gpu.uuids\"}}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def run_once(browser: Browser, folders: dict[str, Path]) -> None:
    """Launch, write, retire, and check what is left."""
    note = f"written-{secrets.token_hex(4)}.txt"
    before = browser.free_devices()
    began = time.monotonic()
    browser.launch("alice", PROJECT)
    launched = time.monotonic()
    say(f"running: {containers('alice', PROJECT)}")
    browser.write_file("alice", PROJECT, note, "kept\n")
    written = time.monotonic()
    browser.retire("alice", PROJECT)
    retired = time.monotonic()
    if left := containers("alice", PROJECT):
        fail(f"the container is still there: {left}")
    if (after := browser.free_devices()) != before:
        fail(f"a device is still held: the form offered {before} before the launch and {after} after the retire")
    path = folders["alice"] / note
    owner = FolderAccounts(STATE / "people").find("alice").uid
    if not path.is_file() or path.read_text() != "kept\n" or path.stat().st_uid != owner:
        fail(f"the file {path} is not as it was written")
    path.unlink()
    say(
        f"ok: launched in {launched - began:.1f} s, wrote a file in {written - launched:.1f} s, "
        f"retired in {retired - written:.1f} s"
    )


def main() -> None:
    """Run the demo."""
    if os.geteuid() != 0:
        fail("the hub acts for several people and therefore runs as root. Run: sudo make demo")
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    folders = prepare_people()
    gpus = simulated_gpus()
    once = os.environ.get("DEMO_ONCE") == "1"
    password = secrets.token_urlsafe(6)
    say("starting the hub and its proxy")
    hub = start_hub(password, gpus)
    try:
        browser = Browser()
        browser.log_in("alice", password)
        say(f"launching alice's project {PROJECT!r}; the first time its image is built")
        if once:
            run_once(browser, folders)
            return
        browser.launch("alice", PROJECT)
        say(f"open {URL} and log in as alice or bob (an admin) with the password {password}")
        say(f"alice's project is at {URL}/user/alice/{server_name(PROJECT)}/lab")
        say(f"the people's folders are in {STATE / 'people'}; the hub's log is {STATE / 'hub.log'}")
        say("Ctrl-C retires what runs and stops everything")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        print()
    finally:
        say("retiring what runs, stopping the hub")
        retire_everything(hub, password)
        stop_hub(hub)


def retire_everything(hub: subprocess.Popen[bytes], password: str) -> None:
    """Retire every running server through the hub, as its people would."""
    if hub.poll() is not None:
        return
    for user in ("alice", "bob"):
        with suppress(requests.RequestException, StopIteration):
            browser = Browser()
            browser.log_in(user, password)
            headers = {"X-XSRFToken": browser.xsrf, "Referer": f"{URL}/hub/home"}
            model = browser.session.get(f"{URL}/hub/api/users/{user}", headers=headers, timeout=10).json()
            for server in model["servers"]:
                browser.session.delete(f"{URL}/hub/api/users/{user}/servers/{server}", headers=headers, timeout=60)


if __name__ == "__main__":
    main()
