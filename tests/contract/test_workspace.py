"""What the hub does with a user's files, and with whose rights."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

from ds01_spawner.adapters.rights import act_as
from ds01_spawner.adapters.workspace import DOCKERFILE_BYTES_MAX, Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import project_path
from ds01_spawner.errors import AccountUnavailable, ProjectRefused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts with other people's rights and mounts")

ALICE_UID = 3_000_000_001
TEAM_GID = 3_000_000_777


@pytest.fixture
def site() -> Iterator[Path]:
    """A folder that everybody may enter, as ``/home`` is; pytest's own is closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="ds01-workspace-"))
    folder.chmod(0o755)
    yield folder
    for mount in (folder / "run").glob("*"):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    shutil.rmtree(folder)


@pytest.fixture
def alice(site: Path) -> Account:
    """A person with a closed home, as strict sites have them."""
    home = site / "alice"
    home.mkdir(mode=0o700)
    os.chown(home, ALICE_UID, ALICE_UID)
    return Account("alice", ALICE_UID, ALICE_UID, (ALICE_UID, TEAM_GID), home)


@pytest.fixture
def workspaces(site: Path) -> Workspaces:
    """The adapter with a place for mounts of its own."""
    return Workspaces(site / "run")


# -- rights --------------------------------------------------------------------------------------------------------


def _status() -> dict[str, list[str]]:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def test_a_task_has_the_users_rights_and_no_capability(alice: Account) -> None:
    """Ids, groups and capabilities are the user's while the task runs; the real owner stays root."""
    status = act_as(alice, _status)
    assert status["Uid"] == ["0", "0", "0", str(alice.uid)]
    assert status["Gid"] == ["0", "0", "0", str(alice.gid)]
    assert {int(group) for group in status["Groups"]} == set(alice.groups)
    assert int(status["CapEff"][0], 16) == 0
    assert int(status["CapPrm"][0], 16) == 0


def test_nobody_else_gets_the_users_rights(alice: Account) -> None:
    """The hub's own threads stay as they were, during the task and after it."""
    before = _status()
    during: list[dict[str, list[str]]] = []
    inside, looked = threading.Event(), threading.Event()

    def look() -> None:
        inside.wait(10)
        during.append(_status())
        looked.set()

    other = threading.Thread(target=look)
    other.start()
    act_as(alice, lambda: (inside.set(), looked.wait(10)))
    other.join()
    keys = ("Uid", "Gid", "Groups", "CapEff", "CapPrm")
    for status in (*during, _status()):
        assert {key: status[key] for key in keys} == {key: before[key] for key in keys}


def test_a_task_reads_what_the_user_may_and_nothing_else(alice: Account, site: Path) -> None:
    """Root's files are closed, a group's files are open."""
    secret, shared = site / "secret", site / "shared"
    secret.write_text("root's")
    secret.chmod(0o600)
    shared.write_text("the team's")
    shared.chmod(0o640)
    os.chown(shared, 0, TEAM_GID)
    with pytest.raises(PermissionError):
        act_as(alice, secret.read_text)
    assert act_as(alice, shared.read_text) == "the team's"


@pytest.mark.parametrize("ids", [(0, 1000), (2**32 - 1, 1000), (-1, 1000), (1000, 2**32 - 1)])
def test_no_task_runs_as_root_or_as_an_id_that_the_kernel_ignores(site: Path, ids: tuple[int, int]) -> None:
    """``setfsuid(-1)`` changes nothing: the task would have run as root."""
    ran: list[bool] = []
    with pytest.raises(AccountUnavailable):
        act_as(Account("x", *ids, (ids[1],), site), lambda: ran.append(True))
    assert ran == []


def test_a_tasks_error_arrives_as_it_is(alice: Account) -> None:
    """Callers tell a missing file from a refused one by the exception."""
    with pytest.raises(FileNotFoundError):
        act_as(alice, (alice.home / "none").stat)


