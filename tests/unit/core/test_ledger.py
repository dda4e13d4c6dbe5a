"""The ledger: reserve, bind, release, and what a look at the host does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest

from ds01_spawner.core import labels
from ds01_spawner.core.ledger import Change, Ledger
from ds01_spawner.core.limits import Held
from ds01_spawner.core.model import DeviceState, DeviceStatus, Health, Holder, LeaseState, Observation
from ds01_spawner.errors import LedgerBroken
from ds01_spawner.testing import devices as fake
from ds01_spawner.testing.devices import GIB, FakeClock, Host, gpus, mig

ADA = Holder("ada", "thesis")
BOB = Holder("bob", "thesis")


def look(ledger: Ledger, seen: Host | Observation) -> tuple[Change, ...]:
    """Let the ledger see the host as it is now."""
    number = ledger.begin_look()
    changes = ledger.reconcile(seen.observation() if isinstance(seen, Host) else seen, number)
    ledger.validate()
    return changes


def status(ledger: Ledger, uuid: str) -> DeviceStatus:
    """Return one device's status."""
    return next(status for status in ledger.statuses() if status.device.uuid == uuid)


def state(ledger: Ledger, uuid: str) -> DeviceState:
    """Return one device's state."""
    return status(ledger, uuid).state


@pytest.fixture
def host() -> Host:
    """A host with two GPUs."""
    return Host.of(gpus(2))


@pytest.fixture
def ledger(host: Host) -> Ledger:
    """A ledger that has seen the host."""
    ledger = Ledger("lab")
    look(ledger, host)
    return ledger


def run(ledger: Ledger, host: Host, holder: Holder, *devices: str) -> str:
    """Reserve, create and bind; return the container."""
    ledger.reserve(holder, devices, host.clock())
    container = host.start_server(holder, devices)
    ledger.bind(holder, container)
    return container


