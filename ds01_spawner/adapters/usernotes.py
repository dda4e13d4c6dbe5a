"""The two files in a project's folder that are about its retirement: one that its user makes, one that we make.

``.keep-alive`` defers it; ``RETIRING-SOON.txt`` announces it.  Both are reached on the host, with the user's rights and
without following links.  All functions block as long as the home's file system does.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Final, Protocol

from ds01_spawner.adapters.rights import act_as
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import project_path
from ds01_spawner.errors import ProjectRefused

KEEP_ALIVE: Final = ".keep-alive"
ANNOUNCEMENT: Final = "RETIRING-SOON.txt"
_MARK: Final = b"This file was written by the hub and will be removed by it.\n"


class Files(Protocol):
    """The users' files."""

    def open_project(self, account: Account, project: str) -> int:
        """Return a descriptor of the project's folder, or raise ProjectRefused or AccountUnavailable."""

    def write_file(
        self, account: Account, path: PurePosixPath, content: bytes, *, mode: int = 0o644, replace: bool = True
    ) -> None:
        """Write a whole file of the user's, or raise ProjectRefused or AccountUnavailable."""


class UserNotes:
    """Reads and writes them.

    Args:
        files: the users' files.
        clock: seconds since the epoch.
    """

    def __init__(self, files: Files, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._clock = clock

    def keep_alive_seconds(self, account: Account, project: str, longest_seconds: float) -> float:
        """Return how long the project's keep-alive still holds, 0 when there is none.

        It holds from the moment at which the file was touched.  A file that claims a later moment counts from when it
        was last changed, which the kernel records and nobody sets, and never from later than now.

        Raises:
            AccountUnavailable: the home does not answer, so nothing can be said.
        """
        try:
            with self._folder(account, project) as folder:
                look = partial(os.stat, KEEP_ALIVE, dir_fd=folder, follow_symlinks=False)
                status = act_as(account, look)
        except (FileNotFoundError, PermissionError, ProjectRefused):
            # A folder that its user made unusable holds no keep-alive: it would be a way to keep a server for ever.
            return 0.0
        if not stat.S_ISREG(status.st_mode):
            return 0.0
        touched = min(status.st_mtime, status.st_ctime, self._clock())
        return max(0.0, touched + longest_seconds - self._clock())

    def announce(self, account: Account, project: str, text: str) -> None:
        """Put an announcement into the project's folder, in place of an earlier one.

        Raises:
            ProjectRefused: it could not be written, or a file of the user's has its name.
            AccountUnavailable: the home does not answer.
        """
        with self._folder(account, project) as folder:
            if act_as(account, partial(_is_foreign, folder)):
                raise ProjectRefused(f"There is a file {ANNOUNCEMENT} of your own. Rename it to see announcements.")
        self._files.write_file(account, project_path(project) / ANNOUNCEMENT, text.encode() + b"\n" + _MARK)

    def withdraw(self, account: Account, project: str) -> None:
        """Remove the announcement; doing it again is fine.

        Raises:
            ProjectRefused: the folder cannot be used.
            AccountUnavailable: the home does not answer.
        """
        with self._folder(account, project) as folder:
            act_as(account, partial(_remove_own, folder))

    @contextmanager
    def _folder(self, account: Account, project: str) -> Iterator[int]:
        folder = self._files.open_project(account, project)
        try:
            yield folder
        finally:
            os.close(folder)


def _is_foreign(folder: int) -> bool:
    """Whether something lies under the announcement's name that we did not write."""
    try:
        file = os.open(ANNOUNCEMENT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # A folder, a pipe or a device has no end to read from; a user's own file does not end with the mark.
        os.lseek(file, -len(_MARK), os.SEEK_END)
        return os.read(file, len(_MARK)) != _MARK
    except OSError:
        return True
    finally:
        os.close(file)


def _remove_own(folder: int) -> None:
    with suppress(FileNotFoundError):
        if not _is_foreign(folder):
            os.unlink(ANNOUNCEMENT, dir_fd=folder)