def test_a_hub_that_is_not_root_acts_for_its_own_user_only(alice: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop the hub is one person's; another account is a clear error, not a wrong result."""
    monkeypatch.setattr(os, "geteuid", lambda: alice.uid)
    assert act_as(alice, threading.current_thread) is threading.current_thread()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(AccountUnavailable, match="user id 1234"):
        act_as(alice, lambda: None)


# -- projects ------------------------------------------------------------------------------------------------------


def test_a_home_without_a_workspace_has_no_projects(alice: Account, workspaces: Workspaces) -> None:
    """A new person sees an empty list, not an error."""
    assert workspaces.list_projects(alice) == ()


def test_a_missing_home_is_the_admins_to_mend(alice: Account, workspaces: Workspaces) -> None:
    """The message names the home and whom to ask."""
    alice.home.rmdir()
    with pytest.raises(AccountUnavailable, match="Ask the admin"):
        workspaces.list_projects(alice)


def test_a_home_that_is_not_mounted_right_is_refused(alice: Account, workspaces: Workspaces) -> None:
    """Somebody else's folder is not used because a directory service says so."""
    os.chown(alice.home, 4242, 4242)
    alice.home.chmod(0o755)
    with pytest.raises(AccountUnavailable, match="belongs to user id 4242"):
        workspaces.list_projects(alice)


def test_a_home_may_be_reached_through_the_admins_links(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """``/home`` is a link to a larger disk on many servers."""
    workspaces.create_project_folder(alice, "thesis")
    (site / "home").symlink_to(site)
    linked = Account(alice.name, alice.uid, alice.gid, alice.groups, site / "home" / "alice")
    assert workspaces.list_projects(linked) == ("thesis",)


def test_a_home_that_belongs_to_root_is_fine(alice: Account, workspaces: Workspaces) -> None:
    """Some sites keep homes root's and give people folders inside."""
    workspaces.create_project_folder(alice, "thesis")
    os.chown(alice.home, 0, 0)
    alice.home.chmod(0o755)
    os.close(workspaces.open_project(alice, "thesis"))


def test_every_folder_of_the_workspace_is_a_project(alice: Account, workspaces: Workspaces) -> None:
    """Exactly as people named them, sorted as people sort."""
    for name in ("b", "My_Thesis", "Übung 3", "2024-run", "a" * 60, "-rf"):
        workspaces.create_project_folder(alice, name)
    workspaces.write_file(alice, PurePosixPath("workspace/notes.txt"), b"")
    workspaces.write_file(alice, PurePosixPath("workspace/.cache/x"), b"")
    (alice.home / "workspace" / "link").symlink_to("b")
    (alice.home / "workspace" / "roots").mkdir()
    os.mkfifo(alice.home / "workspace" / "pipe")
    (alice.home / "workspace" / os.fsdecode(b"not-\xff-utf8")).mkdir()
    assert workspaces.list_projects(alice) == ("-rf", "2024-run", "a" * 60, "b", "My_Thesis", "Übung 3")


def test_a_very_long_list_is_cut_off(alice: Account, workspaces: Workspaces) -> None:
    """A million folders do not keep the hub busy; those beyond the list still open."""
    workspaces.create_project_folder(alice, "zzz")
    for number in range(1005):
        folder = alice.home / "workspace" / f"p{number:04}"
        folder.mkdir()
        os.chown(folder, alice.uid, alice.gid)
    listed = workspaces.list_projects(alice)
    assert len(listed) == 1000
    assert listed[0] == "p0000"
    os.close(workspaces.open_project(alice, "zzz"))


def test_a_new_project_is_the_users_and_private(alice: Account, workspaces: Workspaces) -> None:
    """Folder and workspace belong to the user, whatever the hub's umask is."""
    before = os.umask(0)
    try:
        workspaces.create_project_folder(alice, "Übung 3")
    finally:
        os.umask(before)
    for folder in (alice.home / "workspace", alice.home / "workspace" / "Übung 3"):
        status = folder.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (alice.uid, alice.gid, 0o700)


def test_a_project_is_not_made_twice(alice: Account, workspaces: Workspaces) -> None:
    """What is there already stays as it is."""
    workspaces.create_project_folder(alice, "thesis")
    with pytest.raises(ProjectRefused, match="already something called ~/workspace/thesis"):
        workspaces.create_project_folder(alice, "thesis")


def test_an_opened_project_is_the_folder(alice: Account, workspaces: Workspaces) -> None:
    """The descriptor is the folder's own, and is not handed on to child processes."""
    workspaces.create_project_folder(alice, "thesis")
    folder = workspaces.open_project(alice, "thesis")
    try:
        assert os.path.samestat(os.fstat(folder), (alice.home / "workspace" / "thesis").stat())
        assert not os.get_inheritable(folder)
    finally:
        os.close(folder)


def test_a_project_that_does_not_exist_is_refused(alice: Account, workspaces: Workspaces) -> None:
    """The message says which folder was looked for."""
    with pytest.raises(ProjectRefused, match="no folder ~/workspace/thesis"):
        workspaces.open_project(alice, "thesis")


def test_a_closed_project_says_how_to_open_it(alice: Account, workspaces: Workspaces) -> None:
    """The user's own rights count, so a folder they cannot enter cannot be used, and the message tells the command."""
    workspaces.create_project_folder(alice, "thesis")
    (alice.home / "workspace").chmod(0)
    with pytest.raises(ProjectRefused, match="chmod"):
        workspaces.open_project(alice, "thesis")
    with pytest.raises(ProjectRefused, match="chmod"):
        workspaces.list_projects(alice)


# -- Dockerfiles ---------------------------------------------------------------------------------------------------


def test_the_projects_own_dockerfile_wins(alice: Account, workspaces: Workspaces) -> None:
    """Then the older place, then none, which is the site's default image."""
    workspaces.create_project_folder(alice, "thesis")
    assert workspaces.read_dockerfile(alice, "thesis") is None
    workspaces.write_file(alice, PurePosixPath("dockerfiles/thesis.Dockerfile"), b"FROM old")
    found = workspaces.read_dockerfile(alice, "thesis")
    assert found is not None
    assert (found.text, found.origin) == (b"FROM old", "~/dockerfiles/thesis.Dockerfile")
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"FROM new\n\xff")
    found = workspaces.read_dockerfile(alice, "thesis")
    assert found is not None
    assert (found.text, found.origin) == (b"FROM new\n\xff", "~/workspace/thesis/Dockerfile")


def test_a_very_long_name_has_no_older_dockerfile(alice: Account, workspaces: Workspaces) -> None:
    """``<project>.Dockerfile`` would be longer than a name can be: it does not exist."""
    workspaces.create_project_folder(alice, "x" * 255)
    workspaces.write_file(alice, PurePosixPath("dockerfiles/other.Dockerfile"), b"")
    assert workspaces.read_dockerfile(alice, "x" * 255) is None


@pytest.mark.parametrize(("size", "fine"), [(DOCKERFILE_BYTES_MAX, True), (DOCKERFILE_BYTES_MAX + 1, False)])
def test_a_dockerfile_has_a_largest_size(alice: Account, workspaces: Workspaces, size: int, *, fine: bool) -> None:
    """One byte more than allowed is refused, with the limit."""
    workspaces.create_project_folder(alice, "thesis")
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"#" * size)
    if fine:
        found = workspaces.read_dockerfile(alice, "thesis")
        assert found is not None
        assert len(found.text) == size
    else:
        with pytest.raises(ProjectRefused, match="more than 128 KiB"):
            workspaces.read_dockerfile(alice, "thesis")


