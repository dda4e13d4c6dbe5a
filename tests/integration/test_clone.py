"""Repositories are really cloned: over HTTPS, from a host of its own, by git, with the person's own rights."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds01_spawner.adapters import gitclone
from ds01_spawner.adapters.accounts import FolderAccounts
from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core import scaffold
from ds01_spawner.core.account import Account
from ds01_spawner.core.packages import Packages
from ds01_spawner.core.scaffold import Base, Plan
from ds01_spawner.errors import InvalidOptions, ProjectRefused
from ds01_spawner.services.portal.creation import create

from .conftest import docker

pytestmark = pytest.mark.engine

SERVER = Path(__file__).with_name("gitserver.py")
OLD_COMMIT = (
    "tree {tree}\nauthor A <a@example.org> 1300000000 +051800\ncommitter A <a@example.org> 1300000000 +051800\n\nold\n"
)


@dataclass
class Host:
    """A host of repositories.

    Attributes:
        url: its address.
        folder: its repositories.
        people: the homes of those who clone.
    """

    url: str
    folder: Path
    people: Path

    def account(self) -> Account:
        """Return somebody new."""
        return FolderAccounts(self.people).find(f"u{secrets.token_hex(4)}")

    def publish(self, name: str, **files: str) -> None:
        """Make a repository with these files: ``->`` at the beginning of a text makes a link, ``@`` a submodule."""
        with tempfile.TemporaryDirectory() as work:
            git(work, "init", "--quiet", "--initial-branch=main")
            for path, text in files.items():
                where = Path(work, path.replace("__", "."))
                where.parent.mkdir(parents=True, exist_ok=True)
                if text.startswith("@"):
                    git(work, "clone", "--quiet", text[1:], str(where))
                elif text.startswith("->"):
                    where.symlink_to(text[2:])
                else:
                    where.write_text(text)
            git(work, "add", "--all", "--force")
            git(work, "commit", "--quiet", "--message", "first")
            git(work, "clone", "--quiet", "--bare", ".", str(self.folder / name))


def git(folder: str | Path, *words: str, **options: Any) -> str:
    """Run git as a repository's author."""
    who = ["-c", "user.name=Author", "-c", "user.email=author@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True, **options)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A container with this host's git and an address that is not this host's; its certificate is trusted below."""
    if os.geteuid() != 0:
        pytest.skip("git acts for several people: run the tests as root")
    folder = Path(tempfile.mkdtemp(prefix="ds01-tests-", dir="/var/tmp"))
    folder.chmod(0o755)
    pem, python = folder / "host.pem", os.path.realpath(sys.executable)
    # Started first, so that its address can be written into its certificate.
    command = f"until [ -s /host{pem} ]; do sleep 0.1; done; exec chroot /host {python} {SERVER} {folder}/served {pem}"
    container = docker("run", "--detach", "--volume", "/:/host:ro", "ds01/debian:13", "sh", "-c", command)
    try:
        address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container)
        certify(pem, address)
        (folder / "served").mkdir()
        people = folder / "people"
        people.mkdir(mode=0o755)
        until_it_answers(address)
        yield Host(f"https://{address}", folder / "served", people)
    finally:
        docker("rm", "--force", container)
        shutil.rmtree(folder)


def certify(pem: Path, address: str) -> None:
    """Make a certificate that nobody but these tests trusts."""
    key, certificate = pem.with_suffix(".key"), pem.with_suffix(".crt")
    subject = ("-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}", "-days", "2")
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject)
    subprocess.run(make, check=True, capture_output=True)
    whole = pem.with_suffix(".new")
    whole.write_text(key.read_text() + certificate.read_text())
    whole.rename(pem)


def until_it_answers(address: str) -> None:
    """Return once the host serves."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, 443), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the host of repositories does not answer"
            time.sleep(0.1)
        else:
            return


@pytest.fixture(autouse=True)
def trusting_git(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine's git trust the test's certificate, as a site's does its own: what is tested has no switch."""
    folder = host.people.parent / "bin"
    folder.mkdir(exist_ok=True)
    wrapper = folder / "git"
    certificate = host.people.parent / "host.crt"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("git")} -c http.sslCAInfo={certificate} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@contextmanager
def project(host: Host, account: Account) -> Iterator[tuple[int, Path]]:
    """An empty project folder of somebody's, opened."""
    workspaces = Workspaces(host.people.parent / "run")
    workspaces.create_project_folder(account, "thesis")
    folder = workspaces.open_project(account, "thesis")
    try:
        yield folder, account.home / "workspace/thesis"
    finally:
        os.close(folder)


def clone(host: Host, url: str) -> tuple[Path, Account]:
    """Clone into a new project of a new person."""
    account = host.account()
    with project(host, account) as (folder, path):
        asyncio.run(gitclone.clone(account, folder, url))
    return path, account


def plan() -> Plan:
    """Return what the New project page makes of a small form."""
    return Plan("thesis", scaffold.KINDS["custom"], Base("b", "ds01/python:13", "Python"), Packages(), "", "2026-01-01")


def create_from(host: Host, repository: str) -> tuple[str, Path]:
    """Press Create on the New project page; return what the page says is missing, and the folder."""
    account = host.account()
    parts: Any = SimpleNamespace(workspaces=Workspaces(host.people.parent / "run"), threads=UserThreads())
    return asyncio.run(create(parts, account, plan(), repository)), account.home / "workspace/thesis"


