"""Orders builds: one per project and recipe, which later callers join; how many, how long, how much room.

A project whose recipe is that of its image's label is not built.  An image gets its tag when it is complete and never
before, so whatever happens to a build, the image before it stays what the tag means.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from weakref import WeakValueDictionary

from ds01_spawner.buildline import BuildLine
from ds01_spawner.core import labels, recipe
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import (
    BuildLimits,
    BuildOrder,
    BuildRecord,
    Contents,
    Image,
    LocalImage,
    Outcome,
    PackedContext,
    Source,
)
from ds01_spawner.core.buildprogress import BuildPhase, BuildProgress
from ds01_spawner.core.dockerfile import ContextUse, ParsedDockerfile, context_use, parse
from ds01_spawner.core.overview import Standing
from ds01_spawner.core.project import Dockerfile
from ds01_spawner.core.remotes import check_remotes
from ds01_spawner.errors import BuildFailed, DS01Error, EngineUnavailable, ImageRefused

__all__ = ["BuildEngine", "BuildHistory", "BuildJournal", "BuildLimits", "Builder", "ContextReader", "Image", "Source"]

log = logging.getLogger(__name__)

OnProgress = Callable[[BuildProgress], None]

# -- what is needed of the others -------------------------------------------------------------------------------------


class ContextReader(Protocol):
    """Reads projects with their owner's rights."""

    async def read_dockerfile(self, account: Account, project: str) -> Dockerfile | None:
        """Return the project's Dockerfile, or ``None`` when it has none."""

    async def scan(self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse) -> Contents:
        """Return what the build's files are."""

    def pack(
        self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse
    ) -> AbstractAsyncContextManager[PackedContext]:
        """Pack the Dockerfile and the build's files for as long as the block lasts."""


class BuildEngine(Protocol):
    """Builds images and keeps them."""

    async def inspect(self, reference: str) -> LocalImage | None:
        """Return an image of this host, or ``None``."""

    async def build(self, order: BuildOrder, *, on_progress: OnProgress, on_lines: Callable[[list[str]], None]) -> str:
        """Build an image without a tag and return its id; a cancel leaves nothing running."""

    async def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Let ``repository:tag`` mean this image."""

    async def discard(self, image_id: str) -> None:
        """Remove an image unless something uses it or names it."""

    async def free_bytes(self) -> int:
        """Return the room left for images."""


class BuildJournal(Protocol):
    """The log and record of one build; its methods block shortly."""

    def write(self, lines: list[str]) -> None:
        """Add lines to the log."""

    def end(self, record: BuildRecord) -> None:
        """Keep how it ended."""


class BuildHistory(Protocol):
    """Where builds are remembered."""

    def begin(self, repository: str, record: BuildRecord) -> BuildJournal:
        """Keep that a build runs; blocks shortly."""


# -- what is ordered --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a look at a project found."""

    source: Source
    dockerfile: Dockerfile
    base: str
    use: ContextUse
    knows_triggers: bool
    has_cache_folders: bool
    recipe: str
    rebuild: bool


