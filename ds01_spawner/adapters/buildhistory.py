"""Keeps each build's log and record in a folder of the site, for the user's history page.

One folder a project, named like its image; in it ``<build>.json`` and ``<build>.log``.  A record that still says
"building" although its process is gone was interrupted: whoever reads it says so, nobody has to repair it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ds01_spawner.core.build import BuildRecord, Outcome

LOG_BYTES = 5 * 1024 * 1024
KEPT_BUILDS = 20
_HEAD_BYTES = LOG_BYTES // 2
_TAIL_BYTES = LOG_BYTES // 4
_ID = re.compile(r"[0-9A-Za-z-]{1,60}")
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class LogPart:
    """A piece of a build's log.

    Attributes:
        text: whole lines.
        next_offset: where to read on, in bytes.
        has_ended: whether nothing will follow.
    """

    text: str
    next_offset: int
    has_ended: bool


class BuildRecords:
    """Every build of a site.

    Args:
        folder: made when missing; readable by nobody but the hub's user, because logs tell what people work on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._running: set[str] = set()

    def begin(self, repository: str, record: BuildRecord) -> Journal:
        """Keep that a build runs, and forget the project's oldest."""
        folder = self._folder_of(repository)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.json"))[: -KEPT_BUILDS + 1]:
            old.with_suffix(".log").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        self._running.add(record.id)
        return Journal(folder / f"{record.id}.json", record, self._running)

    def list(self, repository: str) -> tuple[BuildRecord, ...]:
        """Return a project's builds, the newest first."""
        found = (self._read(path) for path in sorted(self._folder_of(repository).glob("*.json"), reverse=True))
        return tuple(record for record in found if record is not None)

    def newest(self, repository: str) -> BuildRecord | None:
        """Return a project's last build, ``None`` when there was none."""
        paths = sorted(self._folder_of(repository).glob("*.json"), reverse=True)
        return next((record for path in paths if (record := self._read(path)) is not None), None)

    def read_log(self, repository: str, build: str, offset: int = 0) -> LogPart:
        """Return what a build's log says from an offset on, at most ``LOG_BYTES``; empty when there is no such build.

        Where a log became so long that its middle was left out, an offset beyond the log's end starts over.
        """
        if not _ID.fullmatch(build):
            return LogPart("", 0, has_ended=True)
        path = self._folder_of(repository) / f"{build}.json"
        record = self._read(path)
        if record is None:
            return LogPart("", 0, has_ended=True)
        with suppress(FileNotFoundError), path.with_suffix(".log").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = offset if 0 <= offset <= size else 0
            file.seek(offset)
            data = file.read(LOG_BYTES + _TAIL_BYTES)
            whole = data[: data.rfind(b"\n") + 1]
            return LogPart(
                whole.decode("utf-8", "replace"), offset + len(whole), record.outcome is not Outcome.BUILDING
            )
        return LogPart("", 0, has_ended=record.outcome is not Outcome.BUILDING)

    def read_tail(self, repository: str, build: str, size: int) -> str:
        """Return the last whole lines of a build's log, at most ``size`` bytes; empty when there is no such build."""
        if not _ID.fullmatch(build):
            return ""
        with suppress(FileNotFoundError), (self._folder_of(repository) / f"{build}.log").open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            data = file.read(size)
            if start:
                data = data[data.find(b"\n") + 1 :]
            return data.decode("utf-8", "replace")
        return ""

    def _folder_of(self, repository: str) -> Path:
        if not _REPOSITORY.fullmatch(repository) or ".." in repository:
            raise ValueError(f"{repository!r} is not a project's repository")
        return self._folder / repository

    def _read(self, path: Path) -> BuildRecord | None:
        try:
            fields: dict[str, Any] = dict(json.loads(path.read_text()))
            process = fields.pop("process", "")
            record = BuildRecord(**{**fields, "outcome": Outcome(fields["outcome"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if record.outcome is Outcome.BUILDING and not self._still_runs(record.id, process):
            return replace(record, outcome=Outcome.INTERRUPTED)
        return record

    def _still_runs(self, build: str, process: Any) -> bool:
        if process == _identity(os.getpid()):
            return build in self._running
        # Another process, such as the portal, asks whether the hub that began it is there.
        pid = str(process).partition(":")[0]
        return pid.isdecimal() and _identity(int(pid)) == process


class Journal:
    """The log and record of one build."""

    def __init__(self, path: Path, record: BuildRecord, running: set[str]) -> None:
        self._path = path
        self._record = record
        self._running = running
        self._lock = threading.Lock()
        self._omitted = 0
        self._size = 0
        self._log = path.with_suffix(".log").open("w+b", buffering=0)
        self._keep(record)

    def write(self, lines: list[str]) -> None:
        """Add lines; where the log grows too long, its middle is left out."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        with self._lock:
            if self._log.closed:
                return
            with suppress(OSError):  # a full disk must not fail a build that may yet succeed
                self._log.write(data)
                self._size += len(data)
                if self._size > LOG_BYTES:
                    self._leave_middle_out()

    def end(self, record: BuildRecord) -> None:
        """Keep how the build ended."""
        with self._lock:
            self._log.close()
        with suppress(OSError):
            self._keep(record)
        self._running.discard(record.id)

    def _leave_middle_out(self) -> None:
        file = self._log.fileno()
        head = os.pread(file, _HEAD_BYTES, 0)
        head = head[: head.rfind(b"\n") + 1]
        tail = os.pread(file, _TAIL_BYTES, self._size - _TAIL_BYTES)
        tail = tail[tail.find(b"\n") + 1 :]
        self._omitted = self._size - len(head) - len(tail) + self._omitted
        note = f"… {self._omitted:,} bytes of the log are left out here …\n".encode()
        os.ftruncate(file, len(head))
        os.lseek(file, len(head), os.SEEK_SET)
        os.write(file, note + tail)
        self._size = len(head) + len(note) + len(tail)
        self._omitted -= len(note)

    def _keep(self, record: BuildRecord) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps({**asdict(record), "process": _identity(os.getpid())}))
        draft.replace(self._path)


def _identity(pid: int) -> str:
    """Return a process's id and start time, which no later process has both of; empty when there is none."""
    try:
        # The second field is the command's name in parentheses, which may itself contain blanks.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{pid}:{started}"
