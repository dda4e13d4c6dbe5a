"""Lists, opens, reads and makes what belongs to a user, with the user's own rights and without following links.

Everything below a home is the user's to change at any moment, so it is hostile: a folder may be a link to ``/``,
belong to somebody else, or be swapped between two looks at it.  Each path is therefore opened component by component,
each component must be what it should be and belong to the account, and what is used afterwards is the descriptor,
never the path.
All functions block as long as the home's file system does.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from ds01_spawner.adapters.mounts import Mounts
from ds01_spawner.adapters.rights import act_as
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import (
    DOCKERFILES,
    WORKSPACE,
    Dockerfile,
    dockerfile_candidates,
    project_path,
    quoted,
    validate_name,
)
from ds01_spawner.errors import AccountUnavailable, ProjectRefused

DOCKERFILE_BYTES_MAX: Final = 128 * 1024

PROJECTS_MAX: Final = 1000
"""A longer list helps nobody and would be a way to keep the hub busy; the folders beyond it open by name."""

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOME: Final = PurePosixPath("~")


class Workspaces:
    """The users' files.

    Args:
        run_dir: where opened projects are shown to the engine, see ``Mounts``.
    """

    def __init__(self, run_dir: Path = Path("/run/ds01/workspaces")) -> None:
        self._mounts = Mounts(run_dir)

    def list_projects(self, account: Account) -> tuple[str, ...]:
        """Return the folders in ``~/workspace`` that can be projects, sorted as people sort, at most ``PROJECTS_MAX``.

        Raises:
            ProjectRefused: ``~/workspace`` is not a folder of the account.
            AccountUnavailable: the home cannot be used.
        """
        return act_as(account, partial(_list_projects, account))

    def open_project(self, account: Account, project: str) -> int:
        """Return a descriptor (``O_PATH``) of the project's folder, which the caller closes.

        Raises:
            ProjectRefused: it does not exist, or is not a folder of the account; says which path and what to do.
            AccountUnavailable: the home cannot be used.
        """
        return act_as(account, partial(_open_project, account, project))

    def read_dockerfile(self, account: Account, project: str) -> Dockerfile | None:
        """Return the project's Dockerfile, or ``None`` when it has none.

        Raises:
            ProjectRefused: the project or its Dockerfile is not what it should be.
            AccountUnavailable: the home cannot be used.
        """
        return act_as(account, partial(_read_dockerfile, account, project))

    def create_project_folder(self, account: Account, project: str) -> None:
        """Make an empty project, and ``~/workspace`` where that is missing.

        Raises:
            ProjectRefused: the name cannot be used, or is in use.
            AccountUnavailable: the home cannot be used.
        """
        _make(account, project_path(project), partial(_create_project_folder, account, project))

    def write_file(
        self, account: Account, path: PurePosixPath, content: bytes, *, mode: int = 0o644, replace: bool = True
    ) -> None:
        """Write a whole file of the user's, or nothing; missing folders are made.

        Args:
            account: whose file it is.
            path: relative to the home, such as ``project_path("thesis") / "Dockerfile"``.
            content: what it holds afterwards.
            mode: its permissions.
            replace: whether a file that is there already is replaced; a link is replaced, not followed.

        Raises:
            ProjectRefused: a folder on the way is not one of the account's, something is there already, or no space
                is left.
            AccountUnavailable: the home cannot be used.
        """
        _make(account, path, partial(_write_file, account, path, content, mode, replace=replace))

    def mount(self, account: Account, project: str, name: str) -> str:
        """Return a path for the engine that shows the project's folder, whatever happens in the home afterwards.

        Args:
            account: whose project it is.
            project: its exact name.
            name: one plain path component, unique among running projects; what is mounted under it already is replaced.

        Raises:
            ProjectRefused: the project cannot be opened.
            AccountUnavailable: the home cannot be used or the folder not mounted.
        """
        folder = self.open_project(account, project)
        try:
            return str(self._mounts.mount(folder, name))
        finally:
            os.close(folder)

    def unmount(self, name: str) -> None:
        """Undo ``mount``; doing it again is fine.

        Raises:
            AccountUnavailable: the kernel refused.
        """
        self._mounts.unmount(name)

    def mounted(self) -> tuple[str, ...]:
        """Return every name that is mounted, those from before a crash included."""
        return self._mounts.mounted()


def _make(account: Account, path: PurePosixPath, task: Callable[[], None]) -> None:
    try:
        act_as(account, task)
    except FileNotFoundError as error:
        raise ProjectRefused(f"The folder of {_HOME / path} was removed while it was used. Try again.") from error


def _list_projects(account: Account) -> tuple[str, ...]:
    try:
        with _opened(_walk(account, PurePosixPath(WORKSPACE))) as workspace, _explained(account, _HOME / WORKSPACE):
            listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=workspace)
            with _opened(listed), os.scandir(listed) as entries:
                names = [entry.name for entry in entries if _is_project(account, entry)]
    except FileNotFoundError:
        return ()
    return tuple(sorted(names, key=lambda name: (name.casefold(), name))[:PROJECTS_MAX])


def _is_project(account: Account, entry: os.DirEntry[str]) -> bool:
    with suppress(ProjectRefused, FileNotFoundError):  # it may vanish while we look
        if entry.is_dir(follow_symlinks=False):
            validate_name(entry.name)
            return entry.stat(follow_symlinks=False).st_uid == account.uid
    return False


def _open_project(account: Account, project: str) -> int:
    path = project_path(project)
    try:
        return _walk(account, path)
    except FileNotFoundError as error:
        raise ProjectRefused(f"There is no folder {_HOME / path}. Make it, or choose a project that exists.") from error


def _read_dockerfile(account: Account, project: str) -> Dockerfile | None:
    own, shared = dockerfile_candidates(project)
    with _opened(_open_project(account, project)) as folder:
        text = _read_regular(account, folder, own)
    if text is not None:
        return Dockerfile(text, str(_HOME / own))
    try:
        with _opened(_walk(account, PurePosixPath(DOCKERFILES))) as folder:
            text = _read_regular(account, folder, shared)
    except FileNotFoundError:
        return None
    return None if text is None else Dockerfile(text, str(_HOME / shared))


def _read_regular(account: Account, folder: int, path: PurePosixPath) -> bytes | None:
    """Return the content of the file that has the last name of ``path`` in an opened folder, or ``None``."""
    shown = _HOME / path
    try:
        # O_PATH touches nothing: a FIFO does not wait and a device does not start before it is known what they are.
        found = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return None
        raise _explain(error, account, shown) from error
    with _opened(found), _explained(account, shown):
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise ProjectRefused(f"{shown} is {_kind(status.st_mode)}. Replace it by a regular file.")
        _require_owner(account, status, shown)
        # O_NONBLOCK: a program of the user's may hold a lease on the file and let us wait.
        opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(opened, "rb") as file:
            text = file.read(DOCKERFILE_BYTES_MAX + 1)
    if len(text) > DOCKERFILE_BYTES_MAX:
        raise ProjectRefused(
            f"{shown} has more than {DOCKERFILE_BYTES_MAX // 1024} KiB. "
            "Make it smaller; data belongs into files beside it."
        )
    return text


def _create_project_folder(account: Account, project: str) -> None:
    path = project_path(project)
    with (
        _opened(_walk(account, path.parent, make=True)) as workspace,
        _explained(account, _HOME / path),
    ):
        try:
            os.mkdir(path.name, 0o700, dir_fd=workspace)
        except FileExistsError as error:
            raise ProjectRefused(f"There is already something called {_HOME / path}. Choose another name.") from error


def _write_file(account: Account, path: PurePosixPath, content: bytes, mode: int, *, replace: bool) -> None:
    shown = _HOME / path
    _require_inside(path)
    draft = f".{secrets.token_hex(8)}.ds01"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _opened(_walk(account, path.parent, make=True)) as folder, _explained(account, shown):
        try:
            with os.fdopen(os.open(draft, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            if replace:
                os.rename(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                os.link(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            raise ProjectRefused(f"{shown} exists already. Choose another name or remove it first.") from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)


def _walk(account: Account, path: PurePosixPath, *, make: bool = False) -> int:
    """Return a descriptor (``O_PATH``) of a folder under the home.

    Args:
        account: whose rights the calling thread has, and who must own each folder.
        path: relative to the home, without ``..``.
        make: whether missing folders are made.

    Raises:
        FileNotFoundError: a folder is missing and is not to be made.
        ProjectRefused: a component is not a folder of the account.
        AccountUnavailable: the home cannot be used.
    """
    current = _open_home(account)
    shown = _HOME
    try:
        for name in path.parts:
            shown /= name
            following = _enter(account, current, name, shown, make=make)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _require_inside(path: PurePosixPath) -> None:
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ProjectRefused(
            f"{quoted(str(path))} is no path inside the home. Use one such as workspace/thesis/Dockerfile."
        )


def _open_home(account: Account) -> int:
    try:
        home = os.open(account.home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AccountUnavailable(
            f"The home {account.home} of {account.name} cannot be opened ({error.strerror}). "
            "Ask the admin to check that it exists and that its owner can enter every folder above it."
        ) from error
    owner = os.fstat(home).st_uid
    if owner not in {account.uid, 0}:
        os.close(home)
        raise AccountUnavailable(
            f"The home {account.home} belongs to user id {owner}, not to {account.name}, user id {account.uid}. "
            "Ask the admin to correct its owner."
        )
    return home


def _enter(account: Account, parent: int, name: str, shown: PurePosixPath, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError), _explained(account, shown):
            os.mkdir(name, 0o700, dir_fd=parent)
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise ProjectRefused(f"{shown} is {_look(parent, name)}. Replace it by a folder of your own.") from error
        raise _explain(error, account, shown) from error
    try:
        _require_owner(account, os.fstat(folder), shown)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _require_owner(account: Account, status: os.stat_result, shown: PurePosixPath) -> None:
    if status.st_uid != account.uid:
        raise ProjectRefused(
            f"{shown} belongs to user id {status.st_uid}, not to you ({account.name}, user id {account.uid}). "
            "Copy it under another name and use the copy, or ask the admin to correct its owner."
        )


def _look(parent: int, name: str) -> str:
    """Say what a name is, for a message only: it may be something else by now."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return f"a symbolic link to {quoted(os.readlink(name, dir_fd=parent))}"
    except OSError:
        return "not a folder"
    return _kind(status.st_mode)


_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def _kind(mode: int) -> str:
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")


_NEXT_STEPS: Final = {
    errno.EACCES: "Give yourself access, for example with chmod u+rwx",
    errno.EPERM: "Give yourself access, for example with chmod u+rwx",
    errno.ENOSPC: "The disk is full: remove files you no longer need",
    errno.EDQUOT: "Your disk quota is used up: remove files you no longer need",
    errno.EROFS: "The file system is read-only: ask the admin why",
    errno.EISDIR: "A folder is in the way: remove or rename it",
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.EAGAIN: "A program has locked it: close the program",
}


def _explain(error: OSError, account: Account, shown: PurePosixPath) -> ProjectRefused | AccountUnavailable:
    step = _NEXT_STEPS.get(error.errno or 0)
    text = f"{shown} cannot be used ({error.strerror})."
    if step:
        return ProjectRefused(f"{text} {step}.")
    return AccountUnavailable(f"{text} The home of {account.name} does not work; ask the admin to look at it.")


@contextmanager
def _explained(account: Account, shown: PurePosixPath) -> Iterator[None]:
    """Turn the system's errors into ours, except for what callers handle themselves."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise _explain(error, account, shown) from error


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
