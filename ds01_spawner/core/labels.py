"""The ``ds01.*`` container labels: the record of who holds what, readable by any process on the host.

The keys are those of the DS01 command-line system where it had them, so that its tools go on working.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ds01_spawner.core.model import Holder

PREFIX = "ds01."
USER = "ds01.user"
MANAGED = "ds01.managed"
INTERFACE = "ds01.interface"
NAME = "ds01.name"
PROJECT = "ds01.project"
SERVER = "ds01.server"
HUB = "ds01.hub"
WORKSPACE = "ds01.workspace"
CREATED_AT = "ds01.created_at"
GPU_UUIDS = "ds01.gpu.uuids"
GPU_SLOTS = "ds01.gpu.slots"
GPU_ALLOCATED_AT = "ds01.gpu.allocated_at"
OLD_GPU_UUID = "ds01.gpu.uuid"
PROBE = "ds01.probe"
HUB_USER = "hub.jupyter.org/username"
RECIPE = "ds01.recipe"
BASE = "ds01.base"
BUILT_AT = "ds01.built_at"

BLANK = dict.fromkeys(
    (
        *(MANAGED, INTERFACE, HUB, USER, SERVER, NAME, PROJECT, WORKSPACE, CREATED_AT),
        *(GPU_UUIDS, GPU_SLOTS, GPU_ALLOCATED_AT, OLD_GPU_UUID, PROBE, HUB_USER),
    ),
    "",
)
"""Every label that is read of a container, without a value.

The engine gives a container its image's labels where it is given none of its own, so a container that we make carries
all of these: what somebody wrote as LABEL into a Dockerfile is never read as our record.
"""


@dataclass(frozen=True, slots=True)
class ServerLabels:
    """What the labels of one of our containers say.

    Attributes:
        hub: which hub owns it; two hubs on one host never adopt each other's containers.
        holder: user and server name, exact.
        project: the exact project name.
        workspace: the project's folder on the host, for show.
        created_at: when the lease was made, epoch seconds (whole seconds survive).
        devices: UUIDs of the lease; empty for a CPU server.
        slots: the devices' indices for show.
    """

    hub: str
    holder: Holder
    project: str
    workspace: str
    created_at: float
    devices: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()


def _isoformat(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z")


def encode(labels: ServerLabels) -> dict[str, str]:
    """Return the engine's label map, which leaves nothing that is read to the image."""
    created = _isoformat(labels.created_at)
    return {
        **BLANK,
        MANAGED: "true",
        INTERFACE: "jupyterhub",
        HUB: labels.hub,
        USER: labels.holder.user,
        SERVER: labels.holder.server,
        NAME: labels.project,
        PROJECT: labels.project,
        WORKSPACE: labels.workspace,
        CREATED_AT: created,
        GPU_UUIDS: ",".join(labels.devices),
        GPU_SLOTS: ",".join(labels.slots),
        GPU_ALLOCATED_AT: created if labels.devices else "",
    }


def decode(labels: Mapping[str, str]) -> ServerLabels | None:
    """Return what a container's labels say, or ``None`` when it is not a complete record of one of ours.

    A container that is not ours may still carry ``ds01.gpu.uuids`` of another interface: its devices are read with
    ``devices_of``, which never trusts anybody to be the holder.
    """
    if labels.get(MANAGED) != "true" or labels.get(INTERFACE) != "jupyterhub":
        return None
    try:
        created = datetime.fromisoformat(labels[CREATED_AT]).timestamp()
        return ServerLabels(
            hub=labels[HUB],
            holder=Holder(labels[USER], labels[SERVER]),
            project=labels[PROJECT],
            workspace=labels.get(WORKSPACE, ""),
            created_at=created,
            devices=devices_of(labels),
            slots=_split(labels.get(GPU_SLOTS, "")),
        )
    except (KeyError, ValueError):
        return None


def devices_of(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the device UUIDs that any container's labels claim, ours or another interface's."""
    return _split(labels.get(GPU_UUIDS) or labels.get(OLD_GPU_UUID, ""))


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
