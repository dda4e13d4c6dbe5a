"""Looks again and again, and whenever somebody asks, never twice at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Looker:
    """One task that calls a function when asked to, and by itself after a pause.

    Everybody who asks while a look is under way shares the next one: it begins after they asked.

    Args:
        look: makes one look and does what follows from it.
        pause: says how many seconds may pass until the next look that nobody asks for.
        failed: is told when a look failed.
    """

    def __init__(
        self, look: Callable[[], Awaitable[None]], pause: Callable[[], float], failed: Callable[[Exception], None]
    ) -> None:
        self._look = look
        self._pause = pause
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._upcoming: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def ending(self) -> bool:
        """Whether there will be no more looks: it was closed, or the program ends and cancels every task at once."""
        task = self._task
        return self._closed or (task is not None and (task.done() or task.cancelling() > 0))

    def ask(self) -> asyncio.Future[None]:
        """Ask for a look; the result is done after it, or at once when there are no more looks."""
        if self._closed:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            over.set_result(None)
            return over
        if self._upcoming is None or self._upcoming.done():
            self._upcoming = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_on(), name="ds01-allocator")
        self._wake.set()
        return self._upcoming

    async def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _look_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            asked, self._upcoming = self._upcoming, None
            try:
                await self._look()
            except Exception as error:
                log.exception("A look at the host failed")
                self._failed(error)
            finally:
                if asked and not asked.done():
                    asked.set_result(None)
