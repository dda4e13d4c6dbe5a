"""Who a user is on this host: Linux accounts, and folders for people who have none."""

from __future__ import annotations

import os
import pwd
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds01_spawner.adapters import accounts
from ds01_spawner.adapters.accounts import FolderAccounts, LinuxAccounts
from ds01_spawner.core.account import Account
from ds01_spawner.errors import AccountUnavailable

FIRST = 2_100_000_000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: folders get owners of their own")


def _entry(name: str, uid: int, gid: int = 100, home: str = "/home/someone") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, "", home, "/bin/bash"))


def _know(monkeypatch: pytest.MonkeyPatch, entry: pwd.struct_passwd) -> None:
    monkeypatch.setattr(accounts.pwd, "getpwnam", {entry.pw_name: entry}.__getitem__)
    monkeypatch.setattr(accounts.os, "getgrouplist", lambda name, gid: [gid, 2_000_000_001, gid, 4_000_000_001])


# -- Linux accounts ------------------------------------------------------------------------------------------------


def test_the_name_service_is_asked_for_an_account() -> None:
    """A real account of this host is found with its real ids, or refused for being the system's."""
    people = [entry for entry in pwd.getpwall() if 1000 <= entry.pw_uid < 60000 and entry.pw_dir.startswith("/home/")]
    for entry in people:
        found = LinuxAccounts().find(entry.pw_name)
        assert (found.uid, found.gid, found.home) == (entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
        assert entry.pw_gid in found.groups
    assert pwd.getpwnam("root").pw_uid == 0
    with pytest.raises(AccountUnavailable, match="user id 0"):
        LinuxAccounts().find("root")


def test_a_ten_digit_id_and_a_name_like_an_address_are_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Active Directory gives both; a group that no container can have is left out."""
    _know(monkeypatch, _entry("first.last@uni.de", 2_147_483_647, 1_999_999_998, "/home/uni.de/first.last"))
    assert LinuxAccounts().find("first.last@uni.de") == Account(
        name="first.last@uni.de",
        uid=2_147_483_647,
        gid=1_999_999_998,
        groups=(1_999_999_998, 2_000_000_001),
        home=Path("/home/uni.de/first.last"),
    )


@pytest.mark.parametrize("uid", [0, 1, 999, 65534, 65535])
def test_a_system_account_is_refused(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Nothing runs as root, as a daemon or as nobody."""
    _know(monkeypatch, _entry("daemon", uid))
    with pytest.raises(AccountUnavailable, match=f"user id {uid}"):
        LinuxAccounts().find("daemon")


@pytest.mark.parametrize("ids", [(2**31, 1000), (1000, 2**31), (2**32 - 1, 1000)])
def test_an_id_that_the_engine_refuses_is_refused_clearly(
    monkeypatch: pytest.MonkeyPatch, ids: tuple[int, int]
) -> None:
    """The engine's own message would come after the image was built; ours says who can mend it."""
    _know(monkeypatch, _entry("alice", *ids))
    with pytest.raises(AccountUnavailable, match="ids up to 2147483647"):
        LinuxAccounts().find("alice")


def test_a_site_may_begin_lower_but_never_at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old sites number people from 500; root stays refused whatever is configured."""
    _know(monkeypatch, _entry("alice", 500))
    assert LinuxAccounts(first_uid=500).find("alice").uid == 500
    _know(monkeypatch, _entry("alice", 0))
    with pytest.raises(AccountUnavailable):
        LinuxAccounts(first_uid=0).find("alice")


@pytest.mark.parametrize("home", ["", "/", "relative"])
def test_a_home_that_is_no_folder_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """``/workspace`` of the host is nobody's workspace."""
    _know(monkeypatch, _entry("alice", 1000, home=home))
    with pytest.raises(AccountUnavailable, match="no folder of its own"):
        LinuxAccounts().find("alice")


@pytest.mark.parametrize("user", ["no-such-person", "", "a\0b", "\ud800", "../root", "x" * 5000, "a:b", "1000"])
def test_who_is_unknown_is_told_so(user: str) -> None:
    """Any text that is no account's name gets the same clear answer."""
    with pytest.raises(AccountUnavailable, match="has no account on this server") as refusal:
        LinuxAccounts().find(user)
    assert len(str(refusal.value)) < 300


def test_a_silent_name_service_is_not_taken_for_an_unknown_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the directory is down the admin is told that, not to create accounts."""

    def fail(name: str) -> pwd.struct_passwd:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(accounts.pwd, "getpwnam", fail)
    with pytest.raises(AccountUnavailable, match="name service does not answer"):
        LinuxAccounts().find("alice")


# -- folders -------------------------------------------------------------------------------------------------------


@needs_root
def test_a_new_person_gets_a_private_home_and_an_id_of_their_own(tmp_path: Path) -> None:
    """The folder, its ``workspace`` and their owner exist after the first call."""
    site = tmp_path / "site"
    alice, bob = (FolderAccounts(site).find(user) for user in ("alice", "bob"))
    assert (alice.uid, bob.uid) == (FIRST, FIRST + 1)
    for account in (alice, bob):
        assert account.gid == account.uid
        assert account.groups == (account.uid,)
        for folder in (account.home, account.home / "workspace"):
            status = folder.stat()
            assert (status.st_uid, status.st_gid) == (account.uid, account.uid)
            assert stat.S_IMODE(status.st_mode) == 0o700


@needs_root
def test_a_person_keeps_the_id_after_a_restart(tmp_path: Path) -> None:
    """The folder's owner is the record; another hub process reads the same."""
    first = FolderAccounts(tmp_path).find("alice")
    FolderAccounts(tmp_path).find("bob")
    assert FolderAccounts(tmp_path).find("alice") == first


@needs_root
@pytest.mark.parametrize("lost", ["home", "record"])
def test_an_id_is_never_given_to_a_second_person(tmp_path: Path, lost: str) -> None:
    """Neither after a home was deleted, nor after the record of given ids was."""
    people = FolderAccounts(tmp_path)
    people.find("alice")
    bob = people.find("bob")
    if lost == "home":
        (bob.home / "workspace").rmdir()
        bob.home.rmdir()
    else:
        (tmp_path / ".next-uid").unlink()
    assert FolderAccounts(tmp_path).find("carol").uid == bob.uid + 1


@needs_root
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=6, unique=True))
def test_hostile_names_get_separate_homes_inside_the_root(tmp_path: Path, users: list[str]) -> None:
    """Whatever a user is called, the home is a folder of its own directly under the root."""
    people = FolderAccounts(tmp_path)
    found = [people.find(user) for user in users]
    assert len({account.uid for account in found}) == len(users)
    assert len({account.home for account in found}) == len(users)
    for account in found:
        assert account.home.parent == tmp_path
        assert account.name.isascii()
        assert not set(account.name) & set(":/\n")


