"""The fake build engine and the real one keep the same promises."""

from __future__ import annotations

import asyncio
import io
import secrets
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ds01_spawner.adapters.buildkit import BuildKit
from ds01_spawner.core.build import BuildOrder, Contents, PackedContext
from ds01_spawner.core.buildprogress import BuildProgress
from ds01_spawner.errors import BuildFailed
from ds01_spawner.testing.builds import FakeBuildEngine

AnyEngine = BuildKit | FakeBuildEngine
BASE = "ds01/debian:13"
PREFIX = "ds01-test-builds"


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[AnyEngine]:
    """Return a fake or the real engine, and leave no image behind."""
    if request.param == "fake":
        fake = FakeBuildEngine()
        fake.add(BASE)
        yield fake
        return
    real = BuildKit()
    yield real
    await asyncio.to_thread(remove_images)
    real.close()


def remove_images() -> None:
    """Remove what these tests built."""
    found = ["docker", "image", "ls", "--quiet", "--no-trunc", "--filter", f"label=ds01.test={PREFIX}"]
    for image in set(subprocess.run(found, capture_output=True, text=True, check=True).stdout.split()):
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the host's processes send no events
            await asyncio.sleep(0.05)


@pytest.fixture
def repository() -> str:
    """Return a repository that is nobody else's."""
    return f"{PREFIX}/{secrets.token_hex(4)}"


class Heard:
    """What a build said."""

    def __init__(self) -> None:
        self.progress: list[BuildProgress] = []
        self.lines: list[str] = []


async def build(engine: AnyEngine, dockerfile: str, heard: Heard | None = None, **labels: str) -> str:
    """Build a Dockerfile without files; every image differs from every other."""
    heard = heard or Heard()
    text = f"{dockerfile}\nENV NONCE={secrets.token_hex(8)}\n".encode()
    with tempfile.TemporaryFile() as archive:
        if isinstance(engine, FakeBuildEngine):
            archive.write(text)
        else:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                header = tarfile.TarInfo("Dockerfile")
                header.size = len(text)
                tar.addfile(header, io.BytesIO(text))
        archive.seek(0)
        order = BuildOrder(
            PackedContext(archive, "Dockerfile", Contents()), {"ds01.test": PREFIX, **labels}, cache_namespace="test"
        )
        return await engine.build(order, on_progress=heard.progress.append, on_lines=heard.lines.extend)


async def test_what_is_not_there_is_none(engine: AnyEngine, repository: str) -> None:
    """An image that does not exist is an answer, not an error."""
    assert await engine.inspect(f"{repository}:latest") is None
    assert await engine.inspect("sha256:" + "0" * 64) is None


async def test_built_without_a_tag(engine: AnyEngine, repository: str) -> None:
    """A build gives an image with our labels and no tag; tagging makes it known under the reference."""
    image = await build(engine, f"FROM {BASE}\nRUN true", **{"ds01.user": "alice"})
    found = await engine.inspect(image)
    assert found is not None
    assert found.tags == ()
    assert found.labels["ds01.user"] == "alice"
    assert found.size_bytes > 0
    await engine.tag(image, repository, "latest")
    tagged = await engine.inspect(f"{repository}:latest")
    assert tagged is not None
    assert (tagged.id, tagged.tags) == (image, (f"{repository}:latest",))


async def test_our_labels_win(engine: AnyEngine) -> None:
    """A Dockerfile cannot say whose image it is or which recipe it has."""
    dockerfile = f'FROM {BASE}\nLABEL ds01.user=bob\nRUN true\nLABEL "ds01.user"="bob" ds01.recipe=other'
    image = await build(engine, dockerfile, **{"ds01.user": "alice", "ds01.recipe": "r"})
    found = await engine.inspect(image)
    assert found is not None
    assert (found.labels["ds01.user"], found.labels["ds01.recipe"]) == ("alice", "r")


async def test_a_tag_moves(engine: AnyEngine, repository: str) -> None:
    """Tagging again moves the tag; the image before can then be discarded, one with a tag cannot."""
    first, second = await build(engine, f"FROM {BASE}"), await build(engine, f"FROM {BASE}")
    assert first != second
    await engine.tag(first, repository, "latest")
    await engine.discard(first)
    assert await engine.inspect(first) is not None
    await engine.tag(second, repository, "latest")
    await engine.discard(first)
    assert await engine.inspect(first) is None
    latest = await engine.inspect(f"{repository}:latest")
    assert latest is not None
    assert latest.id == second
    await engine.discard(first)  # once more is fine


async def test_an_image_kept_under_another_name_stays(engine: AnyEngine, repository: str) -> None:
    """Discarding an image that the user kept under a tag does nothing."""
    image = await build(engine, f"FROM {BASE}")
    await engine.tag(image, repository, "experiment-42")
    await engine.discard(image)
    assert await engine.inspect(f"{repository}:experiment-42") is not None


async def test_a_failing_step_is_named(engine: AnyEngine) -> None:
    """A failure carries the step, its code and its output."""
    heard = Heard()
    with pytest.raises(BuildFailed, match="exit code 3") as failed:
        await build(engine, f"FROM {BASE}\nRUN echo hello && exit 3", heard)
    assert failed.value.step.startswith("[2/2] RUN echo hello")
    assert "hello" in failed.value.log
    assert "hello" in heard.lines


async def test_progress(engine: AnyEngine) -> None:
    """Progress names the step, counts, and carries the log's last lines."""
    heard = Heard()
    await build(engine, f"FROM {BASE}\nRUN echo {secrets.token_hex(4)} && sleep 1\nRUN echo two", heard)
    assert {progress.steps for progress in heard.progress if progress.step} == {3}
    assert any("sleep 1" in progress.instruction for progress in heard.progress)
    assert "two" in heard.lines
    last = heard.progress[-1]
    assert "two" in last.lines
    assert last.line_count == len(last.lines)


async def test_a_cancelled_build_is_gone(engine: AnyEngine) -> None:
    """After a cancel no process of the build runs, at the client or at the engine, and no image exists."""
    nonce = 10_000 + secrets.randbelow(10_000)
    heard = Heard()
    task = asyncio.create_task(build(engine, f"FROM {BASE}\nRUN echo started\nRUN sleep {nonce}", heard))
    await until(lambda: any(f"sleep {nonce}" in progress.instruction for progress in heard.progress))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any("buildx build" in line and PREFIX in line for line in processes())
    await until(lambda: not any(f"sleep {nonce}" in line for line in processes()))


async def test_room(engine: AnyEngine) -> None:
    """The room for images is a number of bytes."""
    assert await engine.free_bytes() > 2**20


def processes() -> list[str]:
    """Return the command lines of every process of this host."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return lines
