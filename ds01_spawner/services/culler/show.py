"""What ``ds01-culler`` prints for administrators, from the running culler's status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ds01_spawner.core.idleclock import end_in_sight
from ds01_spawner.core.idlerules import Rule
from ds01_spawner.core.wording import duration

LATE_PASSES = 3

Status = Mapping[str, Any]
Clock = Callable[[float], str]


def is_fresh(status: Status, now: float) -> bool:
    """Whether the culler still passes."""
    return bool(now - status["at"] <= LATE_PASSES * status["pass_seconds"])


def show_all(status: Status, now: float, clock: Clock) -> Iterator[str]:
    """Yield the lines about every server: what would be done now, when it would end, and why.

    Args:
        status: the culler's.
        now: seconds since the epoch.
        clock: turns seconds since the epoch into a time of day.
    """
    yield from _head(status, now)
    servers = sorted(status["servers"], key=lambda each: (end_in_sight(each) or float("inf"), each["user"]))
    rows = [
        (server["decision"], f"{server['user']}/{server['project']}", _end(server, now, clock), _why(server))
        for server in servers
    ]
    rows += [("none", f"{server['user']}/{server['server']}", "", server["why"]) for server in status["not_watched"]]
    yield from _table((("decision", "server", "ends", "why"), *rows) if rows else ())


def show_one(status: Status, server: Mapping[str, Any], now: float, clock: Clock) -> Iterator[str]:
    """Yield the lines about one server: its clock, the limits in force, warnings, and its latest samples."""
    yield from _head(status, now)
    yield f"{server['user']}/{server['project']}: {_why(server)}"
    facts = [
        ("decision", server["decision"]),
        ("ends", _end(server, now, clock) or "nothing counts down"),
        ("idle", _duration(server.get("idle_seconds"))),
        ("idle limit", _idle_limit(server)),
        ("age", _duration(server.get("age_seconds"))),
        ("longest run", _duration(server["run_limit_seconds"])),
        ("limits of", f"the group {server['group']}" if server["group"] else "everybody"),
    ]
    if server["devices"]:
        facts += [
            ("device", ", ".join(server["devices"])),
            ("device idle", _duration(server.get("device_idle_seconds"))),
            ("what counts", str(server.get("counting"))),
        ]
    if server["keep_alive_until"]:
        facts.append(("keep-alive", f"until {clock(server['keep_alive_until'])}"))
    if warned := server.get("warned"):
        facts.append(("warned", f"of the end at {clock(warned['stop_at'])}: {', '.join(warned['channels'])}"))
    facts += [("exempt", text) for text in server["exemptions"]]
    yield from (f"  {label:<14}{text}" for label, text in facts)
    yield ""
    yield from _samples(server["samples"])


def show_ended(ended: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about a server that was retired."""
    yield f"{ended['user']}/{ended['project']} was retired on {ended['when']}."
    yield from (f"  {sentence}" for sentence in ended["why"] if sentence)
    yield ""
    yield from _samples(ended["samples"])


def _head(status: Status, now: float) -> Iterator[str]:
    ago = duration(max(0.0, now - status["at"]))
    servers = "1 server" if status["watched"] == 1 else f"{status['watched']} servers"
    yield f"Last look {ago} ago: {servers}, {status['broken']} broken."
    if not is_fresh(status, now):
        yield f"It is late: one is due every {duration(status['pass_seconds'])}. Is the hub's service running?"
    if status["problem"]:
        yield status["problem"]
    demand = status["demand"]
    held, devices, waiting = (_or_unknown(demand[key]) for key in ("held", "devices", "waiting"))
    scarce = any(server.get("in_demand") for server in status["servers"])
    yield f"Devices: {held} of {devices} held, {waiting} waiting.{' Idle limits are shortened.' if scarce else ''}"
    yield ""


def _end(server: Mapping[str, Any], now: float, clock: Clock) -> str:
    at = end_in_sight(server)
    if at is None:
        return ""
    rule = "longest run" if server["rule"] == Rule.RUN else "idle"
    return f"{clock(at)}, in {duration(at - now)}, {rule}" if at > now else f"now, {rule}"


def _why(server: Mapping[str, Any]) -> str:
    warned = f"Warned: {', '.join(server['warned']['channels'])}." if server.get("warned") else ""
    return " ".join(text for text in (server["text"], warned, server["problem"]) if text)


def _idle_limit(server: Mapping[str, Any]) -> str:
    if not server.get("in_demand"):
        return _duration(server.get("idle_limit_seconds"))
    usual = _duration(server["usual_idle_limit_seconds"])
    return f"{_duration(server['idle_limit_seconds'])} while devices are in demand, else {usual}"


def _samples(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (
            duration(sample["ago"]),
            str(sample["use"]),
            _number(sample, "gpu"),
            _number(sample, "cpu"),
            _number(sample, "net"),
            ", ".join(word for word in ("busy", "messages", "typed") if sample.get(word)),
        )
        for sample in samples
    ]
    if rows:
        yield from _table((("  ago", "use", "GPU %", "cores", "bytes/s", "kernel, terminal"), *rows))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _duration(seconds: float | None) -> str:
    return "none" if seconds is None else duration(seconds)


def _number(sample: Mapping[str, Any], key: str) -> str:
    return "" if sample.get(key) is None else f"{sample[key]:g}"


def _or_unknown(value: int | None) -> str:
    return "an unknown number" if value is None else str(value)