class TestReserving:
    def test_a_healthy_unused_device_is_free(self, ledger: Ledger) -> None:
        """What is healthy, unclaimed and clean may be granted."""
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_a_reserved_device_is_not_offered_again(self, ledger: Ledger) -> None:
        """From the moment of the reservation nobody else gets the device."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        assert set(ledger.free) == {"GPU-1"}
        with pytest.raises(LedgerBroken):
            ledger.reserve(BOB, ["GPU-0"], 1.0)

    def test_nothing_is_granted_before_the_first_look(self) -> None:
        """A ledger that has seen nothing knows no free device."""
        with pytest.raises(LedgerBroken):
            Ledger("lab").reserve(ADA, ["GPU-0"], 1.0)

    def test_nothing_is_granted_while_a_look_is_under_way(self, ledger: Ledger) -> None:
        """A decision rests on the newest look, not on one before it."""
        ledger.begin_look()
        with pytest.raises(LedgerBroken):
            ledger.reserve(ADA, ["GPU-0"], 1.0)

    def test_a_holder_has_one_lease(self, ledger: Ledger) -> None:
        """A server that holds something gets nothing more."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        with pytest.raises(LedgerBroken):
            ledger.reserve(ADA, ["GPU-1"], 1.0)

    def test_a_device_named_twice_is_refused(self, ledger: Ledger) -> None:
        """Two of one device are not two devices."""
        with pytest.raises(LedgerBroken):
            ledger.reserve(ADA, ["GPU-0", "GPU-0"], 1.0)

    def test_a_cpu_server_needs_no_look(self) -> None:
        """Servers without a device run on a host that cannot be read."""
        assert Ledger("lab").reserve(ADA, (), 1.0).devices == ()

    def test_a_reservation_outlives_every_clock(self, ledger: Ledger, host: Host) -> None:
        """A slow image pull does not lose the device: years and many looks later it is still reserved."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        for _ in range(5):
            host.clock.advance(10**8)
            look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.LEASED
        assert ledger.lease_of(ADA).state is LeaseState.RESERVED

    def test_a_lease_that_ended_is_not_bound(self, ledger: Ledger) -> None:
        """Binding needs a lease."""
        with pytest.raises(LedgerBroken):
            ledger.bind(ADA, "c")


class TestLooking:
    def test_a_lease_whose_container_is_gone_is_released(self, ledger: Ledger, host: Host) -> None:
        """A container removed behind the hub's back gives its device back."""
        container = run(ledger, host, ADA, "GPU-0")
        look(ledger, host)
        host.remove(container)
        (change,) = look(ledger, host)
        assert (change.kind, change.holder, change.devices) == ("vanished", ADA, ("GPU-0",))
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.FREE

    def test_a_look_that_began_before_the_container_does_not_free_it(self, ledger: Ledger, host: Host) -> None:
        """A list of containers that was read before the container existed says nothing about it."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        number, before = ledger.begin_look(), host.observation()
        ledger.bind(ADA, host.start_server(ADA, ["GPU-0"]))
        assert ledger.reconcile(before, number) == ()
        assert state(ledger, "GPU-0") is DeviceState.LEASED

    def test_a_look_that_began_before_the_release_frees_nothing(self, ledger: Ledger, host: Host) -> None:
        """A device looks clean in a look from before its holder stopped computing on it; that is no evidence."""
        container = run(ledger, host, ADA, "GPU-0")
        number, before = ledger.begin_look(), host.observation()
        host.remove(container)
        ledger.release(ADA, 2.0)
        ledger.reconcile(replace(before, containers=()), number)
        assert state(ledger, "GPU-0") is DeviceState.SET_ASIDE
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.FREE

    @pytest.mark.parametrize("failure", fake.FAILURES.values(), ids=fake.FAILURES)
    def test_a_failed_look_frees_nothing_and_grants_nothing(
        self, ledger: Ledger, host: Host, failure: Callable[[Observation], Observation]
    ) -> None:
        """What could not be read is unknown: leases stay although their container is not seen, and nothing is free."""
        container = run(ledger, host, ADA, "GPU-0")
        host.remove(container)
        seen = failure(host.observation())
        look(ledger, replace(seen, containers=()) if seen.containers is not None else seen)
        assert not ledger.free
        if not ledger.whole:
            assert state(ledger, "GPU-0") is DeviceState.LEASED
            assert state(ledger, "GPU-1") is DeviceState.UNKNOWN

    def test_an_unreadable_engine_keeps_a_cpu_server(self, ledger: Ledger, host: Host) -> None:
        """A CPU server's lease ends only when a list of containers lacks it."""
        container = run(ledger, host, ADA)
        look(ledger, fake.engine_does_not_answer(host.observation()))
        assert ledger.lease_of(ADA)
        host.remove(container)
        look(ledger, fake.nvml_does_not_answer(host.observation()))
        assert ledger.lease_of(ADA) is None

    def test_looks_are_taken_in_order(self, ledger: Ledger, host: Host) -> None:
        """An older look never replaces a newer one."""
        first, second = ledger.begin_look(), ledger.begin_look()
        ledger.reconcile(host.observation(), second)
        with pytest.raises(LedgerBroken):
            ledger.reconcile(host.observation(), first)

    def test_an_inventory_without_devices_is_no_failure(self, ledger: Ledger, host: Host) -> None:
        """A host whose driver was removed has no device, and CPU servers go on."""
        look(ledger, fake.no_driver(host.observation()))
        assert ledger.statuses() == ()
        ledger.reserve(ADA, (), 1.0)


