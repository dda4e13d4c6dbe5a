"""What is known about images, by image id: an id names content that never changes, so an answer stays true."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

MOST_ENTRIES = 1000
SCHEMA = 1


class ProbeCache:
    """Answers in memory, and in one small JSON file that a restarted hub reads once.

    Args:
        path: the file, in a folder that only the hub's user may write to. A missing, old or spoiled one is an empty
            one: everything in it can be asked again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _read(path)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the answer kept under a key, if any."""
        return self._entries.get(key)

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer; the oldest ones go when there are too many. A disk that is full only loses the file."""
        self._entries.pop(key, None)
        self._entries[key] = answer
        while len(self._entries) > MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"schema": SCHEMA, "answers": self._entries}))
            temporary.rename(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("answers"), dict):
        return {}
    return {key: answer for key, answer in found["answers"].items() if isinstance(answer, dict)}
