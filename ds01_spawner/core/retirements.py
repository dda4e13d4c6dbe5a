"""What people are told of servers that were retired for them, until it is of no use to them any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ds01_spawner.core import picture

SHOWN_SECONDS = 7 * 86400.0
"""For how long a retirement is shown to a user who neither launches the project again nor puts it away."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """One server that the culler ended.

    Attributes:
        user: whose.
        server: its name.
        project: the project's exact name.
        at: when, seconds since the epoch.
        when: the same for people: day and time of the host's clock.
        why: sentences: the reason, the limits in force, the warnings.
        picture: its last signals as SVG, made of numbers and fixed words; empty when there are none.
    """

    user: str
    server: str
    project: str
    at: float
    when: str
    why: tuple[str, ...]
    picture: str


def decode(entry: Mapping[str, Any]) -> Retirement | None:
    """Return a retirement as the culler's file holds it, ``None`` for anything that is none."""
    try:
        samples = entry["samples"]
        return Retirement(
            user=str(entry["user"]),
            server=str(entry["server"]),
            project=str(entry["project"]),
            at=float(entry["at"]),
            when=str(entry["when"]),
            why=tuple(str(sentence) for sentence in entry["why"]),
            picture=picture.draw(samples) if samples else "",
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def choose(
    retirements: Iterable[Retirement], *, active: Collection[str], dismissed: Callable[[Retirement], bool], now: float
) -> tuple[Retirement, ...]:
    """Return those that their user is still to be told of, the newest first.

    Args:
        retirements: of one user.
        active: names of the user's servers that run, start or stop: what was launched again needs no telling.
        dismissed: whether the user does not want to see one any more.
        now: seconds since the epoch.
    """
    recent = [one for one in retirements if now - one.at < SHOWN_SECONDS and one.server not in active]
    return tuple(sorted((one for one in recent if not dismissed(one)), key=lambda one: one.at, reverse=True))
