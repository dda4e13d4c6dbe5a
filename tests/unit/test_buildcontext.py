"""Packing a project's folder with its owner's rights; needs root, to have rights to give up."""

from __future__ import annotations

import asyncio
import os
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds01_spawner.adapters import buildcontext
from ds01_spawner.adapters.buildcontext import PRIVATE_DOCKERFILE, BuildContexts, ContextLimits
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import Contents
from ds01_spawner.core.dockerfile import ContextUse
from ds01_spawner.core.project import Dockerfile
from ds01_spawner.errors import AccountUnavailable, ProjectRefused

UID = 1_234_502
OTHER_UID = 1_234_503
SHARED_GID = 1_234_504
WHOLE = ContextUse(whole_because="it is a test.")
DOCKERFILE = Dockerfile(b"FROM x\n", "~/workspace/project/Dockerfile")
OLD = 1_600_000_000


@dataclass
class Project:
    """A project on disk."""

    folder: Path
    account: Account
    site: Path
    contexts: BuildContexts

    def limit(self, total_bytes: int, file_count: int) -> None:
        """Set other limits."""
        self.contexts = BuildContexts(Workspaces(self.site / "run"), self.site, ContextLimits(total_bytes, file_count))

    def write(self, name: str, text: str = "x", *, mode: int = 0o644, uid: int = UID, at: float = OLD) -> Path:
        """Write a file that has been there for long."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        os.utime(path, (at, at))
        for made in (path, *path.relative_to(self.folder).parents):
            os.chown(self.folder / made, uid, uid)
        return path

    def scan(self, use: ContextUse = WHOLE) -> Contents:
        """Look at the files."""
        return asyncio.run(self.contexts.scan(self.account, "project", DOCKERFILE, use))

    def pack(self, use: ContextUse = WHOLE, dockerfile: Dockerfile = DOCKERFILE) -> dict[str, tarfile.TarInfo]:
        """Pack the files and return the tar's members."""
        return asyncio.run(self._pack(use, dockerfile))

    async def _pack(self, use: ContextUse, dockerfile: Dockerfile) -> dict[str, tarfile.TarInfo]:
        async with self.contexts.pack(self.account, "project", dockerfile, use) as packed:
            with tarfile.open(fileobj=packed.archive) as archive:
                self.texts = {
                    member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                    for member in archive
                    if member.isfile()
                }
                return {member.name: member for member in archive.getmembers()}


@pytest.fixture
def project() -> Iterator[Project]:
    """Make an empty project where its user can enter: pytest's own folder is root's alone."""
    with tempfile.TemporaryDirectory() as name:
        site = Path(name)
        site.chmod(0o711)
        folder = site / "home" / "workspace" / "project"
        folder.mkdir(parents=True)
        for path in (folder, *folder.parents[:2]):
            os.chown(path, UID, UID)
        account = Account("tester", UID, UID, (UID, SHARED_GID), site / "home")
        yield Project(folder, account, site, BuildContexts(Workspaces(site / "run"), site))


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_tar(project: Project) -> None:
    """Files keep name, mode and content; owners are left out; the Dockerfile is the text that was read."""
    project.write("a b/ü.sh", "echo", mode=0o755)
    project.write("Dockerfile", "FROM changed-meanwhile")
    (project.folder / "empty").mkdir()
    (project.folder / "link").symlink_to("/etc/passwd")
    members = project.pack()
    assert set(members) == {"Dockerfile", "a b", "a b/ü.sh", "empty", "link"}
    assert project.texts == {"Dockerfile": b"FROM x\n", "a b/ü.sh": b"echo"}
    assert members["a b/ü.sh"].mode == 0o755
    assert members["link"].issym()
    assert members["link"].linkname == "/etc/passwd"
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members.values()} == {(0, 0, "", "")}


def test_names_that_are_not_utf8(project: Project) -> None:
    """A file whose name is no text is sent under that name."""
    raw = os.fsencode(project.folder) + b"/bad\xff"
    Path(os.fsdecode(raw)).write_text("x")
    os.chown(raw, UID, UID)
    assert os.fsdecode(b"bad\xff") in project.pack()
    assert project.scan().file_count == 1


