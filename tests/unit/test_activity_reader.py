"""The readings put together, hostile notebook servers, and the users' two files."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from ds01_spawner.adapters.activity import ActivityReader, ContainerUnreadable, DeviceMeter, Inside, Place
from ds01_spawner.adapters.cullerfiles import STANDING, CullerFiles
from ds01_spawner.adapters.notebook import NotebookAddress, Notebooks, NotebookSilent
from ds01_spawner.adapters.nvml import DeviceLook
from ds01_spawner.adapters.outbound import Command, NotDelivered, Webhook
from ds01_spawner.adapters.usernotes import ANNOUNCEMENT, KEEP_ALIVE, UserNotes
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import Kernel, Terminal
from ds01_spawner.core.model import Device, Process
from ds01_spawner.errors import ProjectRefused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]

DAY = 86400.0


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start web servers and return their addresses."""
    runners = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        return f"http://127.0.0.1:{port}/"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def notebooks() -> AsyncIterator[Notebooks]:
    """Return a client that waits a quarter of a second."""
    made = Notebooks(timeout_seconds=0.25)
    yield made
    await made.close()


def answer(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    """Return a handler that always says the same."""

    async def handler(_: web.Request) -> web.StreamResponse:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return web.Response(body=body, status=status, headers=headers)

    return handler


async def test_a_notebook_server_is_asked_without_becoming_activity(serve: Serve, notebooks: Notebooks) -> None:
    """Its own token and no_track_activity go with every question."""
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        model = {"id": "k1", "name": "1", "execution_state": "busy", "last_activity": "2026-01-01T00:00:00Z"}
        return web.json_response([model])

    address = NotebookAddress(await serve(handler), "secret")
    assert await notebooks.kernels(address) == (Kernel("k1", busy=True, last_activity="2026-01-01T00:00:00Z"),)
    assert await notebooks.terminals(address) == (Terminal("1", "2026-01-01T00:00:00Z"),)
    assert [request.path_qs for request in seen] == [
        "/api/kernels?no_track_activity=1",
        "/api/terminals?no_track_activity=1",
    ]
    assert {request.headers["Authorization"] for request in seen} == {"token secret"}


async def never(_: web.Request) -> web.StreamResponse:
    """Take the question and say nothing."""
    await asyncio.sleep(5)
    return web.Response()


async def endless(request: web.Request) -> web.StreamResponse:
    """Send without end, as fast as it is read."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 65536)
    except ConnectionError:
        return response


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """Send whoever asks to another place, where a good answer is."""
    if request.path == "/elsewhere":
        return web.json_response([])
    raise web.HTTPFound("/elsewhere")


MODEL = {"id": "k", "execution_state": "idle", "last_activity": "t"}


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(never, id="silent"),
        pytest.param(endless, id="endless"),
        pytest.param(answer({"message": "no"}, status=403), id="refuses"),
        pytest.param(answer({}, status=404), id="knows of no kernels"),
        pytest.param(elsewhere, id="redirects"),
        pytest.param(answer(b"<html>"), id="not JSON"),
        pytest.param(answer(b"[" * 100_000), id="deep"),
        pytest.param(answer({"id": 1}), id="no list"),
        pytest.param(answer([1]), id="a list of numbers"),
        pytest.param(answer([{**MODEL, "id": 7}]), id="a number for a name"),
        pytest.param(answer([{**MODEL, "last_activity": None}]), id="no time"),
        pytest.param(answer([{**MODEL, "id": "x" * 1000}]), id="a long name"),
        pytest.param(answer([MODEL] * 2000), id="a long list"),
        pytest.param(answer(gzip.compress(b"[]"), headers={"Content-Encoding": "gzip"}), id="packed"),
    ],
)
async def test_a_hostile_notebook_server_is_silent(serve: Serve, notebooks: Notebooks, handler: Handler) -> None:
    """Whatever a user's program answers, it is soon known that nothing is known."""
    began = time.monotonic()
    with pytest.raises(NotebookSilent):
        await notebooks.kernels(NotebookAddress(await serve(handler), "t"))
    assert time.monotonic() - began < 3


async def test_a_notebook_server_that_is_away_is_silent(notebooks: Notebooks) -> None:
    """A refused connection is silence, and a wrong address too."""
    for url in ("http://127.0.0.1:1/", "nonsense"):
        with pytest.raises(NotebookSilent):
            await notebooks.kernels(NotebookAddress(url, "t"))


async def test_a_server_without_terminals_has_none(serve: Serve, notebooks: Notebooks) -> None:
    """Where the extension is off the API is missing; that is known, not unknown."""
    address = NotebookAddress(await serve(answer({}, status=404)), "t")
    assert await notebooks.terminals(address) == ()


class EngineIsAway:
    """An engine that does not answer."""

    async def inspect(self, container_id: str) -> Inside:
        """Fail."""
        raise ContainerUnreadable("Docker Engine does not answer")


async def test_what_cannot_be_read_is_unknown(notebooks: Notebooks) -> None:
    """With the engine away everything is unknown except the devices, and the reading says why."""
    reading = await ActivityReader(EngineIsAway(), notebooks).read(Place("c" * 64, "http://127.0.0.1:1"), ())
    assert (reading.cpu_seconds, reading.network_bytes, reading.kernels, reading.terminals) == (None,) * 4
    assert reading.age_seconds is None
    assert reading.devices == ()
    assert "Docker Engine does not answer" in reading.problem


class Gpus:
    """Two devices whose utilisation a test sets."""

    def __init__(self) -> None:
        self.percent: dict[str, float | None] = {"GPU-a": 0.0, "MIG-b": None}
        self.away = False

    async def look(self) -> DeviceLook:
        """Return both."""
        if self.away:
            return DeviceLook(None, None)
        devices = (Device("GPU-a", "A100", 1), Device("MIG-b", "A100", 1, mig_profile="1g.5gb", mig_slices=1))
        return DeviceLook(devices, (Process(9, "MIG-b", 5),), {"GPU-a": 3, "MIG-b": 5})

    async def utilisation(self, uuid: str, seconds: float) -> float | None:
        """Return what a test set."""
        assert seconds == 15
        return self.percent[uuid]


async def test_a_device_is_metered_between_passes() -> None:
    """A burst that is over before the pass is in its mean, and in no later one."""
    gpus = Gpus()
    meter = DeviceMeter(gpus)
    gpus.percent["GPU-a"] = 90.0
    await meter.tick(["GPU-a"])
    gpus.percent["GPU-a"] = 0.0
    lease = await meter.read(["GPU-a", "MIG-b"])
    [whole, instance] = lease(("GPU-a", "MIG-b")) or ()
    assert (whole.utilisation_percent, whole.memory_bytes, whole.processes, whole.mig) == (45.0, 3, frozenset(), False)
    assert (instance.utilisation_percent, instance.processes, instance.mig) == (None, frozenset({9}), True)
    await meter.tick(["GPU-a"])
    gpus.percent["GPU-a"] = 50.0
    await meter.read(["MIG-b"])  # another server's last look takes nothing away
    [whole] = (await meter.read(["GPU-a"]))(("GPU-a",)) or ()
    assert whole.utilisation_percent == 25.0


async def test_a_lease_on_an_unknown_device_is_unknown() -> None:
    """No driver and a device that vanished are unknown; a lease of nothing is known to be nothing."""
    gpus = Gpus()
    meter = DeviceMeter(gpus)
    lease = await meter.read(["GPU-a"])
    assert lease(("GPU-gone",)) is None
    assert lease(()) == ()
    gpus.away = True
    lease = await meter.read(["GPU-a"])
    assert lease(("GPU-a",)) is None
    assert lease(()) == ()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project's folder of user 4711."""
    if os.geteuid() != 0:
        pytest.skip("acting as a user needs root")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    folder = tmp_path / "workspace" / "thesis"
    folder.mkdir(parents=True)
    for path in (tmp_path, tmp_path / "workspace", folder):
        os.chown(path, 4711, 4711)
    return folder


def account(project: Path) -> Account:
    """Return the project's user."""
    return Account("ada", 4711, 4711, (4711,), project.parents[1])


def keep_alive(project: Path, now: float) -> float:
    """Return how long the project's keep-alive holds."""
    return UserNotes(Workspaces(), lambda: now).keep_alive_seconds(account(project), "thesis", DAY)


def touch(project: Path, at: float) -> None:
    """Touch the keep-alive with a date of the user's choice."""
    path = project / KEEP_ALIVE
    path.write_text("")
    os.chown(path, 4711, 4711)
    os.utime(path, (at, at))


def test_a_keep_alive_holds_from_its_touch(project: Path) -> None:
    """An hour after the touch 23 hours are left; after a day none; without the file none."""
    assert keep_alive(project, time.time()) == 0
    real = time.time()
    touch(project, real - 3600)
    assert keep_alive(project, real) == pytest.approx(DAY - 3600)
    touch(project, real - DAY - 1)
    assert keep_alive(project, real) == 0


def test_a_keep_alive_from_the_future_counts_as_now(project: Path) -> None:
    """A file dated to the year 2100 holds from when it was changed, which the kernel wrote down, and no longer."""
    real = time.time()
    touch(project, 4_102_444_800)
    assert keep_alive(project, real) == pytest.approx(DAY, abs=60)
    assert keep_alive(project, real + DAY / 2) == pytest.approx(DAY / 2, abs=60)
    assert keep_alive(project, real + DAY + 120) == 0


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "closed folder", "no folder"])
def test_what_is_no_keep_alive_is_none(project: Path, kind: str, tmp_path: Path) -> None:
    """A link is not followed, and a project that its user made unreadable holds nothing."""
    path = project / KEEP_ALIVE
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "closed folder":
            touch(project, time.time())
            project.chmod(0)
        case _:
            project.rmdir()
    assert keep_alive(project, time.time()) == 0


