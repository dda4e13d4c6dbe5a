"""Which GPUs a container was given, and which the engine can give by CDI: read out of the engine's own records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ds01_spawner.core import labels

CDI_KIND = "nvidia.com/gpu"

# Ours, and those of NVIDIA's runtime, of its operator and of other vendors: what is not understood counts as claimed.
_GPU_KINDS = ("gpu", "mig", "device")


def device_claims(inspected: dict[str, Any]) -> tuple[str, ...]:
    """Return the devices that a container was given: UUIDs, indices (``"0"``) or ``"all"``, from the engine's record.

    ``NVIDIA_VISIBLE_DEVICES`` counts only under an nvidia runtime: elsewhere it is a word without effect, and many
    images carry it.  A privileged container that was given no device claims none, although it can open every one: it is
    seen by the processes that it runs on a GPU.
    """
    host = inspected["HostConfig"]
    claims: list[str] = []
    for request in host.get("DeviceRequests") or ():
        ids = request.get("DeviceIDs") or ()
        if request.get("Driver") == "cdi":
            claims += [
                device for kind, _, device in (name.rpartition("=") for name in ids) if kind.endswith(_GPU_KINDS)
            ]
        elif ids:
            claims += ids
        elif request.get("Count"):
            # The engine turns a count into the first so many indices; -1 is all of them.
            claims += ["all"] if request["Count"] < 0 else map(str, range(request["Count"]))
    if "nvidia" in (host.get("Runtime") or ""):
        environment = dict(item.partition("=")[::2] for item in inspected["Config"].get("Env") or ())
        visible = environment.get("NVIDIA_VISIBLE_DEVICES", "")
        claims += [part.strip() for part in visible.split(",") if part.strip() not in ("", "none", "void")]
    for node in host.get("Devices") or ():
        number = node.get("PathOnHost", "").removeprefix("/dev/nvidia")
        if number.isdigit():
            claims.append(number)
    claims += labels.devices_of(inspected["Config"].get("Labels") or {})
    return tuple(dict.fromkeys(claims))


def cdi_devices(info: dict[str, Any]) -> frozenset[str]:
    """Return the CDI names that the engine can inject.

    Engines from 28.2 list them; older ones only name the folders of the specifications, which are read here.
    """
    if "DiscoveredDevices" in info:
        return frozenset(entry["ID"] for entry in info["DiscoveredDevices"] or () if entry.get("Source") == "cdi")
    names: set[str] = set()
    for folder in info.get("CDISpecDirs") or ():
        for path in sorted(Path(folder).glob("*")):
            names |= set(_spec_names(path))
    return frozenset(names)


def _spec_names(path: Path) -> Iterable[str]:
    if path.suffix not in (".json", ".yaml", ".yml"):
        return ()
    try:
        text = path.read_text()
        spec = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return [f"{spec['kind']}={device['name']}" for device in spec["devices"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ()  # the engine ignores a broken specification too
