"""What a project's row says, from what was seen of it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ds01_spawner.core import overview
from ds01_spawner.core.limits import Exemption, Held, Limits
from ds01_spawner.core.model import Device, DeviceState, DeviceStatus, Holder
from ds01_spawner.core.overview import ServerSeen, State


@pytest.mark.parametrize(
    ("server", "waits", "build", "state"),
    [
        (None, False, "", State.IDLE),
        (None, False, "built", State.IDLE),
        (None, False, "failed", State.UNBUILT),
        (None, False, "building", State.BUILDING),
        (ServerSeen(ready=True, pending=""), False, "failed", State.RUNNING),
        (ServerSeen(ready=False, pending="spawn"), True, "building", State.WAITING),
        (ServerSeen(ready=False, pending="spawn"), False, "building", State.BUILDING),
        (ServerSeen(ready=False, pending="spawn"), False, "built", State.STARTING),
        (ServerSeen(ready=True, pending="stop"), False, "", State.RETIRING),
        (None, True, "", State.IDLE),
    ],
)
def test_the_state_is_what_the_hub_says_first(server: ServerSeen | None, waits: bool, build: str, state: State) -> None:  # noqa: FBT001
    """A server's own state wins over builds, and an old place in the queue over nothing."""
    assert overview.state_of(server, is_waiting=waits, build=build) is state


def test_a_failure_is_told_until_something_else_is_true() -> None:
    """It wins over an older build's outcome; a build or a launch that is under way wins over it."""
    starting = ServerSeen(ready=False, pending="spawn")
    assert overview.state_of(None, is_waiting=False, build="built", has_failed=True) is State.FAILED
    assert overview.state_of(None, is_waiting=False, build="building", has_failed=True) is State.BUILDING
    assert overview.state_of(starting, is_waiting=False, build="", has_failed=True) is State.STARTING


def test_devices_are_counted_by_kind_and_named_by_holder() -> None:
    """Whole GPUs come first; a holder's own are named as DS01 names them."""
    ada = Holder("ada", "thesis")
    whole = Device("GPU-1", "A100", 1, index="0")
    slice_ = Device("MIG-1", "A100", 1, index="1.2", mig_profile="1g.10gb", mig_slices=1)
    seen = [
        DeviceStatus(slice_, DeviceState.LEASED, holder=ada),
        DeviceStatus(whole, DeviceState.LEASED, holder=ada),
        DeviceStatus(Device("GPU-2", "A100", 1, index="1"), DeviceState.FREE),
        DeviceStatus(Device("GPU-3", "A100", 1, index="2"), DeviceState.UNKNOWN),
    ]
    assert overview.free_by_kind(seen) == {"gpu": (1, 3), "1g.10gb": (0, 1)}
    assert list(overview.free_by_kind(seen)) == ["gpu", "1g.10gb"]
    assert overview.describe_held(seen, ada) == "1g.10gb 1.2, GPU 0"
    assert overview.describe_held(seen, Holder("eve", "thesis")) == ""


def test_limits_show_use_and_what_is_left_unlimited() -> None:
    """Bars have numbers beside them; without a limit there is no bar."""
    gpus, servers = overview.describe_use(
        Limits(max_gpu_equivalents=Fraction(2)), (Held("a", Fraction(3, 7)), Held("b"))
    )
    assert (gpus.sentence, gpus.percent) == ("3/7 of 2 in use", 21)
    assert (servers.sentence, servers.percent) == ("2 of 3", 67)
    unlimited, _ = overview.describe_use(Limits(max_gpu_equivalents=None), ())
    assert (unlimited.most, unlimited.percent, unlimited.sentence) == (None, 0, "0 in use, no limit")


def test_times_are_told_as_people_do() -> None:
    """Ages, spans and durations, and nothing for what is no date."""
    assert overview.ago("2026-03-01T12:00:00Z", 1772366400 + 3 * 3600) == "3 hours ago"
    assert overview.ago("2026-03-01T12:00:00Z", 1772366410) == "just now"
    assert overview.ago("yesterday", 0) == ""
    assert [overview.took(s) for s in (3.6, 65, 4200)] == ["4 s", "1 min 05 s", "1 h 10 min"]


def test_limits_are_sentences() -> None:
    """An exemption is told with its reason; what is unlimited is told as such."""
    exempt = Exemption("ada", idle=True, runtime=False, reason="course", until=None)
    told = overview.describe_limits(Limits(idle_seconds=None, max_runtime_seconds=None, exemptions=(exempt,)))
    assert "It is not retired for being idle." in told
    assert "It is retired after 90 minutes without activity." in overview.describe_limits(Limits(idle_seconds=5400))
    assert told[-1] == "You are exempt from the idle time: course."
    assert not any("at most" in sentence for sentence in told)