def test_a_huge_sparse_dockerfile_is_refused_at_once(alice: Account, workspaces: Workspaces) -> None:
    """A terabyte that takes no space on disk takes no memory either."""
    workspaces.create_project_folder(alice, "thesis")
    path = project_path("thesis") / "Dockerfile"
    workspaces.write_file(alice, path, b"")
    os.truncate(alice.home / path, 2**40)
    with pytest.raises(ProjectRefused, match="128 KiB"):
        workspaces.read_dockerfile(alice, "thesis")


def test_an_unreadable_dockerfile_is_not_a_missing_one(alice: Account, workspaces: Workspaces) -> None:
    """The site's default image is not used in place of a Dockerfile that cannot be read."""
    workspaces.create_project_folder(alice, "thesis")
    workspaces.write_file(alice, project_path("thesis") / "Dockerfile", b"", mode=0)
    with pytest.raises(ProjectRefused, match="~/workspace/thesis/Dockerfile cannot be used"):
        workspaces.read_dockerfile(alice, "thesis")


# -- writing -------------------------------------------------------------------------------------------------------


def test_a_written_file_is_the_users_and_whole(alice: Account, workspaces: Workspaces) -> None:
    """Owner, mode and content are right, missing folders are made, and no draft is left."""
    path = project_path("thesis") / "src" / "deep" / "main.py"
    workspaces.create_project_folder(alice, "thesis")
    workspaces.write_file(alice, path, b"1", mode=0o755)
    workspaces.write_file(alice, path, b"22", mode=0o640)
    status = (alice.home / path).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (alice.uid, alice.gid, 0o640)
    assert (alice.home / path).read_bytes() == b"22"
    assert [entry.name for entry in (alice.home / path.parent).iterdir()] == ["main.py"]
    assert (alice.home / path).parent.stat().st_uid == alice.uid


