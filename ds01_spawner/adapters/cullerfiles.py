"""The culler's files: what it sees and will do now, what it has ended, which warnings stand, and metrics.

The hub's pages and the command line read them; the culler alone writes them, each as a whole, so that a reader sees
the old contents or the new ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

STATUS: Final = "status.json"
RETIRED: Final = "retired.json"
STANDING: Final = "standing.json"
METRICS: Final = "culler.prom"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BYTES_MAX: Final = 64 * 2**20
_RETIRED_MAX: Final = 500


class CullerFiles:
    """The folder that they are in.

    Args:
        folder: made when missing, with its parents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace what is seen and decided now.

        Raises:
            OSError: it could not be written.
        """
        self._write(STATUS, status)

    def status(self) -> dict[str, Any] | None:
        """Return what was seen and decided last, ``None`` when there is nothing readable."""
        found = self._read(STATUS)
        return found if isinstance(found, dict) else None

    def add_retired(self, ended: Mapping[str, Any]) -> None:
        """Remember how a server ended, in place of how it ended before; the oldest beyond some hundreds are dropped.

        Args:
            ended: plain values, with ``user`` and ``server``.

        Raises:
            OSError: it could not be written.
        """
        others = [entry for entry in self.retired() if _holder(entry) != _holder(ended)]
        self._write(RETIRED, [*others, ended][-_RETIRED_MAX:])

    def forget_retired(self, holders: Collection[tuple[str, str]]) -> None:
        """Forget how some servers ended.

        Args:
            holders: user and name of each.

        Raises:
            OSError: it could not be written.
        """
        entries = self.retired()
        left = [entry for entry in entries if _holder(entry) not in holders]
        if len(left) < len(entries):
            self._write(RETIRED, left)

    def retired(self, user: str | None = None) -> list[dict[str, Any]]:
        """Return how servers ended, oldest first; of one user when asked."""
        found = self._read(RETIRED)
        entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        return [entry for entry in entries if user is None or entry.get("user") == user]

    def write_standing(self, standing: Mapping[str, Any]) -> None:
        """Replace the warnings that stand; they are dated by a clock that begins anew when the host boots.

        Raises:
            OSError: they could not be written.
        """
        self._write(STANDING, {"boot": _boot_id(), "standing": standing})

    def standing(self) -> dict[str, Any]:
        """Return the warnings that stand; none after a boot."""
        found = self._read(STANDING)
        if (
            not isinstance(found, dict)
            or found.get("boot") != _boot_id()
            or not isinstance(found.get("standing"), dict)
        ):
            return {}
        return dict(found["standing"])

    def write_metrics(self, values: Iterable[tuple[str, str, float]]) -> None:
        """Replace the metrics, in the text format that Prometheus' node exporter collects from a folder.

        Args:
            values: name, help and value of gauges.

        Raises:
            OSError: they could not be written.
        """
        lines = [f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value:g}\n" for name, text, value in values]
        self._replace(METRICS, "".join(lines), mode=0o644)

    def _write(self, name: str, value: Any) -> None:
        self._replace(name, json.dumps(value, separators=(",", ":")), mode=0o600)

    def _replace(self, name: str, text: str, *, mode: int) -> None:
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        beside = self._folder / f".{name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(beside, flags, mode), "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), mode)
            beside.replace(self._folder / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _read(self, name: str) -> Any:
        try:
            with (self._folder / name).open("rb") as file:
                return json.loads(file.read(_BYTES_MAX))
        except (OSError, ValueError):
            return None


def _holder(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    return entry.get("user"), entry.get("server")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
