"""The line of builds that wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class BuildLine:
    """Lets so many in at once; the rest wait in order.

    Args:
        most: how many at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._waiting: list[tuple[asyncio.Future[None], Callable[[str], None]]] = []

    @asynccontextmanager
    async def place(self, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
        """Be one of those inside for as long as the block lasts.

        Args:
            on_wait: told the place in the line, as a sentence, whenever it changes.
        """
        if self._inside < self._most:
            self._inside += 1
        else:
            await self._wait(on_wait)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, on_wait: Callable[[str], None]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (turn, on_wait)
        self._waiting.append(ticket)
        self._tell_places()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting = [other for other in self._waiting if other is not ticket]
                self._tell_places()
            else:
                self._leave()  # it was let in at the same moment
            raise

    def _leave(self) -> None:
        # The place goes to the next one directly, so that nobody who comes later slips in.
        while self._waiting:
            turn, _ = self._waiting.pop(0)
            if not turn.cancelled():
                turn.set_result(None)
                self._tell_places()
                return
        self._inside -= 1

    def _tell_places(self) -> None:
        running = "another build" if self._most == 1 else f"one of {self._most} other builds"
        for place, (_, on_wait) in enumerate(self._waiting, 1):
            on_wait(f"Waiting for {running} to end, place {place} of {len(self._waiting)}")
