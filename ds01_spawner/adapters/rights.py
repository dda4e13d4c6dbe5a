"""Runs a function with a user's rights to files, and with no other.

The function runs in a thread of its own that takes the user's file system ids and groups, gives up every capability,
and ends.  Nothing has to be taken back, so nothing can be forgotten; the other threads stay root.

Why a thread and not a child process: it takes a tenth of a millisecond where a Python child takes tens, it returns
open descriptors and exceptions as they are, it does not fork a process full of threads and locks, and it works where
the user may not even execute the hub's Python.  A child could be killed when a file server hangs; a thread waits, so
callers give each call a thread and a deadline of their own (``userthreads``).

Why file system ids (``setfsuid``) and not effective ones: they are what decides on files, on this host and on an NFS
server that does not trust root, while the thread's owner stays root, so that the user cannot signal or trace the hub.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from ds01_spawner.core.account import Account
from ds01_spawner.errors import AccountUnavailable

T = TypeVar("T")

_ASK: Final = 2**32 - 1  # no id: the kernel changes nothing and answers with the present one

# glibc's setgroups() changes every thread of the process; the system call changes the one that makes it.
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81}
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.argtypes = _libc.setfsgid.argtypes = [ctypes.c_uint32]


def act_as(account: Account, task: Callable[[], T]) -> T:
    """Return what ``task`` returns when it runs with the account's rights to files.

    A hub that is not root runs for one person; it can act as that account only, and does so as it is.

    Raises:
        AccountUnavailable: the rights cannot be taken.
        Exception: whatever ``task`` raises.
    """
    own = os.geteuid()
    if own != 0:
        if account.uid != own:
            raise AccountUnavailable(
                f"The hub runs as user id {own} and cannot use the files of {account.name}, user id {account.uid}. "
                "Ask the admin to run the hub as root."
            )
        return task()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _become(account)
            results.append(task())
        except BaseException as error:  # noqa: BLE001 -- raised again where it belongs
            errors.append(error)

    thread = threading.Thread(target=run, name=f"as-{account.uid}", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results.pop()


def _become(account: Account) -> None:
    """Give the calling thread the account's rights for the rest of its life."""
    if account.uid == 0:
        raise AccountUnavailable("Nothing is done for root here. Log in with a personal account.")
    number = _SETGROUPS.get(platform.machine())
    if number is None:
        raise AccountUnavailable(f"Acting for a user is not supported on {platform.machine()} processors.")
    groups = (ctypes.c_uint32 * len(account.groups))(*account.groups)
    failed = _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(groups)), groups) != 0
    _libc.setfsgid(account.gid)
    _libc.setfsuid(account.uid)
    # They report no failure, so they are asked what became of it.
    taken = (_libc.setfsuid(_ASK) & 0xFFFFFFFF, _libc.setfsgid(_ASK) & 0xFFFFFFFF)
    # Root's other capabilities would pass a quota (CAP_SYS_RESOURCE) or, under some secure bits, every permission.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    failed = failed or _libc.capset(header, nothing) != 0
    if failed or taken != (account.uid, account.gid):
        raise AccountUnavailable(
            f"The hub could not take the rights of {account.name}, user id {account.uid}. "
            "Ask the admin to run the hub as root with CAP_SETUID and CAP_SETGID."
        )
