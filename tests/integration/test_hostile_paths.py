"""What a user can put in the place of a workspace, a project or a Dockerfile: none of it reaches anything else.

Everything here is done with real owners on a real file system, as root; elsewhere the tests are skipped and say so.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import pytest

from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import project_path
from ds01_spawner.errors import DS01Error, ProjectRefused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files get other owners, projects are mounted")

ALICE_UID, BOB_UID = 2_147_483_646, 2_147_483_647
RACE_SECONDS = 1
RACE_SECONDS_MAX = 15  # on a machine that is busy with other things
SECRET = b"somebody's secret"


@pytest.fixture
def homes() -> Iterator[Path]:
    """A folder that everybody may enter, as ``/home`` is; pytest's own is closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="ds01-hostile-"))
    folder.chmod(0o755)
    yield folder
    for mount in (folder / "run").glob("*"):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    shutil.rmtree(folder)


@pytest.fixture
def workspaces(homes: Path) -> Workspaces:
    """The adapter with a place for mounts of its own."""
    return Workspaces(homes / "run")


def _person(homes: Path, name: str, uid: int, mode: int) -> Account:
    home = homes / name
    home.mkdir()
    home.chmod(mode)
    os.chown(home, uid, uid)
    account = Account(name, uid, uid, (uid,), home)
    files = Workspaces(homes / "run")
    files.create_project_folder(account, "thesis")
    files.write_file(account, project_path("thesis") / "data", b"kept", mode=0o600)
    files.write_file(account, PurePosixPath(".ssh/id_ed25519"), SECRET, mode=0o600)
    return account


@pytest.fixture
def alice(homes: Path) -> Account:
    """The attacker: every file below her home is hers to change."""
    return _person(homes, "alice", ALICE_UID, 0o700)


@pytest.fixture(params=[0o700, 0o777], ids=["closed", "open"])
def bob(homes: Path, request: pytest.FixtureRequest) -> Account:
    """The victim: with a closed home, and with one so open that his rights alone would not protect him."""
    account = _person(homes, "bob", BOB_UID, request.param)
    for folder in (account.home / "workspace", account.home / "workspace" / "thesis"):
        folder.chmod(request.param)
    return account


def _thesis(account: Account) -> Path:
    return account.home / "workspace" / "thesis"


def _dockerfile(account: Account) -> Path:
    return _thesis(account) / "Dockerfile"


def _replace_by_link(path: Path, target: str | Path, owner: Account) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(path.name + ".aside"))
    path.symlink_to(target)
    os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def _every_use(workspaces: Workspaces, account: Account) -> dict[str, Callable[[], object]]:
    """Everything the hub does with a project's folder."""
    return {
        "open": lambda: workspaces.open_project(account, "thesis"),
        "mount": lambda: workspaces.mount(account, "thesis", "thesis._.alice"),
        "read": lambda: workspaces.read_dockerfile(account, "thesis"),
        "write": lambda: workspaces.write_file(account, project_path("thesis") / "new", b"x"),
    }


