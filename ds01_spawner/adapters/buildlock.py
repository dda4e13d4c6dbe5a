"""One build per image on this host, whichever process orders it: the hub for a launch, the portal for a page."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_POLL_SECONDS = 0.2


class BuildLocks:
    """Lock files, one per image; the kernel gives a lock back when its process ends, however it does.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @asynccontextmanager
    async def held(self, repository: str) -> AsyncIterator[None]:
        """Hold an image's lock for a block, waiting as long as another build of it runs."""
        path = self._folder / hashlib.sha256(repository.encode()).hexdigest()[:32]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    break
            yield
        finally:
            os.close(descriptor)
