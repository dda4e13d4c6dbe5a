"""Reads what a build is made from: the project's Dockerfile, and the files of the folder that it can see.

The reading itself is done by a child process with the user's rights, see ``contextpacker``.  What comes back over its
pipes is the user's word: it decides about that user's own image, its size is limited here, and nothing in it is run.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import Contents, PackedContext
from ds01_spawner.core.dockerfile import ContextUse
from ds01_spawner.core.project import Dockerfile, dockerfile_candidates
from ds01_spawner.errors import AccountUnavailable, ProjectRefused

PRIVATE_DOCKERFILE = ".ds01.Dockerfile"
"""The Dockerfile's name in a context whose folder does not hold it; ``COPY . .`` brings it into the image."""

SCAN_SECONDS = 120.0
PACK_SECONDS = 600.0
KILL_SECONDS = 5.0
REMEMBERED_BYTES = 64 * 1024 * 1024
_ANSWER_BYTES = 32 * 1024 * 1024
_CHUNK = 1024 * 1024
_PATH_CHARACTERS = 200
_TAR_OVERHEAD_PER_FILE = 8192

# The package's own __init__ would import JupyterHub, which a process that lives for 50 ms has no use for.
_BOOTSTRAP = """\
import sys, types
package = types.ModuleType("ds01_spawner")
package.__path__ = [sys.argv[1]]
sys.modules["ds01_spawner"] = package
from ds01_spawner.adapters import contextpacker
contextpacker.main()
"""


class Workspaces(Protocol):
    """The users' project folders, see ``workspace``."""

    def open_project(self, account: Account, project: str) -> int:
        """Return a descriptor of the folder."""

    def read_dockerfile(self, account: Account, project: str) -> Dockerfile | None:
        """Return the project's Dockerfile, or ``None``."""


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """How much a build may be given.

    Attributes:
        total_bytes: of content.
        file_count: entries, folders and links included.
    """

    total_bytes: int = 1024**3
    file_count: int = 50_000


class BuildContexts:
    """Reads projects for builds.

    Args:
        workspaces: opens their folders.
        spool_dir: where a packed context waits for the builder, unnamed; as large as the limit times concurrent builds.
        limits: how much a build may be given.
        threads: where the folders are touched.
    """

    def __init__(
        self,
        workspaces: Workspaces,
        spool_dir: Path,
        limits: ContextLimits | None = None,
        threads: UserThreads | None = None,
    ) -> None:
        self._workspaces = workspaces
        self._spool_dir = spool_dir
        self._limits = limits or ContextLimits()
        self._signatures = _SignatureCache()
        self._threads = threads or UserThreads()

    async def read_dockerfile(self, account: Account, project: str) -> Dockerfile | None:
        """Return the project's Dockerfile, or ``None`` when it has none.

        Raises:
            ProjectRefused: the project or its Dockerfile is not what it should be.
            AccountUnavailable: the home cannot be used.
        """
        return await self._threads.run(account.name, self._workspaces.read_dockerfile, account, project)

    async def scan(self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse) -> Contents:
        """Return what the build's files are, without packing them.

        Raises:
            ProjectRefused: they are too many, too large or not readable.
            AccountUnavailable: the home does not answer.
        """
        return await self._run(account, project, dockerfile, use, None)

    @asynccontextmanager
    async def pack(
        self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse
    ) -> AsyncIterator[PackedContext]:
        """Pack the Dockerfile and the build's files; the archive exists inside the block and nowhere else.

        Raises:
            ProjectRefused: they are too many, too large or not readable.
            AccountUnavailable: the home does not answer.
        """
        with tempfile.TemporaryFile(dir=self._spool_dir) as archive:
            contents = await self._run(account, project, dockerfile, use, archive)
            archive.seek(0)
            yield PackedContext(archive, _name_in_context(project, dockerfile), contents)

    async def _run(
        self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse, archive: IO[bytes] | None
    ) -> Contents:
        opening = self._workspaces.open_project
        folder = await self._threads.run(account.name, opening, account, project, unclaimed=os.close)
        try:
            packing = _Packing(folder, self._request(account, project, dockerfile, use), self._limits, archive)
            begin = partial(self._threads.begin, account.name)
            answer, signatures = await packing.run(begin, self._signatures.get(account.uid, project))
        finally:
            os.close(folder)
        self._signatures.put(account.uid, project, signatures)
        return _read_answer(answer, self._limits)

    def _request(self, account: Account, project: str, dockerfile: Dockerfile, use: ContextUse) -> dict[str, Any]:
        name = _name_in_context(project, dockerfile)
        return {
            "uid": account.uid,
            "gid": account.gid,
            "groups": list(account.groups),
            "sources": None if use.is_whole else list(use.sources),
            "dockerfile": dockerfile.text.decode("utf-8", "surrogateescape"),
            "dockerfile_name": name,
            # BuildKit's order: the Dockerfile's own list before the folder's.
            "ignore_files": [f"{name}.dockerignore", ".dockerignore"],
            "files_max": self._limits.file_count,
            "bytes_max": self._limits.total_bytes,
        }


