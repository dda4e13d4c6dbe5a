"""The main process of a container, as the host's ``/proc`` and cgroups show it: processor, network, age, terminals.

Nothing here asks the container or runs anything in it.  What lies behind ``/proc/<pid>/root`` belongs to the container,
so it is opened component by component without following links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self

from ds01_spawner.core.activity import Terminal

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PTY_MAJORS: Final = range(136, 144)  # Unix98 pseudo-terminals, see the kernel's devices.txt
_START_TIME_FIELD: Final = 19  # of /proc/<pid>/stat, counted after the command's closing bracket; see proc(5)
_INTERFACE_FIELDS: Final = (0, 8)  # received and sent bytes in /proc/<pid>/net/dev
_TERMINALS_MAX: Final = 64  # a user can open any number; a warning in this many is one that arrived


class ContainerProcess:
    """One process, held by a descriptor of its folder, so that a pid that is used again is never taken for it.

    Args:
        pid: as the host counts.
        container_id: the container that it must belong to.
        proc: where the process file system is mounted.
        cgroups: where the control groups are mounted.

    Raises:
        ProcessLookupError: there is no such process, or it is not the container's.
        OSError: its folder cannot be read.
    """

    def __init__(self, pid: int, container_id: str, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._container_id = container_id
        try:
            self._folder = os.open(proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(f"process {pid} is gone") from error
        self._groups = self._own_groups(pid)

    def _own_groups(self, pid: int) -> str:
        try:
            groups = self._read("cgroup")
        except OSError:
            self.close()
            raise
        if self._container_id not in groups:
            self.close()
            raise ProcessLookupError(f"process {pid} is not of container {self._container_id[:12]}")
        return groups

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._folder)

    def cpu_seconds(self) -> float:
        """Return the processor time of the whole container since it began.

        Raises:
            OSError: no control group of it counts processor time where it should.
        """
        for line in self._groups.splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpuacct" in controllers.split(","):
                file = self._group_file(path, controllers, "cpuacct") / "cpuacct.usage"
                return int(file.read_text()) / 1e9
        path = next(line.split(":", 2)[2] for line in self._groups.splitlines() if line.startswith("0::"))
        for line in (self._group_file(path, "", "unified") / "cpu.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "usage_usec":
                return int(value) / 1e6
        raise OSError("cpu.stat has no usage_usec")

    def _group_file(self, path: str, *mounts: str) -> Path:
        # A process may have moved into a group below the container's; the container's own is what counts.
        parts = PurePosixPath(path).parts[1:]
        depth = next((n for n, part in enumerate(parts, 1) if self._container_id in part), None)
        if depth is None:
            raise OSError(f"its control group {path} does not name its container")
        group = Path(*parts[:depth])
        # On v2 the hierarchy is mounted itself, beside v1 as "unified"; v1 has a folder for each set of controllers.
        for mount in mounts:
            if (self._cgroups / mount / group).is_dir():
                return self._cgroups / mount / group
        raise OSError(f"its control group {path} is not under {self._cgroups}")

    def network_bytes(self) -> int:
        """Return what the container received and sent since it began, its talk with itself left out.

        Raises:
            OSError: the counters cannot be read, or are those of the host's own network.
        """
        own = os.stat("ns/net", dir_fd=self._folder)
        host = (self._proc / "self/ns/net").stat()
        if (own.st_dev, own.st_ino) == (host.st_dev, host.st_ino):
            raise OSError("it shares the host's network, whose counters are everybody's")
        total = 0
        for line in self._read("net/dev").splitlines()[2:]:
            name, _, counters = line.partition(":")
            if name.strip() != "lo":
                total += sum(int(counters.split()[field]) for field in _INTERFACE_FIELDS)
        return total

    def age_seconds(self) -> float:
        """Return how long the process has run; by the kernel's clock, which nobody sets.

        Raises:
            OSError: it cannot be read.
        """
        fields = self._read("stat").rpartition(")")[2].split()
        uptime = float((self._proc / "uptime").read_text().split()[0])
        return max(0.0, uptime - int(fields[_START_TIME_FIELD]) / os.sysconf("SC_CLK_TCK"))

    def terminals(self) -> tuple[Terminal, ...]:
        """Return the container's terminals, each with the time at which somebody last typed in it.

        The kernel dates a terminal's last read by its program and its last output separately; only the first is a sign
        of a person.  It rounds to 8 seconds.

        Raises:
            OSError: they cannot be listed.
        """
        found = []
        with self._terminals_folder() as folder:
            for name in _numbers(folder):
                with suppress(FileNotFoundError):  # closed meanwhile
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if _is_terminal(status):
                        found.append(Terminal(name, str(status.st_atime_ns)))
        return tuple(found)

    def write_to_terminals(self, text: str) -> int:
        """Show a text in every terminal of the container, as ``wall`` does; nothing is typed into it.

        Returns:
            In how many it was shown; one whose output is held up is passed over.

        Raises:
            OSError: they cannot be listed.
        """
        shown = 0
        data = ("\r\n" + text.replace("\n", "\r\n") + "\r\n").encode()
        with self._terminals_folder() as folder:
            for name in _numbers(folder)[:_TERMINALS_MAX]:
                with suppress(OSError):
                    shown += _show(folder, name, data)
        return shown

    @contextmanager
    def _terminals_folder(self) -> Iterator[int]:
        current = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            for name in ("dev", "pts"):
                following = os.open(name, _FOLDER, dir_fd=current)
                os.close(current)
                current = following
            yield current
        finally:
            os.close(current)

    def _read(self, name: str) -> str:
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)) as file:
            return file.read()


def _numbers(folder: int) -> list[str]:
    listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return sorted((name for name in os.listdir(listed) if name.isdecimal()), key=int)  # noqa: PTH208 - a descriptor has no path
    finally:
        os.close(listed)


def _is_terminal(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _PTY_MAJORS


def _show(folder: int, name: str, data: bytes) -> bool:
    # Opened as a path first: a device that is no terminal must not be touched, not even by opening it.
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not _is_terminal(os.fstat(found)):
            return False
        terminal = os.open(f"/proc/self/fd/{found}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.write(terminal, data) == len(data)
        finally:
            os.close(terminal)
    finally:
        os.close(found)
