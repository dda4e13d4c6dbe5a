"""Counters become samples, samples say active, idle or unknown, and a history is merged without losing use."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.activity import (
    Counting,
    DeviceReading,
    DeviceSample,
    Kernel,
    Reading,
    Sample,
    Signal,
    Terminal,
    Thresholds,
    Use,
    compare,
    judge,
)
from ds01_spawner.core.history import append, merge

GAP = 300.0
QUIET = DeviceReading("GPU-a", utilisation_percent=0.0, memory_bytes=10, processes=frozenset({7}))


BUSY = Kernel("k", busy=True, last_activity="t0")


def gpu(percent: float | None, memory_bytes: int, processes: frozenset[int] | None) -> DeviceReading:
    """Return a reading of a whole GPU."""
    return DeviceReading("GPU-a", utilisation_percent=percent, memory_bytes=memory_bytes, processes=processes)


def reading(at: float, **changes: object) -> Reading:
    """Return a reading of an idle server with one device."""
    values: dict[str, object] = {
        "cpu_seconds": 100.0,
        "network_bytes": 1000,
        "devices": (QUIET,),
        "kernels": (Kernel("k", busy=False, last_activity="t0"),),
        "terminals": (Terminal("0", "t0"),),
    }
    return Reading(at, **{**values, **changes})  # type: ignore[arg-type]


def mig(**changes: object) -> DeviceReading:
    """Return a reading of a MIG instance, which has no utilisation."""
    values: dict[str, object] = {"memory_bytes": 10, "processes": frozenset({7})}
    return DeviceReading("MIG-a", mig=True, **{**values, **changes})  # type: ignore[arg-type]


def judged(before: Reading, after: Reading, counting: Counting = Counting.WORK) -> tuple[Use, tuple[Signal, ...]]:
    """Return what two readings say."""
    return judge(compare(before, after), counting, Thresholds(), GAP)


ACTIVE = Use.ACTIVE
IDLE = Use.IDLE
UNKNOWN = Use.UNKNOWN


@pytest.mark.parametrize(
    ("changes", "counting", "expected"),
    [
        pytest.param({}, Counting.WORK, (IDLE, ()), id="nothing happened"),
        pytest.param({"cpu_seconds": 101.2}, Counting.WORK, (ACTIVE, (Signal.CPU,)), id="2 % of a core is use"),
        pytest.param({"cpu_seconds": 101.1}, Counting.WORK, (IDLE, ()), id="less is not"),
        pytest.param({"cpu_seconds": 160.0}, Counting.GPU, (IDLE, ()), id="CPU does not count where only the GPU does"),
        pytest.param({"network_bytes": 1000 + 2**20}, Counting.WORK, (ACTIVE, (Signal.NETWORK,)), id="1 MiB a minute"),
        pytest.param({"network_bytes": 1000 + 2**20 - 9}, Counting.WORK, (IDLE, ()), id="an open tab polls less"),
        pytest.param({"kernels": (BUSY,)}, Counting.ANYTHING, (ACTIVE, (Signal.BUSY_KERNEL,)), id="busy"),
        pytest.param({"kernels": (BUSY,)}, Counting.WORK, (IDLE, ()), id="busy, but asleep"),
        pytest.param(
            {"kernels": (Kernel("k", busy=False, last_activity="t1"),)},
            Counting.WORK,
            (ACTIVE, (Signal.KERNEL_MESSAGES,)),
            id="output",
        ),
        pytest.param({"kernels": ()}, Counting.WORK, (IDLE, ()), id="a kernel that ended is no use"),
        pytest.param({"terminals": (Terminal("0", "t1"),)}, Counting.WORK, (ACTIVE, (Signal.TYPING,)), id="typing"),
        pytest.param(
            {"terminals": (Terminal("0", "t0"), Terminal("1", "t0"))},
            Counting.WORK,
            (ACTIVE, (Signal.TYPING,)),
            id="a terminal was opened",
        ),
        pytest.param({"cpu_seconds": None}, Counting.WORK, (UNKNOWN, (Signal.CPU,)), id="no cgroup"),
        pytest.param({"cpu_seconds": 3.0}, Counting.WORK, (UNKNOWN, (Signal.CPU,)), id="a counter that went back"),
        pytest.param({"network_bytes": None}, Counting.WORK, (UNKNOWN, (Signal.NETWORK,)), id="no network counters"),
        pytest.param({"terminals": None}, Counting.WORK, (UNKNOWN, (Signal.TYPING,)), id="no terminals"),
        pytest.param({"devices": None}, Counting.GPU, (UNKNOWN, (Signal.GPU,)), id="no driver"),
        pytest.param(
            {"kernels": None, "cpu_seconds": 160.0}, Counting.WORK, (ACTIVE, (Signal.CPU,)), id="use beside the unknown"
        ),
        pytest.param({"kernels": None}, Counting.GPU, (IDLE, ()), id="the unknown that does not count does not matter"),
    ],
)
def test_what_a_minute_shows(
    changes: dict[str, object], counting: Counting, expected: tuple[Use, tuple[Signal, ...]]
) -> None:
    """Each signal is judged by itself, and only those that count decide."""
    assert judged(reading(0), reading(60, **changes), counting) == expected


@pytest.mark.parametrize(
    ("before", "after", "cpu", "expected"),
    [
        pytest.param(QUIET, QUIET, 0, IDLE, id="memory held at 0 % is idle"),
        pytest.param(QUIET, gpu(5.0, 10, frozenset({7})), 0, ACTIVE, id="5 % is use"),
        pytest.param(QUIET, gpu(4.9, 10, frozenset({7})), 0, IDLE, id="4.9 % is not"),
        pytest.param(QUIET, gpu(None, 10, frozenset({7})), 0, UNKNOWN, id="unreadable"),
        pytest.param(QUIET, gpu(None, 0, frozenset()), 0, IDLE, id="nobody is on it"),
        pytest.param(QUIET, gpu(None, 10, None), 0, UNKNOWN, id="nothing is known of it"),
        pytest.param(mig(processes=frozenset()), mig(processes=frozenset()), 60, IDLE, id="MIG: nobody is on it"),
        pytest.param(mig(), mig(), 0, IDLE, id="MIG: a process that sleeps"),
        pytest.param(mig(), mig(), 60, ACTIVE, id="MIG: a process, and the processor works"),
        pytest.param(mig(), mig(memory_bytes=99), 0, ACTIVE, id="MIG: its memory changed"),
        pytest.param(mig(), mig(processes=frozenset({8})), 0, ACTIVE, id="MIG: another process"),
        pytest.param(mig(), mig(processes=None), 0, UNKNOWN, id="MIG: processes unreadable"),
        pytest.param(mig(memory_bytes=None, processes=None), mig(), 0, UNKNOWN, id="MIG: nothing to compare with"),
    ],
)
def test_what_a_device_shows(before: DeviceReading, after: DeviceReading, cpu: float, expected: Use) -> None:
    """A whole GPU is judged by its utilisation, a MIG instance by its processes, memory and whoever feeds it."""
    use, _ = judged(reading(0, devices=(before,)), reading(60, devices=(after,), cpu_seconds=100 + cpu), Counting.GPU)
    assert use is expected


def test_one_of_several_devices_in_use_is_use() -> None:
    """A server with two devices uses its devices while it uses one of them."""
    busy = DeviceReading("GPU-b", utilisation_percent=80.0)
    use, _ = judged(reading(0, devices=(QUIET, QUIET)), reading(60, devices=(QUIET, busy)), Counting.GPU)
    assert use is ACTIVE


def test_a_server_without_a_device_is_judged_by_everything() -> None:
    """A busy kernel keeps a CPU server whatever the rule for devices says: nobody waits for what it holds."""
    busy = (BUSY,)
    for counting in Counting:
        after = reading(60, devices=(), kernels=busy)
        assert judged(reading(0, devices=()), after, counting) == (ACTIVE, (Signal.BUSY_KERNEL,))


def test_a_long_interval_shows_use_but_never_idleness() -> None:
    """After an hour without a reading a mean hides a burst, so idleness is unknown; use is use."""
    assert judged(reading(0), reading(3600))[0] is UNKNOWN
    assert judged(reading(0), reading(3600, cpu_seconds=1000.0))[0] is ACTIVE


def test_two_readings_out_of_order_are_a_mistake() -> None:
    """Samples are made of a later and an earlier reading; anything else is a bug of the caller."""
    with pytest.raises(ValueError, match="older"):
        compare(reading(60), reading(0))


known = st.one_of(st.none(), st.sampled_from([0.0, 0.019, 0.02, 1.0]))
flags = st.one_of(st.none(), st.booleans())


@st.composite
def samples(draw: st.DrawFn, since: float = 0.0, *, device: bool = True) -> Sample:
    """Draw a sample of a minute, of a server with one device or none."""
    kind = draw(st.booleans())
    devices: tuple[DeviceSample, ...] | None = ()
    if device:
        one = DeviceSample(
            "GPU-a",
            mig=kind,
            utilisation_percent=None if kind else draw(st.one_of(st.none(), st.sampled_from([0.0, 4.9, 5.0, 80.0]))),
            memory_bytes=draw(st.one_of(st.none(), st.just(10))),
            processes=draw(st.one_of(st.none(), st.sampled_from([0, 1]))),
            changed=draw(flags),
        )
        devices = draw(st.one_of(st.none(), st.just((one,))))
    return Sample(
        since=since,
        at=since + 60,
        step_seconds=60,
        cpu_cores=draw(known),
        network_bytes_per_second=draw(st.one_of(st.none(), st.sampled_from([0.0, 1e6]))),
        devices=devices,
        kernels_busy=draw(st.one_of(st.none(), st.sampled_from([0, 1]))),
        kernels_moved=draw(flags),
        typed=draw(flags),
    )


RANK = {Use.IDLE: 0, Use.UNKNOWN: 1, Use.ACTIVE: 2}


@given(first=samples(), second=samples(since=60), counting=st.sampled_from(Counting))
def test_merging_never_loses_use_or_makes_idleness(first: Sample, second: Sample, counting: Counting) -> None:
    """A merged sample is at least as active as the more active of its two, and never idle where either was unknown."""
    if first.devices and second.devices and first.devices[0].mig != second.devices[0].mig:
        return
    merged = merge(first, second)
    says = [judge(sample, counting, Thresholds(), GAP)[0] for sample in (first, second, merged)]
    assert RANK[says[2]] >= max(RANK[says[0]], RANK[says[1]])
    assert (merged.since, merged.at) == (first.since, second.at)


@given(count=st.integers(1, 3000))
def test_a_history_never_grows_and_covers_all_of_its_time(count: int) -> None:
    """However long a server runs, its history is bounded, unbroken, and reaches back to its first reading."""
    history: tuple[Sample, ...] = ()
    for n in range(count):
        history = append(history, Sample(since=60.0 * n, at=60.0 * (n + 1), step_seconds=60.0), kept=24)
    assert len(history) <= 24
    assert history[0].since == 0
    assert all(before.at == after.since for before, after in itertools.pairwise(history))
    assert math.isclose(history[-1].at - history[-1].since, 60)
