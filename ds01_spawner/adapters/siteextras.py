"""The site's own additions to the engine's create call, and what they may not touch.

DockerSpawner lets ``extra_create_kwargs`` and ``extra_host_config`` replace anything.  Here a label is the record of
who holds a device, and the device request keeps a GPU from being seen by two servers, so neither can be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds01_spawner.errors import SiteMisconfigured

_OURS = frozenset({"image", "name", "user", "entrypoint", "command", "host_config"})
_OURS_OF_HOST = frozenset({"device_requests", "network_mode", "privileged", "runtime"})


def add_to_create(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the create call with the site's added; of labels and environment, ours win.

    Raises:
        SiteMisconfigured: the site would replace what the launch decides.
    """
    _refuse(_OURS, extra, "extra_create_kwargs")
    added = {key: {**extra[key], **ours[key]} for key in ("labels", "environment") if key in extra}
    return {**ours, **extra, **added}


def add_to_host(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the host configuration with the site's added; mounts come beside ours.

    Raises:
        SiteMisconfigured: the site would replace what the launch decides.
    """
    _refuse(_OURS_OF_HOST, extra, "extra_host_config")
    return {**ours, **extra, "mounts": [*ours["mounts"], *extra.get("mounts", ())]}


def _refuse(decided: frozenset[str], extra: Mapping[str, Any], trait: str) -> None:
    if taken := sorted(decided & extra.keys()):
        raise SiteMisconfigured(
            f"c.DS01Spawner.{trait} may not hold {', '.join(taken)}: the launch decides that for each server. "
            "An administrator must take it out of jupyterhub_config.py."
        )
