"""Keep, warn or retire, over fake time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ds01_spawner.core.activity import Counting, DeviceSample, Sample, Thresholds
from ds01_spawner.core.history import append
from ds01_spawner.core.idleness import Decision, Delivery, Keep, Reason, Retire, Warn, Watched, decide
from ds01_spawner.core.idlerules import Demand, Rule, Rules, rules_of
from ds01_spawner.core.limits import Exemption, Limits

MINUTE = 60.0
HOUR = 3600.0
RULES = Rules(grace_seconds=0)
CALM = Demand(held=0, devices=4, waiting=0)
FULL = Demand(held=4, devices=4, waiting=0)


def sample(doing: str, since: float, seconds: float = MINUTE, *, device: bool = True) -> Sample:
    """Return a sample of a server that computes on GPU or CPU, sleeps in a busy kernel, idles, or cannot be read."""
    if doing == "unknown":
        return Sample(since=since, at=since + seconds, step_seconds=seconds, devices=None if device else ())
    used = 90.0 if doing == "gpu" else 0.0
    devices = (DeviceSample("GPU-a", mig=False, utilisation_percent=used, memory_bytes=1, processes=1, changed=False),)
    return Sample(
        since=since,
        at=since + seconds,
        step_seconds=seconds,
        cpu_cores=1.0 if doing == "cpu" else 0.0,
        network_bytes_per_second=0.0,
        devices=devices if device else (),
        kernels_busy=1 if doing == "asleep" else 0,
        kernels_moved=False,
        typed=False,
    )


@dataclass
class Life:
    """One server under the eyes of a culler that looks every minute, on a clock of its own.

    Attributes:
        rules: in force.
        device: whether it holds one.
        now: seconds since its container began.
        deliver: whether warnings arrive.
        seen: every decision with its time.
    """

    rules: Rules = RULES
    device: bool = True
    demand: Demand = CALM
    now: float = 0.0
    deliver: bool = True
    keep_alive_until: float = 0.0
    age_known: bool = True
    samples: tuple[Sample, ...] = ()
    deliveries: list[Delivery] = field(default_factory=list)
    seen: list[tuple[float, Decision]] = field(default_factory=list)
    retired_at: float | None = None

    def live(self, doings: Iterable[str], seconds: float = MINUTE) -> Life:
        """Let it do these things for a minute each, decide after each, and stop when it is retired."""
        for doing in doings:
            if self.retired_at is not None:
                break
            self.samples = append(self.samples, sample(doing, self.now, seconds, device=self.device))
            self.now += seconds
            self.look()
        return self

    def look(self) -> Decision:
        """Decide once and do what was decided."""
        decision = decide(self.watched(), self.rules, self.demand, self.now)
        self.seen.append((self.now, decision))
        self.deliveries = [d for d in self.deliveries if d.rule not in decision.withdrawn]
        if isinstance(decision, Warn):
            stop = math.inf if decision.stop_in_seconds is None else self.now + decision.stop_in_seconds
            channels = ("page",) if self.deliver else ()
            assert decision.rule is not None
            self.deliveries.append(Delivery(self.now, decision.rule, decision.level, stop, channels))
        if isinstance(decision, Retire):
            self.retired_at = self.now
        return decision

    def watched(self) -> Watched:
        """Return what the culler knows."""
        return Watched(
            samples=self.samples,
            age_seconds=self.now if self.age_known else None,
            has_device=self.device,
            keep_alive_seconds=max(0.0, self.keep_alive_until - self.now),
            deliveries=self.deliveries,
        )

    def warned_at(self, rule: Rule = Rule.IDLE) -> list[float]:
        """Return when its user was warned."""
        return [at for at, decision in self.seen if isinstance(decision, Warn) and decision.rule is rule]


def minutes(doing: str, count: int) -> list[str]:
    """Return the same thing done for some minutes."""
    return [doing] * count


def test_an_idle_server_is_warned_twice_and_retired_at_its_limit() -> None:
    """With 30 minutes allowed the user hears of it at 15 and at 25 minutes, and it ends at 30."""
    life = Life().live(minutes("gpu", 10) + minutes("idle", 60))
    assert life.warned_at() == [25 * MINUTE, 35 * MINUTE]
    assert life.retired_at == 40 * MINUTE
    last = life.seen[-1][1]
    assert (last.reason, last.rule, last.clock.idle_seconds) == (Reason.LIMIT, Rule.IDLE, 30 * MINUTE)


@pytest.mark.parametrize(
    ("doing", "device", "counting", "retired"),
    [
        pytest.param("gpu", True, Counting.WORK, False, id="training with the browser closed"),
        pytest.param("cpu", True, Counting.WORK, False, id="nohup loop in a closed terminal"),
        pytest.param("cpu", True, Counting.GPU, True, id="only CPU, where only the GPU counts"),
        pytest.param("asleep", True, Counting.WORK, True, id="sleep in a busy kernel that holds a device"),
        pytest.param("asleep", True, Counting.ANYTHING, False, id="sleep where anything counts"),
        pytest.param("asleep", False, Counting.WORK, False, id="sleep on a CPU server"),
        pytest.param("idle", True, Counting.WORK, True, id="memory held at 0 %"),
        pytest.param("idle", False, Counting.WORK, True, id="an open, untouched tab"),
        pytest.param("unknown", True, Counting.WORK, False, id="nothing can be read"),
        pytest.param("unknown", False, Counting.WORK, False, id="nothing can be read of a CPU server"),
    ],
)
def test_who_is_retired(doing: str, counting: Counting, *, device: bool, retired: bool) -> None:
    """Three hours of the same thing, with a limit of 30 minutes."""
    life = Life(rules=replace(RULES, counting=counting), device=device).live(minutes(doing, 180))
    assert (life.retired_at is not None) is retired


def test_activity_after_a_warning_calls_it_off() -> None:
    """One minute of work after the last warning begins the idle time anew, and the user hears so."""
    life = Life().live(minutes("idle", 29))
    assert len(life.warned_at()) == 2
    life.live(["gpu"])
    assert life.seen[-1][1].withdrawn == (Rule.IDLE,)
    assert life.deliveries == []
    life.live(minutes("idle", 40))
    assert life.retired_at == (30 + 30) * MINUTE


def test_a_warning_that_does_not_arrive_retires_nobody() -> None:
    """While every channel fails the warning is tried at each look, and the server stays."""
    life = Life(deliver=False).live(minutes("idle", 120))
    assert life.retired_at is None
    assert len(life.warned_at()) > 100
    life.deliver = True
    first = life.now + MINUTE
    life.live(minutes("idle", 60))
    assert life.retired_at == first + RULES.notice_seconds


def test_a_warning_from_before_the_idle_time_does_not_count() -> None:
    """Warned, then in use, and the calling-off was lost: the old warning does not end the next idle time."""
    life = Life().live(["idle", "gpu", *minutes("idle", 29)])
    stale = Delivery(MINUTE, Rule.IDLE, 1, 10 * MINUTE, ("page",))
    watched = replace(life.watched(), samples=append(life.samples, sample("idle", life.now)), deliveries=[stale])
    decision = decide(watched, RULES, CALM, life.now + MINUTE)
    assert decision.clock.idle_seconds == 30 * MINUTE
    assert isinstance(decision, Warn)
    assert decision.stop_in_seconds == RULES.notice_seconds


def test_a_warning_needs_its_notice_whatever_end_it_named() -> None:
    """The run limit was lowered, and the only warning is ten seconds old: its notice comes first."""
    rules = replace(RULES, run_seconds=HOUR)
    fresh = Delivery(HOUR - 10, Rule.RUN, 1, HOUR, ("page",))
    watched = Watched(samples=[sample("gpu", HOUR - MINUTE)], age_seconds=HOUR, deliveries=[fresh])
    assert isinstance(decide(watched, rules, CALM, HOUR), Keep)
    later = replace(watched, age_seconds=HOUR + 290)
    assert isinstance(decide(later, rules, CALM, HOUR + 290), Retire)


def test_demand_halves_the_limit_but_not_the_notice() -> None:
    """At 20 idle minutes the last device is taken: the limit is 15 now, the user is told and has the notice left."""
    life = Life().live(minutes("idle", 20))
    life.demand = FULL
    life.live(minutes("idle", 60))
    told = [d.stop_at for d in life.deliveries]
    notice = RULES.notice_seconds / 2  # the limit halves and takes leads and notice with it
    assert told[-1] == 21 * MINUTE + notice
    assert life.retired_at == pytest.approx(math.ceil((21 * MINUTE + notice) / MINUTE) * MINUTE)
    assert life.seen[-1][1].in_demand
    assert life.seen[-1][1].limit_seconds == 15 * MINUTE


@pytest.mark.parametrize(
    ("demand", "halved"),
    [
        pytest.param(Demand(held=3, devices=4), False, id="75 % held"),
        pytest.param(Demand(held=4, devices=5), True, id="exactly 80 % held"),
        pytest.param(Demand(held=0, devices=4, waiting=1), True, id="somebody waits"),
        pytest.param(Demand(), False, id="nothing known"),
        pytest.param(Demand(held=0, devices=0), False, id="no devices"),
        pytest.param(Demand(held=None, devices=4), False, id="holders unknown"),
    ],
)
def test_when_the_limit_is_halved(demand: Demand, *, halved: bool) -> None:
    """Demand is 80 % of the devices held, or anybody waiting; unknown is no demand."""
    life = Life(demand=demand).live(["idle"])
    assert life.seen[-1][1].limit_seconds == (15 if halved else 30) * MINUTE


def test_demand_does_not_touch_a_server_without_a_device() -> None:
    """Retiring a CPU server frees nothing that anybody waits for."""
    life = Life(demand=FULL, device=False).live(minutes("idle", 60))
    assert life.retired_at == 30 * MINUTE


def test_demand_that_ends_calls_the_warning_off() -> None:
    """Warned at half the limit, and then somebody retires: the whole limit holds again."""
    life = Life(demand=FULL).live(minutes("idle", 10))
    assert life.deliveries
    life.demand = CALM
    life.live(["idle"])
    assert life.deliveries == []
    life.live(minutes("idle", 60))
    assert life.retired_at == 30 * MINUTE


def test_the_run_limit_ends_a_busy_server_that_was_warned() -> None:
    """Work does not extend the maximum run time; its warnings come at 15 and 5 minutes before."""
    life = Life(rules=replace(RULES, run_seconds=2 * HOUR)).live(minutes("gpu", 200))
    assert life.warned_at(Rule.RUN) == [105 * MINUTE, 115 * MINUTE]
    assert life.retired_at == 2 * HOUR
    assert life.seen[-1][1].rule is Rule.RUN


def test_keep_alive_defers_idleness_but_not_the_run_limit() -> None:
    """A keep-alive of 24 hours holds an idle server until its run limit."""
    rules = replace(RULES, run_seconds=2 * HOUR)
    life = Life(rules=rules, keep_alive_until=24 * HOUR).live(minutes("idle", 200))
    assert life.retired_at == 2 * HOUR
    assert life.warned_at(Rule.IDLE) == []


def test_the_end_of_a_keep_alive_is_announced() -> None:
    """An idle server is warned before its keep-alive ends, and retired when it does."""
    life = Life(keep_alive_until=HOUR).live(minutes("idle", 100))
    assert life.warned_at() == [45 * MINUTE, 55 * MINUTE]
    assert life.retired_at == HOUR


def test_a_keep_alive_after_the_warning_calls_it_off() -> None:
    """Touching the file is an answer to the warning."""
    life = Life().live(minutes("idle", 28))
    life.keep_alive_until = 5 * HOUR
    life.live(["idle"])
    assert life.seen[-1][1].withdrawn == (Rule.IDLE,)
    assert life.seen[-1][1].reason is Reason.KEEP_ALIVE


def test_a_young_server_has_its_grace() -> None:
    """A limit of 10 minutes does not end a server in its first 30."""
    life = Life(rules=replace(RULES, idle_seconds=600, grace_seconds=1800)).live(minutes("idle", 60))
    assert life.retired_at == 30 * MINUTE


def test_an_exempt_user_is_not_retired() -> None:
    """No limit is no limit, and the reason says so."""
    life = Life(rules=replace(RULES, idle_seconds=None, run_seconds=None)).live(minutes("idle", 300))
    assert life.retired_at is None
    assert life.seen[-1][1].reason is Reason.EXEMPT


def test_a_device_that_does_nothing_is_mentioned_once() -> None:
    """CPU work keeps the server; after the limit its user hears once that the GPU has done nothing."""
    life = Life().live(minutes("cpu", 120))
    assert life.warned_at(Rule.DEVICE_UNUSED) == [30 * MINUTE]
    life.live(["gpu"])
    assert life.seen[-1][1].withdrawn == (Rule.DEVICE_UNUSED,)
    life.live(minutes("cpu", 60))
    assert len(life.warned_at(Rule.DEVICE_UNUSED)) == 2


def test_a_restarted_culler_begins_with_an_empty_window() -> None:
    """A minute before the end the culler restarts: the whole idle time is observed anew, warnings included."""
    life = Life().live(minutes("idle", 29))
    life.samples = ()
    assert life.look().reason is Reason.NO_WINDOW
    life.live(minutes("idle", 60))
    assert life.retired_at == (29 + 30) * MINUTE
    assert len(life.warned_at()) == 4


def test_a_restart_does_not_forget_a_warned_run_limit() -> None:
    """The run limit needs no window, and its warnings survive the restart."""
    life = Life(rules=replace(RULES, run_seconds=2 * HOUR)).live(minutes("gpu", 119))
    life.samples = ()
    assert not life.look().withdrawn
    life.live(["gpu"])
    assert life.retired_at == 2 * HOUR


def test_short_blindness_is_not_counted_and_long_blindness_begins_anew() -> None:
    """Two unreadable minutes make the end two minutes later; ten make the idle time begin again."""
    short = Life().live(minutes("idle", 10) + minutes("unknown", 2) + minutes("idle", 40))
    assert short.retired_at == 32 * MINUTE
    twice = Life().live([*minutes("unknown", 3), *minutes("idle", 10)] * 5)
    assert twice.retired_at == (30 + 3 * 3) * MINUTE
    long = Life().live(minutes("idle", 10) + minutes("unknown", 10) + minutes("idle", 60))
    assert long.retired_at == (20 + 30) * MINUTE


def test_an_hour_away_proves_nothing() -> None:
    """A culler that was suspended for an hour does not take the hour for idleness."""
    life = Life().live(minutes("idle", 20))
    life.live(["idle"], seconds=HOUR)
    assert isinstance(life.seen[-1][1], Keep)
    life.live(minutes("idle", 60))
    assert life.retired_at == 20 * MINUTE + HOUR + 30 * MINUTE


def test_old_samples_decide_nothing() -> None:
    """What was idle an hour ago may be busy now."""
    life = Life().live(minutes("idle", 29))
    watched = replace(life.watched(), samples=life.samples)
    decision = decide(watched, RULES, CALM, life.now + HOUR)
    assert (type(decision), decision.reason) == (Keep, Reason.UNKNOWN)


def test_an_unknown_age_keeps() -> None:
    """Neither rule ends a server that may have started a minute ago."""
    life = Life(age_known=False, rules=replace(RULES, run_seconds=600)).live(minutes("idle", 120))
    assert life.retired_at is None


def test_an_unknown_keep_alive_keeps() -> None:
    """A home that does not answer may hold a keep-alive."""
    life = Life().live(minutes("idle", 29))
    decision = decide(replace(life.watched(), keep_alive_seconds=None), RULES, CALM, life.now + MINUTE)
    assert (type(decision), decision.reason) == (Keep, Reason.UNKNOWN)


def test_short_limits_shorten_the_warnings() -> None:
    """With a limit of 2 minutes nobody is warned in the first, and the notice is 20 seconds."""
    rules = replace(RULES, idle_seconds=120)
    life = Life(rules=rules).live(["idle"] * 40, seconds=5)
    assert life.warned_at() == [60, 100]
    assert life.retired_at == 120


def test_the_run_age_may_jitter() -> None:
    """Two clocks that differ by milliseconds do not warn at each look."""
    life = Life(rules=replace(RULES, run_seconds=2 * HOUR)).live(minutes("gpu", 106))
    for n in range(20):
        watched = replace(life.watched(), age_seconds=life.now + 0.01 * (n % 3))
        assert not isinstance(decide(watched, life.rules, CALM, life.now), Warn)


@pytest.mark.parametrize(
    "change",
    [
        {"idle_seconds": 0},
        {"idle_seconds": math.nan},
        {"run_seconds": -1},
        {"run_seconds": math.inf},
        {"lead_seconds": ()},
        {"lead_seconds": (300, 900)},
        {"lead_seconds": (300, 300)},
        {"notice_seconds": 301},
        {"notice_seconds": -1},
        {"demand_factor": 0},
        {"demand_factor": 1.5},
        {"demand_share": -0.1},
        {"gap_seconds": 0},
        {"grace_seconds": -1},
        {"grace_seconds": math.nan},
    ],
)
def test_impossible_rules_are_refused(change: dict[str, object]) -> None:
    """Rules that cannot be meant are an error where they are made, not a server retired by accident."""
    with pytest.raises(ValueError, match=r"."):
        replace(RULES, **change)  # type: ignore[arg-type]


def test_rules_come_from_the_users_limits() -> None:
    """Each limit of the file reaches the rule that it is about, in the rule's units; an exemption is no limit."""
    limits = Limits(
        idle_seconds=None,
        max_runtime_seconds=48 * HOUR,
        grace_seconds=7,
        gpu_idle_percent=6,
        cpu_idle_percent=3,
        network_idle_bytes_per_minute=600,
        high_demand_threshold=0.7,
        high_demand_idle_reduction=0.25,
        counting=Counting.GPU,
        exemptions=(Exemption("ada", idle=True, runtime=False, reason="thesis", until=None),),
    )
    made = rules_of(limits, lead_seconds=(60, 30), notice_seconds=20, gap_seconds=200)
    assert made == Rules(
        idle_seconds=None,
        run_seconds=48 * HOUR,
        grace_seconds=7,
        lead_seconds=(60, 30),
        notice_seconds=20,
        counting=Counting.GPU,
        thresholds=Thresholds(6, 0.03, 10),
        demand_share=0.7,
        demand_factor=0.25,
        gap_seconds=200,
    )


