"""Who may start now: what is kept for whom, who may pass, and what is promised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.backfill import Table, forecast
from ds01_spawner.core.claims import Inventory
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Device, Holder, Request
from ds01_spawner.core.queue import Entry
from ds01_spawner.testing.devices import GIB, gpus, mig


def entry(
    sequence: int, count: int = 1, *, kind: str = "gpu", least: int = 0, idle: float | None = 60, run: float | None = 60
) -> Entry:
    """Return a request in the queue whose server is retired between two durations after its start."""
    limits = Limits(idle_seconds=idle, max_runtime_seconds=run, grace_seconds=0, high_demand_idle_reduction=1)
    return Entry(Request(Holder(f"user{sequence}", "p"), count, kind, least), limits=limits, sequence=sequence)


def table(free: tuple[Device, ...], expected: tuple[tuple[Device, float], ...] = (), now: float = 0.0) -> Table:
    """Return devices on the table."""
    return Table(free, lambda: expected, Inventory([*free, *(device for device, _ in expected)]), now)


def uuids(devices: list[Device]) -> set[str]:
    """Return the UUIDs."""
    return {device.uuid for device in devices}


class TestKeeping:
    def test_a_free_device_is_kept_for_a_larger_request_that_came_first(self) -> None:
        """With no word on when the others leave, the first in line gathers devices as they become free."""
        one, two = gpus(2)
        on = table((one,), ((two, 0.0),))
        assert on.candidates(entry(1, 2), ["gpu"]) == []
        on.keep(entry(1, 2), ["gpu"])
        assert on.candidates(entry(2), ["gpu"]) == []
        assert on.cleared

    def test_a_short_request_may_use_a_kept_device(self) -> None:
        """Who is gone before the first in line could start delays nobody."""
        one, two = gpus(2)
        on = table((one,), ((two, 100.0),))
        on.keep(entry(1, 2), ["gpu"])
        assert uuids(on.candidates(entry(2, run=100), ["gpu"])) == {"GPU-0"}
        assert on.candidates(entry(3, run=101), ["gpu"]) == []
        assert on.candidates(entry(4, run=None), ["gpu"]) == []

    def test_a_lent_device_is_lent_once(self) -> None:
        """Two short requests do not get the same kept device."""
        one, two = gpus(2)
        on = table((one,), ((two, 100.0),))
        on.keep(entry(1, 2), ["gpu"])
        on.take(entry(2), on.candidates(entry(2), ["gpu"]))
        assert on.candidates(entry(3), ["gpu"]) == []
        assert on.cleared

    def test_unlimited_servers_may_end_at_any_moment(self) -> None:
        """What is kept for the second in line is not lent because nothing says when the first will leave."""
        on = table(gpus(3)[:2], ((gpus(3)[2], 100.0),))
        on.take(entry(1, idle=None, run=None), list(gpus(1)))
        on.keep(entry(2, 2), ["gpu"])
        assert on.cleared

    def test_only_as_many_as_are_needed_are_kept(self) -> None:
        """What the first in line cannot use is for the next."""
        small, large = gpus(1), gpus(3, memory_gib=80)[1:]
        on = table((*small, large[0]), ((large[1], 0.0),))
        on.keep(entry(1, 2, least=60 * GIB), ["gpu"])
        assert uuids(on.candidates(entry(2), ["gpu"])) == {"GPU-0"}

    def test_another_kind_is_not_kept(self) -> None:
        """Who waits for whole GPUs does not keep instances from others."""
        on = table(mig(1, ["1g.5gb"]), ((gpus(1)[0], 0.0),))
        on.keep(entry(1), ["gpu"])
        assert uuids(on.candidates(entry(2, kind="1g.5gb"), ["1g.5gb"])) == {"MIG-1-0"}

    def test_instances_of_a_gpu_that_is_waited_for_are_kept(self) -> None:
        """Taking an instance would keep the whole GPU from becoming free."""
        parent = gpus(1)[0]
        instances = mig(0, ["3g.20gb", "3g.20gb"])
        on = table((instances[0],), ((parent, 0.0), (instances[1], 0.0)))
        on.keep(entry(1), ["gpu"])
        assert on.candidates(entry(2, kind="3g.20gb"), ["3g.20gb"]) == []

    def test_an_instance_that_is_kept_for_a_whole_gpu_is_expected_later(self) -> None:
        """Somebody who waits for two instances gathers them, although one of the two is in a GPU kept for another."""
        parent = gpus(1)[0]
        on = table((*mig(0, ["3g.20gb"]), *mig(1, ["3g.20gb"])), ((parent, 0.0),))
        on.keep(entry(1), ["gpu"])
        on.keep(entry(2, 2, kind="3g.20gb"), ["3g.20gb"])
        assert on.candidates(entry(3, kind="3g.20gb", run=90), ["3g.20gb"]) == []
        assert uuids(on.candidates(entry(4, kind="3g.20gb", run=60), ["3g.20gb"])) == {"MIG-1-0"}

    def test_devices_of_one_request_are_of_one_kind(self) -> None:
        """Who takes any kind gets the smallest kind of which there is enough."""
        on = table((*gpus(2), *mig(3, ["1g.5gb"])))
        assert uuids(on.candidates(entry(1, 2, kind=""), ["1g.5gb", "gpu"])) == {"GPU-0", "GPU-1"}
        assert uuids(on.candidates(entry(1, 1, kind=""), ["1g.5gb", "gpu"])) == {"MIG-3-0"}

    def test_what_is_impossible_keeps_nothing(self) -> None:
        """A request for more than exists does not stop the others."""
        on = table(gpus(2))
        on.keep(entry(1, 3), ["gpu"])
        assert len(on.candidates(entry(2), ["gpu"])) == 2


@dataclass
class Job:
    """A request with the time that its server really runs."""

    entry: Entry
    lasts: float


@st.composite
def mornings(draw: st.DrawFn) -> tuple[int, list[tuple[float, float]], list[Job]]:
    """Devices, holders with the earliest expected and the real end, and jobs that wait."""
    count = draw(st.integers(1, 4))
    holders = []
    for _ in range(draw(st.integers(0, count))):
        low = draw(st.integers(1, 50))
        holders.append((float(low), float(low + draw(st.integers(0, 50)))))
    jobs = []
    for sequence in range(draw(st.integers(1, 8))):
        low = draw(st.integers(1, 30))
        lasts = low + draw(st.integers(0, 30))
        run = draw(st.one_of(st.none(), st.just(lasts + draw(st.integers(0, 10)))))
        jobs.append(Job(entry(sequence, draw(st.integers(1, count)), idle=low, run=run), float(lasts)))
    return count, holders, jobs


def play(count: int, holders: list[tuple[float, float]], jobs: list[Job], *, lend: bool) -> dict[int, float]:
    """Return when each job starts."""
    devices = gpus(count)
    busy: dict[str, tuple[float, float]] = {devices[n].uuid: holder for n, holder in enumerate(holders)}
    waiting, starts, now = list(jobs), {}, 0.0
    while waiting:
        free = tuple(device for device in devices if device.uuid not in busy)
        expected = tuple((device, busy[device.uuid][0]) for device in devices if device.uuid in busy)
        on = table(free, expected, now)
        for job in list(waiting):
            if not lend:
                on._kept.clear()
            if found := on.candidates(job.entry, ["gpu"]):
                chosen = found[: job.entry.request.count]
                on.take(job.entry, chosen)
                shortest = job.entry.shortest_seconds or 0.0
                busy |= {device.uuid: (now + shortest, now + job.lasts) for device in chosen}
                starts[job.entry.sequence] = now
                waiting.remove(job)
            else:
                on.keep(job.entry, ["gpu"])
        if not waiting:
            break
        now = min(end for _, end in busy.values())
        busy = {uuid: times for uuid, times in busy.items() if times[1] > now}
    return starts


@given(mornings())
def test_passing_delays_nobody(morning: tuple[int, list[tuple[float, float]], list[Job]]) -> None:
    """If nobody leaves before the earliest expected end, nobody starts later than he would without passing."""
    count, holders, jobs = morning
    without = play(count, holders, jobs, lend=False)
    with_ = play(count, holders, jobs, lend=True)
    assert with_.keys() == without.keys()
    assert all(with_[sequence] <= without[sequence] for sequence in without)


def test_passing_happens() -> None:
    """The property above is not true for want of anybody who passes."""
    holders = [(50.0, 50.0)]
    jobs = [Job(entry(0, 2), 30.0), Job(entry(1, 1, idle=5, run=20), 20.0)]
    assert play(2, holders, jobs, lend=True) == {0: 50.0, 1: 0.0}
    assert play(2, holders, jobs, lend=False) == {0: 50.0, 1: 80.0}


@given(mornings())
def test_everybody_starts_once_those_before_are_through(
    morning: tuple[int, list[tuple[float, float]], list[Job]],
) -> None:
    """Nobody starves: each starts when everybody before him has ended at the latest."""
    count, holders, jobs = morning
    starts = play(count, holders, jobs, lend=True)
    latest = max((end for _, end in holders), default=0.0)
    for job in jobs:
        assert starts[job.entry.sequence] <= latest
        latest += job.lasts


class TestForecast:
    def estimate(
        self, entries: list[Entry], *times: tuple[float, float], end_idle: bool = True
    ) -> list[tuple[float, float] | None]:
        """Return the estimates for a queue on GPUs that are free between two times each."""
        devices = [(device, *at) for device, at in zip(gpus(len(times)), times, strict=True)]
        told = forecast(entries, devices, lambda waiting: [waiting.request.kind], 0.0, end_idle=end_idle)
        return [told[waiting.sequence] for waiting in entries]

    def test_the_first_gets_the_first_device(self) -> None:
        """The estimate is the range of the device that is free first."""
        assert self.estimate([entry(1)], (10, 30), (20, 25)) == [(10, 25)]

    def test_who_comes_later_waits_for_those_before(self) -> None:
        """Their servers count with their shortest and longest time."""
        queue = [entry(1, idle=5, run=50), entry(2), entry(3)]
        assert self.estimate(queue, (10, 30), (20, 40)) == [(10, 30), (15, 40), (20, 80)]

    def test_without_a_culler_nobody_before_leaves_early(self) -> None:
        """While nobody is retired as idle, those before count with their longest time."""
        queue = [entry(1, idle=5, run=50), entry(2)]
        assert self.estimate(queue, (10, 30), end_idle=False) == [(10, 30), (60, 80)]

    def test_several_devices_are_waited_for_together(self) -> None:
        """A request for two starts with the second of them."""
        assert self.estimate([entry(1, 2)], (10, 30), (20, 25), (90, 99)) == [(20, 30)]

    @pytest.mark.parametrize("end", [(math.inf, math.inf), (10, math.inf)])
    def test_what_is_not_known_is_not_estimated(self, end: tuple[float, float]) -> None:
        """Unknown stays unknown, for him and for those behind him."""
        queue = [entry(1), entry(2, run=None, idle=None), entry(3)]
        assert self.estimate(queue, (1, 2), end)[2] is None
        assert self.estimate([entry(1, 2), entry(2)], (1, 2), end) == [None, None]

    def test_what_is_impossible_is_not_estimated(self) -> None:
        """No device, no time."""
        assert self.estimate([entry(1, 2)], (1, 2)) == [None]

    @given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=5), st.integers(1, 12))
    def test_the_earliest_is_never_after_the_latest(self, spans: list[tuple[int, int]], many: int) -> None:
        """A range is a range, and nobody is told an earlier time than who comes before him with the same request."""
        times = [(float(low), float(low + span)) for low, span in spans]
        told = self.estimate([entry(n, idle=7, run=20) for n in range(many)], *times)
        assert all(one is not None and one[0] <= one[1] for one in told)
        assert told == sorted(told, key=lambda one: one[0])
