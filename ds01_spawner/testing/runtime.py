"""Package makers and images in memory, for tests of the notebook runtime; one per failure, named after it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds01_spawner.core.imagefacts import PROBE_MARKER, TRIAL_MARKER, ImageSettings
from ds01_spawner.errors import EngineUnavailable, RuntimeUnavailable

WHOLE_SET = {
    "server": (
        "jupyterhub/singleuser/extension.py",
        "jupyter_server/serverapp.py",
        "jupyterlab/labapp.py",
        "share/jupyter/lab/static/index.html",
    ),
    "kernel": ("ipykernel/kernelapp.py", "zmq/__init__.py", "tornado/web.py"),
}


class FakePackages:
    """Makes sets of a few files at once.

    Attributes:
        installed: the version of every set that was installed.
        interpreters: Python versions that the host has.
        gate: cleared, installing waits for it.
        waiting: set once somebody installs.
    """

    def __init__(self, *, interpreters: Sequence[str] = ("3.11", "3.13")) -> None:
        self.installed: list[str] = []
        self.interpreters = set(interpreters)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def resolve(
        self, version: str, requirements: Sequence[str], constraints: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Return made-up pins: the kernel's alone, or everything."""
        del version, constraints
        everything = any(requirement.startswith("jupyterlab") for requirement in requirements)
        return ("ipykernel==7.0", "tornado==6.5") + (("jupyterlab==4.5", "lark==1.0") if everything else ())

    async def install(self, version: str, pins: Sequence[str], target: Path) -> None:
        """Write the files that a whole set has."""
        self.waiting.set()
        await self.gate.wait()
        if target.name == "server":
            self.installed.append(version)
        for name in WHOLE_SET[target.name]:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("# " + " ".join(pins))

    async def find_interpreter(self, version: str) -> str | None:
        """Return an interpreter's path, if the host has one."""
        return f"/usr/bin/python{version}" if version in self.interpreters else None

    async def compile(self, version: str, interpreter: str, folder: Path, subfolders: Sequence[str]) -> None:
        """Write one compiled file."""
        del version, interpreter
        (folder / subfolders[0] / "compiled.pyc").write_bytes(b"")


class UnreachableIndex(FakePackages):
    """The package index does not answer while ``reachable`` is false."""

    reachable = False

    async def resolve(
        self, version: str, requirements: Sequence[str], constraints: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Fail until the index is reachable."""
        if not self.reachable:
            raise RuntimeUnavailable(f"The notebook runtime for Python {version} could not be made: no network")
        return await super().resolve(version, requirements, constraints)


class IncompleteInstall(FakePackages):
    """Claims success and leaves a file out."""

    async def install(self, version: str, pins: Sequence[str], target: Path) -> None:
        """Install, and remove one file."""
        await super().install(version, pins, target)
        (target / WHOLE_SET[target.name][0]).unlink()


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """What a script printed."""

    output: bytes = b""
    exit_code: int = 0
    started: bool = True
    timed_out: bool = False


def python_answer(**changes: Any) -> FakeAnswer:
    """Return the probe's answer of a plain Debian 13, with changes."""
    facts = {
        "schema": 1,
        "version": [3, 13, 5],
        "implementation": "cpython",
        "bits": 64,
        "free_threaded": False,
        "executable": "/usr/bin/python3",
        "virtual": False,
        "glibc": "2.41",
        "packages": {},
        "extensions": False,
    }
    return FakeAnswer(f"\n{PROBE_MARKER}{json.dumps({**facts, **changes})}\n".encode())


def trial_answer(**changes: Any) -> FakeAnswer:
    """Return the answer of a trial in which everything worked, with changes."""
    result = {
        "schema": 1,
        "kernel_image_first": True,
        "kernel_error": "",
        "server_image_first": True,
        "server_error": "",
    }
    return FakeAnswer(f"\n{TRIAL_MARKER}{json.dumps({**result, **changes})}\n".encode())


@dataclass
class FakeProbe:
    """Images that answer as they are told.

    Attributes:
        probe: the answer of the image's ``python3``, or a function of the program's name.
        trial: the answer to a trial.
        environment: the image's ENV.
        architecture: the engine's name of the image's processor.
        volumes: the image's VOLUME folders.
        runs: every command that ran.
        compiled: image and version of every compilation.
    """

    probe: FakeAnswer | Callable[[str], FakeAnswer] = field(default_factory=python_answer)
    trial: FakeAnswer = field(default_factory=trial_answer)
    environment: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "amd64"
    volumes: tuple[str, ...] = ()
    runs: list[tuple[str, ...]] = field(default_factory=list)
    compiled: list[tuple[str, str]] = field(default_factory=list)

    async def image_id(self, reference: str) -> str:
        """Return a made-up id."""
        return f"sha256:{reference}"

    async def settings(self, image_id: str) -> ImageSettings:
        """Return what the engine says."""
        del image_id
        return ImageSettings(self.architecture, self.environment, self.volumes)

    async def run(
        self, image_id: str, command: Sequence[str], folders: Mapping[Path, str], *, seconds: float
    ) -> FakeAnswer:
        """Return the answer that was ordered."""
        del image_id, seconds
        if not all(folder.is_dir() for folder in folders):
            raise EngineUnavailable("a folder to mount does not exist")
        self.runs.append(tuple(command))
        await asyncio.sleep(0)
        if command[-1].endswith("probe.py"):
            return self.probe(command[0]) if callable(self.probe) else self.probe
        return self.trial

    async def compile(
        self, image_id: str, version: str, folder: Path, subfolders: Sequence[str], *, seconds: float
    ) -> None:
        """Write one compiled file."""
        del seconds
        self.compiled.append((image_id, version))
        (folder / subfolders[0] / "compiled.pyc").write_bytes(b"")
