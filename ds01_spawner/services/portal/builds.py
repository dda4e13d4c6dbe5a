"""Builds that people order on their projects' pages.

Each runs in the portal's process, with or without anybody watching; its log and record are on disk as those of the
hub's own builds are, so pages show both alike.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ds01_spawner.builder import Builder
from ds01_spawner.core.build import Source
from ds01_spawner.core.buildprogress import BuildPhase, BuildProgress
from ds01_spawner.errors import DS01Error

log = logging.getLogger("ds01_spawner.portal")


@dataclass(slots=True)
class Ordered:
    """A build that was ordered here.

    Attributes:
        task: the build.
        progress: where it is.
        refusal: why there is nothing to see of it in the records, else empty.
    """

    task: asyncio.Task[None]
    progress: BuildProgress
    refusal: str = ""


class Builds:
    """Every build of this process, one per image at most.

    Args:
        builder: carries them out.
    """

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._ordered: dict[str, Ordered] = {}

    def start(self, source: Source, *, rebuild: bool) -> None:
        """Build a project's image; nothing more when a build of it is under way here."""
        if self.running(source.repository) is not None:
            return
        task = asyncio.create_task(self._carry_out(source, rebuild=rebuild))
        self._ordered[source.repository] = Ordered(task, BuildProgress(BuildPhase.WAITING, "Preparing the build"))

    def running(self, repository: str) -> Ordered | None:
        """Return the image's build that is under way here, ``None`` when none is."""
        ordered = self._ordered.get(repository)
        return ordered if ordered is not None and not ordered.task.done() else None

    def refusal(self, repository: str) -> str:
        """Return why the last build that was ordered here did not even begin, once; empty when it did."""
        ordered = self._ordered.get(repository)
        if ordered is None or not ordered.task.done():
            return ""
        del self._ordered[repository]
        return ordered.refusal

    def cancel(self, repository: str) -> None:
        """Stop the image's build that is under way here; none is no error."""
        ordered = self.running(repository)
        if ordered is not None:
            ordered.task.cancel()

    async def close(self) -> None:
        """Stop every build and return when none is left."""
        for ordered in self._ordered.values():
            ordered.task.cancel()
        await asyncio.gather(*(ordered.task for ordered in self._ordered.values()), return_exceptions=True)
        await self._builder.close()

    async def _carry_out(self, source: Source, *, rebuild: bool) -> None:
        began = False

        def note(progress: BuildProgress) -> None:
            nonlocal began
            began = began or progress.phase in {BuildPhase.PACKING, BuildPhase.BUILDING}
            ordered = self._ordered.get(source.repository)
            if ordered is not None:
                ordered.progress = progress

        try:
            image = await self._builder.ensure(source, on_progress=note, rebuild=rebuild)
            if not image.built and not began:
                self._refuse(source, "Nothing was built: the image is up to date already.")
        except DS01Error as error:
            if not began:
                self._refuse(source, str(error))
        except Exception:
            log.exception("A build of %s failed unexpectedly", source.repository)
            self._refuse(source, "The build failed for a reason that is not yours. Tell an administrator.")

    def _refuse(self, source: Source, why: str) -> None:
        ordered = self._ordered.get(source.repository)
        if ordered is not None:
            ordered.refusal = why