def _refused(use: Callable[[], object], deadline_seconds: float = 10) -> str:
    """Return the text of the refusal, which must come at once."""
    texts: list[str] = []

    def run() -> None:
        try:
            texts.append(f"NOT REFUSED: {use()!r}")
        except ProjectRefused as refusal:
            texts.append(str(refusal))
        except Exception as error:  # noqa: BLE001 -- shown by the assertion
            texts.append(f"ANOTHER ERROR: {error!r}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_seconds)
    assert texts, "it hangs"
    assert not texts[0].startswith(("NOT REFUSED", "ANOTHER ERROR")), texts[0]
    return texts[0]


def _everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


# -- links and owners ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["workspace", "workspace/thesis"])
@pytest.mark.parametrize("target", ["/", "bob", "bob's thesis", "own folder", "/proc/self/root", "loop", "nowhere"])
@pytest.mark.parametrize("use", ["open", "mount", "read", "write"])
def test_a_link_in_the_place_of_a_folder_is_refused(
    homes: Path, workspaces: Workspaces, alice: Account, bob: Account, *, component: str, target: str, use: str
) -> None:
    """Wherever it leads, even to the user's own files: the refusal names the path and the way out; nothing changes."""
    targets: dict[str, str | Path] = {
        "bob": bob.home,
        "bob's thesis": _thesis(bob),
        "own folder": alice.home / ".ssh",
        "loop": "thesis",
    }
    _replace_by_link(alice.home / component, targets.get(target, target), alice)
    before = _everything(homes)
    text = _refused(_every_use(workspaces, alice)[use])
    assert f"~/{component} is a symbolic link" in text
    assert "Replace it by a folder" in text
    assert _everything(homes) - {str(homes / "run")} == before - {str(homes / "run")}
    assert workspaces.mounted() == ()


def test_a_linked_workspace_lists_nothing(workspaces: Workspaces, alice: Account, bob: Account) -> None:
    """The names of somebody else's projects are not shown either."""
    _replace_by_link(alice.home / "workspace", bob.home / "workspace", alice)
    assert "symbolic link" in _refused(lambda: workspaces.list_projects(alice))


def test_a_linked_project_is_not_listed(workspaces: Workspaces, alice: Account, bob: Account) -> None:
    """Only folders of the user's own are offered."""
    (alice.home / "workspace" / "link").symlink_to(bob.home)
    assert workspaces.list_projects(alice) == ("thesis",)


@pytest.mark.parametrize("owner", [BOB_UID, 0])
@pytest.mark.parametrize("component", ["workspace", "workspace/thesis"])
@pytest.mark.parametrize("use", ["open", "mount", "read", "write"])
def test_a_folder_of_somebody_else_is_refused(
    workspaces: Workspaces, alice: Account, component: str, owner: int, use: str
) -> None:
    """Even one that is open to everybody: the refusal says whose it is."""
    os.chown(alice.home / component, owner, owner)
    (alice.home / component).chmod(0o777)
    text = _refused(_every_use(workspaces, alice)[use])
    assert f"~/{component} belongs to user id {owner}, not to you" in text
    if component == "workspace/thesis":
        assert workspaces.list_projects(alice) == ()


@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "device"])
def test_something_else_in_the_place_of_a_project_is_refused(workspaces: Workspaces, alice: Account, kind: str) -> None:
    """At once: opening does not wait for a writer and does not touch a device."""
    _thesis(alice).rename(alice.home / "aside")
    _make_special(_thesis(alice), kind, alice)
    for use in _every_use(workspaces, alice).values():
        assert "~/workspace/thesis is a" in _refused(use)


def _make_special(path: Path, kind: str, owner: Account) -> None:
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 9))
    os.chown(path, owner.uid, owner.gid)


# -- Dockerfiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["workspace/thesis/Dockerfile", "dockerfiles/thesis.Dockerfile"])
@pytest.mark.parametrize("target", ["/etc/shadow", "/etc/passwd", "bob's key", "own key", "/dev/zero", "nowhere"])
def test_a_linked_dockerfile_is_refused(
    workspaces: Workspaces, alice: Account, bob: Account, place: str, target: str
) -> None:
    """Neither the host's files nor anybody's, her own included, are read through a link."""
    targets = {"bob's key": bob.home / ".ssh/id_ed25519", "own key": alice.home / ".ssh/id_ed25519"}
    workspaces.write_file(alice, PurePosixPath(place).with_name("neighbour"), b"")
    _replace_by_link(alice.home / place, targets.get(target, target), alice)
    text = _refused(lambda: workspaces.read_dockerfile(alice, "thesis"))
    assert f"~/{place} is a symbolic link" in text
    assert "Replace it by a regular file" in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [("fifo", "a named pipe"), ("socket", "a socket"), ("device", "a device"), ("folder", "a folder")],
)
def test_a_dockerfile_that_is_no_file_is_refused_at_once(
    workspaces: Workspaces, alice: Account, kind: str, words: str
) -> None:
    """A pipe without a writer does not hold up the hub, and an endless device does not fill it."""
    _make_special(_dockerfile(alice), kind, alice)
    text = _refused(lambda: workspaces.read_dockerfile(alice, "thesis"))
    assert f"~/workspace/thesis/Dockerfile is {words}" in text