def test_a_file_is_kept_where_replacing_was_not_asked_for(alice: Account, workspaces: Workspaces) -> None:
    """A template never overwrites what a person wrote."""
    path = project_path("thesis") / "Dockerfile"
    workspaces.write_file(alice, path, b"mine", replace=False)
    with pytest.raises(ProjectRefused, match="exists already"):
        workspaces.write_file(alice, path, b"template", replace=False)
    assert (alice.home / path).read_bytes() == b"mine"
    assert [entry.name for entry in (alice.home / path.parent).iterdir()] == ["Dockerfile"]


def test_a_folder_in_the_place_of_a_file_is_left_alone(alice: Account, workspaces: Workspaces) -> None:
    """The message says what is in the way."""
    path = project_path("thesis") / "Dockerfile"
    workspaces.write_file(alice, path / "inner", b"")
    with pytest.raises(ProjectRefused, match="folder is in the way"):
        workspaces.write_file(alice, path, b"")
    assert [entry.name for entry in (alice.home / path.parent).iterdir()] == ["Dockerfile"]


@pytest.mark.parametrize("path", ["../x", "workspace/../../x", "/etc/x", "workspace/a\0b/c", "", "..", "workspace/.."])
def test_no_path_leads_out_of_the_home(alice: Account, workspaces: Workspaces, site: Path, path: str) -> None:
    """Whatever a page sends as a path, nothing is written outside."""
    with pytest.raises(ProjectRefused):
        workspaces.write_file(alice, PurePosixPath(path), b"x")
    assert sorted(entry.name for entry in site.iterdir()) == ["alice"]


def test_a_full_disk_is_said_to_be_full(alice: Account, workspaces: Workspaces) -> None:
    """Nothing of the file is left, and the old one stays."""
    (alice.home / "workspace").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", alice.home / "workspace"], check=True)
    try:
        os.chown(alice.home / "workspace", alice.uid, alice.gid)
        workspaces.write_file(alice, PurePosixPath("workspace/file"), b"old")
        with pytest.raises(ProjectRefused, match="disk is full"):
            workspaces.write_file(alice, PurePosixPath("workspace/file"), b"x" * 200_000)
        assert (alice.home / "workspace" / "file").read_bytes() == b"old"
        assert [entry.name for entry in (alice.home / "workspace").iterdir()] == ["file"]
    finally:
        subprocess.run(["umount", "--lazy", alice.home / "workspace"], check=True)


# -- mounts --------------------------------------------------------------------------------------------------------


