"""Whether a server is kept, its user is warned, or it is retired, with the reason.

Two rules can end a server: the *idle* rule, when nothing showed use for as long as the limit says, and the *run* rule,
when it has run for as long as it may.  Neither ends a server whose user was not warned first.

Times are monotonic seconds, durations are seconds, and all are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ds01_spawner.core.activity import Counting, Sample, Signal, Use, judge
from ds01_spawner.core.idlerules import Demand, Rule, Rules

# Two ways to compute the same moment may differ by rounding.
_ROUNDING_SECONDS = 1e-6

# An end that comes nearer by less than this is not worth a second warning: the one that was named is kept.
_RESTATED_SECONDS = 1.0


class Reason(StrEnum):
    """Why a decision was made; the words that the status file and the events carry."""

    ACTIVE = "active"
    UNKNOWN = "unknown"
    NO_WINDOW = "not observed long enough"
    YOUNG = "young"
    KEEP_ALIVE = "keep-alive"
    EXEMPT = "no limit"
    WITHIN = "within its limits"
    WARNED = "warned"
    DUE_SOON = "limit near"
    LIMIT = "limit reached"
    DEVICE_UNUSED = "device unused"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A warning that was sent.

    Attributes:
        at: when.
        rule: which rule it is about.
        level: place in ``Rules.lead_seconds``; 0 comes first.
        stop_at: the end that it named; ``inf`` for one that names none.
        channels: where it arrived; one that arrived nowhere does not count.
    """

    at: float
    rule: Rule
    level: int
    stop_at: float
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of one server.

    Attributes:
        samples: what it did, oldest first.
        age_seconds: how long its container has run, ``None`` when unknown.
        has_device: whether it holds a device.
        keep_alive_seconds: how long its user's keep-alive still holds; 0 when there is none, ``None`` when unknown.
        deliveries: the warnings that stand, oldest first.
    """

    samples: Sequence[Sample] = ()
    age_seconds: float | None = None
    has_device: bool = False
    keep_alive_seconds: float | None = 0.0
    deliveries: Sequence[Delivery] = ()


@dataclass(frozen=True, slots=True)
class Clock:
    """How long nothing has shown use.

    Attributes:
        idle_seconds: observed idleness up to the newest sample; time without knowledge is not counted.
        since: when it began; the newest sample's end when there is none.
        newest: what the newest sample says; unknown without any.
        signals: what showed use, or is unknown, in the newest sample.
    """

    idle_seconds: float
    since: float
    newest: Use
    signals: tuple[Signal, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What all decisions say.

    Attributes:
        reason: why.
        clock: the idle time behind it.
        limit_seconds: the idle limit now in force, demand included; ``None`` without one.
        in_demand: whether the limit is shortened because devices are wanted.
        rule: the rule that would end the server next, ``None`` when none would.
        stop_in_seconds: time until then as things stand; ``None`` when no rule would end it.
        device_idle_seconds: how long its device has not been used; 0 without one.
        look_in_seconds: when something will be decided anew even if nothing happens; ``None`` when nothing will.
        withdrawn: rules whose warnings are called off, because the end they named is no longer near.
    """

    reason: Reason
    clock: Clock
    limit_seconds: float | None = None
    in_demand: bool = False
    rule: Rule | None = None
    stop_in_seconds: float | None = None
    device_idle_seconds: float = 0.0
    look_in_seconds: float | None = None
    withdrawn: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep(Decision):
    """Nothing happens, beyond calling off what is ``withdrawn``."""


@dataclass(frozen=True, slots=True)
class Warn(Decision):
    """Its user is told; ``stop_in_seconds`` is the end to name.

    Attributes:
        level: place in ``Rules.lead_seconds``.
    """

    level: int = 0


@dataclass(frozen=True, slots=True)
class Retire(Decision):
    """The server is ended now, if a last look says the same."""