@needs_root
@pytest.mark.parametrize("user", ["..", ".", ".next-uid", ".lock", ".new", "a/../../x", "a:0:0:", "\ud800", "a\n"])
def test_no_name_reaches_another_folder_or_our_records(tmp_path: Path, user: str) -> None:
    """The names that mean something to a path or a passwd file mean nothing here."""
    account = FolderAccounts(tmp_path / "site").find(user)
    assert account.home.parent == tmp_path / "site"
    assert not account.home.name.startswith(".")
    assert not set(account.name) & set(":/\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


@needs_root
def test_many_first_calls_at_once_make_one_home_each(tmp_path: Path) -> None:
    """Two tabs, two hubs: the same person gets one id, different people different ones."""
    users = ["alice", "bob", "carol", "dave"] * 4
    found: list[Account] = []
    barrier = threading.Barrier(len(users))

    def find(user: str) -> None:
        barrier.wait()
        found.append(FolderAccounts(tmp_path).find(user))

    threads = [threading.Thread(target=find, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(users)
    assert {account.uid for account in found} == {FIRST, FIRST + 1, FIRST + 2, FIRST + 3}
    assert len({(account.name, account.uid) for account in found}) == 4


@needs_root
def test_a_crash_while_a_home_was_made_is_cleared_away(tmp_path: Path) -> None:
    """A half-made folder is not taken for a home."""
    (tmp_path / ".new" / "workspace").mkdir(parents=True)
    account = FolderAccounts(tmp_path).find("alice")
    assert account.home.stat().st_uid == FIRST
    assert not (tmp_path / ".new").exists()


@needs_root
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda home: os.chown(home, 0, 0), "user id 0"),
        (lambda home: os.chown(home, FIRST + 1, FIRST + 1), "same owner"),
        (lambda home: (home.rename(home.with_name("old")), home.symlink_to("/root")), "is no folder"),
        (lambda home: (home.rename(home.with_name("old")), home.write_text("")), "is no folder"),
    ],
    ids=["root's", "shared", "link", "file"],
)
def test_a_home_that_is_not_the_persons_alone_is_refused(tmp_path: Path, spoil: object, words: str) -> None:
    """A wrongly restored backup is an error, not a way into somebody else's files."""
    people = FolderAccounts(tmp_path)
    home = people.find("alice").home
    people.find("bob")
    spoil(home)  # type: ignore[operator]
    with pytest.raises(AccountUnavailable, match=words):
        people.find("alice")


