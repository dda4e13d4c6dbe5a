"""How projects' images stand to their Dockerfiles, without making anybody wait.

The answer for a Dockerfile that copies no files depends on its text and the image alone, and is kept.  One that copies
files needs a look at them, which a child process takes with the user's rights; that runs beside the page and is used
for the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ds01_spawner.core.build import Source
from ds01_spawner.core.overview import Standing
from ds01_spawner.core.project import Dockerfile
from ds01_spawner.errors import DS01Error, EngineUnavailable

WAIT_SECONDS = 0.15
FILES_SECONDS = 20.0
TEXT_SECONDS = 600.0
_AT_ONCE = 2
_KEPT = 5000


class Looker(Protocol):
    """Compares a project with its image."""

    async def compare(self, source: Source) -> tuple[Standing, bool]:
        """Return how the image stands, and whether that depends on files beside the Dockerfile."""


@dataclass(frozen=True, slots=True)
class _Known:
    standing: Standing
    until: float


class Standings:
    """What is known of everybody's images.

    Args:
        looker: compares.
        clock: monotonic seconds.
    """

    def __init__(self, looker: Looker, clock: Callable[[], float]) -> None:
        self._looker = looker
        self._clock = clock
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
        self._running: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def of(
        self,
        sources: Sequence[Source],
        dockerfiles: Mapping[str, Dockerfile | None],
        images: Mapping[str, str],
    ) -> dict[str, Standing]:
        """Return what can be said soon of each project.

        Args:
            sources: the projects.
            dockerfiles: as read just now, by project; one that is missing here has a problem.
            images: id of the image that ``latest`` means, by repository.
        """
        found: dict[str, Standing] = {}
        asked: list[tuple[Source, tuple[str, str, str]]] = []
        for source in sources:
            if source.project not in dockerfiles:
                found[source.project] = Standing.BROKEN
            elif (dockerfile := dockerfiles[source.project]) is None:
                found[source.project] = Standing.DEFAULT
            elif source.repository not in images:
                found[source.project] = Standing.MISSING
            else:
                digest = hashlib.sha256(dockerfile.text).hexdigest()
                asked.append((source, (source.repository, digest, images[source.repository])))
        waits = [self._look(source, key) for source, key in asked if self._is_due(key)]
        if waits:
            await asyncio.wait(waits, timeout=WAIT_SECONDS)
        for source, key in asked:
            known = self._known.get(key)
            found[source.project] = known.standing if known else Standing.UNKNOWN
        return found

    def _is_due(self, key: tuple[str, str, str]) -> bool:
        known = self._known.get(key)
        return known is None or known.until < self._clock()

    def _look(self, source: Source, key: tuple[str, str, str]) -> asyncio.Task[None]:
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._compare(source, key))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return task

    async def _compare(self, source: Source, key: tuple[str, str, str]) -> None:
        async with self._at_once:
            try:
                standing, uses_files = await self._looker.compare(source)
            except EngineUnavailable:
                return
            except DS01Error:
                standing, uses_files = Standing.BROKEN, True
        seconds = FILES_SECONDS if uses_files else TEXT_SECONDS
        self._known[key] = _Known(standing, self._clock() + seconds)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
