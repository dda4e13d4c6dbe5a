"""What is worth remembering: the vocabulary of the event log, and one event as it is read back.

One schema for every writer.  The kinds are those of the DS01 command-line system where it had them, so that its reports
and the tools of its admins go on working; ``OLD_KINDS`` are names that its earlier versions wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = "1"

KINDS: Mapping[str, str] = {
    "container.start": "its server became reachable",
    "container.stop": "it ended by itself, or was ended without being retired",
    "container.remove": "it was retired: by its user, an admin, or with a failed launch",
    "image.build": "an image build ended, well or not",
    "gpu.allocate": "devices were granted to a server",
    "gpu.release": "devices came back",
    "gpu.reject": "a request was refused; details carry the reason",
    "gpu.set_aside": "a released device is still in use, or its state unknown, and is kept from the next holder",
    "gpu.health_check": "a device's health changed",
    "queue.enter": "a server began to wait for a device",
    "queue.leave": "it stopped waiting: granted, cancelled, or started on the CPU instead",
    "maintenance.warn": "a user was told that a server will be retired",
    "maintenance.cancel": "an announced retirement was called off; details carry the reason",
    "maintenance.keep": "a user asked for a server to be kept longer",
    "maintenance.idle_kill": "an idle server was retired",
    "maintenance.runtime_kill": "a server at its run limit was retired",
    "detection.unmanaged_container": "a container that is not the hub's holds a device",
    "detection.host_gpu_process": "a process of the host, outside every container, uses a device",
    "config.change": "the limits file was read again, or was refused",
    "health.check": "the hub could not see something it needs, or sees it again",
}

OLD_KINDS: Mapping[str, str] = {
    "container.started": "container.start",
    "container.stopped": "container.stop",
    "container.removed": "container.remove",
    "gpu.allocated": "gpu.allocate",
    "gpu.released": "gpu.release",
    "gpu.rejected": "gpu.reject",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        at: when, seconds since the epoch.
        kind: one of ``KINDS``.
        user: whom it concerns; empty when nobody.
        source: which program wrote it, such as ``"hub"`` or ``"culler"``.
        details: further facts, plain JSON values.
    """

    at: float
    kind: str
    user: str = ""
    source: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
