"""Whose a process of the host is, and which container it runs in, from ``/proc``."""

from __future__ import annotations

import functools
import pwd
import re
from pathlib import Path

# Docker: /docker/<id> or docker-<id>.scope; Podman, containerd and CRI-O prefix theirs likewise.  The first match on a
# line is the outermost container, the one that the host's engine knows.
_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def container_of(pid: int, proc: Path = Path("/proc")) -> str:
    """Return the id of the container that a process runs in.

    Args:
        pid: process id as the host counts.
        proc: where the process file system is mounted.

    Returns:
        The engine's full id; empty for a process of the host itself, and for one that is gone or cannot be read.
    """
    try:
        text = (proc / str(pid) / "cgroup").read_text(errors="replace")
    except OSError:
        return ""
    # cgroup v1 has a line per hierarchy, `4:memory:/docker/<id>`; v2 has one, `0::/system.slice/docker-<id>.scope`.
    for line in text.splitlines():
        found = _CONTAINER_ID.search(line.split(":", 2)[-1])
        if found:
            return found.group()
    return ""


def owner_of(pid: int, proc: Path = Path("/proc")) -> str:
    """Return the login name of the user a process runs as, ``"uid 1234"`` when that uid has no name, empty if gone."""
    try:
        # Not the folder's owner: that is root for a process that the kernel protects from being dumped.
        text = (proc / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return ""
    uid = re.search(r"^Uid:\s+\d+\s+(\d+)", text, re.MULTILINE)
    return _name_of(int(uid.group(1))) if uid else ""


@functools.lru_cache(maxsize=1024)
def _name_of(uid: int) -> str:
    # Cached because a directory service behind it may take seconds.
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
