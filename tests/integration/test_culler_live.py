"""The culler on a real hub and engine with limits of a minute: who is retired, who is kept, and what another one does.

The other one is jupyterhub-idle-culler, run at the same time against the same hub.  What it would end is written down
and not done, and its limit is a little shorter, so that both judge the same servers.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from ds01_spawner.core.project import server_name

from .conftest import Site, docker, running_site

# Launching eleven servers and watching them takes minutes, all of it before the first test.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CONFIG = Path(__file__).with_name("cull_config.py")
IDLE_SECONDS = 60  # the least that a limits file may say
OTHER_IDLE_SECONDS = 45
WATCHED_SECONDS = 130
LOOP = "import time\nwhile True:\n    t = time.time()\n    while time.time() - t < 0.04: pass\n    time.sleep(0.16)\n"
LOOP_IN_SHELL = (
    f"echo {b64encode(LOOP.encode()).decode()} | base64 -d >/tmp/loop; nohup python3 /tmp/loop >/dev/null 2>&1 &"
)


@dataclass
class Server:
    """A launched project, reached as its own page reaches it, but without the proxy.

    Attributes:
        site: where.
        user: whose.
        project: which.
        container: its container.
        url: its notebook server.
        token: the notebook server's own.
    """

    site: Site
    user: str
    project: str
    container: str
    url: str
    token: str

    @classmethod
    def launched(cls, site: Site, user: str, project: str, *, gpus: int) -> Server:
        """Launch a project and return its server."""
        site.project(user, project)
        site.person(user).launch(project, gpus=str(gpus))
        container = site.container(user, project, "{{.ID}}")
        [inspected] = json.loads(docker("inspect", container))
        environment = dict(item.split("=", 1) for item in inspected["Config"]["Env"])
        address = inspected["NetworkSettings"]["Networks"][site.name]["IPAddress"]
        prefix = environment["JUPYTERHUB_SERVICE_PREFIX"]
        url = f"http://{address}:8888{prefix}"
        return cls(site, user, project, container, url, environment["JUPYTERHUB_API_TOKEN"])

    @property
    def headers(self) -> dict[str, str]:
        """What the server wants to see."""
        return {"Authorization": f"token {self.token}"}

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Call its API."""
        answer = requests.request(method, self.url + path, headers=self.headers, timeout=30, **arguments)
        answer.raise_for_status()
        return answer

    def socket(self, path: str) -> websocket.WebSocket:
        """Open a web socket."""
        return websocket.create_connection(
            self.url.replace("http", "ws", 1) + path, header=[f"Authorization: token {self.token}"], timeout=30
        )

    def run_cell(self, code: str) -> None:
        """Run a cell that does not end, and close the browser once the kernel is busy."""
        kernel = self.call("POST", "api/kernels", json={"name": "python3"}).json()["id"]
        channel = self.socket(f"api/kernels/{kernel}/channels")
        message = {
            "header": {"msg_id": secrets.token_hex(8), "msg_type": "execute_request", "username": "", "session": "s"},
            "parent_header": {},
            "metadata": {},
            "content": {"code": code, "silent": False, "store_history": True, "allow_stdin": False},
            "channel": "shell",
        }
        channel.send(json.dumps(message))
        wait_for(lambda: self.call("GET", f"api/kernels/{kernel}").json()["execution_state"] == "busy")
        channel.close()

    def type_in_terminal(self, line: str, *, close: bool) -> None:
        """Open a terminal, type a line, and close it or leave it open without a browser."""
        name = self.call("POST", "api/terminals").json()["name"]
        terminal = self.socket(f"terminals/websocket/{name}")
        terminal.send(json.dumps(["stdin", line + "\r"]))
        time.sleep(1)  # the shell takes the line in its own time; nothing says when
        terminal.close()
        if close:
            self.call("DELETE", f"api/terminals/{name}")


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def stream_slowly(handler: BaseHTTPRequestHandler) -> None:
    """Send 300 kB a second for as long as somebody reads."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 30_000)
        time.sleep(0.1)


@contextmanager
def serving(address: str, handle: dict[str, Callable[[BaseHTTPRequestHandler], None]]) -> Iterator[int]:
    """Run a small web server for the block and yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

    for method, answer in handle.items():
        setattr(Handler, f"do_{method}", answer)
    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def other_culler(hub_url: str, token: str) -> Iterator[dict[str, float]]:
    """Run jupyterhub-idle-culler on a hub that ends nothing for it; yield what it asked for, with the time."""
    asked: dict[str, float] = {}

    def forward(handler: BaseHTTPRequestHandler) -> None:
        headers = {key: handler.headers[key] for key in ("Authorization", "Accept") if handler.headers[key]}
        answer = requests.get(hub_url + handler.path, headers=headers, timeout=30)
        handler.send_response(answer.status_code)
        handler.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        handler.end_headers()
        handler.wfile.write(answer.content)

    def write_down(handler: BaseHTTPRequestHandler) -> None:
        _, _, _, _, user, _, server = handler.path.split("/")
        asked.setdefault(f"{user}/{server}", time.monotonic())
        handler.send_response(204)
        handler.end_headers()

    with serving("127.0.0.1", {"GET": forward, "DELETE": write_down}) as port:
        command = [sys.executable, "-m", "jupyterhub_idle_culler", f"--IdleCuller.url=http://127.0.0.1:{port}/hub/api"]
        command += [f"--IdleCuller.timeout={OTHER_IDLE_SECONDS}", "--IdleCuller.cull_every=5"]
        process = subprocess.Popen(command, env={**os.environ, "JUPYTERHUB_API_TOKEN": token})
        try:
            yield asked
        finally:
            process.terminate()
            process.wait(10)


