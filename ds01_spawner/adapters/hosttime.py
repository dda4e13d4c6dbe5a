"""Times as the host's own clock shows them to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_FAR_SECONDS: Final = 12 * 3600.0


def time_of_day(at: float, now: float) -> str:
    """Return a moment near the present: ``14:35``, or ``Tuesday 14:35`` when it is half a day off or more.

    Args:
        at: the moment, seconds since the epoch.
        now: the present.
    """
    when = datetime.fromtimestamp(at, UTC).astimezone()
    return f"{when:%H:%M}" if abs(at - now) < _FAR_SECONDS else f"{when:%A %H:%M}"


def day_and_time(at: float) -> str:
    """Return a moment for somebody who reads of it days later: ``Tuesday 24 November, 14:35``."""
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%A %d %B, %H:%M}"
