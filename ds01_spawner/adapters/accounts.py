"""Who a JupyterHub user is on this host: a user id, group ids and a home.

Two kinds of sites: people have Linux accounts (local, LDAP, Active Directory through SSSD), or they are known to
JupyterHub alone and get a folder each under a site root, with a user id that belongs to nobody else.
"""

from __future__ import annotations

import fcntl
import grp
import math
import os
import pwd
import re
import shutil
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ds01_spawner.core.account import Account
from ds01_spawner.core.project import WORKSPACE, folder_name, quoted
from ds01_spawner.errors import AccountUnavailable

ID_MAX = 2**31 - 1
"""The largest user or group id that Docker Engine runs a container with; the kernel would take twice that."""

_NOBODY = frozenset({65534, 65535})
"""Everybody whom NFS or a user namespace could not place; so a folder of theirs could be anyone's."""

_LOOK_SECONDS = 1.0
"""For how long a look at all homes is enough; nobody but root changes who owns one."""

_TICK_NANOSECONDS = 100_000_000

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


class LinuxAccounts:
    """The accounts that the host's name service knows.

    Args:
        first_uid: smaller ids are the system's and are refused; 0 is refused always.
    """

    def __init__(self, first_uid: int = 1000) -> None:
        self._first_uid = max(first_uid, 1)

    def find(self, user: str) -> Account:
        """Return the account of a JupyterHub user.

        Raises:
            AccountUnavailable: there is none, or it belongs to the system.
        """
        try:
            entry = pwd.getpwnam(user)
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        except (KeyError, ValueError) as error:  # ValueError: a NUL or a lone surrogate, which no account has
            raise AccountUnavailable(
                f"{quoted(user)} has no account on this server. Ask the admin to create one of exactly this name."
            ) from error
        except OSError as error:
            raise AccountUnavailable(
                f"The account of {quoted(user)} could not be looked up ({error.strerror}). "
                "Try again in a minute; if it persists, tell the admin that the name service does not answer."
            ) from error
        if entry.pw_uid < self._first_uid or entry.pw_uid in _NOBODY:
            raise AccountUnavailable(
                f"The account {quoted(user)} has user id {entry.pw_uid}; projects run for people, whose ids "
                f"begin at {self._first_uid} here; this one belongs to the system. Log in with a personal account."
            )
        if max(entry.pw_uid, entry.pw_gid) > ID_MAX:
            raise AccountUnavailable(
                f"The account {quoted(user)} has user id {entry.pw_uid} and group id {entry.pw_gid}; "
                f"containers run with ids up to {ID_MAX}. Ask the admin to map the account to smaller ones."
            )
        home = Path(entry.pw_dir)
        if not home.is_absolute() or home == Path("/"):
            raise AccountUnavailable(
                f"The account {quoted(user)} has the home {quoted(entry.pw_dir)}, which is no folder of its own. "
                "Ask the admin to give it one."
            )
        usable = tuple(sorted({group for group in groups if group <= ID_MAX}))
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, usable, home)