def test_dockerfile_from_elsewhere(project: Project) -> None:
    """A Dockerfile of ~/dockerfiles gets a name of its own beside the folder's files."""
    project.write("Dockerfile.old")
    members = project.pack(dockerfile=Dockerfile(b"FROM y", "~/dockerfiles/project.Dockerfile"))
    assert set(members) == {PRIVATE_DOCKERFILE, "Dockerfile.old"}
    assert project.texts[PRIVATE_DOCKERFILE] == b"FROM y"


def test_own_ignore_file_wins(project: Project) -> None:
    """`Dockerfile.dockerignore` is used instead of `.dockerignore`, as BuildKit does."""
    project.write(".dockerignore", "a")
    project.write("a")
    project.write("b")
    assert "b" in project.pack()
    project.write("Dockerfile.dockerignore", "b")
    assert {"a", "b"} & set(project.pack()) == {"a"}


def test_no_devices(project: Project) -> None:
    """FIFOs, sockets and devices are left out with a note, and none of them is opened."""
    os.mkfifo(project.folder / "fifo")
    os.mknod(project.folder / "device", 0o600 | 0o020000, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(project.folder / "socket"))
        project.write("a")
        assert set(project.pack()) == {"Dockerfile", "a"}
        assert set(project.scan().skipped) == {"fifo", "device", "socket"}


def test_nothing_stays_behind(project: Project) -> None:
    """The packed archive has no name on disk, and is gone after use."""
    project.write("a")
    before = set(project.site.iterdir())
    project.pack()
    assert set(project.site.iterdir()) == before


# -- rights -----------------------------------------------------------------------------------------------------------


def test_reads_with_the_users_rights(project: Project) -> None:
    """A file that its owner cannot read is not read, though the hub could; the refusal names it."""
    project.write("secret", mode=0o600, uid=0)
    os.chown(project.folder, UID, UID)
    for look in (project.scan, project.pack):
        with pytest.raises(ProjectRefused, match=r"'secret' .*Permission denied.*dockerignore"):
            look()
    project.write(".dockerignore", "secret")
    assert "secret" not in project.pack()


def test_unreadable_folder(project: Project) -> None:
    """The same for a folder; one that is left out need not be readable."""
    project.write("private/a", uid=0).parent.chmod(0o700)
    os.chown(project.folder, UID, UID)
    with pytest.raises(ProjectRefused, match=r"'private' .*Permission denied"):
        project.scan()
    assert project.scan(ContextUse(sources=("a",))).file_count == 0


def test_groups_count(project: Project) -> None:
    """What the user may read through a group is read."""
    path = project.write("shared", mode=0o640, uid=OTHER_UID)
    os.chown(path, OTHER_UID, SHARED_GID)
    os.chown(project.folder, UID, UID)
    assert "shared" in project.pack()


def test_links_are_not_followed_out(project: Project) -> None:
    """A link to a folder elsewhere is sent as a link, also where it is a source of COPY; nothing behind it is read."""
    outside = project.site / "outside"
    outside.mkdir()
    (outside / "a").write_text("outside")
    (project.folder / "link").symlink_to(outside)
    (project.folder / "up").symlink_to("../../../outside")
    for use in (WHOLE, ContextUse(sources=("link/a", "up/a", "link", "*/a"))):
        assert set(project.pack(use)) == {"Dockerfile", "link", "up"}


def test_a_folder_that_becomes_a_link(project: Project) -> None:
    """A folder that is swapped for a link again and again never brings in what the link leads to."""
    outside = project.site / "outside"
    outside.mkdir()
    (outside / "a").write_text("outside")
    project.write("sub/a", "inside")
    stop = threading.Event()

    def swap() -> None:
        link = project.folder / "swapped"
        while not stop.is_set():
            with suppress(OSError):
                link.symlink_to(outside)
                os.rename(project.folder / "sub", project.folder / "kept")  # noqa: PTH104
                os.rename(link, project.folder / "sub")  # noqa: PTH104
                os.rename(project.folder / "sub", link)  # noqa: PTH104
                os.rename(project.folder / "kept", project.folder / "sub")  # noqa: PTH104
                link.unlink()

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(15):
            project.pack()
            assert b"outside" not in project.texts.values()
    finally:
        stop.set()
        swapper.join()


