"""Shows an opened folder to the engine at a path that nobody but root can change.

The engine takes a path, and a path into a user's home can mean something else by the time the engine follows it.
So the folder that was opened and checked is bind-mounted to a place under a root-owned folder, and the engine is
given that place.  (``/proc/<pid>/fd/N`` would do if the engine mounted in the hub's mount namespace; it does not.)
For the same reason the hub's own mounts must reach the engine: a systemd unit for the hub must not ask for a mount
namespace of its own (``PrivateTmp``, ``ProtectHome`` and the like).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from ds01_spawner.errors import AccountUnavailable

_MS_NOSUID: Final = 1 << 1
_MS_NODEV: Final = 1 << 2
_MS_REMOUNT: Final = 1 << 5
_MS_BIND: Final = 1 << 12
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

# A remount sets all flags of a mount anew, so those it has are read (statvfs) and given again (mount).
_KEPT_FLAGS: Final = {
    os.ST_RDONLY: 1 << 0,
    os.ST_NOEXEC: 1 << 3,
    os.ST_NOATIME: 1 << 10,
    os.ST_NODIRATIME: 1 << 11,
    os.ST_RELATIME: 1 << 21,
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class _Lock:
    """A lock that can be forgotten when nobody uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Mounts:
    """Bind mounts under one root-owned folder, which is this hub's alone.

    Args:
        run_dir: the folder; made when missing, with access for root only.  It does not survive a reboot, and need not.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._locks: WeakValueDictionary[str, _Lock] = WeakValueDictionary()
        self._finding = threading.Lock()

    def mount(self, folder: int, name: str) -> Path:
        """Mount an opened folder as ``<run_dir>/<name>``, in place of what a crash may have left there.

        Args:
            folder: descriptor of the folder; it stays open.
            name: one plain path component, such as a container's name.

        Raises:
            AccountUnavailable: it cannot be mounted, or something else than the opened folder appeared.
        """
        target = self._target(name)
        # Before any lock: a file server that does not answer holds whoever asks.
        status, flags = os.fstat(folder), os.fstatvfs(folder).f_flag
        self._prepare()
        with self._alone(name):
            self._remove(target)
            target.mkdir(mode=0o700, exist_ok=True)
            try:
                self._bind(folder, status, flags, target)
            except BaseException:
                self._remove(target)
                raise
        return target

    def unmount(self, name: str) -> None:
        """Take away a mount and its folder; a name that has neither is fine.

        Containers that were started with it keep what they see.

        Raises:
            AccountUnavailable: the kernel refused.
        """
        target = self._target(name)
        with self._alone(name):
            self._remove(target)

    def mounted(self) -> tuple[str, ...]:
        """Return every name in use or left behind by a crash."""
        try:
            return tuple(sorted(path.name for path in self._run_dir.iterdir() if _NAME.fullmatch(path.name)))
        except FileNotFoundError:
            return ()

    def _target(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a plain name for a mount")
        return self._run_dir / name

    def _prepare(self) -> None:
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._run_dir.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise AccountUnavailable(
                f"{self._run_dir} has mode {stat.filemode(status.st_mode)} and the owner {status.st_uid}. "
                f"Ask the admin to make it a folder of user id {os.geteuid()} with mode 0700."
            )

    def _alone(self, name: str) -> _Lock:
        """One change at a time per name; another's project never waits for it."""
        with self._finding:
            return self._locks.setdefault(name, _Lock())

    def _bind(self, folder: int, status: os.stat_result, had: int, target: Path) -> None:
        _mount(f"/proc/self/fd/{folder}", target, _MS_BIND)
        shown = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not os.path.samestat(os.fstat(shown), status):
                raise AccountUnavailable(f"{target} does not show the folder that was opened. Tell the admin.")
        finally:
            os.close(shown)
        flags = sum(kept for has, kept in _KEPT_FLAGS.items() if had & has)
        # What a user mounts inside the project later must not appear in the engine's place.
        _mount(None, target, _MS_PRIVATE)
        # Where the kernel keeps flags locked it says EPERM; the container's own no-new-privileges and lack of devices
        # remain.
        with suppress(AccountUnavailable):
            _mount(None, target, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | flags)

    def _remove(self, target: Path) -> None:
        while _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
            pass  # a crash between two mounts may have left one on the other
        number = ctypes.get_errno()
        if number not in {errno.EINVAL, errno.ENOENT}:  # not a mount, or nothing there
            raise AccountUnavailable(
                f"{target} could not be unmounted ({os.strerror(number)}). Ask the admin to run the hub as root."
            )
        try:
            target.rmdir()
        except OSError as error:
            # A folder with files in it was not made here; it hurts nobody, and the next mount covers it.
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
                raise


def _mount(source: str | None, target: Path, flags: int) -> None:
    encoded = None if source is None else source.encode()
    if _libc.mount(encoded, os.fsencode(target), None, flags, None) != 0:
        number = ctypes.get_errno()
        raise AccountUnavailable(
            f"The project could not be mounted at {target} ({os.strerror(number)}). "
            "Ask the admin to run the hub as root with CAP_SYS_ADMIN."
        )
