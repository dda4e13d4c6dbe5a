"""What the culler remembers of one container while it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ds01_spawner.adapters.activity import Place
from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.core.account import Account
from ds01_spawner.core.activity import Reading, Sample, compare
from ds01_spawner.core.history import append
from ds01_spawner.core.idleness import Decision, Delivery, Watched
from ds01_spawner.core.idlerules import Rule, Rules
from ds01_spawner.core.limits import Limits


@dataclass(slots=True)
class Watch:
    """One server in one container.

    Attributes:
        server: as the hub last described it.
        place: where it runs.
        project: its exact name.
        account: its user's, once it was found.
        limits: of its user, as last resolved.
        rules: that they make.
        earlier: the reading before the newest.
        newest: the newest reading.
        samples: what it did, oldest first.
        deliveries: warnings that stand.
        keep_alive_seconds: how long its keep-alive still holds; ``None`` when that is unknown.
        keep_alive_told: whether the keep-alive that now holds was recorded.
        decision: the last one, ``None`` when none could be made.
        problem: what went wrong with it in the last pass, else empty.
        note: why its user's account could not be found, else empty.
        seen_at: when the hub last listed it, monotonic seconds.
    """

    server: HubServer
    place: Place
    project: str
    account: Account | None = None
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)
    earlier: Reading | None = None
    newest: Reading | None = None
    samples: tuple[Sample, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    keep_alive_seconds: float | None = 0.0
    keep_alive_told: bool = False
    decision: Decision | None = None
    problem: str = ""
    note: str = ""
    seen_at: float = 0.0

    def add(self, reading: Reading) -> None:
        """Take a new reading into the window."""
        if self.newest is not None and reading.at > self.newest.at:
            self.samples = append(self.samples, compare(self.newest, reading))
            self.earlier = self.newest
        self.newest = reading

    def replace_newest(self, reading: Reading) -> None:
        """Take a reading in place of the newest one.

        Two readings a second apart show mostly the cost of reading, so a last look is compared with the pass before.
        """
        if self.earlier is not None and self.samples:
            self.samples = (*self.samples[:-1], compare(self.earlier, reading))
        self.newest = reading

    def known(self) -> Watched:
        """Return what is decided on."""
        return Watched(
            samples=self.samples,
            age_seconds=self.newest.age_seconds if self.newest else None,
            has_device=bool(self.place.devices),
            keep_alive_seconds=self.keep_alive_seconds,
            deliveries=self.deliveries,
        )

    def withdraw(self, rules: tuple[Rule, ...]) -> tuple[Delivery, ...]:
        """Forget the warnings of some rules and return those that had arrived."""
        gone = tuple(delivery for delivery in self.deliveries if delivery.rule in rules)
        self.deliveries = tuple(delivery for delivery in self.deliveries if delivery.rule not in rules)
        return tuple(delivery for delivery in gone if delivery.channels)


def encode_delivery(delivery: Delivery) -> dict[str, Any]:
    """Return plain values for a file."""
    return {
        "at": delivery.at,
        "rule": delivery.rule,
        "level": delivery.level,
        "stop_at": delivery.stop_at,
        "channels": delivery.channels,
    }


def decode_delivery(found: Mapping[str, Any], now: float) -> Delivery | None:
    """Return a delivery from a file, ``None`` for anything that is none or that claims to be from later than now."""
    try:
        delivery = Delivery(
            at=float(found["at"]),
            rule=Rule(found["rule"]),
            level=int(found["level"]),
            stop_at=float(found["stop_at"]),
            channels=tuple(str(channel) for channel in found["channels"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
    return delivery if delivery.at <= now else None