def decide(server: Watched, rules: Rules, demand: Demand, now: float) -> Keep | Warn | Retire:
    """Say what happens to one server.

    * Unknown never retires: the newest sample must show idleness, and a server of unknown age is kept.
    * A warning of the same rule must have arrived ``notice_seconds`` before, in the present idle time, naming an end
      that has come.
    * Use by any signal that counts begins the idle time anew.
    """
    in_demand = server.has_device and demand.is_high(rules.demand_share)
    limit = rules.idle_seconds
    if limit is not None and in_demand:
        limit *= rules.demand_factor
    facts = _Facts(
        server=server,
        rules=rules,
        clock=idle_clock(server.samples, rules.counting, rules),
        limit=limit,
        in_demand=in_demand,
        device_idle_seconds=idle_clock(server.samples, Counting.GPU, rules).idle_seconds if server.has_device else 0.0,
        now=now,
    )
    endings = [ending for ending in (_idle_end(facts), _run_end(facts)) if ending is not None]
    decisions = [_approach(facts, ending) for ending in endings] or [_no_end(facts)]
    chosen = min(decisions, key=_urgency)
    if isinstance(chosen, Keep):
        # Why it is kept is the idle rule's to say, when the sooner end is only the far one of its run.
        reason = chosen.reason if chosen.reason is Reason.WARNED else decisions[0].reason
        chosen = _device_unused(facts) or replace(chosen, reason=reason)
    steps = [step for ending in endings for step in _steps(ending, now)]
    return replace(chosen, look_in_seconds=min(steps, default=None), withdrawn=tuple(_withdrawn(facts, endings)))


def idle_clock(samples: Sequence[Sample], counting: Counting, rules: Rules) -> Clock:
    """Return how long nothing that counts has shown use, up to the newest sample.

    Time that says nothing is passed over without being counted; when it lasts longer than ``gap_seconds`` at a stretch,
    what was before it no longer counts either.
    """
    if not samples:
        return Clock(0.0, 0.0, Use.UNKNOWN)
    newest, signals = judge(samples[-1], counting, rules.thresholds, rules.gap_seconds)
    idle_seconds, unknown_seconds, since, begins = 0.0, 0.0, samples[-1].at, samples[-1].at
    for sample in reversed(samples):
        use, _ = judge(sample, counting, rules.thresholds, rules.gap_seconds)
        if use is Use.ACTIVE:
            break
        unknown_seconds += begins - sample.at
        if use is Use.UNKNOWN:
            unknown_seconds += sample.at - sample.since
        if unknown_seconds > rules.gap_seconds:
            break
        if use is Use.IDLE:
            idle_seconds += sample.at - sample.since
            since = sample.since
            unknown_seconds = 0.0
        begins = sample.since
    return Clock(idle_seconds, since, newest, signals)


@dataclass(frozen=True, slots=True)
class _Facts:
    server: Watched
    rules: Rules
    clock: Clock
    limit: float | None
    in_demand: bool
    device_idle_seconds: float
    now: float

    def keep(self, reason: Reason, rule: Rule | None, stop_in: float | None) -> Keep:
        return Keep(reason, self.clock, self.limit, self.in_demand, rule, stop_in, self.device_idle_seconds)

    def warn(self, reason: Reason, rule: Rule, stop_in: float | None, level: int) -> Warn:
        device_idle = self.device_idle_seconds
        return Warn(reason, self.clock, self.limit, self.in_demand, rule, stop_in, device_idle, level=level)

    def retire(self, rule: Rule) -> Retire:
        return Retire(Reason.LIMIT, self.clock, self.limit, self.in_demand, rule, 0.0, self.device_idle_seconds)


@dataclass(frozen=True, slots=True)
class _Ending:
    """When a rule would end the server if nothing changed.

    Attributes:
        rule: which.
        at: when; may be past.
        leads: how long before it a user is warned, longest first.
        notice: the least time after a warning.
        begins: warnings from before do not count.
        reason: why it is as far off as it is.
        blocked: why it cannot end the server however late it is, else ``None``.
    """

    rule: Rule
    at: float
    leads: tuple[float, ...]
    notice: float
    begins: float
    reason: Reason
    blocked: Reason | None = None


def _idle_end(facts: _Facts) -> _Ending | None:
    if facts.limit is None:
        return None
    clock, server = facts.clock, facts.server
    ends = {Reason.WITHIN: facts.now + facts.limit - clock.idle_seconds}
    if server.keep_alive_seconds:
        ends[Reason.KEEP_ALIVE] = facts.now + server.keep_alive_seconds
    if server.age_seconds is not None:
        ends[Reason.YOUNG] = facts.now + facts.rules.grace_seconds - server.age_seconds
    reason = max(ends, key=lambda candidate: ends[candidate])
    leads, notice = _scaled(facts.rules, facts.limit)
    return _Ending(Rule.IDLE, ends[reason], leads, notice, clock.since, reason, _blocked(facts))


