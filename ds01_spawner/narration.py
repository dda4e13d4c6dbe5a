"""What a launch is doing, told live to everyone who watches its page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

KEPT_EVENTS = 400

DETAIL = "    "
"""Begins a line that is detail, such as a build's output: pages show it in the log and not as the headline."""

STAGES = ((0, "build"), (60, "prepare"), (65, "wait"), (70, "start"))
"""From which progress on a launch is in which of its stages."""


def stage_of(progress: int) -> str:
    """Return the stage that a launch is in."""
    return next(name for first, name in reversed(STAGES) if progress >= first)


class Narration:
    """The story of one launch: the hub's progress events, kept for late readers, pushed to present ones.

    Progress never goes back: the bar a user sees only grows.
    """

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._dropped = 0
        self._progress = 0
        self._news = asyncio.Event()
        self._ended = False

    def say(self, progress: int, message: str) -> None:
        """Tell what is happening now.

        Args:
            progress: 0 to 100.
            message: one line of plain text; the hub's page escapes it.  The same line again is not repeated.
        """
        self._progress = max(self._progress, progress)
        if self._events and self._events[-1]["message"] == message:
            return
        self._events.append({"progress": self._progress, "message": message})
        if len(self._events) > KEPT_EVENTS:
            self._events.pop(0)
            self._dropped += 1
        self._wake()

    def end(self) -> None:
        """Let every reader finish."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield everything told so far, then what is told while it lasts."""
        told = 0
        while True:
            news = self._news
            untold = self._events[max(0, told - self._dropped) :]
            told = self._dropped + len(self._events)  # before yielding: more may be told while a reader is slow
            for event in untold:
                yield dict(event)
            if news is self._news and self._ended:
                return
            await news.wait()
