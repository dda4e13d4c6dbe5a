"""Lists what a build can read of a project's folder, which is the working directory.

Part of the child process of ``contextpacker``: everything here happens with the user's own rights.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ds01_spawner.core.contextpaths import IgnoreRules, has_wildcards, matches_component

DEPTH_MAX = 200
LINKS_MAX = 40
_NAMED = 5
GONE = frozenset([errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO])
"""What opening says of a path that vanished, or became a link or a socket, since it was listed."""


class UnfitError(Exception):
    """The folder cannot be packed; ``facts`` say why."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts


@dataclass(slots=True)
class Entry:
    """One path of the context, as it was when listed."""

    path: str
    status: os.stat_result
    target: str = ""


@dataclass(slots=True)
class Selection:
    """Which paths are wanted: all, or those at and below some, with the folders and links that lead there."""

    everything: bool
    below: set[str] = field(default_factory=set)
    exactly: set[str] = field(default_factory=set)

    def wants(self, path: str) -> bool:
        """Whether the path is to be sent or entered."""
        return self.everything or path in self.exactly or self._is_below(path)

    def _is_below(self, path: str) -> bool:
        while path:
            if path in self.below:
                return True
            path = path.rpartition("/")[0]
        return False


class Folder:
    """The project's folder, which is the working directory.

    Args:
        rules: what ``.dockerignore`` leaves out.
        files_max: how many entries are allowed.
        bytes_max: how many bytes of content are allowed.
    """

    def __init__(self, rules: IgnoreRules, files_max: int, bytes_max: int) -> None:
        self.rules = rules
        self.files_max = files_max
        self.bytes_max = bytes_max
        self.notices: list[str] = []
        self._sizes: dict[str, list[int]] = {}

    def list(self, selection: Selection) -> list[Entry]:
        """Return what is wanted, sorted.

        Raises:
            UnfitError: it is too much, too deep, or not readable.
        """
        entries: list[Entry] = []
        count = total = 0
        # Looking a little further than the limit costs seconds and tells the largest folders truly enough.
        stop = 10 * self.files_max
        for entry in self._walk(selection):
            size = entry.status.st_size if stat.S_ISREG(entry.status.st_mode) else 0
            count, total = count + 1, total + size
            self._measure(entry, size)
            if count <= self.files_max and total <= self.bytes_max:
                entries.append(entry)
            if count >= stop:
                break
        if count > self.files_max or total > self.bytes_max:
            largest = sorted(self._sizes.items(), key=lambda item: (-item[1][0], -item[1][1]))
            if count > self.files_max and total <= self.bytes_max:
                largest.sort(key=lambda item: -item[1][1])
            raise UnfitError(
                kind="too-large",
                count=count,
                bytes=total,
                at_least=count >= stop,
                largest=[(name, *sizes) for name, sizes in largest[:_NAMED]],
            )
        entries.sort(key=lambda entry: entry.path.split("/"))
        return entries

    def _measure(self, entry: Entry, size: int) -> None:
        top, slash, _ = entry.path.partition("/")
        sizes = self._sizes.setdefault(top + ("/" if slash or stat.S_ISDIR(entry.status.st_mode) else ""), [0, 0])
        sizes[0] += size
        sizes[1] += 1

    def _walk(self, selection: Selection) -> Iterator[Entry]:
        with open_folder(".") as top:
            yield from self._walk_folder(top, "", 0, selection)

    def _walk_folder(self, folder: int, above: str, depth: int, selection: Selection) -> Iterator[Entry]:
        if depth > DEPTH_MAX:
            raise UnfitError(kind="too-deep", path=above, most=DEPTH_MAX)
        for name in sorted(os.listdir(folder)):
            path = above + name
            if not selection.wants(path):
                continue
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            ignored = self.rules.ignores(path)
            if stat.S_ISDIR(status.st_mode):
                if ignored and self.rules.ignores_all_below(path):
                    continue
                yield from self._enter(folder, Entry(path, status), depth, selection, ignored=ignored)
            elif not ignored:
                entry = self._describe(folder, name, Entry(path, status))
                if entry is not None:
                    yield entry

    def _enter(self, parent: int, entry: Entry, depth: int, selection: Selection, *, ignored: bool) -> Iterator[Entry]:
        try:
            with open_folder(entry.path.rpartition("/")[2], parent) as folder:
                # An ignored folder is sent only as the way to something in it that an exception keeps.
                if not ignored:
                    yield entry
                for inner in self._walk_folder(folder, entry.path + "/", depth + 1, selection):
                    if ignored:
                        yield entry
                        ignored = False
                    yield inner
        except OSError as error:
            if error.errno in GONE:
                return
            raise UnfitError(kind="unreadable", path=entry.path, error=error.strerror) from error

    def _describe(self, folder: int, name: str, entry: Entry) -> Entry | None:
        mode = entry.status.st_mode
        if stat.S_ISREG(mode):
            return entry
        if stat.S_ISLNK(mode):
            with suppress(OSError):
                entry.target = os.readlink(name, dir_fd=folder)
            return entry if entry.target else None
        if len(self.notices) < 10 * _NAMED:
            self.notices.append(entry.path)
        return None


def resolve(sources: list[str]) -> Selection:
    """Return what the sources of ``COPY`` lead to, links followed inside the folder as BuildKit does.

    An absolute target counts from the folder, and nothing leads above it.
    """
    selection = Selection(everything=False)
    for source in sources:
        _resolve("", source.split("/"), selection, LINKS_MAX)
    return selection


def _resolve(above: str, parts: list[str], selection: Selection, links_left: int) -> None:
    """Follow one source; ``above`` is a folder inside, ``""`` for the top."""
    while parts and parts[0] in ("", ".", ".."):
        above = above.rpartition("/")[0] if parts[0] == ".." else above
        parts = parts[1:]
    if not parts:
        selection.everything = selection.everything or not above
        selection.below.add(above)
        return
    for name in _matching(above, parts[0]):
        path = f"{above}/{name}" if above else name
        with suppress(OSError):
            _step(path, above, parts[1:], selection, links_left)


def _step(path: str, above: str, rest: list[str], selection: Selection, links_left: int) -> None:
    mode = Path(path).lstat().st_mode
    selection.exactly.add(path)
    if stat.S_ISLNK(mode):
        target = os.readlink(path)  # noqa: PTH115 - a Path would drop a trailing slash
        start = "" if target.startswith("/") else above
        if links_left:
            _resolve(start, [*target.split("/"), *rest], selection, links_left - 1)
    elif rest:
        _resolve(path, rest, selection, links_left)
    else:
        selection.below.add(path)


def _matching(folder: str, component: str) -> list[str]:
    if not has_wildcards(component):
        return [component]
    with suppress(OSError):
        return [inner.name for inner in Path(folder or ".").iterdir() if matches_component(component, inner.name)]
    return []


def open_file(path: str) -> BinaryIO:
    """Open a file through folders that are no links, whatever happened to them since they were listed."""
    *folders, name = path.split("/")
    with ExitStack() as stack:
        folder = None
        for above in folders:
            folder = stack.enter_context(open_folder(above, folder, os.O_PATH))
        # O_NONBLOCK: what became a FIFO meanwhile does not make us wait.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, dir_fd=folder), "rb", buffering=0)


@contextmanager
def open_folder(name: str, parent: int | None = None, access: int = os.O_RDONLY) -> Iterator[int]:
    """Open a folder that is no link for as long as the block lasts."""
    folder = os.open(name, access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield folder
    finally:
        os.close(folder)
