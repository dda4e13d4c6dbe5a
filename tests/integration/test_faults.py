"""Nothing leaks and nobody is left in the dark: killed hubs, vanished containers, cancelled launches, dead engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from ds01_spawner.core.project import container_name, server_name

from .conftest import Site, docker, running_site

pytestmark = pytest.mark.engine


def eventually(what: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.2)


@pytest.fixture
def own_site() -> Iterator[Site]:
    """A site of this test's own, whose hub it may stop and kill."""
    with running_site() as site:
        yield site


def test_servers_and_their_leases_outlive_a_restart_of_the_hub(own_site: Site) -> None:
    """A hub that is upgraded leaves its people working, and knows afterwards who holds what."""
    own_site.project("alice", "lasting")
    alice = own_site.person("alice")
    alice.launch("lasting")
    container = own_site.container("alice", "lasting", "{{.ID}}")
    free = alice.free_devices()
    own_site.hub.stop()
    assert own_site.container("alice", "lasting") == "running"
    own_site.hub.start()
    assert own_site.container("alice", "lasting", "{{.ID}}") == container
    assert alice.free_devices() == free
    assert alice.notebook("lasting", "GET", "api/status").ok
    alice.retire("lasting")
    assert own_site.container("alice", "lasting") == ""
    eventually(lambda: alice.free_devices() == ["4 of 4"])


@pytest.mark.parametrize("moment", ["Opening", "Creating", "Starting"])
def test_a_hub_killed_during_a_launch_leaves_nothing_after_its_restart(own_site: Site, moment: str) -> None:
    """Whatever the step, container and lease are gone once the hub is back, and the project launches again.

    The killed hub's services end with it: they would write the same files as those of the next hub.
    """
    own_site.project("alice", "killed")
    alice = own_site.person("alice")
    alice.submit("killed")
    try:
        for event in alice.progress("killed"):
            if event["message"].startswith(moment) or event.get("ready"):
                break
    finally:
        services = _services_of(own_site)
        own_site.hub.kill()
    assert services, "the portal ran"
    eventually(lambda: not _services_of(own_site))
    own_site.hub.start()
    eventually(lambda: own_site.container("alice", "killed") == "")
    eventually(lambda: alice.free_devices() == ["4 of 4"])
    assert alice.launch("killed")[-1]["ready"]
    alice.retire("killed")


def _services_of(site: Site) -> list[str]:
    """Return the processes of a hub's services, whoever is their parent by now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
            if b"ds01_spawner.services." in command and site.name.encode() in environment:
                found.append(process.name)
    return found


def test_a_cancelled_launch_leaves_nothing(site: Site) -> None:
    """Cancel during a build stops the build; no container, no lease, and the next launch works."""
    folder = site.project("henry", "cancelled", dockerfile="FROM ds01/debian:13\nRUN sleep 100\n")
    henry = site.person("henry")
    henry.submit("cancelled")
    for event in henry.progress("cancelled"):
        if "RUN sleep" in event["message"]:
            break
    began = time.monotonic()
    henry.api("DELETE", henry.server_path("cancelled"))
    eventually(lambda: server_name("cancelled") not in henry.servers())
    assert time.monotonic() - began < 30
    eventually(lambda: "sleep 100" not in _host_processes())
    assert site.container("henry", "cancelled") == ""
    (folder / "Dockerfile").write_text("FROM ds01/debian:13\n")
    henry.launch("cancelled", gpus="0")
    henry.retire("cancelled")


def _host_processes() -> str:
    return subprocess.run(["ps", "-ww", "-eo", "args"], check=True, capture_output=True, text=True).stdout


def test_a_container_removed_behind_the_hubs_back_frees_its_device_and_its_user_is_told(site: Site) -> None:
    """An admin's `docker rm` is noticed; the page says what happened and offers to launch again."""
    site.project("iris", "removed")
    iris = site.person("iris")
    free = iris.free_devices()
    iris.launch("removed")
    docker("rm", "--force", container_name("iris", "removed"))
    eventually(lambda: server_name("removed") not in iris.servers())
    assert iris.free_devices() == free
    page = iris.page(f"/hub/user/iris/{server_name('removed')}/").text
    assert "removed outside the hub" in page
    assert "Launch again" in page


def test_a_server_that_dies_tells_its_user_why(site: Site) -> None:
    """Exit code and last lines of a crashed server are on its page."""
    site.project("jack", "crashing")
    jack = site.person("jack")
    jack.launch("crashing", gpus="0")
    docker("kill", container_name("jack", "crashing"))
    eventually(lambda: server_name("crashing") not in jack.servers())
    page = jack.page(f"/hub/user/jack/{server_name('crashing')}/").text
    assert "exit code 137" in page
    assert site.container("jack", "crashing") == "", "a dead container is cleaned up"


def test_a_retired_project_says_so(site: Site) -> None:
    """Somebody who opens an old link learns that the server was retired and that the files are safe."""
    site.project("kate", "old")
    kate = site.person("kate")
    kate.launch("old", gpus="0")
    kate.retire("old")
    assert "files are safe" in kate.page(f"/hub/user/kate/{server_name('old')}/").text


def test_a_foreign_container_of_the_same_name_is_left_alone_and_named(site: Site) -> None:
    """Nobody else's container is ever removed to make room."""
    site.project("liam", "taken")
    liam = site.person("liam")
    name = container_name("liam", "taken")
    docker("create", "--name", name, "ds01/debian:13", "true")
    try:
        with pytest.raises(AssertionError, match="exists already"):
            liam.launch("taken", gpus="0")
        assert docker("inspect", "--format", "{{.State.Status}}", name) == "created"
    finally:
        docker("rm", name)
    liam.launch("taken", gpus="0")
    liam.retire("taken")


