"""How much each user has had lately: GPU-hours that fade with time."""

from __future__ import annotations

import math
from collections.abc import Mapping

LONGEST_STEP_SECONDS = 3600.0
_FORGOTTEN_HOURS = 1e-4


class DecayedUse:
    """GPU-hours per user, halved with every half-life.

    Args:
        half_life_seconds: after this long an hour counts as half an hour.
        hours: what is known from before, per user.
        at: the time of that knowledge.
    """

    def __init__(self, half_life_seconds: float, hours: Mapping[str, float] | None = None, at: float = 0.0) -> None:
        self._half_life_seconds = half_life_seconds
        self._hours = dict(hours or {})
        self.at = at

    def advance(self, now: float, holding: Mapping[str, float]) -> None:
        """Let time pass.

        Args:
            now: the time.  One that lies before the last one changes nothing, and a step of more than an hour counts as
                an hour: a clock that jumps must neither erase what somebody used nor charge what nobody did.
            holding: GPU-equivalents that each user has held since the last call.
        """
        seconds = min(max(now - self.at, 0.0), LONGEST_STEP_SECONDS)
        self.at = now
        if not seconds:
            return
        keep = math.exp2(-seconds / self._half_life_seconds)
        self._hours = {user: left for user, hours in self._hours.items() if (left := hours * keep) > _FORGOTTEN_HOURS}
        for user, equivalents in holding.items():
            self._hours[user] = self._hours.get(user, 0.0) + equivalents * seconds / 3600

    def hours(self, user: str) -> float:
        """Return a user's faded GPU-hours."""
        return self._hours.get(user, 0.0)

    def all(self) -> dict[str, float]:
        """Return every user's faded GPU-hours; users with next to none are missing."""
        return dict(self._hours)