class TestAfterARestart:
    def test_running_containers_are_adopted(self, host: Host) -> None:
        """A new hub finds who holds what by the labels, and offers none of it."""
        container = host.start_server(ADA, ["GPU-0"])
        ledger = Ledger("lab")
        (change,) = look(ledger, host)
        assert (change.kind, change.holder) == ("adopted", ADA)
        lease = ledger.lease_of(ADA)
        assert (lease.devices, lease.container_id, lease.state) == (("GPU-0",), container, LeaseState.BOUND)
        assert set(ledger.free) == {"GPU-1"}

    @pytest.mark.parametrize("word", ["created", "running", "paused", "restarting", "removing", "exited", "dead"])
    def test_a_container_of_ours_holds_in_every_state(self, host: Host, word: str) -> None:
        """Until one of our containers is removed its device is not offered."""
        host.start_server(ADA, ["GPU-0"], state=word)
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == {"GPU-1"}

    def test_an_adopted_lease_ends_with_its_container(self, host: Host) -> None:
        """An orphan that somebody removes gives its device back."""
        container = host.start_server(ADA, ["GPU-0"])
        ledger = Ledger("lab")
        look(ledger, host)
        host.remove(container)
        look(ledger, host)
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_adoption_needs_the_engine_only(self, host: Host) -> None:
        """With NVML unreadable the leases are known all the same, so that nothing is lost meanwhile."""
        host.start_server(ADA, ["GPU-0"])
        ledger = Ledger("lab")
        look(ledger, fake.nvml_does_not_answer(host.observation()))
        assert ledger.lease_of(ADA).devices == ("GPU-0",)

    def test_another_hubs_container_is_a_stranger(self, host: Host) -> None:
        """Two hubs on one host respect each other and adopt only their own."""
        host.start_server(ADA, ["GPU-0"], hub="other")
        ledger = Ledger("lab")
        look(ledger, host)
        assert ledger.leases == ()
        assert state(ledger, "GPU-0") is DeviceState.OCCUPIED
        assert status(ledger, "GPU-0").owner == "ada"

    def test_a_reservation_is_not_adopted_twice(self, ledger: Ledger, host: Host) -> None:
        """A look between creation and binding neither drops the reservation nor makes a second lease."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        host.start_server(ADA, ["GPU-0"])
        assert look(ledger, host) == ()
        assert [lease.holder for lease in ledger.leases] == [ADA]
        assert status(ledger, "GPU-0").reason == ""

    def test_two_of_our_containers_with_one_device_are_reported(self, ledger: Ledger, host: Host) -> None:
        """Conflicting labels are said aloud, and the device is granted to nobody until one of the two is gone."""
        first = run(ledger, host, ADA, "GPU-0")
        second = host.start_server(BOB, ["GPU-0"])
        assert "remove one of the two" in look(ledger, host)[0].text
        assert ledger.lease_of(BOB) is None
        assert look(ledger, host) == ()  # once is enough
        host.remove(first)
        look(ledger, host)
        assert ledger.lease_of(BOB).container_id == second
        host.remove(second)
        look(ledger, host)
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}
        assert ledger.notices == ()

    def test_conflicting_labels_at_the_start_grant_nothing(self, host: Host) -> None:
        """With two claims and no memory, the older one is taken for the holder, and the device stays taken."""
        host.start_server(ADA, ["GPU-0"])
        host.clock.advance(5)
        host.start_server(BOB, ["GPU-0", "GPU-1"])
        ledger = Ledger("lab")
        look(ledger, host)
        assert ledger.lease_of(ADA)
        assert not ledger.free
        assert ledger.notices

    def test_a_second_container_of_one_server_is_reported(self, ledger: Ledger, host: Host) -> None:
        """A left-over container of the same server keeps its own device taken."""
        run(ledger, host, ADA, "GPU-0")
        host.start_server(ADA, ["GPU-1"])
        changes = look(ledger, host)
        assert any("second one" in change.text for change in changes)
        assert not ledger.free

    def test_forged_labels_free_nothing(self, ledger: Ledger, host: Host) -> None:
        """A container with our labels that the hub never started takes devices away at worst."""
        run(ledger, host, ADA, "GPU-0")
        forged = host.start_server(ADA, ["GPU-0"])
        look(ledger, host)
        host.remove(forged)
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.LEASED

    def test_half_labels_are_a_strangers(self, host: Host) -> None:
        """A container whose labels are not a whole record is nobody's lease, and what it names is taken."""
        host.start("odd", [], {labels.MANAGED: "true", labels.GPU_UUIDS: "GPU-0"})
        ledger = Ledger("lab")
        look(ledger, host)
        assert ledger.leases == ()
        assert set(ledger.free) == {"GPU-1"}


