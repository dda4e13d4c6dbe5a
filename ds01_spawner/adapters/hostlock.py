"""A lock file shared with other allocators of this host, such as the DS01 command line's."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ds01_spawner.errors import DevicesUnavailable

_POLL_SECONDS = 0.02


class HostLock:
    """An exclusive ``flock`` on a file, waited for without blocking the event loop.

    It fails closed: when the lock cannot be had, nothing is granted.

    Args:
        path: the lock file; created where missing, for its owner and group only.
        timeout_seconds: how long to wait for it.
    """

    def __init__(self, path: Path | str, *, timeout_seconds: float = 10.0) -> None:
        self._path = Path(path)
        self._timeout_seconds = timeout_seconds
        self._turn = asyncio.Lock()  # in order among ourselves; flock knows no order

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lock for a block.

        Raises:
            DevicesUnavailable: somebody else held it for too long, or the file cannot be opened.
        """
        began = time.monotonic()
        async with self._turn:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(self._path, flags, 0o660)
            except OSError as error:
                raise DevicesUnavailable(
                    f"No GPU is assigned, because the lock of this host's GPUs cannot be opened: {error}."
                    " Tell an administrator."
                ) from error
            try:
                while not _taken(descriptor):
                    if time.monotonic() - began > self._timeout_seconds:
                        raise DevicesUnavailable(
                            f"No GPU is assigned, because another program has held {self._path} for more than"
                            f" {self._timeout_seconds:g} s. If it stays so, tell an administrator."
                        )
                    await asyncio.sleep(_POLL_SECONDS)
                yield
            finally:
                os.close(descriptor)  # which gives the lock back


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
