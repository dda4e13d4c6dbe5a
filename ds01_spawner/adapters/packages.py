"""Packages for another Python than this one: resolved and installed by uv, compiled by an interpreter of the host.

uv evaluates environment markers for the version it is asked for; pip uses the running interpreter's.
"""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ds01_spawner.core.imagefacts import OLDEST_GLIBC
from ds01_spawner.errors import RuntimeUnavailable

COMPILE = """
import compileall, sys
assert "%d.%d" % sys.version_info[:2] == sys.argv[1], sys.version
mode = __import__("py_compile").PycInvalidationMode.UNCHECKED_HASH
for folder in sys.argv[3:]:
    compileall.compile_dir(
        folder, quiet=2, force=True, stripdir=sys.argv[2], prependdir="/opt/ds01", invalidation_mode=mode
    )
"""
"""Run by an interpreter of the wanted version: version, folder to strip from file names, folders to compile.

Unchecked, because a compiled file that is compared with its source's time or hash costs a read of every source; a set
never changes after it is made. A file that does not compile (a test of other syntax) is left as it is.
"""


class UvPackages:
    """Resolves and installs wheels with uv."""

    def __init__(self) -> None:
        self._uv = _find_uv()
        self._platform = f"{platform.machine()}-manylinux_{OLDEST_GLIBC[0]}_{OLDEST_GLIBC[1]}"

    async def resolve(
        self, version: str, requirements: Iterable[str], constraints: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Return exact pins (``"tornado==6.5.2"``) that satisfy requirements for a Python version.

        Raises:
            RuntimeUnavailable: there is no solution of wheels, or the package index cannot be reached.
        """
        command = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-build", *self._target(version)]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(constraints))
            file.flush()
            output = await self._run(version, [*command, "--constraints", file.name, "-"], "\n".join(requirements))
        return tuple(line.strip() for line in output.splitlines() if re.match(r"[A-Za-z0-9]", line))

    async def install(self, version: str, pins: Sequence[str], target: Path) -> None:
        """Install exactly the given pins into a folder.

        Raises:
            RuntimeUnavailable: a wheel cannot be had, or the folder cannot be written.
        """
        # Copies, because a link into uv's cache would share every later change of the cached file with all containers.
        command = ["pip", "install", "--quiet", "--no-deps", "--no-build", "--link-mode", "copy"]
        where = ["--target", str(target), *self._target(version)]
        await self._run(version, [*command, *where, "--requirements", "-"], "\n".join(pins))

    async def find_interpreter(self, version: str) -> str | None:
        """Return the path of a trusted interpreter of this version on the host, or ``None``."""
        if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
            return sys.executable
        command = ["python", "find", "--no-python-downloads", "--no-project", "--no-config", "--system", version]
        code, output, _ = await _communicate([self._uv, *command], "")
        found = output.strip()
        return found if code == 0 and found.startswith("/") else None

    async def compile(self, version: str, interpreter: str, folder: Path, subfolders: Sequence[str]) -> None:
        """Compile every source below ``folder``'s subfolders with an interpreter of the same version.

        Raises:
            RuntimeUnavailable: the interpreter failed.
        """
        folders = [str(folder / name) for name in subfolders]
        command = [interpreter, "-I", "-S", "-c", COMPILE, version, str(folder), *folders]
        code, output, errors = await _communicate(command, "")
        if code:
            raise RuntimeUnavailable(
                f"Compiling the notebook runtime for Python {version} with {interpreter} failed: "
                f"{_end(errors or output)}"
            )

    def _target(self, version: str) -> list[str]:
        return ["--python-version", version, "--python-platform", self._platform]

    async def _run(self, version: str, command: list[str], text: str) -> str:
        code, output, errors = await _communicate([self._uv, *command], text)
        if code:
            raise RuntimeUnavailable(
                f"The notebook runtime for Python {version} could not be made: {_end(errors or output)}"
            )
        return output


async def _communicate(command: list[str], text: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await process.communicate(text.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def _find_uv() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise RuntimeUnavailable(
            "The program `uv` is missing. It comes with this package: reinstall it, or `pip install uv`."
        )
    return found


def _end(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    hints = [line for line in lines if line.startswith(("error", "hint"))]
    return " ".join((hints or lines)[-3:])[-600:] or "it said nothing"
