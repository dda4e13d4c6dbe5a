"""What users read about their server's idle time: one sentence for the clock, and the texts of warnings and ends."""

from __future__ import annotations

from collections.abc import Sequence

from ds01_spawner.core.activity import Counting, Sample, judge
from ds01_spawner.core.history import merge
from ds01_spawner.core.idleness import Decision, Reason
from ds01_spawner.core.idlerules import Rule, Rules

_MINUTE = 60
_HOUR = 3600
_CHANNELS = {
    "page": "shown on the hub's pages",
    "terminals": "shown in your terminals",
    "file": "written to a file in the project's folder",
    "command": "sent as a message",
    "webhook": "sent as a message",
}
_SAFE = "Files in /workspace are safe; what is only in memory or elsewhere in the container is lost, so save it now."


def duration(seconds: float) -> str:
    """Return a duration as people say it: ``40 seconds``, ``25 minutes``, ``3 hours``, ``2 h 30 min``."""
    if seconds < 2 * _MINUTE:
        return _count(max(0, round(seconds)), "second")
    if seconds < 2 * _HOUR:
        return _count(round(seconds / _MINUTE), "minute")
    hours, minutes = divmod(round(seconds / _MINUTE), _MINUTE)
    return f"{hours} h {minutes:02d} min" if minutes else _count(hours, "hour")


def describe(decision: Decision, rules: Rules) -> str:
    """Return one sentence about a server's clock: why it is kept, or what ends it."""
    clock = decision.clock
    seen = ", ".join(clock.signals)
    match decision.reason:
        case Reason.ACTIVE:
            text = f"In use ({seen})."
        case Reason.UNKNOWN:
            text = f"Kept, because not everything is known ({seen or 'its age or its keep-alive'})."
        case Reason.NO_WINDOW:
            text = "Kept, because it has not been watched for long enough."
        case Reason.YOUNG:
            text = f"Kept, because it is younger than {duration(rules.grace_seconds)}."
        case Reason.KEEP_ALIVE:
            text = "Kept by its .keep-alive file."
        case Reason.EXEMPT:
            text = "No limit applies."
        case Reason.DEVICE_UNUSED:
            text = f"In use ({seen}), but its GPU has done nothing for {duration(decision.device_idle_seconds)}."
        case _ if decision.rule is Rule.RUN:
            text = f"It may run for {duration(rules.run_seconds or 0)}."
        case _:
            text = f"{_idle(decision, rules)} The limit is {duration(decision.limit_seconds or 0)}{_demand(decision)}."
    return text


def warning(decision: Decision, rules: Rules, *, project: str, stop_clock: str, keep_alive_seconds: float) -> str:
    """Return the text of a warning.

    Args:
        decision: why.
        rules: in force.
        project: its exact name.
        stop_clock: the time of day of the end, such as ``14:35``.
        keep_alive_seconds: how long a ``.keep-alive`` file holds on this site.
    """
    if decision.rule is Rule.DEVICE_UNUSED:
        return (
            f"The GPU of {project} has done nothing for {duration(decision.device_idle_seconds)}, while the rest of it "
            "works. It is not retired for that, but somebody may be waiting: if you do not need the GPU, retire the "
            "project and launch it on the CPU."
        )
    head = f"{project} will be retired at {stop_clock}, in {duration(decision.stop_in_seconds or 0)}."
    if decision.rule is Rule.RUN:
        return (
            f"{head} It will then have run for {duration(rules.run_seconds or 0)}, the longest that is allowed; using "
            f"it does not change that. {_SAFE} You can launch it again at once."
        )
    return (
        f"{head} {_idle(decision, rules)} The limit is {duration(decision.limit_seconds or 0)}{_demand(decision)}. "
        f"Use it and it stays, or `touch /workspace/.keep-alive` to keep it for up to {duration(keep_alive_seconds)}. "
        f"{_SAFE}"
    )


def called_off(decision: Decision, *, project: str) -> str:
    """Return the text that follows a warning when the end is called off."""
    why = {
        Reason.ACTIVE: f"it is in use again ({', '.join(decision.clock.signals)})",
        Reason.KEEP_ALIVE: "of its .keep-alive file",
        Reason.EXEMPT: "no limit applies to it any more",
        Reason.NO_WINDOW: "the watch over it was restarted, and its idle time begins anew",
    }.get(decision.reason, "the limits or the demand for GPUs have changed")
    return f"{project} will not be retired now, because {why}."


def farewell(decision: Decision, rules: Rules, *, project: str, clock: str) -> str:
    """Return the text for the user's page after the end.

    Args:
        decision: why.
        rules: that were in force.
        project: its exact name.
        clock: the time of day, such as ``14:35``.
    """
    why = reason(decision, rules)
    return f"{project} was retired at {clock}. {why} The project's files are safe; launch it again whenever you like."


