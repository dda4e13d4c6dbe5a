"""The child process that reads a project's folder for a build, with its owner's rights and no other.

Started by ``buildcontext`` as ``python -I -S -c …`` so that it runs nothing from the folder or the user's settings.  It
begins as root, because the hub's Python may be unreadable for users, loads its few modules, becomes the user for good,
and only then enters the folder.  A process that changed its user id cannot be traced by that user, so the user's other
programs cannot reach into it.

Input on stdin: one line of JSON (``Request``), then the signatures that the last run left.  Output on stdout: when
packing, a tar.  Then, on the descriptor named in the request, one line of JSON (``answer``) and the new signatures.

A file's content is hashed again only when its device, inode, size, or times changed.  ``ctime`` cannot be set back by
users, so an edit that keeps size and ``mtime`` is seen; not seen is a change within the clock's resolution of the time
of hashing, and so what changed less than two seconds before is not remembered.  Files written through ``mmap``
get their new time when the kernel writes them back, up to half a minute late: such a change is seen at the next look.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import time
from contextlib import suppress
from typing import Any, BinaryIO

from ds01_spawner.adapters.contextfolder import GONE, Entry, Folder, Selection, UnfitError, open_file, resolve
from ds01_spawner.core.contextpaths import BadPatternError, IgnoreRules, read_ignore_rules

IGNORE_FILE = ".dockerignore"
IGNORE_BYTES_MAX = 1024 * 1024
_CHUNK = 1024 * 1024
_SETTLED_NS = 2_000_000_000
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class Signatures:
    """What is remembered of the files' content: path to stat and hash.  The hub keeps it between runs, unread."""

    def __init__(self, remembered: bytes) -> None:
        self._old: dict[str, list[Any]] = {}
        with suppress(ValueError):
            loaded = json.loads(remembered or b"{}")
            self._old = loaded if isinstance(loaded, dict) else {}
        self._new: dict[str, list[Any]] = {}
        self._settled = time.time_ns() - _SETTLED_NS

    def recall(self, path: str, status: os.stat_result) -> str | None:
        """Return the hash of an unchanged file."""
        old = self._old.get(path)
        if old is not None and old[:-1] == _signature(status):
            self._new[path] = old
            return str(old[-1])
        return None

    def remember(self, path: str, status: os.stat_result, content: str) -> None:
        """Keep a hash, unless the file changed so recently that it could change again without a trace."""
        if max(status.st_mtime_ns, status.st_ctime_ns) < self._settled:
            self._new[path] = [*_signature(status), content]

    def dump(self) -> bytes:
        """Return what to hand to the next run."""
        return json.dumps(self._new, separators=(",", ":")).encode()


def _signature(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class _Sink(io.RawIOBase):
    """Where the tar goes: a pipe that knows how much went in."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._written = 0

    def write(self, data: Any) -> int:
        self._pipe.write(data)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written


class _Exact(io.RawIOBase):
    """Reads exactly ``size`` bytes whatever happens to the file meanwhile, and hashes them."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self.hashed = hashlib.sha256()
        self.was_cut = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted) or b""
        if len(data) < wanted:
            # It shrank.  The header has promised a size, so the rest is zeros; the next launch sees the change.
            self.was_cut = True
            data += bytes(wanted - len(data))
        self._left -= wanted
        self.hashed.update(data)
        return data


def pack(entries: list[Entry], request: dict[str, Any], signatures: Signatures, tar: _Sink | None) -> dict[str, Any]:
    """Hash the entries, write them as a tar when there is one, and return the answer.

    Owners are left out, as BuildKit does: in the image everything belongs to root unless ``--chown`` says otherwise.
    """
    dockerfile_name = request["dockerfile_name"]
    hashed = hashlib.sha256()
    count = total = 0
    # Not tarfile's own stream mode, which moves each byte of its buffer many times.
    archive = tarfile.TarFile(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT, copybufsize=_CHUNK) if tar else None
    if archive:
        _add_dockerfile(archive, dockerfile_name, request["dockerfile"].encode("utf-8", "surrogateescape"))
    for entry in entries:
        # The text that was read and checked is what gets built, not what the file says by now.
        if entry.path == dockerfile_name:
            continue
        content = _pack_one(entry, signatures, archive)
        if content is None:
            continue
        count, total = count + 1, total + (entry.status.st_size if stat.S_ISREG(entry.status.st_mode) else 0)
        for part in (os.fsencode(entry.path), b"%o" % entry.status.st_mode, os.fsencode(content)):
            hashed.update(b"%d:" % len(part) + part)
    if archive:
        archive.close()
    return {"files": hashed.hexdigest() if count else "", "count": count, "bytes": total}