def test_an_announcement_is_the_users_own_file_and_goes_again(project: Path) -> None:
    """It belongs to the user, is replaced by a newer one, and is removed without a trace."""
    notes = UserNotes(Workspaces())
    notes.announce(account(project), "thesis", "soon")
    notes.announce(account(project), "thesis", "very soon")
    path = project / ANNOUNCEMENT
    assert path.read_text().startswith("very soon\n")
    assert path.stat().st_uid == 4711
    notes.withdraw(account(project), "thesis")
    notes.withdraw(account(project), "thesis")
    assert list(project.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe", "empty file"])
def test_a_users_own_file_is_not_replaced_or_removed(project: Path, kind: str, tmp_path: Path) -> None:
    """Whatever has the announcement's name and is not ours stays as it is, and the warning counts as not delivered."""
    path = project / ANNOUNCEMENT
    target = tmp_path / "target"
    target.write_text("mine")
    match kind:
        case "file":
            path.write_text("mine")
        case "empty file":
            path.write_text("")
        case "link":
            path.symlink_to(target)
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(path)
    before = path.lstat()
    notes = UserNotes(Workspaces())
    with pytest.raises(ProjectRefused):
        notes.announce(account(project), "thesis", "soon")
    notes.withdraw(account(project), "thesis")
    assert path.lstat().st_ino == before.st_ino
    assert target.read_text() == "mine"


async def test_a_command_gets_the_message_on_its_input(tmp_path: Path) -> None:
    """JSON on standard input, exit code 0 is delivered."""
    out = tmp_path / "out"
    script = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"
    await Command([sys.executable, "-c", script]).send({"text": "ü"})
    assert json.loads(out.read_text()) == {"text": "ü"}


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        pytest.param(["/nonexistent"], "cannot be run", id="missing"),
        pytest.param([sys.executable, "-c", "import sys; sys.exit('no mail server')"], "no mail server", id="fails"),
        pytest.param([sys.executable, "-c", "import time; time.sleep(60)"], "longer than", id="hangs"),
        pytest.param([sys.executable, "-c", "import os; os.close(0)"], "", id="reads nothing"),
    ],
)
async def test_a_command_that_fails_did_not_deliver(argv: list[str], why: str) -> None:
    """It says why; one that only ignores its input is content."""
    command = Command(argv, timeout_seconds=1)
    if not why:
        await command.send({"text": "x" * 100_000})
        return
    with pytest.raises(NotDelivered, match=why):
        await command.send({"text": "x"})


