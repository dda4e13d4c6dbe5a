"""The limits in force for one server, as the idleness rules read them, and how wanted devices are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from ds01_spawner.core.activity import Counting, Thresholds
from ds01_spawner.core.limits import Limits


class Rule(StrEnum):
    """What ends a server."""

    IDLE = "idle"
    RUN = "run"
    DEVICE_UNUSED = "device-unused"
    """Never ends one: its user is told that the device it holds does nothing while the rest of it works."""

    @property
    def ends(self) -> bool:
        """Whether it can end a server."""
        return self is not Rule.DEVICE_UNUSED


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits in force for one server; ``None`` is no limit.

    Attributes:
        idle_seconds: how long nothing may show use.
        run_seconds: how long it may run at all.
        grace_seconds: a younger server is never retired as idle.
        lead_seconds: how long before the end a user is warned, longest first.  Where a limit is shorter than twice the
            longest, all are shortened in proportion, so that nobody is warned in its first half.
        notice_seconds: the least time between a delivered warning and the end; never more than the shortest lead.
        counting: what counts as use of a server that holds a device.
        thresholds: from which rate on something is use.
        demand_share: from this share of held devices on, devices are in demand.
        demand_factor: what the idle limit of a server that holds a device is multiplied by while they are.
        gap_seconds: readings further apart than this show no idleness, and a longer time without knowledge begins the
            idle time anew.
    """

    idle_seconds: float | None = 1800.0
    run_seconds: float | None = 86400.0
    grace_seconds: float = 1800.0
    lead_seconds: tuple[float, ...] = (900.0, 300.0)
    notice_seconds: float = 300.0
    counting: Counting = Counting.WORK
    thresholds: Thresholds = field(default_factory=Thresholds)
    demand_share: float = 0.8
    demand_factor: float = 0.5
    gap_seconds: float = 300.0

    def __post_init__(self) -> None:
        durations = (self.idle_seconds, self.run_seconds, self.gap_seconds, *self.lead_seconds)
        if any(value is not None and not 0 < value < math.inf for value in durations):
            raise ValueError("limits, leads and gaps are more than 0 seconds; no limit is None")
        if not self.lead_seconds or list(self.lead_seconds) != sorted(set(self.lead_seconds), reverse=True):
            raise ValueError(f"leads are listed from the longest to the shortest, not {self.lead_seconds}")
        if not 0 <= self.notice_seconds <= self.lead_seconds[-1]:
            raise ValueError(f"the notice, {self.notice_seconds} s, is longer than the shortest lead")
        if not 0 < self.demand_factor <= 1 or self.demand_share < 0:
            raise ValueError("the demand factor is above 0 and at most 1, the demand share 0 or more")
        if not 0 <= self.grace_seconds < math.inf:
            raise ValueError("the grace period is 0 seconds or more")


@dataclass(frozen=True, slots=True)
class Demand:
    """How wanted devices are; ``None`` is unknown, and unknown demand is no demand.

    Attributes:
        held: devices that cannot be granted now.
        devices: devices that exist.
        waiting: servers that wait for one.
    """

    held: int | None = None
    devices: int | None = None
    waiting: int | None = None

    def is_high(self, share: float) -> bool:
        """Whether anybody waits or at least this share of the devices is held."""
        if self.waiting:
            return True
        return bool(self.devices) and self.held is not None and self.held >= share * (self.devices or 0)


def rules_of(limits: Limits, *, lead_seconds: tuple[float, ...], notice_seconds: float, gap_seconds: float) -> Rules:
    """Return the rules that a user's limits make.

    Args:
        limits: resolved for the user, exemptions included.
        lead_seconds: how long before the end a user is warned, longest first.
        notice_seconds: the least time between a delivered warning and the end.
        gap_seconds: the longest time without knowledge that an idle time survives.
    """
    return Rules(
        idle_seconds=limits.idle_seconds,
        run_seconds=limits.max_runtime_seconds,
        grace_seconds=limits.grace_seconds,
        lead_seconds=lead_seconds,
        notice_seconds=notice_seconds,
        counting=limits.counting,
        thresholds=Thresholds(
            gpu_percent=limits.gpu_idle_percent,
            cpu_cores=limits.cpu_idle_percent / 100,
            network_bytes_per_second=limits.network_idle_bytes_per_minute / 60,
        ),
        demand_share=limits.high_demand_threshold,
        demand_factor=limits.high_demand_idle_reduction,
        gap_seconds=gap_seconds,
    )
