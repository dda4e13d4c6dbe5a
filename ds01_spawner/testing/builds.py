"""A builder's surroundings in memory: projects, an engine that runs a few commands, a history; failures on order."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ds01_spawner.core.account import Account
from ds01_spawner.core.build import BuildOrder, BuildRecord, Contents, LocalImage, PackedContext
from ds01_spawner.core.buildfailure import explain
from ds01_spawner.core.buildprogress import BuildPhase, BuildProgress
from ds01_spawner.core.dockerfile import ContextUse, Instruction, parse
from ds01_spawner.core.project import Dockerfile
from ds01_spawner.errors import EngineUnavailable, ProjectRefused

ALICE = Account("alice", 1_234_567_001, 1_234_567_001, (1_234_567_001,), Path("/home/alice"))


@dataclass
class FakeContexts:
    """Projects in memory.

    Attributes:
        dockerfiles: text by project.
        files: path to content, the same for every project; ``COPY`` sources are plain paths.
        before_pack: called when packing begins, to change something that was looked at already.
        scans: how often the files were looked at.
    """

    dockerfiles: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    before_pack: Callable[[], None] = lambda: None
    scans: int = 0

    async def read_dockerfile(self, account: Account, project: str) -> Dockerfile | None:
        """Return the project's Dockerfile."""
        text = self.dockerfiles.get(project)
        return None if text is None else Dockerfile(text.encode(), f"~/workspace/{project}/Dockerfile")

    async def scan(self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse) -> Contents:
        """Return what the build's files are."""
        self.scans += 1
        return self._contents(use)

    @asynccontextmanager
    async def pack(
        self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse
    ) -> AsyncIterator[PackedContext]:
        """Return the Dockerfile alone as the archive."""
        self.before_pack()
        yield PackedContext(io.BytesIO(dockerfile.text), "Dockerfile", self._contents(use))

    def _contents(self, use: ContextUse) -> Contents:
        wanted = {path: text for path, text in self.files.items() if use.is_whole or path in use.sources}
        if not wanted:
            return Contents()
        digest = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()
        return Contents(digest, len(wanted), sum(map(len, wanted.values())))


class OversizedProject(FakeContexts):
    """A project with more data than a build may be given."""

    async def scan(self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse) -> Contents:
        """Refuse."""
        raise ProjectRefused("The Dockerfile can read 5.0 GiB. Leave data out in .dockerignore.")


@dataclass
class FakeBuildEngine:
    """An engine that keeps images in memory and understands ``RUN true``, ``false``, ``echo``, ``exit`` and ``sleep``.

    Attributes:
        images: by id.
        free: bytes left for images.
        builds: orders that were begun.
        running: how many builds run now.
        most_running: how many ran at once at most.
        may_end: builds wait for this before their last step.
        used: ids that a container uses.
    """

    images: dict[str, LocalImage] = field(default_factory=dict)
    free: int = 2**40
    builds: list[BuildOrder] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Let builds end at once until somebody says otherwise."""
        self.may_end.set()

    def add(self, reference: str, *, triggers: tuple[str, ...] = ()) -> str:
        """Put an image there and return its id."""
        image_id = f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}"
        self.images[image_id] = LocalImage(image_id, {}, (reference,), 100, triggers)
        return image_id

    async def inspect(self, reference: str) -> LocalImage | None:
        """Return an image by reference or id."""
        await asyncio.sleep(0)
        full = reference if ":" in reference else f"{reference}:latest"
        return next((image for image in self.images.values() if reference == image.id or full in image.tags), None)

    async def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Move a tag."""
        await asyncio.sleep(0)
        reference = f"{repository}:{tag}"
        if image_id not in self.images:
            raise EngineUnavailable("The image was removed while it was being tagged. Launch again.")
        for image in list(self.images.values()):
            tags = tuple(other for other in image.tags if other != reference)
            self.images[image.id] = replace(image, tags=tags)
        image = self.images[image_id]
        self.images[image_id] = replace(image, tags=(*image.tags, reference))

    async def discard(self, image_id: str) -> None:
        """Remove an image that nothing names or uses."""
        await asyncio.sleep(0)
        image = self.images.get(image_id)
        if image is not None and not image.tags and image_id not in self.used:
            del self.images[image_id]

    async def free_bytes(self) -> int:
        """Return the room left."""
        return self.free

    async def build(
        self, order: BuildOrder, *, on_progress: Callable[[BuildProgress], None], on_lines: Callable[[list[str]], None]
    ) -> str:
        """Run the Dockerfile's few commands."""
        self.builds.append(order)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._run(order, on_progress, on_lines)
        finally:
            self.running -= 1

    async def _run(
        self, order: BuildOrder, on_progress: Callable[[BuildProgress], None], on_lines: Callable[[list[str]], None]
    ) -> str:
        text = order.context.archive.read()
        steps = [step for step in parse(text.decode()).instructions if step.keyword in ("FROM", "RUN", "COPY")]
        lines: list[str] = []
        for number, step in enumerate(steps, 1):
            name = f"[{number}/{len(steps)}] {step.keyword} {' '.join(step.words)}"
            printed = _output(step)
            lines += [f"── {name}", *printed]
            on_lines([f"── {name}", *printed])
            on_progress(_progress(number, len(steps), name, lines))
            if number == len(steps):
                await self.may_end.wait()
            if step.words[:1] == ("sleep",):
                await asyncio.sleep(float(step.words[1]))
            if step.words[:1] == ("false",) or "exit" in step.words:
                raise explain(name, f"did not complete successfully: exit code: {_exit_code(step)}", printed, ())
        content = repr((text, sorted(order.labels.items()), order.context.contents, len(self.builds))).encode()
        image_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.images.setdefault(image_id, LocalImage(image_id, dict(order.labels), (), len(text)))
        return image_id


