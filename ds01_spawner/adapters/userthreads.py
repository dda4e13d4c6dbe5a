"""Threads for work on one person's account and folders, which may take as long as their file server does.

A home that does not answer (a dead file server) holds the thread that touches it for as long as it likes.  Each person
has threads of their own, so many and no more, and whoever waits for one has a deadline, so nobody else notices.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from ds01_spawner.errors import AccountUnavailable

MOST_PER_USER: Final = 64
PATIENCE_SECONDS: Final = 30.0

T = TypeVar("T")


class UserThreads:
    """Runs calls in threads, some per person and each with a deadline.

    The standard library's executors will not do: their threads are shared by all, and the interpreter waits for them
    when it exits.

    Args:
        most_per_user: how many calls of one person run or hang at once.
        seconds: how long a caller waits.
    """

    def __init__(self, *, most_per_user: int = MOST_PER_USER, seconds: float = PATIENCE_SECONDS) -> None:
        self._most_per_user = most_per_user
        self._seconds = seconds
        self._running: Counter[str] = Counter()

    async def run(
        self, user: str, work: Callable[..., T], *arguments: Any, unclaimed: Callable[[T], object] | None = None
    ) -> T:
        """Return what a call returns.

        Args:
            user: whose account or folder it touches.
            work: the call.
            arguments: its arguments.
            unclaimed: gets what the call returns when nobody waits any more, such as a descriptor to close.

        Raises:
            AccountUnavailable: it did not return in time, or too many earlier ones have not returned yet.
            Exception: whatever the call raises.
        """
        answer = self.begin(user, work, *arguments, unclaimed=unclaimed)
        try:
            await asyncio.wait([answer], timeout=self._seconds)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        raise _silent(user)

    def begin(
        self, user: str, work: Callable[..., T], *arguments: Any, unclaimed: Callable[[T], object] | None = None
    ) -> asyncio.Future[T]:
        """Begin a call and return what it will answer, for whoever has a deadline of their own.

        Raises:
            AccountUnavailable: too many earlier ones have not returned yet.
        """
        if self._running[user] >= self._most_per_user:
            raise _silent(user)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def take(called: Future[T]) -> None:
            self._running[user] -= 1
            self._running += Counter()  # keeps only those who have some
            error = called.exception()
            if not answer.done():
                answer.set_result(called.result()) if error is None else answer.set_exception(error)
            elif error is None and unclaimed is not None:
                unclaimed(called.result())

        def call() -> None:
            called: Future[T] = Future()
            try:
                called.set_result(work(*arguments))
            except BaseException as error:  # noqa: BLE001 -- raised again where it is awaited
                called.set_exception(error)
            with suppress(RuntimeError):  # the loop has ended, and everybody who waited with it
                loop.call_soon_threadsafe(take, called)

        self._running[user] += 1
        threading.Thread(target=call, name=f"for-{user}", daemon=True).start()
        return answer


def _silent(user: str) -> AccountUnavailable:
    return AccountUnavailable(
        f"The home folder of {user} does not answer. Try again in a minute; if it stays so, tell an administrator, who "
        "should look at the file server."
    )
