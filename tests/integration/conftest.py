"""A real hub, with a real proxy and a real engine, and the people who use it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import container_name
from ds01_spawner.testing.hub import Hub, running
from ds01_spawner.testing.person import Person

CONFIG = Path(__file__).with_name("hub_config.py")
RUNTIME = Path("/var/cache/ds01-tests/runtime")
"""Kept between runs: package sets are the same for every hub."""


@dataclass
class Site:
    """A running hub and its people.

    Attributes:
        hub: the hub's process.
        name: the hub's name in labels, and its network's.
        people_folder: where the people's homes are.
        password: everybody's.
    """

    hub: Hub
    name: str
    people_folder: Path
    password: str
    _people: dict[str, Person] = field(default_factory=dict)

    def person(self, user: str) -> Person:
        """Return a person who is logged in."""
        if user not in self._people:
            self._people[user] = Person(self.hub.url, user).log_in(self.password)
        return self._people[user]

    def account(self, user: str) -> Account:
        """Return a person's account."""
        return FolderAccounts(self.people_folder).find(user)

    def project(self, user: str, name: str, dockerfile: str = "", **files: str) -> Path:
        """Make a project folder with files, owned by the person."""
        account = self.account(user)
        folder = account.home / "workspace" / name
        folder.mkdir(exist_ok=True)
        contents = {"Dockerfile": dockerfile, **files} if dockerfile else files
        for path, text in contents.items():
            (folder / path).write_text(text)
        for path in [folder, *folder.rglob("*")]:
            os.lchown(path, account.uid, account.gid)
        return folder

    def container(self, user: str, project: str, shown: str = "{{.State}}") -> str:
        """Return what the engine says of a project's container, empty when there is none."""
        wanted = ["docker", "ps", "--all", "--no-trunc", "--filter", f"label=ds01.hub={self.name}"]
        listed = docker(*wanted[1:], "--format", "{{.Names}}\t" + shown)
        lines = dict(line.split("\t", 1) for line in listed.splitlines())
        return lines.get(container_name(user, project), "")


def docker(*arguments: str) -> str:
    """Run a docker command and return its output."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _free_ports() -> int:
    """Return the first of three neighbouring ports that nobody uses."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        try:
            for offset in (1, 2):
                socket.create_server(("127.0.0.1", port + offset)).close()
        except OSError:
            continue
        return port


@contextmanager
def running_site(config: Path = CONFIG, **environment: str) -> Iterator[Site]:
    """Run a hub of its own for the block, and take away everything of it at the end.

    Nothing stays for the tests that follow: a server left running would keep its processor time and its device.

    Args:
        config: the hub's configuration file.
        environment: on top of what every hub of the tests is told.
    """
    if os.geteuid() != 0:
        pytest.skip("the hub acts for several people: run the tests as root")
    folder = Path(tempfile.mkdtemp(prefix="ds01-tests-", dir="/var/tmp"))
    folder.chmod(0o755)  # people reach their homes through it
    port, name, password = _free_ports(), f"ds01-tests-{secrets.token_hex(3)}", secrets.token_hex(8)
    hub = Hub(
        config=config,
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        environment={
            "DS01_TEST_HUB": name,
            "DS01_TEST_PASSWORD": password,
            "DS01_TEST_RUNTIME": str(RUNTIME),
            **environment,
        },
    )
    try:
        with running(hub):
            yield Site(hub, name, folder / "people", password)
    finally:
        _take_away(name)
        shutil.rmtree(folder, ignore_errors=True)


def _take_away(name: str) -> None:
    """Remove the containers, network and mounts of a hub."""
    left = docker("ps", "--all", "--quiet", "--filter", f"label=ds01.hub={name}").split()
    if left:
        docker("rm", "--force", "--volumes", *left)
    subprocess.run(["docker", "network", "rm", name], capture_output=True, check=False)
    run_dir = Path("/run/ds01") / name
    workspaces = Workspaces(run_dir)
    for mounted in workspaces.mounted():
        workspaces.unmount(mounted)
    if run_dir.exists():
        run_dir.rmdir()


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """One running site, shared by the tests that do not stop or break its hub."""
    with running_site() as shared:
        yield shared


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """Show the end of the hub's log with every failure that had a hub."""
    report = yield
    found = getattr(item, "funcargs", {})
    used = found.get("site") or found.get("own_site")
    if report.failed and isinstance(used, Site):
        report.sections.append(("the hub's log", "\n".join(used.hub.log.splitlines()[-60:])))
    return report