class _Order:
    """A build that runs or waits, and everyone who waits for it."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.progress = BuildProgress(BuildPhase.WAITING, "Preparing the build")
        self.watchers: dict[object, OnProgress] = {}
        self.task: asyncio.Task[Image] | None = None

    def tell(self, progress: BuildProgress) -> None:
        """Bring every caller up to date."""
        if progress == self.progress:
            return
        self.progress = progress
        for watcher in list(self.watchers.values()):
            _tell(watcher, progress)


class Builder:
    """Sees to it that projects have their image.

    Args:
        contexts: reads the projects.
        engine: builds.
        history: remembers builds.
        limits: what builds may take.
        clock: epoch seconds.
        record: writes an event: ``record(kind, user=…, **facts)``.
        alone: holds off other processes that build the same image, by its repository.
    """

    def __init__(
        self,
        *,
        contexts: ContextReader,
        engine: BuildEngine,
        history: BuildHistory,
        limits: BuildLimits,
        clock: Callable[[], float],
        record: Callable[..., None],
        alone: Callable[[str], AbstractAsyncContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._contexts = contexts
        self._engine = engine
        self._history = history
        self._limits = limits
        self._clock = clock
        self._record = record
        self._alone = alone
        self._orders: dict[tuple[str, str, bool], _Order] = {}
        self._tasks: set[asyncio.Task[Image]] = set()
        self._line = BuildLine(limits.concurrent)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, source: Source, *, on_progress: OnProgress, rebuild: bool = False) -> Image:
        """Return the project's image, built first when its recipe changed.

        A caller that is cancelled leaves; the build goes on as long as anyone else waits for it.

        Args:
            source: the project.
            on_progress: told on the event loop what happens, at once when a build is under way already.
            rebuild: build even if nothing changed, every step anew.

        Raises:
            BuildFailed: the Dockerfile did not build, or took too long, or there is no room.
            ProjectRefused: the project's folder or Dockerfile cannot be used.
            ImageRefused: there is no Dockerfile and no default image.
            AccountUnavailable: the user's home cannot be used.
            EngineUnavailable: the engine does not answer.
        """
        dockerfile = await self._contexts.read_dockerfile(source.account, source.project)
        if dockerfile is None:
            return await self._find_default(source)
        plan, found = await self._look(source, dockerfile, rebuild=rebuild)
        if found is not None and not rebuild and _is_current(found, plan):
            return Image(found.id, f"{source.repository}:latest", plan.recipe, built=False)
        return await self._join(plan, on_progress)

    async def find_tagged(self, source: Source, tag: str) -> Image:
        """Return an image that the user kept under a tag.

        Raises:
            ImageRefused: there is none.
            EngineUnavailable: the engine does not answer.
        """
        reference = f"{source.repository}:{tag}"
        found = await self._engine.inspect(reference)
        if found is None:
            raise ImageRefused(
                f"This project has no image kept as “{tag}”. Choose “latest”, or a tag from the project's page."
            )
        return Image(found.id, reference, found.labels.get(labels.RECIPE, ""), built=False)

    async def compare(self, source: Source) -> tuple[Standing, bool]:
        """Return how the project's image stands to its recipe, and whether files beside the Dockerfile matter for that.

        Nothing is built.

        Raises:
            ProjectRefused: the project's folder or Dockerfile cannot be used.
            AccountUnavailable: the user's home cannot be used.
            EngineUnavailable: the engine does not answer.
        """
        dockerfile = await self._contexts.read_dockerfile(source.account, source.project)
        if dockerfile is None:
            return Standing.DEFAULT, False
        plan, found = await self._look(source, dockerfile, rebuild=False)
        if found is None:
            return Standing.MISSING, not plan.use.is_empty
        return Standing.CURRENT if _is_current(found, plan) else Standing.CHANGED, not plan.use.is_empty

    async def close(self) -> None:
        """Stop every build, and return when none is left."""
        self._orders.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _find_default(self, source: Source) -> Image:
        found = await self._engine.inspect(source.default_image)
        if found is None:
            raise ImageRefused(
                f"The project {source.project} has no Dockerfile, and the image that such projects use, "
                f"{source.default_image}, is not on this server. Ask an administrator to provide it, or write a "
                "Dockerfile into the project's folder."
            )
        return Image(found.id, source.default_image, "", built=False)

    async def _look(self, source: Source, dockerfile: Dockerfile, *, rebuild: bool) -> tuple[_Plan, LocalImage | None]:
        # In a thread: hostile text takes tens of milliseconds to read.
        parsed = await asyncio.to_thread(_read, dockerfile, source.repository)
        found, *bases = await asyncio.gather(
            self._engine.inspect(f"{source.repository}:latest"),
            *(self._engine.inspect(base) for base in recipe.base_images(parsed)),
        )
        triggers = [trigger for base in bases if base is not None for trigger in base.triggers]
        use = context_use(parsed, triggers)
        contents = Contents()
        if not use.is_empty:
            contents = await self._contexts.scan(source.account, source.project, dockerfile, use)
        plan = _Plan(
            source=source,
            dockerfile=dockerfile,
            base=recipe.final_base(parsed),
            use=use,
            knows_triggers=use.is_whole or None not in bases,
            has_cache_folders=recipe.has_cache_folders(parsed, triggers),
            recipe=recipe.digest(_text(dockerfile), contents.digest),
            rebuild=rebuild,
        )
        return plan, found

    # -- one order and its callers --------------------------------------------------------------------------------

    async def _join(self, plan: _Plan, on_progress: OnProgress) -> Image:
        key = (plan.source.repository, plan.recipe, plan.rebuild)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = _Order(plan)
            order.task = asyncio.create_task(self._carry_out(order))
            self._tasks.add(order.task)
            order.task.add_done_callback(lambda task: self._forget(key, order, task))
        task = order.task
        assert task is not None  # noqa: S101 - set above, for every order
        watcher = object()
        order.watchers[watcher] = on_progress
        _tell(on_progress, order.progress)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise BuildFailed("The build was stopped because the hub stops. Launch again.") from None
            raise
        finally:
            del order.watchers[watcher]
            if not order.watchers and not task.done():
                # Nobody waits for it any more.  Who comes from now on gets a build of their own.
                self._orders.pop(key, None)
                task.cancel()

    def _forget(self, key: tuple[str, str, bool], order: _Order, task: asyncio.Task[Image]) -> None:
        self._tasks.discard(task)
        if self._orders.get(key) is order:
            del self._orders[key]
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as never retrieved

    async def _carry_out(self, order: _Order) -> Image:
        plan = order.plan
        repository = plan.source.repository
        lock = self._locks.setdefault(repository, asyncio.Lock())
        if lock.locked():
            order.tell(BuildProgress(BuildPhase.WAITING, "Waiting for an earlier build of this project to end"))
        async with lock, self._alone(repository):
            previous = await self._engine.inspect(f"{repository}:latest")
            if previous is not None and not plan.rebuild and _is_current(previous, plan):
                return Image(previous.id, f"{repository}:latest", plan.recipe, built=False)
            async with self._line.place(lambda sentence: order.tell(BuildProgress(BuildPhase.WAITING, sentence))):
                image = await self._build_with_record(order)
            if previous is not None and previous.id != image.id:
                with suppress(EngineUnavailable):
                    await self._engine.discard(previous.id)
        order.tell(replace(order.progress, phase=BuildPhase.DONE, sentence="The image is ready"))
        return image

    async def _build_with_record(self, order: _Order) -> Image:
        plan = order.plan
        started_at = self._clock()
        record = BuildRecord(
            id=f"{datetime.fromtimestamp(started_at, UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(2)}",
            user=plan.source.user,
            project=plan.source.project,
            recipe=plan.recipe,
            started_at=started_at,
        )
        journal = await asyncio.to_thread(self._history.begin, plan.source.repository, record)

        def end(outcome: Outcome, **facts: Any) -> None:
            ended = replace(record, ended_at=self._clock(), outcome=outcome, **facts)
            journal.end(ended)
            self._record(
                "image.build",
                user=ended.user,
                project=ended.project,
                outcome=outcome.value,
                reason=ended.reason,
                image=ended.image_id,
                image_bytes=ended.image_bytes,
                seconds=round(self._clock() - started_at, 1),
            )

        try:
            image = await self._build(order, journal)
            size = await self._engine.inspect(image.id)
        except asyncio.CancelledError:
            end(Outcome.CANCELLED)
            raise
        except Exception as error:
            end(Outcome.FAILED, reason=str(error) if isinstance(error, DS01Error) else "Something unexpected happened.")
            raise
        end(Outcome.BUILT, recipe=image.recipe, image_id=image.id, image_bytes=size.size_bytes if size else 0)
        return image

    async def _build(self, order: _Order, journal: BuildJournal) -> Image:
        plan, source = order.plan, order.plan.source
        await self._check_room()
        order.tell(BuildProgress(BuildPhase.PACKING, "Reading the project's files"))
        limit = asyncio.timeout(self._limits.seconds)
        try:
            async with limit, self._contexts.pack(source.account, source.project, plan.dockerfile, plan.use) as context:
                _note_contents(context.contents, plan.use, journal)
                # The label says what was packed: it may have changed since the look that led here.
                packed = recipe.digest(_text(plan.dockerfile), context.contents.digest)
                image_id = await self._engine.build(
                    BuildOrder(
                        context,
                        recipe.image_labels(
                            user=source.user, project=source.project, recipe=packed, base=plan.base, at=self._clock()
                        ),
                        cache_namespace=hashlib.sha256(source.user.encode()).hexdigest()[:20],
                        keeps_steps_private=plan.has_cache_folders,
                        from_scratch=plan.rebuild,
                        knows_triggers=plan.knows_triggers,
                    ),
                    on_progress=order.tell,
                    on_lines=journal.write,
                )
        except TimeoutError:
            raise BuildFailed(
                f"The build was stopped after {_duration(self._limits.seconds)}, the limit on this server. The steps "
                "that were completed are kept, so building again goes on from there; if one step alone takes too "
                "long, ask an administrator.",
                step=order.progress.instruction,
                log=order.progress.lines[-20:],
            ) from None
        try:
            await self._engine.tag(image_id, source.repository, "latest")
        except BaseException:
            with suppress(EngineUnavailable):
                await self._engine.discard(image_id)
            raise
        return Image(image_id, f"{source.repository}:latest", packed, built=True)

    async def _check_room(self) -> None:
        free = await self._engine.free_bytes()
        if free < self._limits.free_bytes:
            raise BuildFailed(
                f"There is {free / 2**30:.1f} GiB free for images on this server, and a build starts only with "
                f"{self._limits.free_bytes / 2**30:.1f} GiB. Ask an administrator to make room; until then choose an "
                "image that is built already."
            )


def _read(dockerfile: Dockerfile, repository: str) -> ParsedDockerfile:
    parsed = parse(_text(dockerfile))
    recipe.check_images(parsed, repository)
    check_remotes(parsed)
    return parsed


def _text(dockerfile: Dockerfile) -> str:
    return dockerfile.text.decode("utf-8", "surrogateescape")


def _is_current(found: LocalImage, plan: _Plan) -> bool:
    return recipe.is_current(found.labels, user=plan.source.user, project=plan.source.project, recipe=plan.recipe)


def _note_contents(contents: Contents, use: ContextUse, journal: BuildJournal) -> None:
    lines = []
    if use.is_whole and contents.file_count:
        lines.append(
            f"The build is given {contents.file_count:,} files of the project's folder, "
            f"{contents.total_bytes / 2**20:,.1f} MiB: {use.whole_because} "
            "A change of any of them makes a new image; .dockerignore leaves files out."
        )
    if contents.skipped:
        lines.append(
            "Left out, because no image can contain devices, pipes and sockets: " + ", ".join(contents.skipped)
        )
    if lines:
        journal.write(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"  # noqa: PLR2004


def _tell(watcher: OnProgress, progress: BuildProgress) -> None:
    try:
        watcher(progress)
    except Exception:
        log.exception("A watcher of a build failed; the build goes on.")
