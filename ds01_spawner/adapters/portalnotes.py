"""What a project's pages remember of it between its launches.

Packages that went with a retired container, and which retirement its user does not want to be told of any more.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.core.project import image_repository
from ds01_spawner.core.retirements import SHOWN_SECONDS, Retirement


class LostPackages:
    """One small file a project.

    Args:
        folder: made when missing, readable for nobody else.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = _Notes(folder)

    def read(self, user: str, project: str) -> tuple[str, ...]:
        """Return the packages that the last retired container had and its image lacks, ``name==version``."""
        found = self._notes.read(user, project)
        return tuple(str(package) for package in found) if isinstance(found, list) else ()

    def write(self, user: str, project: str, packages: tuple[str, ...]) -> None:
        """Remember them; a full disk only means that the hint is missing."""
        self._notes.write(user, project, packages)


class Dismissed:
    """Which retirements their users do not want to see any more.

    Args:
        folder: made when missing, readable for nobody else.
    """

    def __init__(self, folder: Path) -> None:
        self._notes = _Notes(folder)

    def __contains__(self, retirement: Retirement) -> bool:
        found = self._notes.read(retirement.user, retirement.project)
        return isinstance(found, int | float) and retirement.at <= found

    def add(self, user: str, project: str, at: float) -> None:
        """Remember that retirements up to a moment were seen; a full disk only means that they are shown again.

        What was remembered of retirements that are too old to be shown is forgotten.
        """
        self._notes.write(user, project, at)
        self._notes.forget(at - SHOWN_SECONDS)


class _Notes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, user: str, project: str) -> Any:
        with suppress(OSError, ValueError):
            text = self._file(user, project).read()
            return json.loads(text) if text else None
        return None

    def write(self, user: str, project: str, value: Any) -> None:
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file(user, project).write(json.dumps(value))

    def forget(self, before: float) -> None:
        with suppress(OSError):
            for path in self._folder.glob("*.json"):
                if path.stat().st_mtime < before:
                    path.unlink()

    def _file(self, user: str, project: str) -> TicketFile:
        # Joined by what no image's name has: two users never share a file.
        return TicketFile(self._folder / f"{image_repository(user, project).replace('/', '+')}.json")
