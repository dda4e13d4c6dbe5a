"""The file that keeps places in the queue over a restart of the hub."""

from __future__ import annotations

import os
from pathlib import Path

MAX_BYTES = 16 * 2**20


class TicketFile:
    """A small text file that is replaced as a whole, so that a reader sees the old text or the new one.

    Args:
        path: the file, readable for its owner only; its folder exists.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    def read(self) -> str | None:
        """Return the text, ``None`` when there is no file.

        What is not text reads as an empty one.

        Raises:
            OSError: there is one and it cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def write(self, text: str) -> None:
        """Replace the text.

        Raises:
            OSError: the disk is full, or the folder is not there.
        """
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            beside.replace(self._path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