@dataclass(frozen=True)
class Case:
    """One server and what must become of it.

    Attributes:
        user: whose; also names the case.
        what: for the table.
        gpus: how many devices it holds.
        do: what happens on it after its launch.
        expected: ``kept``, ``idle``, ``run`` or ``gone`` (ended by itself).
    """

    user: str
    what: str
    gpus: int
    do: Callable[[Server], object]
    expected: str


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        began: when the case's deed was done, monotonic seconds.
        seen: ``kept``, ``idle``, ``run`` or ``gone``.
        after_seconds: when it ended after its deed, ``None`` if it did not.
        other_after_seconds: when the other culler would have ended it, ``None`` if not.
        events: of the culler about it.
    """

    began: float
    seen: str = "kept"
    after_seconds: float | None = None
    other_after_seconds: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


def keep_alive(server: Server) -> None:
    """Touch the file as its user does, inside the container."""
    uid = server.site.account(server.user).uid
    docker("exec", "--user", str(uid), server.container, "touch", "/workspace/.keep-alive")


def download(port: int, server: Server) -> None:
    """Load without end, from the host."""
    gateway = docker("network", "inspect", server.site.name, "--format", "{{(index .IPAM.Config 0).Gateway}}")
    load = f'import urllib.request as u; r = u.urlopen("http://{gateway}:{port}/")'
    code = f'{load}; [0 for _ in iter(lambda: r.read(65536), b"")]'
    server.type_in_terminal(f"nohup python3 -c '{code}' >/dev/null 2>&1 &", close=True)


def nothing(server: Server) -> None:
    """Leave it alone."""


def crash(server: Server) -> None:
    """End its container from outside."""
    docker("kill", server.container)


def cases(port: int, stack: ExitStack) -> list[Case]:
    """Return every case."""
    return [
        Case("silent", "a silent busy kernel, browser closed", 1, lambda s: s.run_cell(LOOP), "kept"),
        Case(
            "nohup",
            "`nohup` loop, its terminal closed",
            0,
            lambda s: s.type_in_terminal(LOOP_IN_SHELL, close=True),
            "kept",
        ),
        Case("loader", "a big download in the background", 0, partial(download, port), "kept"),
        Case(
            "sleeper",
            "`sleep` in a busy kernel, CPU server",
            0,
            lambda s: s.run_cell("import time; time.sleep(1e6)"),
            "kept",
        ),
        Case(
            "hoarder",
            "`sleep` in a busy kernel that holds a GPU",
            1,
            lambda s: s.run_cell("import time; time.sleep(1e6)"),
            "idle",
        ),
        Case(
            "watcher",
            "`watch` left open in a terminal, GPU idle",
            1,
            lambda s: s.type_in_terminal("while :; do date; sleep 2; done", close=False),
            "idle",
        ),
        Case("tab", "an open, untouched tab", 0, lambda s: stack.enter_context(open_tab(s)), "idle"),
        Case("left", "left after login, nothing open", 0, nothing, "idle"),
        Case("keeper", "idle, with `.keep-alive`", 0, keep_alive, "kept"),
        Case("crasher", "a crashed server", 0, crash, "gone"),
        Case("runner", "busy at its maximum run time of 90 s", 0, lambda s: s.run_cell(LOOP), "run"),
    ]


@contextmanager
def open_tab(server: Server) -> Iterator[None]:
    """Open JupyterLab with a notebook and a terminal in a real browser, and touch nothing."""
    from playwright.sync_api import sync_playwright

    started, stop = threading.Event(), threading.Event()
    problems: list[Exception] = []

    def browse() -> None:
        try:
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_page()
                hub = server.site.hub.url
                page.goto(f"{hub}/hub/login")
                page.fill("#username_input", server.user)
                page.fill("#password_input", server.site.password)
                page.click("#login_submit")
                page.goto(f"{hub}/user/{server.user}/{server_name(server.project)}/lab")
                page.wait_for_selector(".jp-LauncherCard", timeout=60_000)
                page.click(".jp-LauncherCard[title*='Python']")
                page.wait_for_selector(".jp-Notebook", timeout=60_000)
                started.set()
                stop.wait()
                browser.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails the test in its own thread
            problems.append(error)
            started.set()

    thread = threading.Thread(target=browse, daemon=True)
    thread.start()
    assert started.wait(120), "the browser did not open the notebook"
    assert not problems, problems
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


@dataclass
class Seen:
    """Everything that the run showed."""

    outcomes: dict[str, Outcome]
    cases: list[Case]
    status: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """Launch every case, let both cullers judge, and write down what became of each."""
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        site = stack.enter_context(running_site(CONFIG, DS01_TEST_OTHER_TOKEN=token))
        port = stack.enter_context(serving("0.0.0.0", {"GET": stream_slowly}))
        asked = stack.enter_context(other_culler(site.hub.url, token))
        listed = cases(port, stack)
        outcomes: dict[str, Outcome] = {}

        def begin(case: Case) -> None:
            server = Server.launched(site, case.user, "thesis", gpus=case.gpus)
            case.do(server)
            outcomes[case.user] = Outcome(time.monotonic())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(begin, listed))
        culler = site.hub.folder / "culler"
        ended: dict[str, float] = {}
        deadline = time.monotonic() + WATCHED_SECONDS
        while time.monotonic() < deadline:
            for case in listed:
                if case.user not in ended and not site.container(case.user, "thesis"):
                    ended[case.user] = time.monotonic()
            time.sleep(1)
        status = json.loads((culler / "status.json").read_text())
        events = [json.loads(line) for line in (site.hub.folder / "events.jsonl").read_text().splitlines()]
        kinds = {"maintenance.idle_kill": "idle", "maintenance.runtime_kill": "run"}
        for case in listed:
            outcome = outcomes[case.user]
            outcome.events = [e for e in events if e["user"] == case.user and e["source"] == "culler"]
            kills = [kinds[event["event_type"]] for event in outcome.events if event["event_type"] in kinds]
            if case.user in ended:
                outcome.after_seconds = ended[case.user] - outcome.began
                outcome.seen = kills[0] if kills else "gone"
            if (other := asked.get(f"{case.user}/thesis")) is not None:
                outcome.other_after_seconds = other - outcome.began
        Path(os.environ.get("DS01_TEST_TABLE", "/dev/stdout")).write_text(f"\n{table(listed, outcomes)}\n")
        yield Seen(outcomes, listed, status, site.hub.log)


def table(listed: list[Case], outcomes: dict[str, Outcome]) -> str:
    """Return the table that stands in the documentation."""
    lines = ["| Server | Expected | Seen | jupyterhub-idle-culler 2.0 |", "|---|---|---|---|"]
    words = {"kept": "kept", "idle": "retired as idle", "run": "retired at its run limit", "gone": "ended by itself"}
    for case in listed:
        outcome = outcomes[case.user]
        after = "" if outcome.after_seconds is None else f" after {outcome.after_seconds:.0f} s"
        other = outcome.other_after_seconds
        would = "kept" if other is None else f"ended after {other:.0f} s"
        would = "" if outcome.seen == "gone" else would
        lines.append(f"| {case.what} | {words[case.expected]} | {words[outcome.seen]}{after} | {would} |")
    return "\n".join(lines)


@pytest.mark.parametrize("user", [case.user for case in cases(0, ExitStack())])
def test_who_is_retired_and_who_is_kept(seen: Seen, user: str) -> None:
    """Silent work survives, idleness ends whatever is open, the run limit holds, and a crash is nobody's retirement."""
    case = next(case for case in seen.cases if case.user == user)
    assert seen.outcomes[user].seen == case.expected, seen.outcomes[user]


def test_nobody_was_retired_unwarned(seen: Seen) -> None:
    """Each end has an event with a warning delivered before it, and its samples."""
    for outcome in seen.outcomes.values():
        for event in outcome.events:
            if event["event_type"] in {"maintenance.idle_kill", "maintenance.runtime_kill"}:
                assert event["details"]["deliveries"][0]["channels"], event
                assert event["details"]["samples"], event


def test_devices_are_free_within_the_limit_and_ninety_seconds(seen: Seen) -> None:
    """From the last activity to the container being gone."""
    for case in seen.cases:
        outcome = seen.outcomes[case.user]
        if outcome.seen == "idle":
            assert outcome.after_seconds is not None
            assert outcome.after_seconds <= IDLE_SECONDS + 90


def test_no_pass_failed(seen: Seen) -> None:
    """No pass failed, and the culler saw every server as what it was."""
    assert seen.status["problem"] == ""
    assert seen.status["broken"] == 0
    assert seen.status["not_watched"] == []
    assert "Traceback" not in "\n".join(line for line in seen.log.splitlines() if "ds01_spawner.culler" in line)