def _blocked(facts: _Facts) -> Reason | None:
    server = facts.server
    if not server.samples:
        return Reason.NO_WINDOW
    if None in (server.age_seconds, server.keep_alive_seconds):
        return Reason.UNKNOWN
    if facts.now - server.samples[-1].at > facts.rules.gap_seconds:
        return Reason.UNKNOWN
    return {Use.ACTIVE: Reason.ACTIVE, Use.UNKNOWN: Reason.UNKNOWN, Use.IDLE: None}[facts.clock.newest]


def _run_end(facts: _Facts) -> _Ending | None:
    limit, age = facts.rules.run_seconds, facts.server.age_seconds
    if limit is None or age is None:
        return None
    leads, notice = _scaled(facts.rules, limit)
    return _Ending(Rule.RUN, facts.now + limit - age, leads, notice, -math.inf, Reason.WITHIN)


def _scaled(rules: Rules, limit: float) -> tuple[tuple[float, ...], float]:
    """Return leads and notice, shortened in proportion so that the first warning falls in the limit's second half."""
    scale = min(1.0, limit / 2 / rules.lead_seconds[0])
    return tuple(lead * scale for lead in rules.lead_seconds), rules.notice_seconds * scale


def _approach(facts: _Facts, ending: _Ending) -> Keep | Warn | Retire:
    stop_in = max(0.0, ending.at - facts.now)
    if ending.blocked is not None:
        # On no evidence nobody is told anything new, either.
        return facts.keep(ending.blocked, ending.rule, stop_in)
    if stop_in > ending.leads[0] + _ROUNDING_SECONDS:
        return facts.keep(ending.reason, ending.rule, stop_in)
    standing = [
        delivery
        for delivery in facts.server.deliveries
        if delivery.rule is ending.rule and delivery.channels and delivery.at >= ending.begins
    ]
    # Each warning allows an end: not before the one that it named, nor before its notice is over.
    allowed = min((max(delivery.stop_at, delivery.at + ending.notice) for delivery in standing), default=math.inf)
    if max(ending.at, allowed) <= facts.now + _ROUNDING_SECONDS:
        return facts.retire(ending.rule)
    soonest = max(ending.at, facts.now + ending.notice)
    nearer = allowed - soonest > max(ending.notice, _RESTATED_SECONDS)
    stop_at = soonest if nearer else max(ending.at, allowed)
    level = max(n for n, lead in enumerate(ending.leads) if n == 0 or stop_at - facts.now <= lead + _ROUNDING_SECONDS)
    if nearer or level > max(delivery.level for delivery in standing):
        return facts.warn(Reason.DUE_SOON, ending.rule, stop_at - facts.now, level)
    return facts.keep(Reason.WARNED, ending.rule, stop_at - facts.now)


def _steps(ending: _Ending, now: float) -> Iterator[float]:
    if ending.blocked is None:
        yield from (step for lead in (*ending.leads, 0.0) if (step := ending.at - lead - now) > 0)


def _no_end(facts: _Facts) -> Keep:
    return facts.keep(Reason.EXEMPT if facts.rules.run_seconds is None else Reason.UNKNOWN, None, None)


def _device_unused(facts: _Facts) -> Warn | None:
    """Tell a user once that a device does nothing, where the rest of the server is in use for longer than its limit."""
    if facts.limit is None or facts.clock.newest is not Use.ACTIVE or facts.device_idle_seconds < facts.limit:
        return None
    told = any(d.rule is Rule.DEVICE_UNUSED and d.channels for d in facts.server.deliveries)
    return None if told else facts.warn(Reason.DEVICE_UNUSED, Rule.DEVICE_UNUSED, None, 0)


def _withdrawn(facts: _Facts, endings: Sequence[_Ending]) -> Iterator[Rule]:
    told = {delivery.rule for delivery in facts.server.deliveries}
    near = {ending.rule for ending in endings if ending.at - facts.now <= ending.leads[0] + _ROUNDING_SECONDS}
    near |= {ending.rule for ending in endings if ending.blocked is Reason.UNKNOWN}
    if facts.limit is not None and facts.device_idle_seconds >= facts.limit:
        near.add(Rule.DEVICE_UNUSED)
    if facts.server.age_seconds is None and facts.rules.run_seconds is not None:
        near.add(Rule.RUN)
    yield from (rule for rule in Rule if rule in told - near)


def _urgency(decision: Keep | Warn | Retire) -> tuple[int, float]:
    rank = 0 if isinstance(decision, Retire) else 1 if isinstance(decision, Warn) else 2
    return rank, math.inf if decision.stop_in_seconds is None else decision.stop_in_seconds