class FolderAccounts:
    """People without an account on the host: each has a folder under a site root, owned by a user id of its own.

    The owner of the folder is the record of the user id, so there is nothing else to back up or to go out of step.
    An id is never given out twice: ``.next-uid`` under the root remembers how far they went, even when folders were
    deleted.

    Args:
        root: the site root; made when missing, and writable by root alone.
        first_uid: the first id to give out.  The default is above the ranges of SSSD, systemd and subordinate ids.
        clock: monotonic seconds.
    """

    def __init__(self, root: Path, first_uid: int = 2_100_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        if not 1000 <= first_uid <= ID_MAX:  # noqa: PLR2004 -- ids below belong to the system
            raise ValueError(f"first_uid is {first_uid}. Use a number from 1000 to {ID_MAX}.")
        self._root = root
        self._first_uid = first_uid
        self._clock = clock
        self._looking = threading.Lock()
        self._looked_at = (-math.inf, 0)
        self._homes_of: Mapping[int, Sequence[str]] = {}

    def find(self, user: str) -> Account:
        """Return the account of a JupyterHub user; the first call makes the folder and its ``workspace``.

        Raises:
            AccountUnavailable: the folder cannot be made, or is not the user's alone.
        """
        if not user:
            raise AccountUnavailable("A user without a name has no account. Log in again.")
        home = self._root / folder_name(user)
        try:
            self._prepare_root()
            if not os.path.lexists(home):
                with self._locked():
                    if not os.path.lexists(home):
                        self._create(home)
            uid = self._owner(home)
        except OSError as error:
            raise AccountUnavailable(
                f"The home of {quoted(user)} at {home} could not be made or read ({error.strerror}). "
                "Ask the admin to check that the folder exists and that the hub runs as root."
            ) from error
        return Account(user if _PLAIN_NAME.fullmatch(user) else home.name, uid, uid, (uid,), home)

    def _prepare_root(self) -> None:
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = self._root.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AccountUnavailable(
                f"The site root {self._root} belongs to user id {status.st_uid}, mode {stat.filemode(status.st_mode)}. "
                "Ask the admin to make it belong to the hub's user and writable by nobody else: "
                "whoever can write there can take a home."
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock on a file of its own, opened anew each time, excludes other threads and other hubs alike.
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _create(self, home: Path) -> None:
        uid = self._allocate()
        making = self._root / ".new"  # renamed when complete, so a crash leaves no half-made home
        if os.path.lexists(making):
            shutil.rmtree(making)
        making.mkdir(mode=0o700)
        workspace = making / WORKSPACE
        workspace.mkdir(mode=0o700)
        for folder in (workspace, making):
            folder.chmod(0o700)  # whatever the hub's umask
            os.chown(folder, uid, uid, follow_symlinks=False)
        making.rename(home)

    def _allocate(self) -> int:
        record = self._root / ".next-uid"
        used = [uid for _, uid in self._owners()]
        recorded = self._first_uid
        with suppress(FileNotFoundError):
            recorded = self._read_record(record)
        uid = max(recorded, self._first_uid, *(uid + 1 for uid in used))
        while _known_to_host(uid):
            uid += 1
        if uid > ID_MAX:
            raise AccountUnavailable(f"No user id is left under {self._root}. Ask the admin to start at a smaller one.")
        # Recorded before it is used: an id may be lost in a crash, but is never given to two people.
        draft = record.with_name(".next-uid.new")
        draft.write_text(f"{uid + 1}\n")
        draft.replace(record)
        return uid

    def _read_record(self, record: Path) -> int:
        text = record.read_text(errors="replace").strip()
        if not text.isascii() or not text.isdecimal():
            raise AccountUnavailable(
                f"{record} holds {quoted(text)} instead of the next free user id. Ask the admin to write a number "
                "there that is larger than every user id ever used under this root."
            )
        return int(text)

    def _owners(self) -> Iterator[tuple[str, int]]:
        with os.scandir(self._root) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # just deleted
                    if not entry.name.startswith("."):
                        yield entry.name, entry.stat(follow_symlinks=False).st_uid

    def _homes(self) -> Mapping[int, Sequence[str]]:
        """Return the names of homes by their owner, as of at most a second ago and never from before a new one.

        Finding everybody at once, as the culler does when it starts, would otherwise look at everybody for each.
        """
        with self._looking:
            at, modified = self._clock(), self._root.stat().st_mtime_ns
            looked_at, seen = self._looked_at
            if modified != seen or at - looked_at >= _LOOK_SECONDS:
                found = defaultdict[int, list[str]](list)
                for name, uid in self._owners():
                    found[uid].append(name)
                # A folder that comes in the same tick of the file system's clock would not change the date again.
                is_settled = time.time_ns() - modified > _TICK_NANOSECONDS
                self._homes_of, self._looked_at = found, (at if is_settled else -math.inf, modified)
            return self._homes_of

    def _owner(self, home: Path) -> int:
        status = home.lstat()
        uid = status.st_uid
        problem = ""
        if not stat.S_ISDIR(status.st_mode):
            problem = "is no folder"
        elif not self._first_uid <= uid <= ID_MAX:
            problem = f"belongs to user id {uid}, which is below this site's first one, {self._first_uid}"
        else:
            twins = [name for name in self._homes().get(uid, ()) if name != home.name]
            if twins:
                problem = f"has the same owner, user id {uid}, as {quoted(twins[0])}"
        if problem:
            raise AccountUnavailable(f"{home} {problem}. Ask the admin to give it back its own owner with chown.")
        return uid


def _known_to_host(identifier: int) -> bool:
    for look_up in (pwd.getpwuid, grp.getgrgid):
        with suppress(KeyError):
            look_up(identifier)
            return True
    return False
