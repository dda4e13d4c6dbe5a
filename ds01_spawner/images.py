"""Which image a launch uses: the project's own, built when its recipe changed, or one that was kept under a tag."""

from __future__ import annotations

from collections.abc import Callable

from ds01_spawner.builder import Builder, Image, Source
from ds01_spawner.core import project
from ds01_spawner.core.account import Account
from ds01_spawner.core.buildprogress import BuildProgress
from ds01_spawner.core.options import TAG, SpawnOptions
from ds01_spawner.narration import DETAIL

FIRST_PERCENT, LAST_PERCENT = 5, 60
"""The part of a launch's progress that a build takes."""


class ProjectImages:
    """The images of projects.

    Args:
        builder: builds them.
        default_image: for projects without a Dockerfile.
    """

    def __init__(self, builder: Builder, default_image: str) -> None:
        self._builder = builder
        self._default_image = default_image

    def repository(self, user: str, name: str) -> str:
        """Return what a project's image is called."""
        return project.image_repository(user, name)

    def source(self, account: Account, user: str, name: str) -> Source:
        """Return what the builder needs to know of a project."""
        return Source(account, user, name, self.repository(user, name), self._default_image)

    async def find(self, account: Account, options: SpawnOptions, user: str, say: Callable[[int, str], None]) -> Image:
        """Return the image for a launch.

        Raises:
            Refusal: there is no usable image; says why and what to do.
            EngineUnavailable: the engine does not answer.
        """
        source = self.source(account, user, options.project)
        if options.tag != TAG.default:
            return await self._builder.find_tagged(source, options.tag)
        return await self._builder.ensure(source, on_progress=_Teller(say))


class _Teller:
    """Turns states of a build into lines: each sentence when it changes, each line of output once."""

    def __init__(self, say: Callable[[int, str], None]) -> None:
        self._say = say
        self._sentence = ""
        self._lines = 0

    def __call__(self, progress: BuildProgress) -> None:
        share = progress.done / progress.steps if progress.steps else 0
        percent = FIRST_PERCENT + int(share * (LAST_PERCENT - FIRST_PERCENT))
        fresh = min(progress.line_count - self._lines, len(progress.lines))
        self._lines = progress.line_count
        for line in progress.lines[len(progress.lines) - fresh :]:
            self._say(percent, DETAIL + line)
        if progress.sentence != self._sentence:
            self._sentence = progress.sentence
            self._say(percent, progress.sentence)