class _Packing:
    """One child process and its pipes."""

    def __init__(self, folder: int, request: dict[str, Any], limits: ContextLimits, archive: IO[bytes] | None) -> None:
        self._folder = folder
        self._request = request
        self._archive = archive
        self._archive_bytes_max = limits.total_bytes + (limits.file_count + 100) * _TAR_OVERHEAD_PER_FILE
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = threading.Event()

    async def run(self, begin: Callable[..., asyncio.Future[Any]], signatures: bytes) -> tuple[dict[str, Any], bytes]:
        """Return the child's answer and its new signatures; a cancel or the time limit kills it."""
        seconds = SCAN_SECONDS if self._archive is None else PACK_SECONDS
        work: asyncio.Future[tuple[dict[str, Any], bytes]] = begin(self._work, signatures)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(work)
        except TimeoutError:
            raise AccountUnavailable(
                f"The project's folder could not be read within {seconds:.0f} seconds. Try again; if it stays so, "
                "tell an administrator that the file server of the homes is slow."
            ) from None
        finally:
            self._given_up.set()
            if self._process is not None:
                self._process.kill()
            # A process that waits for a dead file server cannot even be killed; then it is left behind.
            await asyncio.wait([work], timeout=KILL_SECONDS)
            if work.done() and not work.cancelled():
                work.exception()

    def _work(self, signatures: bytes) -> tuple[dict[str, Any], bytes]:
        answer_read, answer_write = os.pipe()
        with os.fdopen(answer_read, "rb") as answer, tempfile.TemporaryFile() as complaints:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(Path(__file__).parents[1])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL if self._archive is None else subprocess.PIPE,
                    stderr=complaints,
                    pass_fds=(self._folder, answer_write),
                    cwd="/",
                    env={"LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
            finally:
                os.close(answer_write)
            with self._process as process:
                if self._given_up.is_set():
                    process.kill()
                try:
                    return self._converse(process, answer, answer_write, signatures)
                except (ValueError, OSError) as error:
                    process.kill()
                    complaints.seek(0)
                    said = complaints.read(4000).decode("utf-8", "replace").strip()
                    raise AccountUnavailable(
                        "The project's folder could not be read for the build. Try again; if it stays so, tell an "
                        f"administrator. ({said.splitlines()[-1] if said else error})"
                    ) from error

    def _converse(
        self, process: subprocess.Popen[bytes], answer: IO[bytes], answer_write: int, signatures: bytes
    ) -> tuple[dict[str, Any], bytes]:
        request = {**self._request, "folder": self._folder, "answer": answer_write, "pack": self._archive is not None}
        assert process.stdin is not None  # noqa: S101 - asked for above
        with process.stdin as stdin:
            stdin.write(json.dumps(request).encode() + b"\n" + signatures)
        if self._archive is not None and process.stdout is not None:
            left = self._archive_bytes_max
            while chunk := process.stdout.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise ValueError("the archive is larger than what was listed")
                self._archive.write(chunk)
            self._archive.flush()
        said = answer.read(_ANSWER_BYTES + 1)
        head, _, remembered = said.partition(b"\n")
        parsed = json.loads(head) if len(said) <= _ANSWER_BYTES else None
        if not isinstance(parsed, dict):
            raise ValueError("it gave no answer")  # noqa: TRY004 - the type is the user's doing, not a caller's
        return parsed, remembered


class _SignatureCache:
    """What packers remember of files, least recently used projects forgotten first.  Gone when the hub restarts."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, uid: int, project: str) -> bytes:
        if (uid, project) in self._kept:
            self._kept.move_to_end((uid, project))
        return self._kept.get((uid, project), b"")

    def put(self, uid: int, project: str, signatures: bytes) -> None:
        self._bytes += len(signatures) - len(self._kept.pop((uid, project), b""))
        self._kept[uid, project] = signatures
        while self._bytes > REMEMBERED_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def _name_in_context(project: str, dockerfile: Dockerfile) -> str:
    own, _ = dockerfile_candidates(project)
    return own.name if dockerfile.origin == f"~/{own}" else PRIVATE_DOCKERFILE


def _read_answer(answer: Mapping[str, Any], limits: ContextLimits) -> Contents:
    unfit = answer.get("unfit")
    if isinstance(unfit, dict):
        raise ProjectRefused(_describe_unfit(unfit, limits))
    try:
        return Contents(
            digest=str(answer["files"])[:64],
            file_count=int(answer["count"]),
            total_bytes=int(answer["bytes"]),
            skipped=tuple(str(path)[:_PATH_CHARACTERS] for path in answer["skipped"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AccountUnavailable("The project's folder could not be read for the build. Try again.") from error


def _describe_unfit(facts: Mapping[str, Any], limits: ContextLimits) -> str:
    kind, path = facts.get("kind"), repr(str(facts.get("path", "")))
    if kind == "too-large":
        return _describe_size(facts, limits)
    if kind == "too-deep":
        return f"Folders are nested more than {facts.get('most')} deep in the project. Leave them out in .dockerignore."
    if kind == "bad-ignore":
        return f"{path} cannot be used: {facts.get('error')}. Correct it and launch again."
    return (
        f"{path} in the project's folder cannot be read ({facts.get('error')}), but the Dockerfile may copy it. "
        "Make it readable for yourself, or leave it out in .dockerignore."
    )


def _describe_size(facts: Mapping[str, Any], limits: ContextLimits) -> str:
    largest = [(str(name), int(size), int(count)) for name, size, count in facts.get("largest") or ()]
    listed = ", ".join(f"{name} ({_gib(size)} in {count:,} files)" for name, size, count in largest)
    lines = ", ".join(f"“{name.rstrip('/')}”" for name, _, _ in largest if name.endswith("/"))
    more = "at least " if facts.get("at_least") else ""
    return (
        f"The Dockerfile can read {more}{_gib(int(facts['bytes']))} in {int(facts['count']):,} files of the project's "
        f"folder; a build here may be given {_gib(limits.total_bytes)} in {limits.file_count:,} files. "
        f"Largest: {listed}. "
        f"Leave data out by writing such lines into .dockerignore: {lines or '“*.csv”'}. Or copy only what the "
        "image needs, such as “COPY requirements.txt /tmp/”. The data is at /workspace anyway when the project runs."
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