async def test_a_webhook_gets_the_message(serve: Serve) -> None:
    """Any 2xx is delivered; anything else, a redirect included, is not, and the secret address is not repeated."""
    got = []

    async def take(request: web.Request) -> web.StreamResponse:
        got.append(await request.json())
        return web.Response(status=204)

    await Webhook(await serve(take)).send({"text": "x"})
    assert got == [{"text": "x"}]
    for status in (302, 404, 500):
        with pytest.raises(NotDelivered, match=str(status)):
            await Webhook(await serve(answer({}, status=status, headers={"Location": "/"}))).send({})
    with pytest.raises(NotDelivered) as raised:
        await Webhook("http://127.0.0.1:1/secret").send({})
    assert "secret" not in str(raised.value)


def test_the_cullers_files_are_whole_or_absent(tmp_path: Path) -> None:
    """What cannot be read is nothing; warnings that stand do not survive a boot; retired ones are bounded."""
    files = CullerFiles(tmp_path / "deep" / "culler")
    assert (files.status(), files.retired(), files.standing()) == (None, [], {})
    files.write_standing({"c": [1]})
    assert files.standing() == {"c": [1]}
    path = tmp_path / "deep/culler" / STANDING
    path.write_text(path.read_text().replace('"boot":"', '"boot":"other'))
    assert files.standing() == {}
    path.write_text("{")
    assert files.standing() == {}
    for n in range(600):
        files.add_retired({"user": f"u{n}", "server": "s", "at": n})
    files.add_retired({"user": "u599", "server": "s", "at": 1000})
    assert len(files.retired()) == 500
    assert files.retired("u599") == [{"user": "u599", "server": "s", "at": 1000}]
    files.write_metrics([("ds01_x", "Help.", 1.5)])
    assert (
        tmp_path / "deep/culler/culler.prom"
    ).read_text() == "# HELP ds01_x Help.\n# TYPE ds01_x gauge\nds01_x 1.5\n"