# A life is hours of looks, which takes a busy machine longer than the default allows.
whole_lives = settings(deadline=None, max_examples=60)

doing = st.sampled_from(["idle", "idle", "idle", "idle", "gpu", "cpu", "asleep", "unknown"])
stretches = st.lists(st.tuples(doing, st.integers(1, 40)), min_size=1, max_size=8)
demands = st.sampled_from([CALM, FULL, Demand(), Demand(waiting=2)])
rule_sets = st.builds(
    Rules,
    idle_seconds=st.sampled_from([None, 60.0, 600.0, 1800.0]),
    run_seconds=st.sampled_from([None, 1800.0, 7200.0]),
    grace_seconds=st.sampled_from([0.0, 1800.0]),
    counting=st.sampled_from(Counting),
)


def unrolled(parts: Sequence[tuple[str, int]]) -> list[str]:
    """Return what is done in each minute."""
    return [what for what, count in parts for _ in range(count)]


def lived(parts: list[str], rules: Rules, demand: Demand, *, keep_alive: float = 0.0, device: bool = True) -> Life:
    """Return a life that did these things, with its rules."""
    return Life(rules=rules, demand=demand, keep_alive_until=keep_alive, device=device).live(parts)


@whole_lives
@given(
    parts=stretches, rules=rule_sets, demand=demands, device=st.booleans(), keep_alive=st.sampled_from([0.0, 3000.0])
)
def test_nobody_is_retired_unwarned(
    parts: list[tuple[str, int]], rules: Rules, demand: Demand, *, device: bool, keep_alive: float
) -> None:
    """Before every end a warning of the same rule arrived, at least the notice earlier, naming a time that has come."""
    life = lived(unrolled(parts), rules, demand, keep_alive=keep_alive, device=device)
    assume(life.retired_at is not None)
    assert life.retired_at is not None
    end = life.seen[-1][1]
    limit = rules.run_seconds if end.rule is Rule.RUN else end.limit_seconds
    assert limit is not None
    notice = rules.notice_seconds * min(1.0, limit / 2 / rules.lead_seconds[0])
    warnings = [(at, d) for at, d in life.seen if isinstance(d, Warn) and d.rule is end.rule]
    assert any(
        at <= life.retired_at - notice + 1e-3
        and d.stop_in_seconds is not None
        and at + d.stop_in_seconds <= life.retired_at + 1e-3
        for at, d in warnings
    )
    if end.rule is Rule.IDLE:
        assert any(at >= end.clock.since for at, _ in warnings)
        assert keep_alive <= life.retired_at
        assert end.clock.idle_seconds >= limit - 1e-3