class TestStrangers:
    @pytest.mark.parametrize(
        ("claim", "left"),
        [
            (("GPU-0",), {"GPU-1"}),
            (("0",), {"GPU-1"}),
            (("all",), set()),
            (("-1",), set()),
            (("nvidia.com/gpu=GPU-1",), {"GPU-0"}),
            (("nvidia.com/gpu=all",), set()),
            (("example.com/net=0",), {"GPU-0", "GPU-1"}),
            (("void",), {"GPU-0", "GPU-1"}),
            (("none", ""), {"GPU-0", "GPU-1"}),
            (("7",), {"GPU-0", "GPU-1"}),
            (("GPU-gone",), {"GPU-0", "GPU-1"}),
            (("gpu-1",), {"GPU-0"}),
            (("0", "1"), set()),
            (("what is this",), set()),
        ],
    )
    def test_a_containers_claim_takes_what_it_means(self, host: Host, claim: tuple[str, ...], left: set[str]) -> None:
        """UUIDs, their beginnings, indices, CDI names and "all" are understood; what is not takes everything."""
        host.start("train", claim)
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == left

    @pytest.mark.parametrize("word", ["created", "running", "paused", "restarting", "removing"])
    def test_a_strangers_container_holds_while_it_may_run(self, host: Host, word: str) -> None:
        """A container that is not running yet or any more, and may go on, keeps its device."""
        host.start("train", ["0"], state=word)
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == {"GPU-1"}

    @pytest.mark.parametrize("word", ["exited", "dead"])
    def test_a_strangers_ended_container_holds_nothing(self, host: Host, word: str) -> None:
        """Last week's `docker run --gpus all` does not block the host."""
        host.start("train", ["all"], state=word)
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_an_allocation_of_the_command_line_holds_until_removed(self, host: Host) -> None:
        """The DS01 command line's labels are an allocation, whatever state its container is in."""
        container = host.start("x._.1001", [], {labels.USER: "eve", labels.GPU_UUIDS: "GPU-0"}, state="exited")
        ledger = Ledger("lab")
        look(ledger, host)
        assert status(ledger, "GPU-0").owner == "eve"
        host.remove(container)
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_a_host_process_occupies_its_device(self, ledger: Ledger, host: Host) -> None:
        """Somebody who trains over SSH is shown and left alone."""
        host.compute("GPU-0", owner="eve")
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.OCCUPIED
        assert status(ledger, "GPU-0").owner == "eve"
        assert set(ledger.free) == {"GPU-1"}

    def test_the_holders_own_process_is_no_stranger(self, ledger: Ledger, host: Host) -> None:
        """A lease whose container computes is in order."""
        container = run(ledger, host, ADA, "GPU-0")
        host.compute("GPU-0", container=container)
        look(ledger, host)
        assert status(ledger, "GPU-0").reason == ""

    def test_a_process_that_starts_within_the_look_is_no_stranger(self, ledger: Ledger, host: Host) -> None:
        """The containers may have been listed before the reserved container started to compute."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        before = host.observation()
        host.compute("GPU-0", container=host.start_server(ADA, ["GPU-0"]))
        look(ledger, replace(host.observation(), containers=before.containers))
        assert ledger.notices == ()

    def test_an_intruder_on_a_leased_device_is_reported(self, ledger: Ledger, host: Host) -> None:
        """The holder keeps the lease and the admin is told."""
        run(ledger, host, ADA, "GPU-0")
        host.compute("GPU-0", owner="eve")
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.LEASED
        assert "eve" in ledger.notices[0]

    def test_a_strangers_claim_on_a_leased_device_is_reported(self, ledger: Ledger, host: Host) -> None:
        """An allocator that failed open shows."""
        run(ledger, host, ADA, "GPU-0")
        host.start("train", ["all"])
        look(ledger, host)
        assert "train" in ledger.notices[0]
        assert state(ledger, "GPU-1") is DeviceState.OCCUPIED

    def test_infrastructure_sees_every_gpu_and_holds_none(self, host: Host) -> None:
        """A metrics exporter with all GPUs does not block the host, its processes would."""
        exporter = host.start("dcgm-exporter", ["all"])
        ledger = Ledger("lab", infrastructure=["dcgm-"])
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}
        host.compute("GPU-0", container=exporter)
        look(ledger, host)
        assert set(ledger.free) == {"GPU-1"}

    def test_containers_outside_the_hub_count_for_their_user(self, ledger: Ledger, host: Host) -> None:
        """What ada runs from the command line is part of what ada has."""
        run(ledger, host, ADA, "GPU-0")
        host.start("x._.1001", ["GPU-1"], {labels.USER: "ada"})
        look(ledger, host)
        assert ledger.holding("ada") == (
            Held("thesis", Fraction(1)),
            Held("container x._.1001", Fraction(1)),
        )
        assert ledger.holding("eve") == ()


class TestHealth:
    @pytest.mark.parametrize(
        ("health", "expected"),
        [(Health.UNHEALTHY, DeviceState.UNHEALTHY), (Health.UNKNOWN, DeviceState.UNKNOWN)],
    )
    def test_only_a_healthy_device_is_granted(self, ledger: Ledger, host: Host, health: Health, expected: str) -> None:
        """Unknown is not healthy."""
        host.sicken("GPU-0", health)
        look(ledger, host)
        assert state(ledger, "GPU-0") is expected
        assert set(ledger.free) == {"GPU-1"}

    def test_a_device_recovers(self, ledger: Ledger, host: Host) -> None:
        """A device that is healthy again is granted again."""
        host.sicken("GPU-0")
        look(ledger, host)
        host.sicken("GPU-0", Health.HEALTHY)
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_a_leased_device_that_fails_stays_leased(self, ledger: Ledger, host: Host) -> None:
        """The holder keeps it, and the reason shows."""
        run(ledger, host, ADA, "GPU-0")
        host.sicken("GPU-0")
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.LEASED
        assert "Xid" in status(ledger, "GPU-0").reason

    def test_a_leased_device_that_vanishes_is_reported_and_not_lost(self, ledger: Ledger, host: Host) -> None:
        """The lease stays with the holder until the container is gone, then nothing is left of it."""
        container = run(ledger, host, ADA, "GPU-0")
        del host.devices["GPU-0"]
        look(ledger, host)
        assert not status(ledger, "GPU-0").exists
        assert "does not list it any more" in ledger.notices[0]
        assert ledger.holding("ada") == (Held("thesis", Fraction(1)),)
        host.remove(container)
        look(ledger, host)
        look(ledger, host)
        assert [status.device.uuid for status in ledger.statuses()] == ["GPU-1"]


class TestHandover:
    def test_a_released_device_waits_for_a_look(self, ledger: Ledger, host: Host) -> None:
        """Nothing goes from hand to hand unseen."""
        host.remove(run(ledger, host, ADA, "GPU-0"))
        ledger.release(ADA, 2.0)
        assert "GPU-0" not in ledger.free
        assert state(ledger, "GPU-0") is DeviceState.SET_ASIDE
        look(ledger, host)
        assert "GPU-0" in ledger.free

    def test_a_process_that_stays_keeps_the_device_aside(self, ledger: Ledger, host: Host) -> None:
        """A zombie of the last holder does not meet the next one."""
        container = run(ledger, host, ADA, "GPU-0")
        del host.containers[container]
        zombie = host.compute("GPU-0", container=container)
        ledger.release(ADA, 2.0)
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.SET_ASIDE
        assert "Since ada left" in status(ledger, "GPU-0").reason
        host.processes.remove(zombie)
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.FREE

    def test_memory_above_the_baseline_keeps_the_device_aside(self, ledger: Ledger, host: Host) -> None:
        """Memory that the driver has not given back yet is waited for."""
        host.remove(run(ledger, host, ADA, "GPU-0"))
        host.memory_used_bytes["GPU-0"] = 3 * GIB
        ledger.release(ADA, 2.0)
        look(ledger, host)
        assert "3072 MiB" in status(ledger, "GPU-0").reason
        host.memory_used_bytes["GPU-0"] = GIB // 4
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.FREE

    def test_the_baseline_is_the_least_that_was_seen(self, host: Host) -> None:
        """A device that needs 400 MiB when idle is compared with that, and a creeping leak does not move it."""
        ledger = Ledger("lab", memory_tolerance_bytes=GIB // 2)
        for used, free in [(0.4, True), (0.8, True), (0.95, False), (0.85, True)]:
            host.memory_used_bytes["GPU-0"] = int(used * GIB)
            if used == 0.8:  # with a baseline of 0 this would be too much
                assert "GPU-0" in ledger.free
            look(ledger, host)
            assert ("GPU-0" in ledger.free) is free

    def test_unreadable_memory_is_not_clean(self, ledger: Ledger, host: Host) -> None:
        """What cannot be read is not taken for clean."""
        host.remove(run(ledger, host, ADA, "GPU-0"))
        ledger.release(ADA, 2.0)
        look(ledger, fake.memory_cannot_be_read(host.observation()))
        assert not ledger.free
        assert "cannot be read" in status(ledger, "GPU-0").reason
        look(ledger, host)
        assert set(ledger.free) == {"GPU-0", "GPU-1"}

    def test_memory_in_use_by_nobody_is_set_aside_at_once(self, host: Host) -> None:
        """A hub that cannot see the host's processes still does not grant a device that is full."""
        host.memory_used_bytes["GPU-0"] = 30 * GIB
        ledger = Ledger("lab")
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.SET_ASIDE
        assert set(ledger.free) == {"GPU-1"}

    def test_a_device_that_stays_aside_is_reported_once(self, ledger: Ledger, host: Host) -> None:
        """The admin is told after five minutes, and again when the device is back."""
        assert isinstance(host.clock, FakeClock)
        host.remove(run(ledger, host, ADA, "GPU-0"))
        host.memory_used_bytes["GPU-0"] = 3 * GIB
        ledger.release(ADA, host.clock())
        kinds = []
        for _ in range(12):
            kinds += [change.kind for change in look(ledger, host)]
            host.clock.advance(60)
        assert kinds == ["set-aside"]
        host.memory_used_bytes["GPU-0"] = 0
        assert [change.kind for change in look(ledger, host)] == ["returned"]

    def test_a_clock_that_is_set_back_delays_nothing(self, ledger: Ledger, host: Host) -> None:
        """Looks are counted, not dated, so a clean device is free although its release lies in the future."""
        assert isinstance(host.clock, FakeClock)
        host.remove(run(ledger, host, ADA, "GPU-0"))
        ledger.release(ADA, host.clock())
        host.clock.advance(-86_400)
        look(ledger, host)
        assert state(ledger, "GPU-0") is DeviceState.FREE

    def test_releasing_twice_changes_nothing(self, ledger: Ledger, host: Host) -> None:
        """Release is idempotent."""
        host.remove(run(ledger, host, ADA, "GPU-0"))
        assert ledger.release(ADA, 2.0)
        assert ledger.release(ADA, 2.0) is None


