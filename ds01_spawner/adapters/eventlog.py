r"""The event log: one JSON object a line, appended, never rewritten.

A line is at most 4 KiB and looks like this (here on several lines)::

    {"timestamp": "2026-03-01T09:30:00.000Z", "event_type": "gpu.allocate", "user": "ada", "source": "hub",
     "details": {"server": "thesis", "devices": ["GPU-…"]}, "schema_version": "1"}

Times are UTC.  Everything that is not printable ASCII is escaped, so a hostile name can break neither a line nor a
terminal.
The kinds and their meaning are in ``ds01_spawner.core.events``.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from ds01_spawner.core.events import OLD_KINDS, SCHEMA_VERSION, Event

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 4096


class EventLog:
    """Appends events to a file.

    Several processes may write to one file: each event is one write to a descriptor opened for appending.  When the
    file was rotated away, the next event goes to a new one.  A full disk or a missing folder never stops the caller:
    the event is lost, counted in ``lost``, and the log says so.

    Args:
        path: the file; it is created readable for its group (0640), its folder is not created.
        source: the program that writes, such as ``"hub"``.
        clock: seconds since the epoch.

    Attributes:
        lost: how many events could not be written since the start.
    """

    def __init__(self, path: Path | str, *, source: str = "hub", clock: Callable[[], float] = time.time) -> None:
        self.lost = 0
        self._path = Path(path)
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def record(self, kind: str, /, *, user: str = "", **details: Any) -> None:
        """Append one event, dated now.

        Args:
            kind: one of ``ds01_spawner.core.events.KINDS``.
            user: whom it concerns.
            details: further facts; fractions become numbers, what JSON does not know becomes text.
        """
        line = _encode(Event(at=self._clock(), kind=kind, user=user, source=self._source, details=details))
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                self._close()
                self.lost += 1
                # The first loss tells the admin; a full disk is no reason to fill another log.
                log.log(
                    logging.ERROR if self.lost == 1 else logging.DEBUG,
                    "Event %s lost (%d so far): cannot write %s: %s",
                    kind,
                    self.lost,
                    self._path,
                    error,
                )

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        with self._lock:
            self._close()

    def _append(self, line: bytes) -> None:
        descriptor = self._open()
        size = os.fstat(descriptor).st_size
        # A line that a crash or a full disk left half-written must not swallow this event too.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = b"\n" + line if torn else line
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes fitted")

    def _open(self) -> int:
        if self._descriptor is not None and not self._rotated(self._descriptor):
            return self._descriptor
        self._close()
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o640)
            os.fchmod(descriptor, 0o640)  # whatever the umask
        except FileExistsError:
            descriptor = os.open(self._path, flags)
        self._descriptor = descriptor
        return descriptor

    def _rotated(self, descriptor: int) -> bool:
        try:
            there = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return True
        ours = os.fstat(descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_events(paths: Iterable[Path | str]) -> Iterator[Event]:
    """Yield the events of some files, in the order of files and lines.

    Lines that are not events, such as one cut short by a crash, are passed over and counted in a warning.  Files that a
    rotation has compressed (``.gz``) are read as they are, missing ones are passed over.
    """
    for path in paths:
        bad = 0
        try:
            with _open_for_reading(Path(path)) as lines:
                for line in lines:
                    event = _decode(line)
                    if event is not None:
                        yield event
                    elif line.strip():
                        bad += 1
        except FileNotFoundError:
            continue
        if bad:
            log.warning("%s: %d lines are not events and were passed over", path, bad)


def _open_for_reading(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _encode(event: Event) -> bytes:
    details = {key: _plain(value) for key, value in event.details.items()}
    line = _line(event, details)
    limit = MAX_LINE_BYTES
    while len(line) > MAX_LINE_BYTES:
        # Long values are cut shorter and shorter: the event and the names of its facts matter more.
        limit //= 2
        details = {key: _shortened(value, limit) for key, value in details.items()} if limit else {}
        details["truncated"] = True
        line = _line(event, details)
    return line


def _line(event: Event, details: Mapping[str, Any]) -> bytes:
    record = {
        "timestamp": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "event_type": event.kind,
        "user": event.user[:256],
        "source": event.source,
        "details": details,
        "schema_version": SCHEMA_VERSION,
    }
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def _shortened(value: Any, limit: int) -> Any:
    if isinstance(value, bool | int | float | None):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= limit else text[:limit] + "…"


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it; NaN and infinities, which it does not know, become text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(str(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Fraction):
        value = float(value)
    known = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def _decode(line: bytes) -> Event | None:
    try:
        record = json.loads(line)
        at = datetime.fromisoformat(record["timestamp"])
        details = record.get("details") or {}
        if not isinstance(details, dict):
            return None
        kind = str(record["event_type"])
        return Event(
            at=(at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(),
            kind=OLD_KINDS.get(kind, kind),
            user=str(record.get("user") or ""),
            source=str(record.get("source") or ""),
            details=details,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