def _mount_options(path: str) -> list[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == path:
            return [*fields[5].split(","), *fields[6 : fields.index("-")]]
    return []


def test_a_mounted_project_is_the_folder_and_writable(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """The engine's path shows the same folder, without setuid programs and devices, closed to everybody but root."""
    workspaces.create_project_folder(alice, "thesis")
    shown = Path(workspaces.mount(alice, "thesis", "thesis._.alice"))
    assert shown == site / "run" / "thesis._.alice"
    (shown / "made-inside").write_text("x")
    assert (alice.home / "workspace" / "thesis" / "made-inside").read_text() == "x"
    assert {"rw", "nosuid", "nodev"} <= set(_mount_options(str(shown)))
    assert not any(option.startswith("shared:") for option in _mount_options(str(shown)))
    assert stat.S_IMODE((site / "run").stat().st_mode) == 0o700
    with pytest.raises(PermissionError):
        act_as(alice, lambda: list(shown.iterdir()))


def test_flags_of_the_users_file_system_are_kept(alice: Account, workspaces: Workspaces) -> None:
    """A site that mounts homes noexec or read-only means projects too."""
    workspaces.create_project_folder(alice, "thesis")
    thesis = alice.home / "workspace" / "thesis"
    subprocess.run(["mount", "--bind", thesis, thesis], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,noexec,ro", thesis], check=True)
        shown = workspaces.mount(alice, "thesis", "x")
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(_mount_options(shown))
    finally:
        workspaces.unmount("x")
        subprocess.run(["umount", thesis], check=True)


def test_unmounting_leaves_the_folder_and_can_be_repeated(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """After a retire the project is exactly as it was, and a second retire is fine."""
    workspaces.create_project_folder(alice, "thesis")
    workspaces.write_file(alice, project_path("thesis") / "result", b"42")
    workspaces.mount(alice, "thesis", "x")
    for _ in range(2):
        workspaces.unmount("x")
    assert (alice.home / "workspace" / "thesis" / "result").read_bytes() == b"42"
    assert list((site / "run").iterdir()) == []
    Workspaces(site / "never-made").unmount("x")


def test_what_a_crash_left_is_found_and_taken_away(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """A new hub process sees mounts and bare folders of the one before it."""
    assert workspaces.mounted() == ()
    workspaces.create_project_folder(alice, "thesis")
    workspaces.mount(alice, "thesis", "mounted")
    (site / "run" / "bare").mkdir()
    after = Workspaces(site / "run")
    assert after.mounted() == ("bare", "mounted")
    for name in after.mounted():
        after.unmount(name)
    assert after.mounted() == ()


def test_mounting_again_shows_the_new_folder_only(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """A leftover under the same name is replaced, not covered."""
    workspaces.create_project_folder(alice, "old")
    workspaces.create_project_folder(alice, "new")
    workspaces.mount(alice, "old", "x")
    shown = workspaces.mount(alice, "new", "x")
    assert os.path.samestat(Path(shown).stat(), (alice.home / "workspace" / "new").stat())
    assert Path("/proc/self/mountinfo").read_text().count(shown) == 1
    subprocess.run(["mount", "--bind", alice.home / "workspace" / "old", shown], check=True)
    workspaces.unmount("x")
    assert workspaces.mounted() == ()
    assert str(site / "run") not in Path("/proc/self/mountinfo").read_text()


def test_what_is_mounted_inside_a_project_later_is_not_shown(alice: Account, workspaces: Workspaces) -> None:
    """Where mounts are shared, as on any host with systemd, the engine's place still shows one file system only."""
    workspaces.create_project_folder(alice, "thesis")
    workspaces.write_file(alice, project_path("thesis") / "inner" / "data", b"")
    thesis = alice.home / "workspace" / "thesis"
    subprocess.run(["mount", "--bind", thesis, thesis], check=True)
    try:
        subprocess.run(["mount", "--make-shared", thesis], check=True)
        shown = Path(workspaces.mount(alice, "thesis", "x"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", thesis / "inner"], check=True)
        assert list((thesis / "inner").iterdir()) == []
        assert [path.name for path in (shown / "inner").iterdir()] == ["data"]
    finally:
        workspaces.unmount("x")
        subprocess.run(["umount", "--recursive", thesis], check=True)


def test_a_mount_in_use_can_be_taken_away(alice: Account, workspaces: Workspaces) -> None:
    """A forgotten open file does not keep a project from being retired."""
    workspaces.create_project_folder(alice, "thesis")
    shown = Path(workspaces.mount(alice, "thesis", "x"))
    with (shown / "open").open("w"):
        workspaces.unmount("x")
    assert workspaces.mounted() == ()


def test_a_folder_with_foreign_files_is_never_emptied(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """Unmounting removes mounts and empty folders, nothing that somebody could miss."""
    workspaces.create_project_folder(alice, "thesis")
    workspaces.mount(alice, "thesis", "x")
    workspaces.unmount("x")
    (site / "run" / "x").mkdir()
    (site / "run" / "x" / "kept").write_text("")
    workspaces.unmount("x")
    assert (site / "run" / "x" / "kept").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "a\0", "a" * 256, "ü"])
def test_a_mount_has_a_plain_name(alice: Account, workspaces: Workspaces, name: str) -> None:
    """A mistake in our own code mounts and unmounts nothing elsewhere."""
    workspaces.create_project_folder(alice, "thesis")
    with pytest.raises(ValueError, match="not a plain name"):
        workspaces.mount(alice, "thesis", name)
    with pytest.raises(ValueError, match="not a plain name"):
        workspaces.unmount(name)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_place_for_mounts_that_others_can_enter_is_refused(
    alice: Account, workspaces: Workspaces, site: Path, mode: int
) -> None:
    """Users must not reach each other's projects through it."""
    workspaces.create_project_folder(alice, "thesis")
    (site / "run").mkdir()
    (site / "run").chmod(mode)
    with pytest.raises(AccountUnavailable, match="mode 0700"):
        workspaces.mount(alice, "thesis", "x")


def test_a_place_for_mounts_that_is_a_link_is_refused(alice: Account, workspaces: Workspaces, site: Path) -> None:
    """It is made by us or by the admin as a folder, and as nothing else."""
    workspaces.create_project_folder(alice, "thesis")
    (site / "elsewhere").mkdir(mode=0o700)
    (site / "run").symlink_to("elsewhere")
    with pytest.raises(AccountUnavailable):
        workspaces.mount(alice, "thesis", "x")


def test_a_refused_mount_leaves_nothing(
    alice: Account, workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If something else than the opened folder appeared, it is taken away again."""
    workspaces.create_project_folder(alice, "thesis")
    monkeypatch.setattr(os.path, "samestat", lambda first, second: False)
    with pytest.raises(AccountUnavailable, match="does not show the folder"):
        workspaces.mount(alice, "thesis", "x")
    assert workspaces.mounted() == ()


def test_no_descriptor_is_left_open(alice: Account, workspaces: Workspaces) -> None:
    """A hub runs for months."""
    workspaces.create_project_folder(alice, "thesis")
    os.mkfifo(alice.home / "workspace" / "thesis" / "Dockerfile")
    (alice.home / "workspace" / "link").symlink_to("/")
    (alice.home / "workspace" / "roots").mkdir()

    def use() -> None:
        workspaces.list_projects(alice)
        workspaces.write_file(alice, project_path("thesis") / "x", b"")
        workspaces.mount(alice, "thesis", "x")
        workspaces.unmount("x")
        with suppress(ProjectRefused):
            workspaces.read_dockerfile(alice, "thesis")
        for name in ("link", "roots", "none"):
            with suppress(ProjectRefused):
                workspaces.open_project(alice, name)
        for name in ("link", "roots"):
            with suppress(ProjectRefused):
                workspaces.write_file(alice, PurePosixPath("workspace", name, "x", "y"), b"")
            with suppress(ProjectRefused):
                workspaces.create_project_folder(alice, name)

    use()
    before = len(list(Path("/proc/self/fd").iterdir()))
    use()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