class TestMig:
    def test_an_instance_in_use_blocks_the_whole_gpu_and_the_reverse(self) -> None:
        """Two devices that share hardware are never both granted."""
        host = Host.of([*gpus(1), *mig(0, ["3g.20gb", "3g.20gb"])])
        ledger = Ledger("lab")
        look(ledger, host)
        run(ledger, host, ADA, "MIG-0-0")
        assert set(ledger.free) == {"MIG-0-1"}
        look(ledger, host)
        assert set(ledger.free) == {"MIG-0-1"}
        assert "shares hardware" in status(ledger, "GPU-0").reason
        host.remove(ledger.lease_of(ADA).container_id)
        look(ledger, host)
        look(ledger, host)
        run(ledger, host, ADA, "GPU-0")
        look(ledger, host)
        assert not ledger.free

    def test_a_claim_to_the_parent_takes_every_instance(self) -> None:
        """By UUID or by index, the GPU that instances are cut from means all of them."""
        for claim in ("GPU-0", "0"):
            host = Host.of([*mig(0, ["3g.20gb", "3g.20gb"]), *mig(1, ["3g.20gb"])])
            host.start("train", [claim])
            ledger = Ledger("lab")
            look(ledger, host)
            assert set(ledger.free) == {"MIG-1-0"}

    @pytest.mark.parametrize("claim", ["0:1", "0.1", "MIG-0-1", "nvidia.com/gpu=0:1"])
    def test_a_claim_to_an_instance_takes_it_alone(self, claim: str) -> None:
        """An instance has names of its own."""
        host = Host.of(mig(0, ["3g.20gb", "3g.20gb"]))
        host.start("train", [claim])
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == {"MIG-0-0"}

    def test_a_process_that_is_reported_on_the_parent_occupies_every_instance(self) -> None:
        """When the driver does not say which instance it is, it may be any."""
        host = Host.of(mig(0, ["3g.20gb", "3g.20gb"]))
        ledger = Ledger("lab")
        host.compute("GPU-0", owner="eve")
        look(ledger, host)
        assert not ledger.free

    def test_a_holders_process_reported_on_the_parent_is_no_stranger(self) -> None:
        """A container reaches its own instance only, so its process says nothing about the others."""
        host = Host.of(mig(0, ["3g.20gb", "3g.20gb"]))
        ledger = Ledger("lab")
        look(ledger, host)
        container = run(ledger, host, ADA, "MIG-0-0")
        host.compute("GPU-0", container=container)
        look(ledger, host)
        assert set(ledger.free) == {"MIG-0-1"}
        assert ledger.notices == ()

    def test_a_repartitioned_gpu_does_not_offer_what_is_still_leased(self) -> None:
        """A lease on an instance that no longer exists blocks the GPU that it was cut from, and is reported."""
        host = Host.of(mig(0, ["3g.20gb", "3g.20gb"]))
        ledger = Ledger("lab")
        look(ledger, host)
        run(ledger, host, ADA, "MIG-0-0")
        host.devices = {device.uuid: device for device in gpus(2)}
        look(ledger, host)
        assert set(ledger.free) == {"GPU-1"}
        assert ledger.notices

    def test_new_instances_of_a_leased_gpu_are_not_offered(self) -> None:
        """A GPU that was cut up while it was leased stays its holder's."""
        host = Host.of(gpus(2))
        ledger = Ledger("lab")
        look(ledger, host)
        run(ledger, host, ADA, "GPU-0")
        host.devices = {device.uuid: device for device in (*mig(0, ["3g.20gb"]), *gpus(2)[1:])}
        look(ledger, host)
        assert set(ledger.free) == {"GPU-1"}

    def test_an_instance_set_aside_blocks_the_whole_gpu(self) -> None:
        """A GPU is clean when all of it is."""
        host = Host.of([*gpus(1), *mig(0, ["3g.20gb", "3g.20gb"])])
        host.memory_used_bytes["MIG-0-0"] = 4 * GIB
        ledger = Ledger("lab")
        look(ledger, host)
        assert set(ledger.free) == {"MIG-0-1"}

    def test_adopted_leases_that_turn_out_to_share_a_gpu_are_reported(self) -> None:
        """Labels alone do not say which GPU an instance is cut from; once it is known, the conflict is said aloud."""
        host = Host.of([*gpus(1), *mig(0, ["3g.20gb", "3g.20gb"])])
        host.start_server(ADA, ["GPU-0"])
        host.start_server(BOB, ["MIG-0-0"])
        ledger = Ledger("lab")
        look(ledger, fake.nvml_does_not_answer(host.observation()))
        assert len(ledger.leases) == 2
        look(ledger, host)
        assert not ledger.free
        assert any("shares hardware" in notice for notice in ledger.notices)

    def test_instances_count_their_slices(self) -> None:
        """Three sevenths and four sevenths are one GPU, exactly."""
        host = Host.of(mig(0, ["3g.20gb", "4g.20gb"]))
        ledger = Ledger("lab")
        look(ledger, host)
        run(ledger, host, ADA, "MIG-0-0", "MIG-0-1")
        assert ledger.holding("ada") == (Held("thesis", Fraction(1)),)