@pytest.mark.parametrize("moment", ["contextpacker.pack", "contextfolder.open_folder"])
def test_a_folder_swapped_at_the_worst_moment(project: Project, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A folder that is swapped for a link after it was looked at, and before it is opened, is not followed."""
    outside = project.site / "outside"
    outside.mkdir()
    (outside / "a").write_text("outside")
    project.write("sub/a", "inside!")
    script = buildcontext._BOOTSTRAP.replace(
        "contextpacker.main()",
        "import os\n"
        "from ds01_spawner.adapters import contextfolder\n"
        f"original = {moment}\n"
        "def swap(*arguments):\n"
        "    if arguments[0] != '.' and not os.path.islink('sub'):\n"
        "        os.rename('sub', 'kept')\n"
        f"        os.symlink({str(outside)!r}, 'sub')\n"
        "    return original(*arguments)\n"
        f"{moment} = swap\n"
        "contextpacker.main()",
    )
    monkeypatch.setattr(buildcontext, "_BOOTSTRAP", script)
    members = project.pack()
    assert (project.folder / "sub").is_symlink(), "the swap did not happen"
    assert "sub/a" not in members
    assert b"outside" not in project.texts.values()


def test_the_child_is_nobody_but_the_user(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it reads, the child has the user's ids, the user's groups and no capability, and cannot be traced."""
    script = buildcontext._BOOTSTRAP.replace(
        "contextpacker.main()",
        "import os\n"
        "original = contextpacker.Folder.list\n"
        "def spy(self, selection):\n"
        "    status = open('/proc/self/status').read()\n"
        "    self.notices.append(status + f'maps belong to {os.stat(\"/proc/self/maps\").st_uid}')\n"
        "    return original(self, selection)\n"
        "contextpacker.Folder.list = spy\n"
        "contextpacker._NAMED = 1\n"
        "contextpacker.main()",
    )
    monkeypatch.setattr(buildcontext, "_BOOTSTRAP", script)
    monkeypatch.setattr(buildcontext, "_PATH_CHARACTERS", 10_000)
    (status,) = project.scan().skipped
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert facts["Uid"].split() == [str(UID)] * 4
    assert facts["Gid"].split() == [str(UID)] * 4
    assert set(facts["Groups"].split()) == {str(UID), str(SHARED_GID)}
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    assert facts["NoNewPrivs"].strip() == "1"
    assert status.endswith("maps belong to 0"), "the memory of a process that may be traced belongs to its user"


# -- limits -----------------------------------------------------------------------------------------------------------


def test_too_many_files(project: Project) -> None:
    """More files than allowed are refused with the numbers, the largest folder, and lines for .dockerignore."""
    project.limit(10**9, 50)
    for number in range(100):
        project.write(f"data/{number}")
    project.write("big.bin", "x" * 1000)
    for look in (project.scan, project.pack):
        with pytest.raises(ProjectRefused, match=r"in 102 files .* in 50 files.*Largest: data/ .*101 files.*: “data”"):
            look()
    project.write(".dockerignore", "data")
    assert project.scan().file_count == 2


def test_too_many_bytes(project: Project) -> None:
    """The same for bytes; a sparse file counts with its size."""
    project.limit(2**20, 50)
    path = project.write("ckpt/model.bin")
    os.truncate(path, 5 * 2**30)
    began = time.monotonic()
    with pytest.raises(ProjectRefused, match=r"5\.0 GiB in 2 files .* 1\.0 MiB in 50 files.*ckpt/ \(5\.0 GiB"):
        project.scan()
    assert time.monotonic() - began < 5
    assert project.scan(ContextUse(sources=("a",))) == Contents()


def test_what_is_named_is_measured_alone(project: Project) -> None:
    """Only what the Dockerfile can read counts against the limits."""
    project.limit(100, 5)
    project.write("requirements.txt", "six")
    project.write("data/huge", "x" * 1000)
    assert project.scan(ContextUse(sources=("requirements.txt",))).total_bytes == 3


def test_deep_folders(project: Project) -> None:
    """Folders nested without end are refused."""
    folder = project.folder
    for _ in range(250):
        folder = folder / "d"
        folder.mkdir()
    with pytest.raises(ProjectRefused, match="nested more than 200"):
        project.scan()


def test_bad_ignore_file(project: Project) -> None:
    """A .dockerignore that is no list of patterns is named, and a FIFO in its place does not make us wait."""
    project.write(".dockerignore", "[")
    with pytest.raises(ProjectRefused, match=r"'\.dockerignore' cannot be used"):
        project.scan()
    (project.folder / ".dockerignore").unlink()
    os.mkfifo(project.folder / ".dockerignore")
    os.chown(project.folder / ".dockerignore", UID, UID)
    with pytest.raises(ProjectRefused, match="not a regular file"):
        project.scan()


def test_a_folder_that_does_not_answer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes too long ends with a refusal, and its process is gone."""
    monkeypatch.setattr(buildcontext, "SCAN_SECONDS", 0.3)
    monkeypatch.setattr(buildcontext, "_BOOTSTRAP", "import sys, time\ntime.sleep(60)")
    with pytest.raises(AccountUnavailable, match="within 0 seconds"):
        project.scan()


def test_a_child_that_dies(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends without an answer is a fault that says what it said."""
    monkeypatch.setattr(buildcontext, "_BOOTSTRAP", "raise SystemExit('out of luck')")
    with pytest.raises(AccountUnavailable, match="out of luck"):
        project.scan()


def test_an_archive_larger_than_listed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that sends more than it may is stopped, whatever it claims."""
    project.limit(1000, 1)
    monkeypatch.setattr(
        buildcontext, "_BOOTSTRAP", "import sys\nsys.stdin.read()\nwhile True: sys.stdout.buffer.write(bytes(10**6))"
    )
    with pytest.raises(AccountUnavailable, match="larger than what was listed"):
        project.pack()


# -- the digest -------------------------------------------------------------------------------------------------------


def test_digest(project: Project) -> None:
    """Content, mode, name and link target are in the digest; times, owners and the way of looking are not."""
    path = project.write("a", "1")
    first = project.scan().digest
    assert project.scan().digest == first
    os.utime(path, (OLD + 5, OLD + 5))
    os.chown(path, OTHER_UID, UID)
    assert project.scan().digest == first
    seen = {first}
    for change in (
        lambda: project.write("a", "2"),
        lambda: path.chmod(0o600),
        lambda: path.rename(project.folder / "b"),
        lambda: (project.folder / "l").symlink_to("x"),
        lambda: ((project.folder / "l").unlink(), (project.folder / "l").symlink_to("y")),
        (project.folder / "d").mkdir,
    ):
        change()
        os.chown(project.folder, UID, UID)
        digest = project.scan().digest
        assert digest not in seen
        seen.add(digest)


def test_digest_of_nothing(project: Project) -> None:
    """A folder with nothing but the Dockerfile has the digest of no files, and the Dockerfile's text is no file."""
    assert project.scan() == Contents()
    project.write("Dockerfile", "anything")
    assert project.scan() == Contents()


def test_packed_is_what_was_scanned(project: Project) -> None:
    """Packing says the digest that looking said."""
    project.write("a/b", "1")
    project.write("c", "2")

    async def packed() -> Contents:
        async with project.contexts.pack(project.account, "project", DOCKERFILE, WHOLE) as context:
            return context.contents

    assert asyncio.run(packed()) == project.scan()


def test_an_unchanged_file_is_not_read_again(project: Project) -> None:
    """The second look at a large file takes its hash from the first; an edit that hides size and time is seen."""
    path = project.write("big")
    os.truncate(path, 300 * 2**20)
    os.utime(path, (OLD, OLD))
    time.sleep(2.1)  # a file that changed just now is not remembered
    began = time.monotonic()
    first = project.scan().digest
    took = time.monotonic() - began
    began = time.monotonic()
    assert project.scan().digest == first
    assert time.monotonic() - began < took / 2
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, (OLD, OLD))
    assert project.scan().digest != first


def test_changes_while_packing(project: Project) -> None:
    """Files that grow, shrink, vanish and become something else leave a sound tar."""
    for number in range(40):
        project.write(f"f{number:02}", "x" * 200_000)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(40):
                path = project.folder / f"f{number:02}"
                with suppress(OSError):
                    (os.truncate(path, 10), path.write_text("y" * 300_000), path.unlink(), os.mkfifo(path))
                    (path.unlink(), path.mkdir(), path.rmdir(), path.write_text("x"))
                    os.chown(path, UID, UID)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(8):
            with suppress(ProjectRefused):  # root's file, for a moment
                assert "Dockerfile" in project.pack()
    finally:
        stop.set()
        changer.join()
