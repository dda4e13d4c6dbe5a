"""The notebook runtime in real containers: every Debian, images of every kind, and images that mean harm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import secrets
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import docker
import pytest

from ds01_spawner.adapters.imageprobe import ImageProbe
from ds01_spawner.adapters.packages import UvPackages
from ds01_spawner.adapters.probecache import ProbeCache
from ds01_spawner.adapters.runtimefolder import RuntimeFolder
from ds01_spawner.core import labels
from ds01_spawner.core.imagefacts import KERNEL_PACKAGES, ImageSettings
from ds01_spawner.errors import ImageRefused
from ds01_spawner.runtime import Runtime, ServerCommand
from ds01_spawner.testing.notebook import Notebook

pytestmark = pytest.mark.engine

RUNTIME = Path("/var/cache/ds01-tests/runtime")
DEBIANS = {"11": "3.9", "12": "3.11", "13": "3.13"}
UID = 61234
PREFIX = "/user/alice/thesis/"
TOKEN = secrets.token_hex(16)


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    """The engine."""
    client = docker.APIClient(version="auto")
    yield client
    client.close()


@pytest.fixture(scope="module")
def probe() -> Iterator[ImageProbe]:
    """What looks into images."""
    looking = ImageProbe()
    yield looking
    looking.close()


@pytest.fixture
def runtime(tmp_path: Path, probe: ImageProbe) -> Runtime:
    """A hub's runtime that knows no image yet; the package sets are kept between runs."""
    return Runtime(
        folder=RuntimeFolder(RUNTIME),
        packages=UvPackages(),
        probe=probe,
        cache=ProbeCache(tmp_path / "images.json"),
        trusted_images=tuple(f"ds01/debian:{release}" for release in DEBIANS),
    )


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[..., str]]:
    """Build an image from a Dockerfile and files, without network, and return its id."""
    made: list[str] = []

    def build_one(dockerfile: str, **files: str) -> str:
        tag = f"ds01-tests/runtime:{secrets.token_hex(6)}"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, text in {"Dockerfile": dockerfile, **files}.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text.encode()), 0o755
                tar.addfile(entry, io.BytesIO(text.encode()))
        command = ["docker", "buildx", "build", "--quiet", "--network=none", "--load", "--tag", tag, "-"]
        done = subprocess.run(command, input=packed.getvalue(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        made.append(tag)
        shown = subprocess.run(["docker", "image", "inspect", "--format={{.Id}}", tag], capture_output=True, check=True)
        return shown.stdout.decode().strip()

    yield build_one
    for tag in made:
        subprocess.run(["docker", "image", "rm", "--force", tag], capture_output=True, check=False)


def image_id(engine: docker.APIClient, reference: str) -> str:
    """Return a local image's id."""
    return str(engine.inspect_image(reference)["Id"])


def quiet(_text: str) -> None:
    """Take a line of progress."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A project's folder."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    os.chown(folder, UID, UID)
    return folder


@pytest.fixture
async def start(engine: docker.APIClient, workspace: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start servers in containers as the spawner does; they are removed at the end."""
    started: list[str] = []

    async def start_one(image: str, command: ServerCommand, path: str = "/", **environment: str) -> Notebook:
        def run() -> str:
            mounts = [
                docker.types.Mount(mount.target, mount.source, type="bind", read_only=mount.read_only)
                for mount in command.mounts
            ]
            container = engine.create_container(
                image,
                command=list(command.argv[1:]),
                entrypoint=list(command.argv[:1]),
                user=f"{UID}:{UID}",
                working_dir="/workspace",
                hostname="thesis",
                environment={"HOME": "/home/alice", "JUPYTER_TOKEN": TOKEN, **command.environment, **environment},
                host_config=engine.create_host_config(
                    mounts=[*mounts, docker.types.Mount("/workspace", str(workspace), type="bind")],
                    tmpfs={"/home/alice": f"uid={UID},gid={UID},mode=755"},
                    cap_drop=["ALL"],
                    security_opt=["no-new-privileges"],
                ),
            )["Id"]
            started.append(container)
            engine.start(container)
            return str(engine.inspect_container(container)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])

        address = await asyncio.to_thread(run)
        notebook = Notebook(f"http://{address}:8888{path}", TOKEN)
        try:
            return await notebook.ready()
        except OSError as error:
            said = await asyncio.to_thread(engine.logs, started[-1])
            raise AssertionError(said.decode("utf-8", "replace")) from error

    yield start_one
    for container in started:
        engine.remove_container(container, force=True, v=True)


# -- every Python -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", DEBIANS)
async def test_a_bare_debian_becomes_a_jupyterlab(
    engine: docker.APIClient, runtime: Runtime, start: Callable[..., Any], release: str
) -> None:
    """With only Python in the image: the Lab page, a kernel of the image's Python, a terminal, and no leak of ours."""
    image = image_id(engine, f"ds01/debian:{release}")
    command = await runtime.prepare(image, on_progress=quiet)
    assert command.notices == ()
    notebook = await start(image, command)
    assert (await notebook.request("GET", "lab")).code == 200
    assert (await notebook.request("GET", "lab", anonymous=True)).code in (302, 403)
    page = (await notebook.request("GET", "lab")).body.decode()
    assert '"news": {"disabled": true}' in page
    kernel = await notebook.start_kernel()
    code = "import sys, os; print(sys.executable, '%d.%d' % sys.version_info[:2], os.getcwd(), os.getuid())"
    assert await notebook.execute(kernel, code) == f"/usr/bin/python3 {DEBIANS[release]} /workspace {UID}"
    for module in ("jupyterhub", "jupyterlab", "yaml", "requests"):
        assert (await notebook.execute(kernel, f"import {module}")).startswith("ModuleNotFoundError")
    assert (await notebook.execute(kernel, "import tornado; print(tornado.__file__)")).startswith("/opt/ds01/kernel/")
    assert await notebook.execute(kernel, "print(os.environ.get('PYTHONPATH'))") == "None"
    shown = await notebook.type_in_terminal(
        "pwd; python3 -c 'import tornado'; touch /opt/ds01/x; echo DO''NE", "DONE\r"
    )
    assert "@thesis:/workspace$" in shown
    assert "No module named 'tornado'" in shown
    assert "Read-only file system" in shown


@pytest.mark.parametrize("version", DEBIANS.values())
async def test_everything_that_the_kernel_brings_is_known(runtime: Runtime, version: str) -> None:
    """Whether an image could disagree with the kernel's packages is told by their names, so none may be missing."""
    folder = await runtime.make_set(version)
    brought = {path.name.split("-")[0].lower().replace("_", "-") for path in (folder / "kernel").glob("*.dist-info")}
    assert brought <= KERNEL_PACKAGES
    assert json.loads((folder / "manifest.json").read_text())["compiled"]


# -- images of every kind -----------------------------------------------------------------------------------------


async def test_the_images_own_settings_do_not_get_in_the_way(
    build: Callable[..., str], runtime: Runtime, start: Callable[..., Any]
) -> None:
    """ENTRYPOINT, CMD, USER, WORKDIR, SHELL, HEALTHCHECK and a PYTHONPATH that hides Python's own json."""
    image = build(
        'FROM ds01/debian:13\nRUN mkdir /mine\nCOPY json.py /mine/\nRUN echo "x = 41" > /mine/mymodule.py\n'
        'ENV PYTHONPATH=/mine PYTHONSTARTUP=/nowhere\nSHELL ["/bin/false"]\nUSER nobody\n'
        'WORKDIR /srv\nHEALTHCHECK CMD false\nENTRYPOINT ["/bin/false"]\nCMD ["x"]\n',
        **{"json.py": "raise ImportError('not yours')\n"},
    )
    notebook = await start(image, await runtime.prepare(image, on_progress=quiet))
    kernel = await notebook.start_kernel()
    assert await notebook.execute(kernel, "import mymodule; print(mymodule.x + 1)") == "42"


async def test_an_image_with_old_packages_gets_a_kernel_and_a_notice(
    build: Callable[..., str], runtime: Runtime, start: Callable[..., Any]
) -> None:
    """A traitlets of long ago: the notebook uses the site's, a script the image's, and the user is told."""
    packages = "/usr/lib/python3/dist-packages"
    image = build(
        f"FROM ds01/debian:13\nRUN mkdir -p {packages}/traitlets {packages}/traitlets-4.3.3.dist-info && "
        f"echo '__version__ = \"4.3.3\"' > {packages}/traitlets/__init__.py\n"
    )
    command = await runtime.prepare(image, on_progress=quiet)
    assert "traitlets" in command.notices[0]
    notebook = await start(image, command)
    kernel = await notebook.start_kernel()
    code = "import traitlets, subprocess; print(traitlets.__version__ != '4.3.3')"
    assert await notebook.execute(kernel, code) == "True"
    code = "print(subprocess.getoutput('python3 -c \"import traitlets; print(traitlets.__version__)\"'))"
    assert await notebook.execute(kernel, code) == "4.3.3"


async def test_an_image_with_new_packages_keeps_them_in_its_kernels(
    build: Callable[..., str], runtime: Runtime, start: Callable[..., Any]
) -> None:
    """A package that the runtime has as well comes from the image where a kernel works with it."""
    packages = "/usr/lib/python3/dist-packages"
    image = build(
        f"FROM ds01/debian:13\nRUN mkdir -p {packages}/six-9.9.dist-info && echo 'mine = True' > {packages}/six.py\n"
    )
    command = await runtime.prepare(image, on_progress=quiet)
    assert command.notices == ()
    notebook = await start(image, command)
    assert await notebook.execute(await notebook.start_kernel(), "import six; print(six.mine)") == "True"


@pytest.fixture
def image_with_jupyterlab(build: Callable[..., str], runtime: Runtime) -> Iterator[str]:
    """An image that has installed JupyterLab, and a lab extension, as far as that goes without a package index."""
    folder = asyncio.run(runtime.make_set("3.13"))
    packages = "/usr/local/lib/python3.13/dist-packages"
    script = (
        f"mkdir -p /usr/local/share {packages}\n"
        f"cp -r /set/server/. /set/kernel/. {packages}/ && rm -rf {packages}/jupyterhub*\n"
        f"mv {packages}/share/jupyter /usr/local/share/jupyter\n"
        "mkdir -p /usr/local/share/jupyter/labextensions/mine\n"
        """echo '{"name": "mine", "version": "1.0", "jupyterlab": {"_build": {"load": "x.js"}}}'"""
        " > /usr/local/share/jupyter/labextensions/mine/package.json\n"
    )
    name = f"ds01-tests-{secrets.token_hex(6)}"
    tag = f"ds01-tests/runtime:{name[-12:]}"
    run = ["docker", "run", "--name", name, "--network=none", f"--volume={folder}:/set:ro", "ds01/debian:13"]
    try:
        subprocess.run([*run, "sh", "-ec", script], check=True, capture_output=True)
        subprocess.run(["docker", "commit", name, tag], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
    yield build(f"FROM {tag}\nENTRYPOINT []\n")
    subprocess.run(["docker", "image", "rm", "--force", tag], check=False, capture_output=True)


async def test_an_image_with_its_own_jupyterlab_keeps_it(
    image_with_jupyterlab: str, runtime: Runtime, start: Callable[..., Any]
) -> None:
    """Its server, lab, lab extension and kernel are the image's; only JupyterHub's side comes from the runtime."""
    command = await runtime.prepare(image_with_jupyterlab, on_progress=quiet)
    assert "--plan=image-first" in command.argv
    notebook = await start(image_with_jupyterlab, command)
    page = (await notebook.request("GET", "lab")).body.decode()
    assert '"name": "mine"' in page
    assert '"appSettingsDir": "/usr/local/share/jupyter/lab/settings"' in page
    code = "import ipykernel, sys; print(ipykernel.__file__, '/opt/ds01/kernel' in sys.path)"
    found = await notebook.execute(await notebook.start_kernel(), code)
    assert found == "/usr/local/lib/python3.13/dist-packages/ipykernel/__init__.py False"


def wheel(name: str) -> bytes:
    """Return a wheel of one module."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "value = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return packed.getvalue()


@pytest.mark.parametrize("virtual", [False, True], ids=["system", "virtual-environment"])
async def test_pip_install_works_at_once(
    build: Callable[..., str], runtime: Runtime, start: Callable[..., Any], workspace: Path, *, virtual: bool
) -> None:
    """In Debian's own Python and in root's virtual environment: what a cell installs, the next one imports."""
    dockerfile = "FROM ds01/python:13\n"
    if virtual:
        # Debian's python3 has no ensurepip, so the environment's pip is the system's.
        dockerfile += (
            "RUN python3 -m venv --without-pip /opt/venv && "
            "cp -r /usr/lib/python3/dist-packages/pip* /opt/venv/lib/python3.13/site-packages/\n"
            "ENV PATH=/opt/venv/bin:$PATH\n"
        )
    image = build(dockerfile)
    (workspace / "fortytwo-1.0-py3-none-any.whl").write_bytes(wheel("fortytwo"))
    notebook = await start(image, await runtime.prepare(image, on_progress=quiet))
    kernel = await notebook.start_kernel()
    code = "get_ipython().run_line_magic('pip', 'install --quiet --no-index /workspace/fortytwo-1.0-py3-none-any.whl')"
    said = await notebook.execute(kernel, code)
    found = await notebook.execute(kernel, "import fortytwo; print(fortytwo.value, fortytwo.__file__)")
    assert found.startswith("42 /home/alice/.local/"), said
    code = "import subprocess; print(subprocess.getoutput('python3 -c \"import fortytwo; print(fortytwo.value)\"'))"
    assert await notebook.execute(kernel, code) == "42"


# -- JupyterHub ---------------------------------------------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """The few answers of a hub's API that a server asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Tell the hub's version, or who a token belongs to."""
        if not self.path.endswith("/user"):
            self._answer(200, {"version": "6.1.1"})
        elif self.headers.get("Authorization") == f"token {TOKEN}":
            scope = "access:servers!server=alice/thesis"
            self._answer(200, {"name": "alice", "kind": "user", "scopes": [scope], "groups": [], "admin": False})
        else:
            self._answer(403, {"message": "no"})

    def do_POST(self) -> None:
        """Take a report of activity."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.reports.put((self.path, self.headers["Authorization"], json.loads(body)))  # type: ignore[attr-defined]
        self._answer(200, {})

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def hub(engine: docker.APIClient) -> Iterator[ThreadingHTTPServer]:
    """A hub's API on the bridge's address of the host."""
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    server = ThreadingHTTPServer((gateway, 0), _Hub)
    server.reports = Queue()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("release", ["11", "13"])
async def test_the_server_is_jupyterhubs(
    engine: docker.APIClient, runtime: Runtime, start: Callable[..., Any], hub: Any, release: str
) -> None:
    """Strangers are sent to the hub, its user comes in, the way back is on the page, and activity is reported.

    Debian 11's Python only has JupyterHub 5's server, the others the hub's own version.
    """
    api = f"http://{hub.server_address[0]}:{hub.server_address[1]}/hub/api"
    environment = {
        "JUPYTERHUB_API_TOKEN": TOKEN,
        "JUPYTERHUB_API_URL": api,
        "JUPYTERHUB_ACTIVITY_URL": f"{api}/users/alice/activity",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-alice-thesis",
        "JUPYTERHUB_HOST": "",
        "JUPYTERHUB_USER": "alice",
        "JUPYTERHUB_SERVER_NAME": "thesis",
        "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
        "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:8888{PREFIX}",
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{PREFIX}oauth_callback",
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:servers!server=alice/thesis"]',
        "JUPYTERHUB_OAUTH_SCOPES": '["access:servers!server=alice/thesis"]',
        "JUPYTERHUB_OAUTH_CLIENT_ALLOWED_SCOPES": "[]",
    }
    image = image_id(engine, f"ds01/debian:{release}")
    command = await runtime.prepare(image, on_progress=quiet)
    notebook = await start(image, command, path=PREFIX, **environment)
    stranger = await notebook.request("GET", "lab", anonymous=True)
    assert stranger.code == 302
    assert stranger.headers["Location"].startswith("/hub/api/oauth2/authorize?client_id=jupyterhub-user-alice-thesis")
    assert release == "11" or "code_challenge=" in stranger.headers["Location"]
    forged = await Notebook(notebook.url, "wrong").request("GET", "api/contents")
    assert forged.code == 403
    page = await notebook.request("GET", "lab")
    assert page.code == 200
    assert '"hubPrefix": "/hub/"' in page.body.decode()
    assert '"hubUser": "alice"' in page.body.decode()
    assert page.headers["X-JupyterHub-Version"]
    path, authorization, report = await asyncio.to_thread(hub.reports.get, timeout=20)
    assert (path, authorization) == ("/hub/api/users/alice/activity", f"token {TOKEN}")
    assert "last_activity" in report["servers"]["thesis"]


# -- images that cannot, and images that mean harm ----------------------------------------------------------------

FORGED = (
    '{"schema":1,"version":[%s],"implementation":"cpython","bits":64,"free_threaded":false,"executable":"/bin/sh",'
    '"virtual":false,"glibc":"%s","packages":{},"extensions":false}'
)


def forging(answer: str) -> str:
    """Return a shell script that answers as a Python would."""
    return f"#!/bin/sh\necho 'ds01-probe:{answer}'\n"


@pytest.mark.parametrize(
    ("dockerfile", "python3", "expected"),
    [
        ("FROM scratch\nCOPY python3 /x\n", "", "no Python on its PATH"),
        ("FROM ds01/debian:13\nENV LD_PRELOAD=/x.so\n", "", "LD_PRELOAD"),
        ("FROM ds01/debian:13\nENV PYTHONHOME=/x\n", "", "PYTHONHOME"),
        ("FROM ds01/debian:13\nVOLUME /data /workspace/results\n", "", "/workspace/results as a volume"),
        ("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", forging(FORGED % ("3,13,1", "")), "Alpine"),
        ("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", forging(FORGED % ("3,6,9", "2.27")), r"3\.6\.9"),
        (
            "FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n",
            "#!/bin/sh\nexec yes ds01-probe:\n",
            "within .* seconds",
        ),
        ("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", "#!/bin/sh\nexec sleep 1000\n", "within .* seconds"),
        ("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", "#!/nowhere\n", "no Python|does not start"),
        ("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", "#!/bin/sh\nexit 3\n", "does not start properly"),
    ],
    ids=["none", "preload", "home", "volume", "musl", "old", "endless", "hanging", "broken-link", "failing"],
)
async def test_an_image_that_cannot_is_refused(  # noqa: PLR0917
    build: Callable[..., str],
    runtime: Runtime,
    engine: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
    dockerfile: str,
    python3: str,
    expected: str,
) -> None:
    """Each gets its sentence, in bounded time, and no container is left."""
    monkeypatch.setattr("ds01_spawner.runtime.PROBE_SECONDS", 4.0)
    image = build(dockerfile, python3=python3)
    with pytest.raises(ImageRefused, match=expected):
        await runtime.prepare(image, on_progress=quiet)
    left = engine.containers(all=True, filters={"ancestor": image})
    assert left == []


async def test_a_forged_answer_only_spoils_its_own_server(build: Callable[..., str], runtime: Runtime) -> None:
    """A lie about the version gets the set of that version, read-only like any, run by the liar's own program."""
    image = build("FROM ds01/debian:13\nCOPY python3 /usr/local/bin/\n", python3=forging(FORGED % ("3,11,2", "2.36")))
    command = await runtime.prepare(image, on_progress=quiet)
    assert command.argv[0] == "/bin/sh"
    (mount,) = command.mounts
    assert mount.read_only
    assert Path(mount.source).parent == RUNTIME / "sets"
    assert Path(mount.source).name.startswith("3.11-")


async def test_the_probe_is_a_cage(engine: docker.APIClient, probe: ImageProbe, tmp_path: Path) -> None:
    """What runs in a probe has no rights, no network, no GPU, nothing to write to, and little of everything."""
    folder = RuntimeFolder(tmp_path).provide("probe.py", b"")
    script = (
        "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; ls /sys/class/net; echo $NVIDIA_VISIBLE_DEVICES; "
        "for file in /x /etc/x /opt/probe/x /dev/x; do touch $file 2>&1 && echo touched; done; "
        "ls -d /workspace /var/run/docker.sock 2>&1; for i in $(seq 200); do sleep 5 & done 2>&1 | tail -1; "
        "python3 -c 'bytearray(2 * 2**30)'; echo exit $?"
    )
    image = image_id(engine, "ds01/debian:13")
    answer = await probe.run(image, ["sh", "-c", script], {folder: "/opt/probe"}, seconds=20)
    said = answer.output.decode()
    assert said.startswith("65534\n")
    assert "CapEff:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    assert "\nlo\nvoid\n" in said
    assert said.count("Read-only file system") + said.count("Permission denied") == 4
    assert said.count("No such file or directory") == 2
    assert "fork" in said
    assert "exit 0" not in said
    assert "touched" not in said


async def test_a_probe_that_prints_much_is_cut(engine: docker.APIClient, probe: ImageProbe) -> None:
    """Output beyond what an answer can need is not kept; one byte more tells that there was more."""
    command = ["python3", "-c", "for _ in range(500): print('x' * 999)"]
    answer = await probe.run(image_id(engine, "ds01/debian:13"), command, {}, seconds=20)
    assert not answer.timed_out
    assert len(answer.output) == 256 * 1024 + 1


async def test_a_probe_that_prints_without_end_is_bounded(engine: docker.APIClient, probe: ImageProbe) -> None:
    """However much is printed, time and what is read of it have a limit."""
    answer = await probe.run(image_id(engine, "ds01/debian:13"), ["yes", "x" * 1000], {}, seconds=2)
    assert answer.timed_out
    assert len(answer.output) <= 256 * 1024 + 1


async def test_probes_that_outlived_their_hub_are_removed(engine: docker.APIClient, probe: ImageProbe) -> None:
    """A container of a hub that was killed in the middle of a probe goes with a later probe; a young one stays."""
    image = image_id(engine, "ds01/debian:13")
    old = engine.create_container(image, command=["true"], labels={labels.PROBE: str(int(time.time()) - 3600)})["Id"]
    young = engine.create_container(image, command=["true"], labels={labels.PROBE: str(int(time.time()))})["Id"]
    try:
        await probe.run(image, ["true"], {}, seconds=10)
        with pytest.raises(docker.errors.NotFound):
            engine.inspect_container(old)
        assert engine.inspect_container(young)
    finally:
        engine.remove_container(young, force=True)


async def test_settings_are_the_images(build: Callable[..., str], probe: ImageProbe) -> None:
    """ENV, VOLUME and architecture are read without running anything."""
    image = build("FROM scratch\nENV A=b=c D=\nVOLUME /data /a\nCOPY x /x\n", x="")
    settings = await probe.settings(image)
    assert settings.environment == {"A": "b=c", "D": "", "PATH": settings.environment["PATH"]}
    assert settings.volumes == ("/a", "/data")
    assert isinstance(settings, ImageSettings)


async def test_a_removed_image_is_a_clear_refusal(probe: ImageProbe) -> None:
    """An image that somebody removed meanwhile is built anew by the next launch, and the user is told so."""
    with pytest.raises(ImageRefused, match="Launch again"):
        await probe.settings("sha256:" + "0" * 64)