BRIDGE = "ds01-private"


class PrivateEngine:
    """A second Docker Engine, which a test may stop; the machine's own is not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {
            "hosts": [self.address],
            "data-root": f"{self.folder}/data",
            "exec-root": f"{self.folder}/exec",
            "pidfile": f"{self.folder}/dockerd.pid",
            # Nothing that the machine's own engine uses may be touched: "none" would remove its docker0.
            "bridge": BRIDGE,
            "iptables": False,
            "ip6tables": False,
        }
        (self.folder / "daemon.json").write_text(json.dumps(settings))
        with (self.folder / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", "--config-file", self.folder / "daemon.json"],
                env={**os.environ, "PATH": f"/opt/ds01-engine/usr/sbin:/opt/ds01-engine/usr/bin:{os.environ['PATH']}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._answers)

    def _answers(self) -> bool:
        asked = ["docker", "--host", self.address, "version"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        """Stop it, as a package upgrade does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None


@pytest.fixture
def private_engine() -> Iterator[PrivateEngine]:
    """An engine of the test's own, with the base image."""
    with ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="ds01-engine-", dir="/var/tmp"))
        subprocess.run(["ip", "link", "add", "name", BRIDGE, "type", "bridge"], check=True)
        undo.callback(subprocess.run, ["ip", "link", "delete", BRIDGE], check=True)
        subprocess.run(["ip", "address", "add", "10.231.231.1/24", "dev", BRIDGE], check=True)
        engine = PrivateEngine(Path(folder))
        undo.callback(engine.stop)
        engine.start()
        image = Path(folder) / "image.tar"
        docker("save", "--output", str(image), "ds01/debian:13")
        docker("--host", engine.address, "load", "--input", str(image))
        yield engine


def test_an_engine_that_is_restarted_loses_no_device_and_serves_again(
    private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the engine is away servers count as running; when it is back, what ended is cleaned up and told."""
    monkeypatch.setenv("DOCKER_HOST", private_engine.address)
    with running_site(DOCKER_HOST=private_engine.address) as site:
        site.project("alice", "engine")
        alice = site.person("alice")
        alice.launch("engine")
        private_engine.stop()
        time.sleep(5)  # a few polls of the hub pass while nothing answers
        assert server_name("engine") in alice.servers()
        refused = alice.api("POST", "/users/alice/servers/other", json={"user_options": {"project": "other"}})
        assert refused.status_code in {400, 503}
        private_engine.start()
        eventually(lambda: server_name("engine") not in alice.servers())
        eventually(lambda: alice.free_devices() == ["4 of 4"])
        assert site.container("alice", "engine") == ""
        alice.launch("engine")
        alice.retire("engine")


def test_a_server_whose_retire_neither_engine_nor_hub_lived_to_see_is_retired_by_the_next_hub(
    private_engine: PrivateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub forgot the server while the engine was away, and was killed before it could make up for that."""
    monkeypatch.setenv("DOCKER_HOST", private_engine.address)
    with running_site(DOCKER_HOST=private_engine.address) as site:
        site.project("alice", "nobodys")
        alice = site.person("alice")
        alice.launch("nobodys")
        private_engine.stop()
        alice.api("DELETE", alice.server_path("nobodys"))
        eventually(lambda: server_name("nobodys") not in alice.servers())
        site.hub.kill()
        private_engine.start()
        assert site.container("alice", "nobodys"), "nobody owns it"
        site.hub.start()
        eventually(lambda: alice.free_devices() == ["4 of 4"])
        assert site.container("alice", "nobodys") == ""


def test_requests_for_impossible_things_are_refused_with_the_accepted_form(site: Site) -> None:
    """user_options of any JSON shape, by any way in, are refused or harmless, and nothing is started."""
    mona = site.person("mona")
    site.project("mona", "shape")
    path = mona.server_path("shape")
    shapes: list[object] = [
        {"project": ".."},
        {"project": "../../etc"},
        {"project": "/"},
        {"project": "$(reboot)"},
        {"project": "-rf"},
        {"project": "a:b"},
        {"project": "x" * 300},
        {"project": "a\nb"},
        {"project": ["shape"]},
        {"project": {"$ne": ""}},
        {"project": None},
        {"project": "shape", "gpus": -1},
        {"project": "shape", "gpus": 10**30},
        {"project": "shape", "gpus": True},
        {"project": "shape", "gpus": "1; drop"},
        {"project": "shape", "image": "evil"},
        {"project": "shape", "tag": "../latest"},
        {},
    ]
    for options in shapes:
        answer = mona.api("POST", path, json={"user_options": options})
        assert answer.status_code in range(400, 500), (options, answer.status_code, answer.text)
        assert answer.json()["message"], options
    for body in ([], "text", 5, {"user_options": []}, {"user_options": "x"}, {"user_options": 7}):
        answer = mona.api("POST", path, json=body)
        assert answer.status_code in range(400, 501), (body, answer.status_code)
    created = requests.codes.created
    assert mona.api("PUT", path, json={"display_name": "shape"}).status_code in {created, requests.codes.conflict}
    mona.api("PATCH", path, json={"user_options": {"gpus": 99, "project": "shape"}})
    answer = mona.api("POST", path)
    assert answer.status_code in range(400, 504), answer.text
    assert mona.servers() == {}
    assert site.container("mona", "shape") == ""
