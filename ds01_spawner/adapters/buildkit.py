"""Builds images with ``docker buildx build``, the engine's own BuildKit, and looks after their tags.

The context comes as a tar on stdin, so the client reads no folder and follows no link.  Nothing is granted that a build
could ask for: no ``--allow``, no secret, no socket, no host network.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from docker.errors import NotFound

from ds01_spawner.adapters.dockerclient import DockerClient
from ds01_spawner.core.build import BuildOrder, LocalImage
from ds01_spawner.core.buildfailure import explain
from ds01_spawner.core.buildprogress import BuildProgress, BuildState, clean_line
from ds01_spawner.errors import BuildFailed, EngineUnavailable

GRACE_SECONDS = 5.0
"""How long a cancelled client may take to tell BuildKit before it is killed."""

SETTLE_SECONDS = 2.0
"""How long a step has run before a cancel reaches it.

BuildKit (seen in 0.12, of Docker Engine 26) forgets to kill a step that is cancelled while its container starts: the
step then runs on to its end, though nobody waits for it.
"""

REPORT_SECONDS = 0.2
_EVENT_BYTES = 4 * 1024 * 1024
_OUTPUT_LINES = 40
_THREADS = 4
_BLAND = ("PATH", "HOME", "LANG", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "TMPDIR")


class BuildKit:
    """The builder of this host's engine.

    Args:
        options: arguments for ``docker.APIClient``; the environment (``DOCKER_HOST``) decides when empty.
        command: the client to run.
    """

    def __init__(self, *, options: dict[str, Any] | None = None, command: tuple[str, ...] = ("docker",)) -> None:
        self._command = command
        self._options = options or {}
        self._docker = DockerClient("buildkit", _THREADS, options)
        self._root_dir = ""

    # -- images -------------------------------------------------------------------------------------------------

    async def inspect(self, reference: str) -> LocalImage | None:
        """Return an image by reference or id, ``None`` when it is not on this host.

        Raises:
            EngineUnavailable: nothing can be said about it.
        """
        try:
            found = await self._docker.call(lambda client: client.inspect_image(reference))
        except NotFound:
            return None
        config = found.get("Config") or {}
        return LocalImage(
            id=found["Id"],
            labels=dict(config.get("Labels") or {}),
            tags=tuple(found.get("RepoTags") or ()),
            size_bytes=int(found.get("Size") or 0),
            triggers=tuple(config.get("OnBuild") or ()),
        )

    async def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Let ``repository:tag`` mean this image from now on.

        Raises:
            EngineUnavailable: it still means what it meant before.
        """
        try:
            await self._docker.call(lambda client: client.tag(image_id, repository, tag))
        except NotFound as error:
            raise EngineUnavailable("The image was removed while it was being tagged. Launch again.") from error

    async def discard(self, image_id: str) -> None:
        """Remove an image that has no tag and no container; any other stays."""
        found = await self.inspect(image_id)
        if found is None or found.tags:
            return
        with suppress(NotFound, EngineUnavailable):  # a container uses it
            await self._docker.call(lambda client: client.remove_image(image_id, force=False, noprune=False))

    async def free_bytes(self) -> int:
        """Return how much room there is where the engine keeps images.

        Raises:
            EngineUnavailable: it cannot be said.
        """
        if not self._root_dir:
            self._root_dir = str((await self._docker.call(lambda client: client.info())).get("DockerRootDir") or "/")
        try:
            return (await asyncio.to_thread(shutil.disk_usage, self._root_dir)).free
        except OSError as error:
            raise EngineUnavailable(f"The engine's folder {self._root_dir} cannot be looked at.") from error

    def close(self) -> None:
        """Let running calls end and take no more."""
        self._docker.close()

    # -- building -----------------------------------------------------------------------------------------------

    async def build(
        self, order: BuildOrder, *, on_progress: Callable[[BuildProgress], None], on_lines: Callable[[list[str]], None]
    ) -> str:
        """Build an image and return its id; it has no tag.

        Args:
            order: what to build.
            on_progress: called on the event loop, a few times a second at most.
            on_lines: takes the log's lines; called in a thread of the build's own, always the same.

        Raises:
            BuildFailed: the Dockerfile did not build; carries the step and the log's end.
            EngineUnavailable: the builder could not be asked.
        """
        run = _Run(self._command, self._environment(), order, on_lines)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A thread of its own for each build: in a shared pool, long builds would keep short calls waiting.
        threading.Thread(target=run.work, args=(ended,), name="build", daemon=True).start()
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=REPORT_SECONDS)
                if (state := run.news()) is not None:
                    on_progress(state)
            ended.result()
        except BaseException:
            await _stop_in_full(run, ended)
            if run.image_id:
                with suppress(EngineUnavailable, asyncio.CancelledError):
                    await self.discard(run.image_id)
            raise
        return await self._result(run, order)

    def _environment(self) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _BLAND if name in os.environ}
        if "base_url" in self._options:
            environment["DOCKER_HOST"] = str(self._options["base_url"])
        return environment | {"DOCKER_CLI_HINTS": "false", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}

    async def _result(self, run: _Run, order: BuildOrder) -> str:
        if run.exit_code == 0 and run.image_id and (order.knows_triggers or not run.state.has_triggers):
            return run.image_id
        if run.image_id:
            await self.discard(run.image_id)
        output = tuple(run.output)
        if any("Cannot connect to the Docker daemon" in line or "error during connect" in line for line in output):
            raise EngineUnavailable("Docker Engine does not answer. If it stays so, tell an administrator.")
        if run.state.has_triggers and not order.knows_triggers:
            raise BuildFailed(
                "The image after FROM adds steps of its own (ONBUILD), and what they read cannot be told because it is "
                "not on this server yet. Ask an administrator to run docker pull with that image, then build again."
            )
        raise explain(*run.state.failure(), output)


