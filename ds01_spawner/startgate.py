"""Lets servers start as fast as the processors can carry them, and no faster.

A notebook server's start is almost pure CPU work.  Forty at once on two cores would each take forty times as long,
and every one of them would miss its deadline; a few at a time all meet it, and the last is ready no later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class StartGate:
    """A fair gate: at most ``slots`` starts at once, in the order of arrival.

    Whoever waits is told how many are before them each time that changes.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a start gate needs at least one slot, not {slots}")
        self._free = slots
        self._waiting: deque[tuple[asyncio.Future[None], Callable[[int], None]]] = deque()

    @property
    def waiting(self) -> int:
        """How many starts wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def enter(self, on_wait: Callable[[int], None]) -> AsyncIterator[None]:
        """Hold a slot for the duration of the block.

        Args:
            on_wait: called with the number of starts before this one, at once and whenever it changes; not called
                when a slot is free.
        """
        await self._acquire(on_wait)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, on_wait: Callable[[int], None]) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (turn, on_wait)
        self._waiting.append(place)
        on_wait(len(self._waiting) - 1)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # A release in the same turn of the loop may have passed this one over already.
                self._waiting = deque(other for other in self._waiting if other is not place)
                self._tell()
            else:
                self._release()  # the slot was handed over in the same moment
            raise

    def _release(self) -> None:
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._tell()
                return
        self._free += 1

    def _tell(self) -> None:
        for before, (_, on_wait) in enumerate(self._waiting):
            on_wait(before)
