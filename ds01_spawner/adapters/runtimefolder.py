"""The site's runtime folder on disk: package sets that appear whole or not at all, and are known when damaged.

<root>/sets/3.13-x86_64-<key>-<serial>/     what containers see at /opt/ds01, read-only
    manifest.json                           written last; describes everything else
    boot/ server/ kernel/ share/
<root>/making/3.13-<random>/                half-made, never looked at by anyone else
<root>/locks/3.13                           one maker per version, among all processes of the host

A new set never replaces an old one's folder: running containers keep what they have mounted.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ds01_spawner.errors import RuntimeUnavailable

LOCK_POLL_SECONDS = 0.2
MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a set is.

    Attributes:
        version: Python's, ``"3.13"``.
        key: digest of everything that decides the set's content.
        pins: exact versions of all packages.
        compiled: whether ``.pyc`` files are there.
        shape: digest over every file's path, size and mode.
    """

    version: str
    key: str
    pins: tuple[str, ...]
    compiled: bool
    shape: str
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class PackageSet:
    """A whole set on disk."""

    folder: Path
    manifest: Manifest

    @property
    def compiled(self) -> bool:
        """Whether its ``.pyc`` files are there."""
        return self.manifest.compiled


class RuntimeFolder:
    """The site's runtime folder.

    Args:
        root: absolute path; made when missing. Only this user may write to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, version: str, key: str) -> PackageSet | None:
        """Return the newest intact set of a version and key; ``None`` when there is none.

        Looks at every file's size and mode, so it takes some tens of milliseconds.
        """
        for folder in sorted((self.root / "sets").glob(f"{version}-{key}-*"), key=_serial, reverse=True):
            manifest = read_manifest(folder)
            if manifest and (manifest.version, manifest.key) == (version, key) and measure(folder) == manifest.shape:
                return PackageSet(folder, manifest)
        return None

    def begin(self, version: str) -> Path:
        """Return a new, empty folder to make a set in; whoever calls holds the lock of the version.

        Raises:
            RuntimeUnavailable: the runtime folder cannot be written.
        """
        folder = self.root / "making" / f"{version}-{secrets.token_hex(8)}"
        try:
            for parent in (self.root, self.root / "sets", folder.parent):
                parent.mkdir(parents=True, exist_ok=True)
                parent.chmod(0o755)
            for remains in folder.parent.glob(f"{version}-*"):
                self.discard(remains)  # of a maker that was killed: the lock says that nobody makes this version now
            folder.mkdir(0o700)
        except OSError as error:
            raise RuntimeUnavailable(
                f"The notebook runtime's folder {self.root} cannot be written: {error.strerror}. It must belong to the "
                "user that runs the hub, on a disk with about 1 GB free."
            ) from error
        return folder

    def publish(self, folder: Path, *, version: str, key: str, pins: tuple[str, ...], compiled: bool) -> PackageSet:
        """Seal a finished set and give it its name, in one step that cannot be half done.

        Raises:
            RuntimeUnavailable: it cannot be renamed or written.
        """
        try:
            seal(folder)
            manifest = Manifest(version, key, pins, compiled, measure(folder))
            path = folder / MANIFEST
            path.write_text(json.dumps(asdict(manifest), indent=1))
            path.chmod(0o644)
            folder.chmod(0o755)
            os.sync()  # a power cut must not leave a named set with empty files
            existing = [_serial(other) for other in (self.root / "sets").glob(f"{version}-{key}-*")]
            final = self.root / "sets" / f"{version}-{key}-{max(existing, default=0) + 1}"
            folder.rename(final)
        except OSError as error:
            raise RuntimeUnavailable(f"The notebook runtime for Python {version} could not be kept: {error}") from error
        return PackageSet(final, manifest)

    def provide(self, name: str, content: bytes) -> Path:
        """Return a world-readable folder that holds just one file with the given content.

        Raises:
            RuntimeUnavailable: the runtime folder cannot be written.
        """
        folder = self.root / "scripts" / hashlib.sha256(content).hexdigest()[:16]
        path = folder / name
        try:
            if not path.exists():
                for parent in (self.root, folder.parent, folder):
                    parent.mkdir(parents=True, exist_ok=True)
                    parent.chmod(0o755)
                temporary = folder / f".{secrets.token_hex(8)}"
                temporary.write_bytes(content)
                temporary.chmod(0o644)
                temporary.rename(path)
        except OSError as error:
            raise RuntimeUnavailable(
                f"The notebook runtime's folder {self.root} cannot be written: {error.strerror}"
            ) from error
        return folder

    def discard(self, folder: Path) -> None:
        """Remove a half-made set."""
        shutil.rmtree(folder, ignore_errors=True)

    @asynccontextmanager
    async def lock(self, version: str) -> AsyncIterator[None]:
        """Hold the only right to make sets of a version, among all processes of this host.

        Raises:
            RuntimeUnavailable: the lock file cannot be made.
        """
        path = self.root / "locks" / version
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RuntimeUnavailable(
                f"The notebook runtime's folder {self.root} cannot be written: {error.strerror}"
            ) from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)


def read_manifest(folder: Path) -> Manifest | None:
    """Return a set's manifest, ``None`` where there is none of the right shape."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        if found["schema"] != SCHEMA:
            return None
        return Manifest(
            version=str(found["version"]),
            key=str(found["key"]),
            pins=tuple(str(pin) for pin in found["pins"]),
            compiled=found["compiled"] is True,
            shape=str(found["shape"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(folder: Path) -> str:
    """Return a digest over the path, size and mode of everything in a folder except the manifest.

    Owner and mode are part of it: a set that others may write to is a damaged one.
    """
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        relative = os.path.relpath(parent, folder)
        for name in sorted(folders + files):
            path = f"{relative}/{name}"
            if path == f"./{MANIFEST}":
                continue
            status = os.lstat(f"{parent}/{name}")
            size = status.st_size if name in files else 0
            digest.update(f"{path}\0{size}\0{status.st_mode:o}\0{status.st_uid}\n".encode())
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Make everything in a folder readable by all and writable by the owner alone; links are refused.

    Raises:
        RuntimeUnavailable: there is a link or a special file in it.
    """
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RuntimeUnavailable(
                    f"A package of the notebook runtime brings a file that is no plain one: {name}"
                )
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _serial(folder: Path) -> int:
    tail = folder.name.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else 0