@dataclass
class EngineDown(FakeBuildEngine):
    """An engine that answers until a build begins, and then no more."""

    async def build(
        self, order: BuildOrder, *, on_progress: Callable[[BuildProgress], None], on_lines: Callable[[list[str]], None]
    ) -> str:
        """Fail."""
        raise EngineUnavailable("Docker Engine does not answer. Tell an administrator.")


@dataclass
class SlowToStop(FakeBuildEngine):
    """An engine that needs its time to end a cancelled build.

    Attributes:
        may_stop: what a cancelled build waits for.
    """

    may_stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def build(
        self, order: BuildOrder, *, on_progress: Callable[[BuildProgress], None], on_lines: Callable[[list[str]], None]
    ) -> str:
        """Run the Dockerfile's few commands, and stop when it may."""
        try:
            return await super().build(order, on_progress=on_progress, on_lines=on_lines)
        except asyncio.CancelledError:
            await self.may_stop.wait()
            raise


@dataclass
class UnwillingToTag(FakeBuildEngine):
    """An engine that builds, and fails at the last moment."""

    async def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Fail."""
        raise EngineUnavailable("Docker Engine does not answer. Tell an administrator.")


@dataclass
class FakeHistory:
    """Builds that are remembered in memory.

    Attributes:
        records: the last state of each build, by id.
        logs: the log of each build, by id.
    """

    records: dict[str, BuildRecord] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)

    def begin(self, repository: str, record: BuildRecord) -> _FakeJournal:
        """Keep that a build runs."""
        self.records[record.id] = record
        self.logs[record.id] = []
        return _FakeJournal(self, record.id)


@dataclass
class _FakeJournal:
    history: FakeHistory
    build: str

    def write(self, lines: list[str]) -> None:
        self.history.logs[self.build] += lines

    def end(self, record: BuildRecord) -> None:
        self.history.records[self.build] = record


def _output(step: Instruction) -> tuple[str, ...]:
    said = re.match(r"echo (\S+)", " ".join(step.words))
    return (said[1],) if said and step.keyword == "RUN" else ()


def _exit_code(step: Instruction) -> str:
    return step.words[step.words.index("exit") + 1] if "exit" in step.words else "1"


def _progress(number: int, steps: int, name: str, lines: list[str]) -> BuildProgress:
    return BuildProgress(
        BuildPhase.BUILDING,
        f"Building the image, step {number} of {steps}: {name}",
        step=number,
        steps=steps,
        done=number - 1,
        instruction=name,
        lines=tuple(lines[-50:]),
        line_count=len(lines),
    )