def test_a_repository_becomes_a_project_of_its_owner(host: Host) -> None:
    """Everything in it belongs to the person, git works in it, what it brings is kept and what it lacks is added."""
    host.publish("plain.git", **{"README.md": "theirs\n", "src/a.py": "x = 1\n"})
    missing, folder = create_from(host, f"{host.url}/plain.git")
    assert missing == ""
    assert (folder / "README.md").read_text() == "theirs\n"
    assert (folder / "src/a.py").read_text() == "x = 1\n"
    assert "FROM ds01/python:13" in (folder / "Dockerfile").read_text()
    owner = folder.stat().st_uid
    assert owner != 0
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {owner}
    assert git(folder, "-c", f"safe.directory={folder}", "log", "--format=%s") == "first"


def test_a_hostile_repository_gets_no_further_than_its_owner(host: Host) -> None:
    """Links stay links, no submodule is fetched, no hook of it runs, and the page says what is wrong with it."""
    witness = host.people.parent / "it-ran"
    host.publish("inner.git", inner="x")
    host.publish(
        "hostile.git",
        **{
            "Dockerfile": "->/etc/shadow",
            "__gitmodules": f'[submodule "s"]\n\tpath = s\n\turl = file://{host.folder}/inner.git\n',
            "s": f"@{host.folder}/inner.git",
            "hooks/post-checkout": f"#!/bin/sh\ntouch {witness}\n",
            "__git-hooks/post-checkout": f"#!/bin/sh\ntouch {witness}\n",
            "__gitattributes": "* filter=evil\n",
            "README.md": "->../../../../etc/passwd",
        },
    )
    missing, folder = create_from(host, f"{host.url}/hostile.git")
    assert missing.startswith("The project was created, but the repository's Dockerfile cannot be used. ")
    assert (folder / "Dockerfile").is_symlink()
    assert (folder / "README.md").is_symlink()
    assert list((folder / "s").iterdir()) == []
    assert not witness.exists()
    assert git(folder, "-c", f"safe.directory={folder}", "config", "--local", "--list").count("\n") < 10


@pytest.mark.parametrize("url", ["file:///etc", "ext::sh -c id", "-u/bin/id", "https://user:pass@example.org/x"])
def test_other_ways_to_name_a_repository_start_nothing(host: Host, url: str) -> None:
    """The adapter itself refuses them, whatever page asked."""
    with pytest.raises(InvalidOptions, match="HTTPS"):
        clone(host, url)


def test_what_was_moved_is_not_followed(host: Host) -> None:
    """A redirect could lead anywhere, this host included; git says where it wanted to go."""
    with pytest.raises(ProjectRefused, match=r"could not be cloned.*git says"):
        clone(host, f"{host.url}/moved")


def test_a_private_repository_asks_nobody_for_a_password(host: Host) -> None:
    """It fails at once and says what to do."""
    began = time.monotonic()
    with pytest.raises(ProjectRefused, match="only public ones"):
        clone(host, f"{host.url}/private")
    assert time.monotonic() - began < 10


def test_a_repository_that_is_not_there_leaves_a_project_without_it(host: Host) -> None:
    """The project is made all the same, and the page says what git said."""
    missing, folder = create_from(host, f"{host.url}/nothing.git")
    assert missing.startswith("The project was created without the repository. ")
    assert "not found" in missing
    assert (folder / "Dockerfile").exists()
    assert not (folder / ".git").exists()


def test_a_host_that_never_answers_ends_with_the_time_limit(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half repository and no process is left."""
    monkeypatch.setattr(gitclone, "SECONDS_MAX", 1.5)
    account = host.account()
    with project(host, account) as (folder, path):
        with pytest.raises(ProjectRefused, match="within 2 seconds"):
            asyncio.run(gitclone.clone(account, folder, f"{host.url}/silent.git"))
        assert list(path.iterdir()) == []
    assert f"{host.url}/silent" not in subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=True).stdout


def test_nothing_is_cloned_from_an_address_of_this_host(host: Host) -> None:
    """The bridge's gateway is this host, as loopback is, by name or number."""
    gateway = docker("network", "inspect", "--format", "{{range .IPAM.Config}}{{.Gateway}}{{end}}", "bridge")
    for name in (gateway, "127.0.0.1", "localhost", "169.254.169.254"):
        with pytest.raises(ProjectRefused, match="this server or its neighbourhood"):
            clone(host, f"https://{name}/plain.git")


def test_a_proxy_opens_no_way_to_this_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither through the proxy, nor past it by an exception that the site made for its own hosts."""
    monkeypatch.setenv("https_proxy", "http://192.0.2.9:3128")
    for exceptions in ("", "localhost"):
        monkeypatch.setenv("no_proxy", exceptions)
        with pytest.raises(ProjectRefused, match="this server or its neighbourhood"):
            clone(host, "https://localhost/plain.git")


def test_old_mistakes_in_a_history_are_no_hindrance(host: Host) -> None:
    """A time zone that cannot be is in the history of many a well-known project."""
    host.publish("old.git", a="1")
    served = host.folder / "old.git"
    commit = OLD_COMMIT.format(tree=git(served, "rev-parse", "HEAD^{tree}"))
    found = git(served, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", input=commit)
    git(served, "update-ref", "refs/heads/main", found)
    path, _ = clone(host, f"{host.url}/old.git")
    assert (path / "a").read_text() == "1"