@whole_lives
@given(parts=stretches, rules=rule_sets, demand=demands)
def test_the_unknown_never_retires(parts: list[tuple[str, int]], rules: Rules, demand: Demand) -> None:
    """The look that retires an idle server has just seen it idle; and a server that was never seen idle is kept."""
    life = lived(unrolled(parts), replace(rules, run_seconds=None), demand)
    if life.retired_at is not None:
        assert unrolled(parts)[len(life.seen) - 1] in {"idle", "cpu", "asleep"}
    blind = lived(["unknown"] * 200, replace(rules, run_seconds=None), demand)
    assert blind.retired_at is None


@whole_lives
@given(
    parts=stretches,
    rules=rule_sets,
    demand=demands,
    more=st.lists(st.tuples(st.integers(0, 319), st.sampled_from(["gpu", "unknown"])), min_size=1, max_size=5),
)
def test_more_activity_or_less_knowledge_never_means_an_earlier_end(
    parts: list[tuple[str, int]], rules: Rules, demand: Demand, more: list[tuple[int, str]]
) -> None:
    """The same life with use or blindness put in anywhere does not end before the original did."""
    original = unrolled(parts)
    changed = list(original)
    for place, what in more:
        spot = place % len(changed)
        if not (what == "unknown" and changed[spot] in {"gpu", "cpu", "asleep"}):
            changed[spot] = what
    first, second = lived(original, rules, demand), lived(changed, rules, demand)
    if second.retired_at is not None:
        assert first.retired_at is not None
        assert second.retired_at >= first.retired_at - 1e-3