def test_a_pipe_in_the_place_of_a_dockerfile_is_not_even_opened(workspaces: Workspaces, alice: Account) -> None:
    """A writer that waits for a reader goes on waiting: looking has no effect."""
    _make_special(_dockerfile(alice), "fifo", alice)
    writer = os.open(_dockerfile(alice), os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(writer, b"FROM x")
        _refused(lambda: workspaces.read_dockerfile(alice, "thesis"))
        assert select.select([writer], [], [], 0)[0] == [writer]
        assert os.read(writer, 100) == b"FROM x"
    finally:
        os.close(writer)


def test_a_hard_link_to_somebody_elses_file_is_refused(
    workspaces: Workspaces, alice: Account, bob: Account, homes: Path
) -> None:
    """Where the kernel allows them, hard links have no mark but their owner."""
    shadow = homes / "shadow"
    shadow.write_bytes(SECRET)
    for victim in (shadow, bob.home / ".ssh/id_ed25519"):
        victim.chmod(0o644)
        _dockerfile(alice).unlink(missing_ok=True)
        os.link(victim, _dockerfile(alice))
        text = _refused(lambda: workspaces.read_dockerfile(alice, "thesis"))
        assert "belongs to user id" in text


def test_a_leased_dockerfile_does_not_hold_up_the_hub(workspaces: Workspaces, alice: Account) -> None:
    """A program may have the kernel ask it before anybody opens its file, which takes up to 45 seconds."""
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"FROM x")
    program = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('leased', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, _dockerfile(alice)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"leased\n"
        began = time.monotonic()
        assert "A program has locked it" in _refused(lambda: workspaces.read_dockerfile(alice, "thesis"))
        assert time.monotonic() - began < 5


# -- races ---------------------------------------------------------------------------------------------------------

_SWAP = """
import ctypes, os, sys
rename = ctypes.CDLL(None, use_errno=True).renameat2
first, second = (os.fsencode(path) for path in sys.argv[1:])
print("swapping", flush=True)
while rename(-100, first, -100, second, 2) == 0:
    pass
sys.exit(ctypes.get_errno())
"""


@contextmanager
def _swapping(first: Path, second: Path) -> Iterator[None]:
    """Swap two names, tens of thousands of times a second, in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", _SWAP, first, second], stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"swapping\n"
        try:
            yield
            assert swapper.poll() is None, "the swapping ended early"
        finally:
            swapper.kill()


def _race(attempt: Callable[[], bool]) -> tuple[int, int]:
    """Return how often an attempt worked and how often it was refused; goes on until both happened often enough."""
    worked = refused = 0
    began = time.monotonic()
    while (passed := time.monotonic() - began) < RACE_SECONDS_MAX:
        if passed > RACE_SECONDS and min(worked, refused) > 20:
            break
        try:
            worked += attempt()
        except ProjectRefused:
            refused += 1
    return worked, refused


@pytest.mark.parametrize("target", ["bob", "own"])
@pytest.mark.parametrize("component", ["workspace", "workspace/thesis"])
def test_a_folder_that_is_swapped_all_the_time_opens_right_or_not_at_all(
    workspaces: Workspaces, alice: Account, bob: Account, component: str, target: str
) -> None:
    """Between any two system calls the folder may become a link: what is opened is the real folder in every case."""
    victim = {"bob": bob.home, "own": alice.home / ".ssh"}[target]
    Path(victim / "thesis").mkdir(exist_ok=True)
    os.chown(victim / "thesis", alice.uid, alice.gid)
    right = _thesis(alice).stat()
    link = alice.home / "swapped"
    link.symlink_to(victim)

    def attempt() -> bool:
        folder = workspaces.open_project(alice, "thesis")
        try:
            assert os.path.samestat(os.fstat(folder), right), "another folder was opened"
        finally:
            os.close(folder)
        return True

    with _swapping(alice.home / component, link):
        worked, refused = _race(attempt)
    assert worked > 20
    assert refused > 20


def test_a_folder_that_is_swapped_all_the_time_mounts_right_or_not_at_all(
    workspaces: Workspaces, alice: Account, bob: Account
) -> None:
    """What the engine would be given shows the real project in every case."""
    right = _thesis(alice).stat()
    link = alice.home / "swapped"
    link.symlink_to(_thesis(bob))

    def attempt() -> bool:
        shown = workspaces.mount(alice, "thesis", "x")
        try:
            assert os.path.samestat(Path(shown).stat(), right), "another folder was mounted"
            assert (Path(shown) / "data").stat().st_uid == alice.uid
        finally:
            workspaces.unmount("x")
        return True

    with _swapping(_thesis(alice), link):
        worked, refused = _race(attempt)
    assert worked > 20
    assert refused > 20


def test_a_dockerfile_that_is_swapped_all_the_time_is_read_right_or_not_at_all(
    workspaces: Workspaces, alice: Account
) -> None:
    """Her own key would be readable with her own rights: the link is what must not be followed."""
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"FROM x")
    link = alice.home / "swapped"
    link.symlink_to(alice.home / ".ssh/id_ed25519")

    def attempt() -> bool:
        found = workspaces.read_dockerfile(alice, "thesis")
        assert found is not None
        assert found.text == b"FROM x"
        return True

    with _swapping(_dockerfile(alice), link):
        worked, refused = _race(attempt)
    assert worked > 20
    assert refused > 20


def test_writing_into_a_folder_that_is_swapped_all_the_time_reaches_no_other(
    workspaces: Workspaces, alice: Account, bob: Account
) -> None:
    """A page that saves a file never saves it in somebody else's home."""
    before = _everything(bob.home)
    link = alice.home / "swapped"
    link.symlink_to(_thesis(bob))

    def attempt() -> bool:
        workspaces.write_file(alice, project_path("thesis") / "deep" / "saved", b"x")
        return True

    with _swapping(_thesis(alice), link):
        worked, refused = _race(attempt)
    assert worked > 20
    assert refused > 20
    assert _everything(bob.home) == before


def test_what_is_mounted_stays_what_was_opened(workspaces: Workspaces, alice: Account, bob: Account) -> None:
    """A link swapped in after the check changes nothing for the engine."""
    shown = Path(workspaces.mount(alice, "thesis", "x"))
    inode = shown.stat().st_ino
    moved = alice.home / "workspace" / "moved"
    _thesis(alice).rename(moved)
    _thesis(alice).symlink_to(_thesis(bob))
    assert shown.stat().st_ino == inode == moved.stat().st_ino
    (shown / "result").write_text("42")
    assert (moved / "result").read_text() == "42"
    assert not (_thesis(bob) / "result").exists()


@pytest.mark.engine
def test_the_engine_shows_a_container_what_was_opened(workspaces: Workspaces, alice: Account, bob: Account) -> None:
    """The whole way: opened, mounted, swapped, and only then given to a real container that runs as the user."""
    shown = workspaces.mount(alice, "thesis", "x")
    _thesis(alice).rename(alice.home / "workspace" / "moved")
    _thesis(alice).symlink_to(_thesis(bob))
    command = ["docker", "run", "--rm", "--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    command += [f"--user={alice.uid}:{alice.gid}", f"--volume={shown}:/workspace", "ds01/debian:12"]
    ran = subprocess.run(
        [*command, "sh", "-c", "cat /workspace/data; echo 42 > /workspace/result; cd /workspace/..; ls"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(b"kept")
    assert b"alice" not in ran.stdout
    made = alice.home / "workspace" / "moved" / "result"
    assert made.read_text() == "42\n"
    assert made.stat().st_uid == alice.uid
    assert not (_thesis(bob) / "result").exists()


# -- writing and names ---------------------------------------------------------------------------------------------


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(
    workspaces: Workspaces, alice: Account, bob: Account
) -> None:
    """Saving over a link changes the link's name only."""
    victim = bob.home / ".ssh/id_ed25519"
    victim.chmod(0o666)
    _dockerfile(alice).symlink_to(victim)
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"FROM x")
    assert victim.read_bytes() == SECRET
    assert not _dockerfile(alice).is_symlink()
    assert _dockerfile(alice).read_bytes() == b"FROM x"


def test_the_users_own_rights_decide_what_is_written(workspaces: Workspaces, alice: Account) -> None:
    """Root's rights are not lent: a folder that the user closed stays closed."""
    _thesis(alice).chmod(0o500)
    text = _refused(lambda: workspaces.write_file(alice, project_path("thesis") / "x", b""))
    assert "chmod" in text
    assert not (_thesis(alice) / "x").exists()


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/", "../../bob/workspace/thesis", "thesis/..", "a\0", "a\n", "x" * 300, "\ud800", ".ssh"]
)
def test_a_name_that_is_no_folder_in_the_workspace_is_refused(
    workspaces: Workspaces, alice: Account, bob: Account, name: str
) -> None:
    """Whatever came through form, query or API, no path is made of it."""
    for use in (
        lambda: workspaces.open_project(alice, name),
        lambda: workspaces.mount(alice, name, "x"),
        lambda: workspaces.read_dockerfile(alice, name),
        lambda: workspaces.create_project_folder(alice, name),
    ):
        assert "cannot be a project" in _refused(use)
    assert workspaces.mounted() == ()


@pytest.mark.parametrize("name", ["a:b", "$(x)", "-rf", "x" * 255, "a b", "Übung", ";reboot", "<img src=x onerror=y>"])
def test_an_odd_name_is_a_safe_project(workspaces: Workspaces, alice: Account, name: str) -> None:
    """No shell, no option parser and no ``source:target`` syntax ever sees it."""
    workspaces.create_project_folder(alice, name)
    workspaces.write_file(alice, project_path(name) / "Dockerfile", b"FROM x")
    found = workspaces.read_dockerfile(alice, name)
    assert found is not None
    assert found.text == b"FROM x"
    shown = workspaces.mount(alice, name, "x")
    assert os.path.samestat(Path(shown).stat(), (alice.home / "workspace" / name).stat())
    assert name in workspaces.list_projects(alice)


def test_no_refusal_shows_what_only_root_may_see(workspaces: Workspaces, alice: Account, bob: Account) -> None:
    """A message about a link or a closed folder tells nothing about what is behind it."""
    _replace_by_link(_thesis(alice), bob.home / ".ssh" / "id_ed25519", alice)
    texts = []
    for use in _every_use(workspaces, alice).values():
        with suppress(DS01Error):
            use()
        texts.append(_refused(use))
    (bob.home / ".ssh" / "id_ed25519").unlink()
    assert [_refused(use) for use in _every_use(workspaces, alice).values()] == texts