class TestValidate:
    def test_every_device_has_one_state(self, ledger: Ledger, host: Host) -> None:
        """Capacity is free plus leased plus occupied plus set aside plus unhealthy plus unknown."""
        host.devices |= {device.uuid: device for device in gpus(6)}
        run(ledger, host, ADA, "GPU-0")
        host.start("train", ["GPU-1"])
        host.compute("GPU-2")
        host.sicken("GPU-3")
        host.memory_used_bytes["GPU-4"] = GIB
        look(ledger, host)
        assert [str(status.state) for status in ledger.statuses()] == [
            "leased",
            "occupied",
            "occupied",
            "unhealthy",
            "set-aside",
            "free",
        ]

    def test_a_broken_ledger_is_noticed(self, ledger: Ledger) -> None:
        """Validate finds a device in two leases, a lost index and a wrong state."""
        ledger.reserve(ADA, ["GPU-0"], 1.0)
        ledger._free["GPU-0"] = ledger.device("GPU-0")
        with pytest.raises(LedgerBroken, match="counts as free"):
            ledger.validate()
        del ledger._free["GPU-0"]
        del ledger._holders["GPU-0"]
        with pytest.raises(LedgerBroken, match="index"):
            ledger.validate()


def test_a_look_from_before_a_removal_brings_no_lease_back(ledger: Ledger, host: Host) -> None:
    """A container that was removed while a look was under way is not taken for one that nobody remembers."""
    container = run(ledger, host, ADA, "GPU-0")
    number = ledger.begin_look()
    seen = host.observation()
    host.remove(container)
    ledger.release(ADA, host.clock())
    assert not [change for change in ledger.reconcile(seen, number) if change.kind == "adopted"]
    assert ledger.leases == ()
    assert "GPU-0" not in ledger.free, "that look still shows the device in use"
    look(ledger, host)
    assert set(ledger.free) == {"GPU-0", "GPU-1"}
