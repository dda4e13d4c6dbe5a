"""One thread for calls that may never return, such as those into a GPU driver that hangs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """The call did not return in time, or was not made because an earlier one has not returned yet."""


class OneThread:
    """Runs one call at a time in a thread of its own.

    A call that does not come back costs its caller one timeout.  Later callers are told at once, without another call
    being made, until the hung one is given up; then a new thread takes over.  At most ``max_given_up`` threads are ever
    left hanging: a driver that stays dead does not fill the hub with threads.

    The standard library's executors will not do: the interpreter waits for their threads when it exits, so one hung
    call would keep the hub from stopping.

    Args:
        name: the thread's name, for whoever reads a stack dump.
        timeout_seconds: how long a caller waits, its place behind other callers included.
        give_up_seconds: how long a hung call keeps others from being made.
        max_given_up: how many hung threads are left behind at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_seconds: float,
        give_up_seconds: float = 60.0,
        max_given_up: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._give_up_seconds = give_up_seconds
        self._max_given_up = max_given_up
        self._clock = clock
        self._given_up: list[_Worker] = []
        self._worker: _Worker | None = None

    @property
    def given_up(self) -> int:
        """How many threads hang in a call that was given up."""
        self._given_up = [worker for worker in self._given_up if worker.is_alive()]
        return len(self._given_up)

    async def call(self, function: Callable[[], T]) -> T:
        """Return what the function returns, or raise what it raises.

        Raises:
            NoAnswer: the function did not return in time, or was not called because an earlier call still hangs.
        """
        job = self._current_worker().submit(function)
        answer = asyncio.wrap_future(job)
        try:
            done, _ = await asyncio.wait({answer}, timeout=self._timeout_seconds)
        finally:
            # A caller that went away must not have its call made later; one that runs already cannot be called back.
            job.cancel()
        if not done:
            answer.cancel()
            raise NoAnswer(f"no answer within {self._timeout_seconds:g} seconds")
        return answer.result()

    def _current_worker(self) -> _Worker:
        worker = self._worker
        if worker is not None:
            hung_seconds = worker.busy_seconds()
            if hung_seconds < self._timeout_seconds:
                return worker
            if hung_seconds < self._give_up_seconds:
                raise NoAnswer(f"an earlier call has not returned for {hung_seconds:.0f} seconds")
            if self.given_up >= self._max_given_up:
                raise NoAnswer(f"{self._max_given_up + 1} calls have not returned; none is made until one does")
            worker.finish()
            self._given_up.append(worker)
        self._worker = _Worker(self._name, self._clock)
        return self._worker


class _Worker:
    """The thread itself: takes jobs from a queue, one after the other."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy_since: float | None = None
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        job: Future[T] = Future()
        self._jobs.put((function, job))
        return job

    def busy_seconds(self) -> float:
        """How long the call under way has taken so far; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def finish(self) -> None:
        """End the thread once its call returns, if it ever does."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            function, job = entry
            if not job.set_running_or_notify_cancel():
                continue
            self._busy_since = self._clock()
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller who waits
                self._busy_since = None
                job.set_exception(error)
            else:
                self._busy_since = None
                job.set_result(result)