def reason(decision: Decision, rules: Rules) -> str:
    """Return why a server was ended, in one or two sentences."""
    if decision.rule is Rule.RUN:
        return f"It had run for {duration(rules.run_seconds or 0)}, the longest that is allowed."
    return f"{_idle(decision, rules)} The limit is {duration(decision.limit_seconds or 0)}{_demand(decision)}."


def limits_in_force(decision: Decision, rules: Rules, group: str) -> str:
    """Return the limits that a server was under.

    Args:
        decision: the last one.
        rules: that were in force.
        group: whose limits they are; empty for those of everybody.
    """
    idle = "no idle limit"
    if rules.idle_seconds is not None:
        idle = f"idle limit {duration(rules.idle_seconds)}"
        if decision.in_demand:
            idle += f", {duration(decision.limit_seconds or 0)} while GPUs are scarce"
    run = "no longest run" if rules.run_seconds is None else f"longest run {duration(rules.run_seconds)}"
    whose = f"Limits of the group {group}" if group else "Limits in force"
    return f"{whose}: {idle}; {run}."


def what_is_use(rules: Rules, *, has_device: bool) -> str:
    """Return from where on a server counts as used, for its user."""
    at = rules.thresholds
    gpu = f"a GPU that does {at.gpu_percent:g} % or more"
    if has_device and rules.counting is Counting.GPU:
        return f"Only {gpu} counts as use."
    a_minute = at.network_bytes_per_second * _MINUTE / 2**20
    sleeps_too = rules.counting is Counting.ANYTHING or not has_device
    signs = [
        *([gpu] if has_device else []),
        f"{at.cpu_cores * 100:g} % of one processor core",
        f"{a_minute:.3g} MiB a minute over the network",
        "a cell that runs" if sleeps_too else "a cell that starts or prints",
    ]
    return f"Use is {', '.join(signs)}, or typing in a terminal; an open tab is none."


def warnings_before(deliveries: Sequence[tuple[float, Sequence[str]]]) -> str:
    """Return when a user was warned and what is known of it: not that anybody looked; empty when no warning arrived.

    Args:
        deliveries: seconds before the end and the channels of each warning.
    """
    arrived = [(before, channels) for before, channels in deliveries if channels]
    if not arrived:
        return ""
    times = [duration(before) for before, _ in arrived]
    channels = dict.fromkeys(_CHANNELS.get(channel, channel) for _, there in arrived for channel in there)
    return f"{'Warnings' if times[1:] else 'A warning'} {_listed(times)} before: {_listed(list(channels))}."


def evidence(samples: Sequence[Sample], rules: Rules, now: float, most: int = 24) -> list[dict[str, object]]:
    """Return samples as plain values for an event or a page, merged until there are at most ``most``.

    Each has ``ago`` (seconds before now at which it ended), ``use``, and what is known of ``gpu`` (percent), ``cpu``
    (cores), ``net`` (bytes per second), ``busy`` (kernels), ``messages`` and ``typed``.
    """
    shown = list(samples)
    while len(shown) > most:
        pairs = [shown[n : n + 2] for n in range(0, len(shown), 2)]
        shown = [merge(*pair) if len(pair) > 1 else pair[0] for pair in pairs]
    return [_plain(sample, rules, now) for sample in shown]


def _plain(sample: Sample, rules: Rules, now: float) -> dict[str, object]:
    use, _ = judge(sample, rules.counting, rules.thresholds, rules.gap_seconds)
    percents = [d.utilisation_percent for d in sample.devices or () if d.utilisation_percent is not None]
    facts: dict[str, object] = {
        "gpu": round(max(percents), 1) if percents else None,
        "cpu": None if sample.cpu_cores is None else round(sample.cpu_cores, 3),
        "net": None if sample.network_bytes_per_second is None else round(sample.network_bytes_per_second),
        "busy": sample.kernels_busy,
        "messages": sample.kernels_moved,
        "typed": sample.typed,
    }
    known = {key: value for key, value in facts.items() if value is not None and value is not False}
    return {"ago": round(now - sample.at), "use": str(use), **known}


def _idle(decision: Decision, rules: Rules) -> str:
    lasted = duration(decision.clock.idle_seconds)
    if rules.counting is Counting.GPU:
        return f"Its GPU has done nothing for {lasted}."
    return f"Nothing has used it for {lasted}."


def _demand(decision: Decision) -> str:
    return " while GPUs are scarce" if decision.in_demand else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
