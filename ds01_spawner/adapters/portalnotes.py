"""What the portal remembers of a project between its launches: packages that went with a retired container."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.core.project import image_repository


class LostPackages:
    """One small file a project.

    Args:
        folder: made when missing, readable for nobody else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, user: str, project: str) -> tuple[str, ...]:
        """Return the packages that the last retired container had and its image lacks, ``name==version``."""
        with suppress(OSError, ValueError, TypeError):
            text = self._file(user, project).read()
            return tuple(str(package) for package in json.loads(text)) if text else ()
        return ()

    def write(self, user: str, project: str, packages: tuple[str, ...]) -> None:
        """Remember them; a full disk only means that the hint is missing."""
        with suppress(OSError):
            self._file(user, project).write(json.dumps(packages))

    def _file(self, user: str, project: str) -> TicketFile:
        return TicketFile(self._folder / f"{image_repository(user, project).replace('/', '--')}.json")