def _add_dockerfile(archive: tarfile.TarFile, name: str, text: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(text), 0o644
    archive.addfile(header, io.BytesIO(text))


def _pack_one(entry: Entry, signatures: Signatures, archive: tarfile.TarFile | None) -> str | None:
    """Hash one entry and add it; return what identifies its content, or ``None`` when it vanished."""
    header = tarfile.TarInfo(entry.path)
    header.mode, header.mtime = stat.S_IMODE(entry.status.st_mode), int(entry.status.st_mtime)
    if not stat.S_ISREG(entry.status.st_mode):
        header.type = tarfile.SYMTYPE if entry.target else tarfile.DIRTYPE
        header.linkname = entry.target
        if archive:
            archive.addfile(header)
        return entry.target
    known = None if archive else signatures.recall(entry.path, entry.status)
    if known is not None:
        return known
    try:
        file = open_file(entry.path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise UnfitError(kind="unreadable", path=entry.path, error=error.strerror) from error
    with file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            return None
        header.size = entry.status.st_size
        exact = _Exact(file, header.size)
        if archive:
            archive.addfile(header, exact)
        else:
            while exact.read(_CHUNK):
                pass
        content = exact.hashed.hexdigest()
        if not exact.was_cut and _signature(before) == _signature(entry.status) == _signature(os.fstat(file.fileno())):
            signatures.remember(entry.path, before, content)
    return content


def _read_rules(names: list[str]) -> IgnoreRules:
    """Return the rules of the first of these files that exists."""
    for name in names:
        try:
            with open_file(name) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise UnfitError(kind="bad-ignore", path=name, error="not a regular file")
                text = file.read(IGNORE_BYTES_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UnfitError(kind="bad-ignore", path=name, error=error.strerror) from error
        if len(text) > IGNORE_BYTES_MAX:
            raise UnfitError(kind="bad-ignore", path=name, error=f"more than {IGNORE_BYTES_MAX:,} bytes")
        try:
            return read_ignore_rules(text.decode("utf-8", "surrogateescape"))
        except BadPatternError as error:
            raise UnfitError(kind="bad-ignore", path=name, error=f"no pattern: {error}") from error
    return IgnoreRules()


def _become(uid: int, gid: int, groups: list[int]) -> None:
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if set(os.getresuid()) != {uid} or uid == 0:
        raise PermissionError(f"this process is {os.getresuid()} and cannot become {uid}")
    libc = ctypes.CDLL(None)
    # Some hosts let a process be traced although it changed its user id (fs.suid_dumpable).
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise PermissionError("this process cannot give up its privileges")


def main() -> None:
    """Do what stdin asks for."""
    request = json.loads(sys.stdin.buffer.readline())
    signatures = Signatures(sys.stdin.buffer.read())
    _become(request["uid"], request["gid"], request["groups"])
    os.fchdir(request["folder"])
    try:
        folder = Folder(_read_rules(request["ignore_files"]), request["files_max"], request["bytes_max"])
        sources = request["sources"]
        selection = Selection(everything=True) if sources is None else resolve(sources)
        entries = folder.list(selection)
        with os.fdopen(1, "wb") as pipe:
            answer = pack(entries, request, signatures, _Sink(pipe) if request["pack"] else None)
        answer["skipped"] = folder.notices
    except UnfitError as unfit:
        answer = {"unfit": unfit.facts}
    with os.fdopen(request["answer"], "wb") as out:
        out.write(json.dumps(answer).encode() + b"\n" + signatures.dump())
