"""What a pass saw and decided, as the plain values that pages, the command line and metrics read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ds01_spawner.adapters.hub import HubServer
from ds01_spawner.core import wording
from ds01_spawner.core.activity import Use
from ds01_spawner.core.idleness import Decision, Keep, Reason, Retire, Warn
from ds01_spawner.core.idlerules import Demand
from ds01_spawner.services.culler.watch import Watch


@dataclass(frozen=True, slots=True)
class Report:
    """How a pass went.

    Attributes:
        seconds: how long it took.
        watched: how many servers were looked at.
        broken: how many of them could not be looked at or acted on as a whole.
        problem: what kept the pass from being one, else empty.
        demand: how wanted devices were.
        strangers: servers of the hub that are not watched, with the reason.
    """

    seconds: float
    watched: int = 0
    broken: int = 0
    problem: str = ""
    demand: Demand = field(default_factory=Demand)
    strangers: tuple[tuple[HubServer, str], ...] = ()


_SHOWN_SAMPLES = 24


def describe_pass(
    report: Report, watches: Iterable[Watch], *, wall: float, now: float, pass_seconds: float
) -> dict[str, Any]:
    """Return the status file's contents.

    Args:
        report: how the pass went.
        watches: everything that is watched.
        wall: seconds since the epoch.
        now: the same moment, monotonic seconds.
        pass_seconds: time between two passes.
    """
    return {
        "at": wall,
        "pass_seconds": pass_seconds,
        "took_seconds": round(report.seconds, 3),
        "watched": report.watched,
        "broken": report.broken,
        "problem": report.problem,
        "demand": {"held": report.demand.held, "devices": report.demand.devices, "waiting": report.demand.waiting},
        "servers": [describe_server(watch, wall=wall, now=now) for watch in watches],
        "not_watched": [{"user": server.user, "server": server.name, "why": why} for server, why in report.strangers],
    }


def describe_server(watch: Watch, *, wall: float, now: float) -> dict[str, Any]:
    """Return what is known and decided of one server."""
    described: dict[str, Any] = {
        "user": watch.server.user,
        "server": watch.server.name,
        "project": watch.project,
        "devices": list(watch.place.devices),
        "group": watch.limits.group,
        "age_seconds": _rounded(watch.newest.age_seconds if watch.newest else None),
        "run_limit_seconds": watch.rules.run_seconds,
        "keep_alive_until": wall + watch.keep_alive_seconds if watch.keep_alive_seconds else None,
        "exemptions": [str(exemption) for exemption in watch.limits.exemptions],
        "problem": watch.problem or watch.note or (watch.newest.problem if watch.newest else ""),
        # The newest as they are: merging the window of a thousand servers at each pass would cost seconds.
        "samples": wording.evidence(watch.samples[-_SHOWN_SAMPLES:], watch.rules, now),
    }
    warned = [delivery for delivery in watch.deliveries if delivery.channels and delivery.rule.ends]
    if warned:
        last = warned[-1]
        described["warned"] = {
            "rule": last.rule,
            "stop_at": wall + last.stop_at - now,
            "channels": list(last.channels),
        }
    if watch.decision is None:
        return described | {"decision": "keep", "reason": Reason.UNKNOWN, "text": "Kept, because looking at it failed."}
    clock = watch.decision.clock
    # Idleness is measured by a clock that nobody sets; only here it becomes a time of day.
    described["idle_since"] = wall + clock.since - now if clock.newest is Use.IDLE else None
    return described | describe_decision(watch.decision, watch, wall=wall)


def describe_decision(decision: Decision, watch: Watch, *, wall: float) -> dict[str, Any]:
    """Return a decision as plain values, with its sentence."""
    stop_in = decision.stop_in_seconds
    return {
        "decision": _WORDS[type(decision)],
        "reason": decision.reason,
        "text": wording.describe(decision, watch.rules),
        "rule": decision.rule,
        "stop_at": None if stop_in is None else wall + stop_in,
        "use": decision.clock.newest,
        "signals": list(decision.clock.signals),
        "idle_seconds": _rounded(decision.clock.idle_seconds),
        "idle_limit_seconds": decision.limit_seconds,
        "usual_idle_limit_seconds": watch.rules.idle_seconds,
        "in_demand": decision.in_demand,
        "device_idle_seconds": _rounded(decision.device_idle_seconds),
        "counting": watch.rules.counting,
    }


def measure(
    report: Report, watches: Iterable[Watch], *, wall: float, lost_events: int
) -> Iterator[tuple[str, str, float]]:
    """Yield the metrics of a pass: name, help, value."""
    decisions = [watch.decision for watch in watches]
    yield "ds01_culler_last_pass_timestamp_seconds", "When the last pass ended.", wall
    yield "ds01_culler_last_pass_duration_seconds", "How long the last pass took.", report.seconds
    yield "ds01_culler_last_pass_ok", "1 when the last pass could look at hub and engine.", not report.problem
    yield "ds01_culler_servers_watched", "Servers looked at in the last pass.", report.watched
    yield "ds01_culler_servers_broken", "Servers of the last pass that could not be judged.", report.broken
    yield "ds01_culler_servers_not_watched", "Servers of the hub that have no record.", len(report.strangers)
    unknown = sum(decision is None or decision.reason is Reason.UNKNOWN for decision in decisions)
    yield "ds01_culler_servers_unknown", "Servers kept because something could not be read.", unknown
    idle = sum(decision is not None and decision.clock.idle_seconds > 0 for decision in decisions)
    yield "ds01_culler_servers_idle", "Servers that nothing uses now.", idle
    yield "ds01_culler_events_lost", "Events that could not be written since the start.", lost_events


_WORDS = {Keep: "keep", Warn: "warn", Retire: "retire"}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