@needs_root
def test_a_second_owner_is_noticed_however_it_came_about(tmp_path: Path) -> None:
    """A folder that came from elsewhere is noticed at once, a changed owner at the next look, a second later."""
    now = 0.0
    people = FolderAccounts(tmp_path, clock=lambda: now)
    ada, bob = people.find("ada"), people.find("bob")
    os.utime(tmp_path, (1, 1))  # long ago, so that a look at it is kept
    people.find("ada")
    copy = tmp_path / "copy-of-ada"
    copy.mkdir()
    os.chown(copy, ada.uid, ada.uid)
    with pytest.raises(AccountUnavailable, match="same owner"):
        people.find("ada")
    copy.rmdir()
    os.utime(tmp_path, (2, 2))
    assert people.find("ada") == ada
    os.chown(bob.home, ada.uid, ada.uid)
    now = 1.0
    for user in ("ada", "bob"):
        with pytest.raises(AccountUnavailable, match="same owner"):
            people.find(user)


@needs_root
def test_a_folder_that_comes_in_the_same_tick_is_noticed(tmp_path: Path) -> None:
    """A file system dates by its own clock's ticks: two changes, and a look between them, may have one date."""
    people = FolderAccounts(tmp_path, clock=lambda: 0.0)
    ada = people.find("ada")
    tick = time.time_ns()
    os.utime(tmp_path, ns=(tick, tick))
    people.find("ada")
    (tmp_path / "copy-of-ada").mkdir()
    os.chown(tmp_path / "copy-of-ada", ada.uid, ada.uid)
    os.utime(tmp_path, ns=(tick, tick))
    with pytest.raises(AccountUnavailable, match="same owner"):
        people.find("ada")


@needs_root
def test_finding_everybody_looks_at_everybody_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand people are found in the time of a thousand, not of a million."""
    makes = FolderAccounts(tmp_path)
    made = [makes.find(f"user{number}") for number in range(20)]
    os.utime(tmp_path, (1, 1))
    looks: list[Path] = []
    scan = os.scandir
    monkeypatch.setattr(accounts.os, "scandir", lambda path: looks.append(path) or scan(path))
    people = FolderAccounts(tmp_path, clock=lambda: 0.0)
    assert [people.find(f"user{number}") for number in range(20)] == made
    assert looks == [tmp_path]


@needs_root
def test_a_root_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Whoever can rename folders there could take anybody's home."""
    tmp_path.chmod(0o777)
    with pytest.raises(AccountUnavailable, match="writable by nobody else"):
        FolderAccounts(tmp_path).find("alice")


@needs_root
def test_a_damaged_record_stops_new_ids_and_says_how_to_mend_it(tmp_path: Path) -> None:
    """Guessing could give an id away twice."""
    people = FolderAccounts(tmp_path)
    people.find("alice")
    (tmp_path / ".next-uid").write_text("")
    with pytest.raises(AccountUnavailable, match="larger than every user id"):
        people.find("bob")
    assert people.find("alice").uid == FIRST


@needs_root
def test_an_id_that_the_host_uses_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's owner is nobody with an account on the host."""
    monkeypatch.setattr(accounts.pwd, "getpwuid", {FIRST: _entry("taken", FIRST)}.__getitem__)
    assert FolderAccounts(tmp_path).find("alice").uid == FIRST + 1


def test_the_system_ids_cannot_be_given_out(tmp_path: Path) -> None:
    """A site's typing mistake is found at once."""
    with pytest.raises(ValueError, match="first_uid is 0"):
        FolderAccounts(tmp_path, first_uid=0)


def test_a_user_without_a_name_has_no_account(tmp_path: Path) -> None:
    """An empty name is a mistake elsewhere, and gets no folder."""
    with pytest.raises(AccountUnavailable):
        FolderAccounts(tmp_path).find("")
    assert list(tmp_path.iterdir()) == []
