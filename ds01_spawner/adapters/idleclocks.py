"""What the culler's status file says of the servers that it watches, for those who wait for their devices."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.core.expectation import IdleEnds
from ds01_spawner.core.idleclock import servers_of


class IdleClocks:
    """Reads when idle servers will be retired.

    Args:
        files: the culler's.
        clock: seconds since the epoch.
    """

    def __init__(self, files: CullerFiles, clock: Callable[[], float]) -> None:
        self._files = files
        self._clock = clock

    async def read(self) -> IdleEnds | None:
        """Return what the culler said at its last pass, ``None`` when it has not passed lately."""
        status = await asyncio.to_thread(self._files.status)
        now = self._clock()
        servers = servers_of(status, now)
        if status is None or servers is None:
            return None
        stops = {holder: stop for holder, server in servers.items() if (stop := _stop_of(server)) is not None}
        took = status.get("took_seconds")
        return IdleEnds(float(status["at"]) - (took if isinstance(took, int | float) else 0.0), stops)


def _stop_of(server: Mapping[str, Any]) -> float | None:
    """Return when a server will be retired if nothing uses it from now on, ``None`` when that cannot be told.

    What the culler could not look at it does not retire.  And an idle limit from before somebody waited is too long:
    with the next pass it is the shorter one.
    """
    stop = server.get("stop_at")
    if not isinstance(stop, int | float) or not math.isfinite(stop) or server.get("reason") == "unknown":
        return None
    return float(stop) if server.get("in_demand") or server.get("idle_limit_seconds") is None else None