async def _stop_in_full(run: _Run, ended: asyncio.Future[None]) -> None:
    """Stop the client and wait until it is gone, however often the waiting is cancelled."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + 5 * SETTLE_SECONDS
    while not ended.done() and run.settled_at() > time.monotonic() and loop.time() < patience:
        await _wait_through_cancels(ended, run.settled_at() - time.monotonic())
    run.stop()
    deadline = loop.time() + GRACE_SECONDS
    while not ended.done():
        await _wait_through_cancels(ended, deadline - loop.time())
        run.kill()
        deadline = loop.time() + GRACE_SECONDS
    ended.exception()


async def _wait_through_cancels(ended: asyncio.Future[None], seconds: float) -> None:
    """Wait until the client ended, so long at most, however often the waiting is cancelled."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not ended.done() and loop.time() < until:
        with suppress(asyncio.CancelledError):
            await asyncio.wait([ended], timeout=until - loop.time())


def _settle(ended: asyncio.Future[None], error: Exception | None) -> None:
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)


class _Run:
    """One run of the client, in a thread."""

    def __init__(
        self,
        command: tuple[str, ...],
        environment: dict[str, str],
        order: BuildOrder,
        on_lines: Callable[[list[str]], None],
    ) -> None:
        self._command = command
        self._environment = environment
        self._order = order
        self._on_lines = on_lines
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._has_news = False
        self._began_at = time.monotonic()
        self.state = BuildState()
        self.output: deque[str] = deque(maxlen=_OUTPUT_LINES)
        self.exit_code = -1
        self.image_id = ""

    def work(self, ended: asyncio.Future[None]) -> None:
        """Run the client to its end, in the calling thread, and settle the future on its loop."""
        error: Exception | None = None
        try:
            self._work()
        except Exception as raised:  # noqa: BLE001 - raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            ended.get_loop().call_soon_threadsafe(_settle, ended, error)

    def news(self) -> BuildProgress | None:
        """Return the present state if it changed since the last call."""
        with self._lock:
            changed, self._has_news = self._has_news, False
            return self.state.snapshot() if changed else None

    def settled_at(self) -> float:
        """Return when, in monotonic seconds, the present step will have run for long enough to be cancelled."""
        return self._began_at + SETTLE_SECONDS

    def _work(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ds01-build-") as folder:
            id_file = Path(folder) / "iid"
            with self._lock:
                if self._stopped:
                    return
                self._process = self._start(id_file, folder)
            with self._process as process:
                assert process.stderr is not None  # noqa: S101 - asked for above
                try:
                    self._read(process.stderr)
                except BaseException:
                    self.kill()
                    raise
            self.exit_code = process.returncode
            if id_file.exists():
                self.image_id = id_file.read_text().strip()

    def stop(self) -> None:
        """Ask the client to end; it cancels the build at the engine."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End the client and everything it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)

    def _start(self, id_file: Path, folder: str) -> subprocess.Popen[bytes]:
        order = self._order
        command = [
            *(*self._command, "buildx", "build", "--builder", "default", "--progress", "rawjson"),
            *("--file", order.context.dockerfile_name, "--iidfile", str(id_file)),
            # Otherwise one user could put files into the package cache that another's build installs from.
            *("--build-arg", f"BUILDKIT_CACHE_MOUNT_NS={order.cache_namespace}"),
        ]
        if order.keeps_steps_private:
            # The names of extra hosts are the one part of a step's identity that can be set from outside.
            command += ["--add-host", f"cache-of-{order.cache_namespace}.ds01.invalid:127.0.0.1"]
        for key, value in order.labels.items():
            command += ["--label", f"{key}={value}"]
        if order.from_scratch:
            command.append("--no-cache")
        try:
            return subprocess.Popen(
                [*command, "-"],
                stdin=order.context.archive,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # The client would keep a note of every build in root's home.
                env=self._environment | {"BUILDX_CONFIG": folder},
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineUnavailable(
                f"{self._command[0]} could not be started ({error.strerror}). Ask an administrator to install "
                "Docker's command line client with its buildx plugin."
            ) from error

    def _read(self, stream: IO[bytes]) -> None:
        for event in read_events(stream):
            if isinstance(event, str):
                self.output.append(clean_line(event))
                continue
            with self._lock:
                before = self.state.started_count
                lines = self.state.feed(event)
                if self.state.started_count != before:
                    self._began_at = time.monotonic()
                self._has_news = True
            if lines:
                self._on_lines(lines)
        self._on_lines([line for line in self.output if line.strip()])


def read_events(stream: IO[bytes]) -> Iterator[dict[str, Any] | str]:
    """Yield each JSON object of a stream, and as text each line that is outside of one.

    Older clients indent the objects over many lines, newer ones write one a line.  An object that is too large to be
    an event is dropped.
    """
    block: list[bytes] = []
    size = 0
    while line := stream.readline(_EVENT_BYTES):
        if not block and not line.startswith(b"{"):
            yield line.decode("utf-8", "replace").rstrip("\r\n")
            continue
        size += len(line)
        block.append(line if size <= _EVENT_BYTES else b"")
        if line.startswith(b"}") or (len(block) == 1 and line.rstrip().endswith(b"}")):
            if size <= _EVENT_BYTES:
                with suppress(ValueError):
                    event = json.loads(b"".join(block))
                    if isinstance(event, dict):
                        yield event
            block, size = [], 0
