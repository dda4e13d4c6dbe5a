"""What a server's container is, before any engine is asked for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLEAN_END = "The server ended with exit code 0"
"""How the reason begins when a server was shut down from inside, which is no failure."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the host, seen in the container.

    Attributes:
        source: absolute path on the host; it exists.
        target: absolute path in the container.
        read_only: whether the container may not write to it.
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ServerContainer:
    """Everything that decides what one server's container is.

    Attributes:
        name: the engine's name for it; unique on the host.
        hostname: a DNS label, shown in the prompt.
        image_id: the image, by id so that a tag moved meanwhile changes nothing.
        argv: the whole command; the image's ENTRYPOINT and CMD are not used.
        environment: on top of the image's own ENV.
        user: login name shown inside.
        uid: of every process.
        gid: of every process.
        groups: supplementary group ids.
        home: absolute path of the temporary, writable home inside.
        working_dir: where the server starts.
        mounts: folders of the host.
        labels: the record of who holds what.
        devices: UUIDs of the leased devices; empty for a CPU server.
        network: name of the bridge.
        cpus: CPU cores it may use; ``None`` is unlimited.
        memory_bytes: memory, swap included; ``None`` is unlimited.
        shm_bytes: size of ``/dev/shm``; ``None`` leaves the engine's default.
        pids: most processes and threads; ``None`` is unlimited.
    """

    name: str
    hostname: str
    image_id: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    working_dir: str
    mounts: tuple[Mount, ...]
    labels: Mapping[str, str] = field(hash=False)
    devices: tuple[str, ...]
    network: str
    cpus: float | None = None
    memory_bytes: int | None = None
    shm_bytes: int | None = None
    pids: int | None = None


def add_account(passwd: str, group: str, server: ServerContainer) -> tuple[str, str]:
    """Return an image's ``/etc/passwd`` and ``/etc/group`` with the server's account in them.

    Ours comes first, so ``whoami`` finds it although the image may already use the same uid; an entry of the image
    with the same name and another id would make tools disagree, so it goes.
    """
    shell = "/bin/bash"
    entry = f"{server.user}:x:{server.uid}:{server.gid}::{server.home}:{shell}"
    own_group = f"{server.user}:x:{server.gid}:"
    return (
        "\n".join([entry, *_without(passwd, server.user)]) + "\n",
        "\n".join([own_group, *_without(group, server.user)]) + "\n",
    )


def _without(table: str, name: str) -> list[str]:
    return [line for line in table.splitlines() if line and line.split(":", 1)[0] != name]