@whole_lives
@given(parts=stretches, rules=rule_sets, demand=demands, at=st.integers(0, 100))
def test_a_restart_never_retires_without_a_fresh_window(
    parts: list[tuple[str, int]], rules: Rules, demand: Demand, at: int
) -> None:
    """After a restart no idle server ends before its whole idle limit has been observed again."""
    life = Life(rules=replace(rules, run_seconds=None), demand=demand)
    plan = unrolled(parts)
    life.live(plan[:at])
    assume(life.retired_at is None and len(plan) > at)
    life.samples = ()
    restarted = life.now
    life.live(plan[at:])
    if life.retired_at is not None:
        limit = life.seen[-1][1].limit_seconds
        assert limit is not None
        assert life.retired_at >= restarted + limit - 1e-3


@whole_lives
@given(parts=stretches, run=st.sampled_from([1800.0, 7200.0]), keep_alive=st.floats(0, 1e6))
def test_keep_alive_never_beats_the_run_limit(parts: list[tuple[str, int]], run: float, keep_alive: float) -> None:
    """However long somebody asks for, a server that is looked at ends within a minute and a notice of its run limit."""
    life = Life(rules=replace(RULES, idle_seconds=None, run_seconds=run), keep_alive_until=keep_alive)
    life.live([*unrolled(parts), *minutes("idle", 200)])
    assert life.retired_at == run


@whole_lives
@given(parts=stretches, rules=rule_sets, counting=st.sampled_from(Counting))
def test_counting_less_never_means_a_later_end(parts: list[tuple[str, int]], rules: Rules, counting: Counting) -> None:
    """Each step from anything over work to the GPU alone ends a server at the same time or sooner."""
    ladder = list(Counting)
    ends: list[Callable[[], float]] = []
    known = [what for what in unrolled(parts) if what != "unknown"]
    assume(known)
    for step in ladder[: ladder.index(counting) + 1]:
        life = lived(known, replace(rules, counting=step), CALM)
        ends.append(lambda life=life: math.inf if life.retired_at is None else life.retired_at)  # type: ignore[misc]
    values = [end() for end in ends]
    assert values == sorted(values, reverse=True)
