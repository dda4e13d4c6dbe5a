"""What a page says of a running project's idle clock, from what the culler wrote of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ds01_spawner.core.activity import Use
from ds01_spawner.core.idleness import Reason
from ds01_spawner.core.idlerules import Rule
from ds01_spawner.core.model import Holder
from ds01_spawner.core.wording import duration

LATE_PASSES = 3
"""A culler that has not passed for so long says nothing about now."""

_SWITCHED_OFF_SECONDS = 86400.0
_COUNTING_DOWN = frozenset({Reason.WITHIN, Reason.YOUNG, Reason.WARNED, Reason.DUE_SOON, Reason.LIMIT})


@dataclass(frozen=True, slots=True)
class IdleClock:
    """What is said of one server.

    Attributes:
        warning: the end that its user was told of; empty when none stands.
        lines: the rest, one sentence or two each.
    """

    warning: str = ""
    lines: tuple[str, ...] = ()


def read_status(status: Mapping[str, Any] | None, now: float) -> tuple[dict[Holder, Mapping[str, Any]], str]:
    """Return the entry of each watched server, and what is wrong with the watch, else an empty sentence.

    Args:
        status: the culler's, ``None`` when there is none.
        now: seconds since the epoch.
    """
    if status is None:
        return {}, ""
    servers = servers_of(status, now)
    if servers is not None:
        return servers, f"Idle times are not seen at the moment: {status['problem']}" if status.get("problem") else ""
    try:
        age, late = now - float(status["at"]), LATE_PASSES * float(status["pass_seconds"])
    except (KeyError, TypeError, ValueError):
        return {}, ""
    if not late < age < _SWITCHED_OFF_SECONDS:
        return {}, ""  # a culler that was silent for so long is none of this site any more
    return {}, (
        f"Idle times have not been looked at for {duration(age)}, so nobody is retired and no warning is shown. An "
        "administrator finds the reason in the hub's log."
    )


def servers_of(status: Mapping[str, Any] | None, now: float) -> dict[Holder, Mapping[str, Any]] | None:
    """Return what a status says of each server, ``None`` when it is too old or cannot be read."""
    try:
        if status is None or not abs(now - float(status["at"])) <= LATE_PASSES * float(status["pass_seconds"]):
            return None
        return {Holder(str(one["user"]), str(one["server"])): one for one in status["servers"]}
    except (KeyError, TypeError, ValueError):
        return None


def end_in_sight(watched: Mapping[str, Any]) -> float | None:
    """Return when a server ends as things stand, seconds since the epoch; ``None`` while nothing counts down.

    A server in use, or one of which something is unknown, is not counted down to its idle limit: that would be a time
    which only comes nearer once it is idle.
    """
    stop_at = watched.get("stop_at")
    counts_down = watched.get("rule") == Rule.RUN or watched.get("reason") in _COUNTING_DOWN | {Reason.KEEP_ALIVE}
    return float(stop_at) if counts_down and stop_at is not None else None


def read_clock(watched: Mapping[str, Any], clock: Callable[[float], str]) -> IdleClock:
    """Return what is said of a server.

    Args:
        watched: the server's entry in the culler's status.
        clock: turns seconds since the epoch into a time of day.
    """
    try:
        lines = (_now(watched, clock), _end(watched, clock), _keep_alive(watched, clock))
        return IdleClock(_warning(watched, clock), tuple(line for line in lines if line))
    except (KeyError, OverflowError, TypeError, ValueError):
        # The status of another version; its one sentence is better than none.
        return IdleClock("", (str(watched.get("text") or ""),))


def _now(watched: Mapping[str, Any], clock: Callable[[float], str]) -> str:
    """Return how it is: in use, idle since when, or why it is kept."""
    since = watched.get("idle_since")
    if watched["use"] == Use.ACTIVE:
        limit, unused = watched.get("idle_limit_seconds"), watched["device_idle_seconds"]
        but = f", but its GPU has done nothing for {duration(unused)}" if limit is not None and unused >= limit else ""
        return f"In use ({', '.join(watched['signals'])}){but}."
    if watched["reason"] in _COUNTING_DOWN and since is not None:
        return f"Idle since {clock(since)}."
    if watched["reason"] == Reason.KEEP_ALIVE:
        return f"Kept by its .keep-alive file until {clock(watched['keep_alive_until'])}."
    return str(watched["text"])


def _end(watched: Mapping[str, Any], clock: Callable[[float], str]) -> str:
    """Return when and by which rule it would be retired; the rule alone where a warning names the time."""
    stop_at = None if watched.get("warned") else watched.get("stop_at")
    if watched.get("rule") == Rule.RUN:
        have_run = f"have run for {duration(watched['run_limit_seconds'])}, the longest that is allowed."
        if stop_at is None:
            return f"It will then {have_run}"
        return f"Retired at {clock(stop_at)}, whatever it does: it will {have_run}"
    if watched.get("idle_limit_seconds") is None:
        return ""
    limit = duration(watched["idle_limit_seconds"])
    if watched["in_demand"]:
        limit += f" while GPUs are scarce, instead of {duration(watched['usual_idle_limit_seconds'])}"
    if watched["reason"] in _COUNTING_DOWN and stop_at is not None:
        return f"Retired at {clock(stop_at)} unless it is used: the idle limit is {limit}."
    return f"The idle limit is {limit}."


def _keep_alive(watched: Mapping[str, Any], clock: Callable[[float], str]) -> str:
    until = watched.get("keep_alive_until")
    if until is None or watched["reason"] == Reason.KEEP_ALIVE:
        return ""
    return f"Its .keep-alive file holds until {clock(until)}."


def _warning(watched: Mapping[str, Any], clock: Callable[[float], str]) -> str:
    warned = watched.get("warned")
    if warned is None:
        return ""
    stays = "Save what you need." if warned["rule"] == Rule.RUN else "Use it and it stays."
    return f"Will be retired at {clock(warned['stop_at'])}. {stays}"
