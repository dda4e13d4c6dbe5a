"""The allocator: waiting, waking, cancelling, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import pickle
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from ds01_spawner import allocator as allocator_module
from ds01_spawner.adapters.hostlock import HostLock
from ds01_spawner.adapters.limitsfile import LimitsFile
from ds01_spawner.adapters.ticketfile import TicketFile
from ds01_spawner.allocator import Allocator, Reservation
from ds01_spawner.core import allocation
from ds01_spawner.core.events import KINDS
from ds01_spawner.core.expectation import IdleEnds
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import DeviceState, Health, Holder, Request
from ds01_spawner.core.queue import Waiting
from ds01_spawner.errors import DeviceRefused, DevicesUnavailable, DS01Error, InvalidOptions, LedgerBroken, LimitReached
from ds01_spawner.testing import devices as fake
from ds01_spawner.testing.devices import FakeClock, Host, Probe, Recorded, TicketsInMemory, gpus, mig

T0 = FakeClock()()


class Lab:
    """A host, its probe, and allocators that a test makes and forgets."""

    def __init__(self, host: Host) -> None:
        assert isinstance(host.clock, FakeClock)
        self.host = host
        self.clock: FakeClock = host.clock
        self.probe = Probe(host)
        self.recorded = Recorded()
        self.told: list[tuple[str, Waiting]] = []
        self.allocators: list[Allocator] = []

    def allocator(self, **options: object) -> Allocator:
        """Return one more hub's allocator."""
        settings = {"hub": "lab", "observe": self.probe, "clock": self.clock, "record": self.recorded} | options
        self.allocators.append(Allocator(**settings))
        return self.allocators[-1]

    @asynccontextmanager
    async def reserve(
        self, allocator: Allocator, user: str, count: int = 1, **asked: object
    ) -> AsyncIterator[Reservation]:
        """Reserve for a user's one project."""
        request = Request(Holder(user, "thesis"), count, **{"kind": "gpu"} | asked)
        async with allocator.reservation(request, on_wait=lambda w: self.told.append((user, w))) as reservation:
            yield reservation

    async def launch(self, allocator: Allocator, user: str, count: int = 1, **asked: object) -> str:
        """Reserve, create, start and bind as a spawner does, and return the container."""
        async with self.reserve(allocator, user, count, **asked) as reservation, reservation.creating():
            uuids = [device.uuid for device in reservation.devices]
            container = self.host.start_server(Holder(user, "thesis"), uuids)
            await asyncio.sleep(0)
            reservation.bind(container)
        return container

    async def retire(self, allocator: Allocator, user: str) -> None:
        """Remove the user's container, then release."""
        for identity, container in list(self.host.containers.items()):
            if container.name == f"thesis._.{user}":
                self.host.remove(identity)
        await allocator.release(Holder(user, "thesis"))

    async def waits(self, allocator: Allocator, user: str) -> None:
        """Return once the user has been told to wait."""
        while not any(who == user for who, _ in self.told):
            await allocator.look()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A lab with two GPUs; afterwards every allocator is validated."""
    lab = Lab(Host.of(gpus(2)))
    yield lab
    for allocator in lab.allocators:
        allocator.validate()
        await allocator.close()


def says(said: IdleEnds | None) -> Callable[[], Awaitable[IdleEnds | None]]:
    """Return a culler that says the same each time."""

    async def read() -> IdleEnds | None:
        return said

    return read


def edit(folder: Path, defaults: str) -> Path:
    """Write a limits file with these defaults, as an editor does that replaces it."""
    (folder / "new").write_text(f"defaults:\n  {defaults}\n")
    os.utime(folder / "new", (1, 1))
    return (folder / "new").rename(folder / "limits.yaml")


async def free(allocator: Allocator) -> set[str]:
    """Return the devices that are free by a new look."""
    shown = await allocator.snapshot(max_age_seconds=-1)
    return {status.device.uuid for status in shown.devices if status.state is DeviceState.FREE}


class TestReserving:
    async def test_a_launch_gets_a_device_and_keeps_it_once_bound(self, lab: Lab) -> None:
        """Leaving the block after bind leaves the device with the container."""
        allocator = lab.allocator()
        container = await lab.launch(allocator, "ada")
        (lease,) = (await allocator.snapshot()).leases
        assert (lease.holder, lease.container_id) == (Holder("ada", "thesis"), container)
        assert await free(allocator) == {"GPU-1"}

    async def test_leaving_without_binding_releases(self, lab: Lab) -> None:
        """A block that ends without a container gives the device back."""
        allocator = lab.allocator()
        async with lab.reserve(allocator, "ada"):
            assert await free(allocator) == {"GPU-1"}
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_an_error_in_the_block_releases(self, lab: Lab) -> None:
        """A launch that fails gives the device back, even after it was bound."""
        allocator = lab.allocator()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with lab.reserve(allocator, "ada") as reservation:
                reservation.bind("c" * 60)
                raise ZeroDivisionError
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_a_start_timeout_releases(self, lab: Lab) -> None:
        """JupyterHub's start timeout arrives as a cancel."""
        allocator = lab.allocator()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), lab.reserve(allocator, "ada"):
                await asyncio.Event().wait()
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_the_end_of_an_old_launch_leaves_a_new_one_alone(self, lab: Lab) -> None:
        """A block that is left late releases its own lease only, not the holder's next one."""
        allocator = lab.allocator()
        async with AsyncExitStack() as late:
            await late.enter_async_context(lab.reserve(allocator, "ada"))
            await allocator.release(Holder("ada", "thesis"))
            await lab.launch(allocator, "ada")
        assert len((await allocator.snapshot()).leases) == 1

    async def test_binding_after_the_end_is_a_defect(self, lab: Lab) -> None:
        """A reservation that was released cannot come back to life."""
        allocator = lab.allocator()
        async with lab.reserve(allocator, "ada") as reservation:
            await allocator.release(Holder("ada", "thesis"))
            with pytest.raises(LedgerBroken):
                reservation.bind("c")

    async def test_releasing_twice_is_no_error(self, lab: Lab) -> None:
        """Every way out of a launch may release."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada")
        await lab.retire(allocator, "ada")
        await allocator.release(Holder("ada", "thesis"))
        assert lab.recorded.kinds().count("gpu.release") == 1

    async def test_forty_launches_at_once_take_a_few_looks(self, lab: Lab) -> None:
        """Requests that arrive together are decided together, and four devices go to four of them."""
        lab.host.devices = {device.uuid: device for device in gpus(4)}
        allocator = lab.allocator()
        tasks = [asyncio.create_task(lab.launch(allocator, f"user{n}")) for n in range(40)]
        while len(allocator._ledger.leases) < 4:
            await allocator.look()
        await allocator.look()
        assert lab.probe.looks < 10
        given = [uuid for lease in (await allocator.snapshot()).leases for uuid in lease.devices]
        assert sorted(given) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_server_does_not_get_a_second_lease(self, lab: Lab) -> None:
        """A project that still runs is not launched again."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada")
        with pytest.raises(DeviceRefused, match="Retire it first"):
            await lab.launch(allocator, "ada")

    async def test_a_stale_container_that_was_removed_does_not_stand_in_the_way(self, lab: Lab) -> None:
        """A launch that removes its own left-over first may go on without releasing anything."""
        old = lab.host.start_server(Holder("ada", "thesis"), ["GPU-0"])
        allocator = lab.allocator()
        await allocator.look()
        lab.host.remove(old)
        await lab.launch(allocator, "ada")
        assert len((await allocator.snapshot()).leases) == 1

    async def test_a_look_that_is_asked_for_begins_afterwards(self, lab: Lab) -> None:
        """Whoever changes something and asks for a look gets one that can show the change."""
        allocator = lab.allocator()
        lab.probe.gate = asyncio.Event()
        first = asyncio.create_task(allocator.look())
        while not lab.probe.looks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        second = asyncio.create_task(allocator.look())
        await asyncio.sleep(0)
        lab.probe.gate.set()
        await first
        assert not second.done()
        await second
        assert lab.probe.looks == 2


class TestCpuServers:
    async def test_a_cpu_server_needs_no_gpu(self, lab: Lab) -> None:
        """On a host without a driver servers run on the CPU, and whoever asks for a GPU is told why not."""
        lab.probe.failure = fake.no_driver
        allocator = lab.allocator()
        async with lab.reserve(allocator, "ada", 0) as reservation:
            assert reservation.devices == ()
            reservation.bind("c")
        with pytest.raises(DeviceRefused, match="this host has no GPU"):
            await lab.launch(allocator, "bob")

    async def test_a_cpu_server_does_not_wait_for_unreadable_gpus(self, lab: Lab) -> None:
        """A driver that hangs does not keep anybody from working on the CPU."""
        lab.probe.failure = fake.nothing_can_be_read
        allocator = lab.allocator()
        async with lab.reserve(allocator, "ada", 0) as reservation:
            assert reservation.devices == ()

    async def test_a_cpu_server_counts_toward_the_users_servers(self, lab: Lab) -> None:
        """The number of servers is limited whatever they hold."""
        allocator = lab.allocator(limits=lambda _u, _g: Limits(max_containers_per_user=1))
        async with lab.reserve(allocator, "ada", 0):
            request = Request(Holder("ada", "course"), 0)
            with pytest.raises(LimitReached):
                async with allocator.reservation(request, on_wait=lambda _: None):
                    pass


class TestWaiting:
    async def test_a_release_wakes_who_waits(self, lab: Lab) -> None:
        """No wake-up is lost between a release and the next in line."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)
        task = asyncio.create_task(lab.launch(allocator, "bob"))
        await lab.waits(allocator, "bob")
        await lab.retire(allocator, "ada")
        await asyncio.wait_for(task, 5)
        assert lab.recorded.kinds() == [
            "gpu.allocate",
            "queue.enter",
            "gpu.release",
            "queue.leave",
            "gpu.allocate",
        ]

    async def test_who_waits_is_told_place_and_estimate(self, lab: Lab) -> None:
        """The sentence says the place, what is waited for, and between which times it should start."""
        limits = Limits(
            max_gpu_equivalents=None, max_gpu_slots_per_container=None, idle_seconds=1800, max_runtime_seconds=7200
        )
        idle = IdleEnds(lab.clock() + 3590, {Holder("ada", "thesis"): lab.clock() + 3600 + 1800})
        allocator = lab.allocator(limits=lambda _u, _g: limits, idle_ends=says(idle))
        await lab.launch(allocator, "ada", 2)
        lab.clock.advance(3600)
        tasks = [asyncio.create_task(lab.launch(allocator, user)) for user in ("bob", "eve")]
        await lab.waits(allocator, "eve")
        told = dict(lab.told)
        assert told["bob"].place == 1
        assert told["bob"].estimate == (lab.clock() + 1800, lab.clock() + 3600)
        assert told["eve"].sentence == (
            "Place 2 of 2 in the queue for 1 GPU. None of the 2 that fit is free (2 leased). "
            "Expected start in 30 min to 1 h, if nobody goes before you who is not here yet."
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_device_is_granted_although_the_cullers_word_cannot_be_read(self, lab: Lab) -> None:
        """Estimates are all that it is for."""

        async def spoiled() -> IdleEnds | None:
            raise TypeError("the file holds something else")

        allocator = lab.allocator(idle_ends=spoiled)
        assert await lab.launch(allocator, "ada", 2)

    @pytest.mark.parametrize(
        "said",
        [
            pytest.param(None, id="the culler is away"),
            pytest.param(IdleEnds(T0 + 3590, {}), id="of her it says nothing"),
            pytest.param(IdleEnds(T0, {Holder("ada", "thesis"): T0 + 60}), id="that was her server before this one"),
        ],
    )
    async def test_without_the_cullers_word_only_run_limits_count(self, lab: Lab, said: IdleEnds | None) -> None:
        """Nobody is promised a device because a server might be idle."""
        limits = Limits(max_gpu_slots_per_container=2, max_gpu_equivalents=Fraction(2), max_runtime_seconds=7200)
        allocator = lab.allocator(limits=lambda _u, _g: limits, idle_ends=says(said))
        await lab.launch(allocator, "ada", 2)
        lab.clock.advance(3600)
        tasks = [asyncio.create_task(lab.launch(allocator, user, 2)) for user in ("bob", "eve")]
        await lab.waits(allocator, "eve")
        told = dict(lab.told)
        assert told["bob"].estimate == (T0 + 7200, T0 + 7200)
        assert "Expected start in about 1 h" in told["bob"].sentence
        behind_bob = 1800 if said else 7200  # he may be idle at once, if somebody retires idle servers at all
        assert told["eve"].estimate == (T0 + 7200 + behind_bob, T0 + 2 * 7200)
        assert allocator.expected_starts()["gpu"] is not None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_telling_many_lets_others_go_on(self, lab: Lab) -> None:
        """However many wait, the hub serves its pages in between."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)
        many = 4 * allocator_module._AT_A_TIME
        tasks = [asyncio.create_task(lab.launch(allocator, f"user{n}")) for n in range(many)]
        looking = asyncio.ensure_future(allocator.look())
        told = [0]
        while not looking.done():
            await asyncio.sleep(0)
            told.append(len(lab.told))
        assert told[-1] == many
        assert max(after - before for before, after in itertools.pairwise(told)) <= allocator_module._AT_A_TIME
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_without_limits_there_is_no_estimate(self, lab: Lab) -> None:
        """What is not known is not made up."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)
        task = asyncio.create_task(lab.launch(allocator, "bob"))
        await lab.waits(allocator, "bob")
        assert lab.told[0][1].estimate is None
        assert "No estimate" in lab.told[0][1].sentence
        task.cancel()

    async def test_a_cancel_leaves_nothing(self, lab: Lab) -> None:
        """Who gives up is in no queue, holds nothing and keeps nothing from others."""
        store = TicketsInMemory()
        allocator = lab.allocator(ticket_store=store)
        await lab.launch(allocator, "ada")
        big = asyncio.create_task(lab.launch(allocator, "bob", 2))
        await lab.waits(allocator, "bob")
        small = asyncio.create_task(lab.launch(allocator, "eve"))
        await lab.waits(allocator, "eve")
        assert not small.done()  # the free device is kept for bob
        big.cancel()
        await asyncio.wait_for(small, 5)
        assert (await allocator.snapshot(max_age_seconds=-1)).queue == ()
        assert "bob" not in store.text
        assert lab.recorded.events[-2][1]["outcome"] == "granted"

    async def test_a_cancel_in_the_turn_of_the_grant_leaks_nothing(self, lab: Lab) -> None:
        """A grant that nobody is there to take is given back."""
        allocator = lab.allocator()
        gate = asyncio.Event()
        lab.probe.gate = gate
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        for _ in range(5):
            await asyncio.sleep(0)
        gate.set()
        while not allocator._ledger.leases:  # noqa: ASYNC110  the very turn of the grant is wanted
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    @pytest.mark.parametrize("turns", range(12))
    async def test_a_cancel_at_any_moment_leaks_nothing(self, lab: Lab, turns: int) -> None:
        """Whatever the moment, after a cancel the launch either holds its device with a container or not at all."""
        allocator = lab.allocator()
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for identity in list(lab.host.containers):
            lab.host.remove(identity)
        await allocator.look()
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_a_strangers_end_is_noticed_without_a_word(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """Containers of others end silently; while somebody waits the host is looked at again and again."""
        stranger = lab.host.start("train", ["all"])
        allocator = lab.allocator(recheck_seconds=0.001)
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        lab.host.remove(stranger)
        await asyncio.wait_for(task, 5)

    async def test_a_device_that_is_set_aside_is_looked_at_again(self, lab: Lab) -> None:
        """The next in line gets the device as soon as it is clean, without anybody saying so."""
        allocator = lab.allocator(recheck_seconds=0.001)
        await lab.launch(allocator, "ada", 2)
        lab.host.memory_used_bytes = {"GPU-0": 8 * 2**30, "GPU-1": 8 * 2**30}
        await lab.retire(allocator, "ada")
        task = asyncio.create_task(lab.launch(allocator, "bob"))
        await lab.waits(allocator, "bob")
        assert "set-aside" in lab.told[-1][1].why
        lab.host.memory_used_bytes.clear()
        await asyncio.wait_for(task, 5)

    async def test_what_can_never_be_is_refused_at_once(self, lab: Lab) -> None:
        """More devices than exist, an unknown profile or too much memory is no reason to wait."""
        lab.host.devices |= {device.uuid: device for device in mig(2, ["1g.5gb"])}
        allocator = lab.allocator()
        for count, asked in ((3, {}), (1, {"kind": "9g.90gb"}), (1, {"min_memory_bytes": 10**15}), (10**9, {})):
            with pytest.raises(DeviceRefused, match=r"this host has 1 1g.5gb instance \(5 GiB\), 2 GPUs \(40 GiB\)"):
                await lab.launch(allocator, "ada", count, **asked)
        assert lab.recorded.kinds() == ["gpu.reject"] * 4

    @pytest.mark.parametrize("count", [-1, True, 1.0, float("nan"), "two", None])
    async def test_what_is_no_number_is_refused(self, lab: Lab, count: object) -> None:
        """Whatever gets through every earlier check ends here."""
        with pytest.raises(InvalidOptions):
            await lab.launch(lab.allocator(), "ada", count)

    async def test_the_same_server_waits_once(self, lab: Lab) -> None:
        """A second start of a project that waits is refused, and the first goes on waiting."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)
        task = asyncio.create_task(lab.launch(allocator, "bob"))
        await lab.waits(allocator, "bob")
        with pytest.raises(DeviceRefused, match="waiting for a device already"):
            await lab.launch(allocator, "bob")
        await lab.retire(allocator, "ada")
        await asyncio.wait_for(task, 5)

    async def test_a_page_that_fails_stops_nobody(self, lab: Lab) -> None:
        """An error in telling a user his place is logged, and the queue goes on."""
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)

        def fail(_waiting: Waiting) -> None:
            raise ZeroDivisionError

        async def wait() -> None:
            async with allocator.reservation(Request(Holder("bob", "p"), 1), on_wait=fail):
                pass

        task = asyncio.create_task(wait())
        await allocator.look()
        await lab.retire(allocator, "ada")
        await asyncio.wait_for(task, 5)

    async def test_an_event_log_that_fails_stops_nobody(self, lab: Lab) -> None:
        """A full disk is no reason to lose a device."""

        def fail(_kind: str, **_facts: object) -> None:
            raise OSError("disk full")

        allocator = lab.allocator(record=fail)
        await lab.launch(allocator, "ada", 2)
        await lab.retire(allocator, "ada")
        assert await free(allocator) == {"GPU-0", "GPU-1"}


class TestLimits:
    async def test_limits_are_checked_before_waiting(self, lab: Lab) -> None:
        """Who may not have another GPU does not wait for it first."""
        allocator = lab.allocator(limits=lambda _u, _g: Limits(max_gpu_equivalents=Fraction(1)))
        await lab.launch(allocator, "ada")
        request = Request(Holder("ada", "course"), 1, "gpu")
        with pytest.raises(LimitReached):
            async with allocator.reservation(request, on_wait=lambda _: None):
                pass

    async def test_what_a_user_waits_for_counts(self, lab: Lab) -> None:
        """Waiting twice for what may be had once is refused at once."""
        allocator = lab.allocator(limits=lambda _u, _g: Limits(max_gpu_equivalents=Fraction(1)))
        lab.host.start("train", ["all"])
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        with pytest.raises(LimitReached):
            async with allocator.reservation(Request(Holder("ada", "course"), 1, "gpu"), on_wait=lambda _: None):
                pass
        task.cancel()

    async def test_limits_are_checked_again_at_the_grant(self, lab: Lab) -> None:
        """Limits that were lowered meanwhile hold, and a change needs no restart."""
        limits = {"ada": Limits()}
        allocator = lab.allocator(limits=lambda user, _g: limits[user])
        stranger = lab.host.start("train", ["all"])
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        limits["ada"] = Limits(max_gpu_equivalents=Fraction(0))
        lab.host.remove(stranger)
        await allocator.look()
        with pytest.raises(LimitReached):
            await asyncio.wait_for(task, 5)
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_a_raised_limit_reaches_who_waits(self, lab: Lab, tmp_path: Path) -> None:
        """An edit of the limits file is seen at the next look, and whoever may have what is free now gets it."""
        lab.host.devices |= {device.uuid: device for device in mig(2, ["1g.5gb"])}
        stranger = lab.host.start("train", ["MIG-2-0"])
        limits = LimitsFile(edit(tmp_path, "allow_full_gpu: false"))
        allocator = lab.allocator(limits=limits.limits, limits_revision=lambda: limits.policy)
        task = asyncio.create_task(lab.launch(allocator, "ada", kind=""))
        await lab.waits(allocator, "ada")  # for the instance, although whole GPUs are free
        edit(tmp_path, "allow_full_gpu: true")
        await allocator.look()
        await asyncio.wait_for(task, 5)
        assert stranger in lab.host.containers

    async def test_a_lowered_limit_reaches_who_waits(self, lab: Lab, tmp_path: Path) -> None:
        """Whoever waits for what is not allowed any more is told so at the next look, and nobody else is."""
        limits = LimitsFile(edit(tmp_path, "max_gpu_slots_per_container: 2\n  max_gpu_equivalents: 2"))
        allocator = lab.allocator(limits=limits.limits, limits_revision=lambda: limits.policy)
        lab.host.start("train", ["all"])
        users = [f"user{n}" for n in range(2 * allocator_module._AT_A_TIME + 1)]  # more than one portion
        small = [asyncio.create_task(lab.launch(allocator, user)) for user in users]
        large = [asyncio.create_task(lab.launch(allocator, f"large {user}", 2)) for user in users]
        await lab.waits(allocator, f"large {users[-1]}")
        edit(tmp_path, "max_gpu_slots_per_container: 2\n  max_gpu_equivalents: 1")
        await allocator.look()
        done = await asyncio.wait_for(asyncio.gather(*large, return_exceptions=True), 5)
        for refused in done:
            assert isinstance(refused, LimitReached)
            assert "asked for 2 GPU-equivalents, and you may hold 1" in str(refused)
        assert not any(task.done() for task in small)
        for task in small:
            task.cancel()
        await asyncio.gather(*small, return_exceptions=True)

    async def test_a_bad_edit_changes_nothing_for_who_waits(self, lab: Lab, tmp_path: Path) -> None:
        """A file that cannot be used leaves the last good limits, and those who wait by them, as they are."""
        limits = LimitsFile(edit(tmp_path, "max_gpu_equivalents: 1"))
        allocator = lab.allocator(limits=limits.limits, limits_revision=lambda: limits.policy)
        stranger = lab.host.start("train", ["all"])
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        edit(tmp_path, "max_gpu_equivalents: nan")
        await allocator.look()
        assert limits.problem
        lab.host.remove(stranger)
        await allocator.look()
        await asyncio.wait_for(task, 5)

    async def test_any_kind_keeps_to_what_is_left(self, lab: Lab) -> None:
        """Who may have three sevenths and takes any device gets an instance, not a whole GPU."""
        lab.host.devices |= {device.uuid: device for device in mig(2, ["3g.20gb"])}
        allocator = lab.allocator(
            limits=lambda _u, _g: Limits(max_gpu_equivalents=Fraction(3, 7), max_gpu_slots_per_container=2)
        )
        async with lab.reserve(allocator, "ada", kind="") as reservation:
            assert [device.kind for device in reservation.devices] == ["3g.20gb"]
        with pytest.raises(LimitReached):
            await lab.launch(allocator, "ada", kind="", min_memory_bytes=30 * 2**30)
        with pytest.raises(LimitReached):  # one instance is too few, and two whole GPUs are too much
            await lab.launch(allocator, "ada", 2, kind="")
        stranger = lab.host.start("train", ["MIG-2-0"])
        task = asyncio.create_task(lab.launch(allocator, "bob", kind=""))
        await lab.waits(allocator, "bob")  # although whole GPUs are free
        lab.host.remove(stranger)
        await allocator.look()
        await asyncio.wait_for(task, 5)


class TestFailures:
    async def test_devices_that_were_never_readable_refuse_with_the_cause(self, lab: Lab) -> None:
        """Nobody waits for GPUs of which nothing is known."""
        lab.probe.failure = fake.nvml_does_not_answer
        with pytest.raises(DevicesUnavailable, match="The GPUs cannot be read"):
            await lab.launch(lab.allocator(), "ada")

    @pytest.mark.parametrize("failure", [*fake.FAILURES.values(), fake.the_probe_raises], ids=lambda f: f.__name__)
    async def test_nothing_is_granted_while_something_cannot_be_read(
        self, lab: Lab, failure: Callable[..., object]
    ) -> None:
        """Whoever asks meanwhile waits, is told why, and is served when it can be read again."""
        allocator = lab.allocator()
        await allocator.look()
        lab.probe.failure = failure
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        assert not task.done()
        assert lab.told[0][1].estimate is None
        lab.probe.failure = None
        await allocator.look()
        await asyncio.wait_for(task, 5)

    async def test_a_look_that_never_ends_is_given_up(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """A probe without a timeout of its own does not stop the hub."""
        monkeypatch.setattr(allocator_module, "LOOK_TIMEOUT_SECONDS", 0.01)
        lab.probe.gate = asyncio.Event()
        with pytest.raises(DevicesUnavailable):
            await lab.launch(lab.allocator(), "ada")

    async def test_a_defect_in_a_decision_is_heard_and_leaks_nothing(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever waits gets an error instead of waiting for ever, and what was granted before the defect is free."""
        allocator = lab.allocator()
        places = [allocation.place]

        def fail_at_the_second(*arguments: object) -> object:
            return places.pop()(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(allocation, "place", fail_at_the_second)
            tasks = [asyncio.create_task(lab.launch(allocator, user)) for user in ("ada", "bob")]
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [DevicesUnavailable] * 2
        assert isinstance(results[0].__cause__, IndexError)
        assert await free(allocator) == {"GPU-0", "GPU-1"}

    async def test_a_defect_in_telling_takes_nothing_from_who_was_served(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever got a device has it before anybody is told about places."""
        allocator = lab.allocator()

        def fail(*_arguments: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(allocation.Allocation, "tell", fail)
        tasks = [asyncio.create_task(lab.launch(allocator, user)) for user in ("ada", "bob", "eve")]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [str, str, DevicesUnavailable]

    async def test_a_sick_device_goes_to_nobody(self, lab: Lab) -> None:
        """The healthy one is granted, the other shows its reason."""
        lab.host.sicken("GPU-0", Health.UNKNOWN)
        allocator = lab.allocator()
        async with lab.reserve(allocator, "ada") as reservation:
            assert reservation.devices[0].uuid == "GPU-1"


class TestRestart:
    async def test_servers_live_on_with_their_devices(self, lab: Lab) -> None:
        """A new hub finds what the old one granted."""
        await lab.launch(lab.allocator(), "ada")
        again = lab.allocator()
        async with lab.reserve(again, "bob") as reservation:
            assert reservation.devices[0].uuid == "GPU-1"

    async def test_places_are_kept_for_a_quarter_of_an_hour(self, lab: Lab) -> None:
        """After a restart whoever asks again has the old place, whoever comes late has none."""
        store = TicketsInMemory()
        old = lab.allocator(ticket_store=store)
        lab.host.start("train", ["all"])
        tasks = [asyncio.create_task(lab.launch(old, user)) for user in ("ada", "bob", "eve")]
        await lab.waits(old, "eve")
        await old.close()  # as a hub does that ends: everything at once
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lab.told.clear()

        new = lab.allocator(ticket_store=store)
        tasks = [asyncio.create_task(lab.launch(new, user)) for user in ("eve", "bob")]
        await lab.waits(new, "bob")
        lab.clock.advance(16 * 60)
        tasks.append(asyncio.create_task(lab.launch(new, "ada")))
        await lab.waits(new, "ada")
        places = {user: waiting.place for user, waiting in lab.told}
        assert places == {"bob": 1, "eve": 2, "ada": 3}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_hub_that_is_shut_down_keeps_the_places(self, lab: Lab) -> None:
        """JupyterHub cancels every task at once when it ends; that is no cancel of a user."""
        store = TicketsInMemory()
        allocator = lab.allocator(ticket_store=store)
        lab.host.start("train", ["all"])
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        everything = [other for other in asyncio.all_tasks() if other is not asyncio.current_task()]
        for other in everything:
            other.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        assert task.cancelled()
        assert "ada" in store.text

    async def test_a_damaged_file_costs_the_places_only(self, lab: Lab, tmp_path: Path) -> None:
        """A ticket file that cannot be understood does not stop the hub."""
        path = tmp_path / "tickets.json"
        for damage in (b"", b"{", b"\xff\xfe", b"[]", b'{"version": 1}', b'{"version": 1, "at": NaN}'):
            path.write_bytes(damage)
            await lab.launch(lab.allocator(ticket_store=TicketFile(path)), "ada")
            await lab.retire(lab.allocators[-1], "ada")

    async def test_a_ticket_file_that_cannot_be_written_stops_nobody(self, lab: Lab, tmp_path: Path) -> None:
        """Places would be lost in a crash, and that is all."""
        await lab.launch(lab.allocator(ticket_store=TicketFile(tmp_path / "no folder" / "tickets")), "ada")

    def test_the_file_is_replaced_as_a_whole(self, tmp_path: Path) -> None:
        """What is read was written in one piece, and is for the hub only."""
        store = TicketFile(tmp_path / "tickets.json")
        assert store.read() is None
        store.write("one")
        store.write("two")
        assert store.read() == "two"
        assert [path.name for path in tmp_path.iterdir()] == ["tickets.json"]
        assert (tmp_path / "tickets.json").stat().st_mode & 0o777 == 0o600


class TestHostLock:
    async def test_nothing_is_granted_without_the_lock(self, lab: Lab) -> None:
        """Another allocator that never lets go means waiting, with the reason, not taking."""
        allocator = lab.allocator(host_lock=fake.HostLockThatIsTaken())
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await lab.waits(allocator, "ada")
        assert "held by another program" in lab.told[0][1].why
        assert not task.done()
        task.cancel()

    async def test_whoever_comes_during_a_look_without_the_lock_is_served_by_the_next_one_under_it(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page asks what is free, which takes no lock; nobody is granted a device by that look."""
        lock = fake.HostLockThatIsFree()
        allocator = lab.allocator(host_lock=lock)
        decided, decide = [], allocator._allocation.decide

        def watched(*arguments: object) -> allocation.Decision:
            decision = decide(*arguments)
            decided.append((len(decision.grants), lock.taken))
            return decision

        monkeypatch.setattr(allocator._allocation, "decide", watched)
        lab.probe.gate = asyncio.Event()
        page = asyncio.create_task(allocator.snapshot())
        await asyncio.sleep(0.01)
        task = asyncio.create_task(lab.launch(allocator, "ada"))
        await asyncio.sleep(0.01)
        lab.probe.gate.set()
        await asyncio.wait_for(asyncio.gather(page, task), 5)
        assert decided[:2] == [(0, False), (1, True)]
        assert lab.told == []

    async def test_no_container_is_created_on_a_look_that_could_not_read_everything(self, lab: Lab) -> None:
        """Another allocator may have taken the device, and would not be seen."""
        allocator = lab.allocator(host_lock=fake.HostLockThatIsFree())
        async with lab.reserve(allocator, "ada") as reservation:
            lab.probe.failure = fake.processes_cannot_be_listed
            with pytest.raises(DevicesUnavailable, match="Launch again"):
                async with reservation.creating():
                    pytest.fail("created")

    async def test_two_hubs_that_share_the_lock_never_share_a_device(self, lab: Lab, tmp_path: Path) -> None:
        """Ten launches of each of two hubs onto four devices: every container has one of its own."""
        lab.host.devices = {device.uuid: device for device in gpus(4)}
        hubs = [
            lab.allocator(hub=name, host_lock=HostLock(tmp_path / "gpu.lock"), recheck_seconds=0.01)
            for name in ("one", "two")
        ]

        async def launch(allocator: Allocator, hub: str, user: str) -> None:
            try:
                async with lab.reserve(allocator, user) as reservation:
                    await asyncio.sleep(0)
                    async with reservation.creating():
                        uuids = [device.uuid for device in reservation.devices]
                        reservation.bind(lab.host.start_server(Holder(user, "thesis"), uuids, hub=hub))
            except DevicesUnavailable:
                return  # the other hub was faster; a user launches again

        tasks = [
            asyncio.create_task(launch(allocator, hub, f"{hub}{n}"))
            for n in range(10)
            for allocator, hub in zip(hubs, ("one", "two"), strict=True)
        ]
        async with asyncio.timeout(10):
            while len(lab.host.containers) < 4:
                await asyncio.sleep(0.01)
                used = [uuid for container in lab.host.containers.values() for uuid in container.devices]
                assert len(used) == len(set(used))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_device_that_was_taken_meanwhile_is_not_used(self, lab: Lab, tmp_path: Path) -> None:
        """An allocator that chose in the meantime is seen before the container is created."""
        allocator = lab.allocator(host_lock=HostLock(tmp_path / "gpu.lock"))
        with pytest.raises(DevicesUnavailable, match="train"):  # noqa: PT012
            async with lab.reserve(allocator, "ada") as reservation:
                lab.host.start("train", [reservation.devices[0].uuid])
                async with reservation.creating():
                    pytest.fail("created on a device that somebody else uses")
        assert await free(allocator) == {"GPU-1"}

    async def test_the_lock_fails_closed(self, tmp_path: Path) -> None:
        """A lock that cannot be had in time, or at all, says so and lets nobody in."""
        path = tmp_path / "gpu.lock"
        async with HostLock(path).held():
            with pytest.raises(DevicesUnavailable, match=r"held .*gpu.lock for more than 0.05 s"):
                async with HostLock(path, timeout_seconds=0.05).held():
                    pytest.fail("entered")
        async with HostLock(path, timeout_seconds=0.05).held():
            pass
        with pytest.raises(DevicesUnavailable, match="cannot be opened"):
            async with HostLock(tmp_path / "no folder" / "lock").held():
                pytest.fail("entered")


class TestEvents:
    async def test_what_an_admin_should_know_is_in_the_log(self, lab: Lab) -> None:
        """Strangers, health, and what cannot be read are recorded when they change, and once each."""
        allocator = lab.allocator()
        await allocator.look()
        assert lab.recorded.events == []
        lab.host.start("train", ["0"], {"ds01.user": "eve"})
        lab.host.compute("GPU-1", owner="mallory")
        for _ in range(3):
            await allocator.look()
        lab.host.sicken("GPU-1")
        lab.probe.failure = fake.engine_does_not_answer
        for _ in range(3):
            await allocator.look()
        lab.probe.failure = None
        await allocator.look()
        assert [(kind, facts["why"]) for kind, facts in lab.recorded.events] == [
            ("detection.unmanaged_container", "Device 0: In use by container train of eve."),
            ("detection.host_gpu_process", "Device 1: In use by process 1002 of mallory outside every container."),
            ("health.check", "Docker Engine did not answer."),
            ("health.check", "Everything can be read again."),
            ("gpu.health_check", "Device 1 is unhealthy. Xid 79: fell off the bus."),
        ]

    async def test_a_container_that_vanished_is_a_release(self, lab: Lab) -> None:
        """However a lease ends, reports find how long it lasted."""
        allocator = lab.allocator()
        lab.host.remove(await lab.launch(allocator, "ada"))
        lab.clock.advance(60)
        await allocator.look()
        kind, facts = lab.recorded.events[-1]
        assert (kind, facts["user"], facts["held_seconds"]) == ("gpu.release", "ada", 60.0)

    async def test_every_kind_of_event_is_in_the_schema(self) -> None:
        """What the allocator writes, a report can read."""
        written = {"gpu.allocate", "gpu.release", "gpu.reject", "queue.enter", "queue.leave"}
        assert written | set(allocator_module._EVENTS.values()) <= set(KINDS)


class TestCopies:
    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
    async def test_an_allocator_is_never_copied(self, lab: Lab, duplicate: Callable[[object], object]) -> None:
        """A copy would grant every device a second time, and traitlets copies what is configured."""
        with pytest.raises(TypeError, match="cannot be copied"):
            duplicate(lab.allocator())

    async def test_a_bound_method_is_not_copied_either(self, lab: Lab) -> None:
        """The trap with a different face."""
        with pytest.raises(TypeError, match="cannot be copied"):
            copy.deepcopy(lab.allocator().release)


class TestSnapshot:
    async def test_a_page_sees_everything(self, lab: Lab) -> None:
        """Devices with state, leases, queue, what each user holds, and use."""
        lab.host.devices = {device.uuid: device for device in gpus(3)}
        lab.host.start("train", ["2"], {"ds01.user": "eve"})
        allocator = lab.allocator()
        await lab.launch(allocator, "ada", 2)
        task = asyncio.create_task(lab.launch(allocator, "bob"))
        await lab.waits(allocator, "bob")
        lab.clock.advance(1800)
        shown = await allocator.snapshot()
        assert [(status.device.uuid, str(status.state), status.owner) for status in shown.devices] == [
            ("GPU-0", "leased", ""),
            ("GPU-1", "leased", ""),
            ("GPU-2", "occupied", "eve"),
        ]
        assert [holder.user for holder, _ in shown.queue] == ["bob"]
        assert shown.holding["ada"][0].gpu_equivalents == 2
        assert shown.gpu_hours == {"ada": pytest.approx(1.0)}
        task.cancel()

    async def test_a_young_look_is_good_enough(self, lab: Lab) -> None:
        """Pages that are asked for often do not make the driver work each time, also when the clock is set back."""
        allocator = lab.allocator()
        await allocator.snapshot()
        await allocator.snapshot()
        assert lab.probe.looks == 1
        lab.clock.advance(-100)
        await allocator.snapshot()
        assert lab.probe.looks == 2


class Mixture:
    """Launches that end in every way, and who uses which device meanwhile."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        lab.host.devices = {device.uuid: device for device in (*gpus(3), *mig(3, ["3g.20gb", "3g.20gb"]))}
        limits = Limits(max_gpu_equivalents=Fraction(3), max_gpu_slots_per_container=3)
        self.allocator = lab.allocator(recheck_seconds=0.001, limits=lambda _u, _g: limits)
        self.lab, self.rng = lab, rng
        self.using: dict[str, str] = {}

    async def live(self, user: str) -> None:
        """Launch, fail or run for a while, and retire."""
        kind, count = self.rng.choice(("gpu", "gpu", "3g.20gb", "")), self.rng.choice((1, 1, 2, 3))
        async with self.lab.reserve(self.allocator, user, count, kind=kind) as reservation:
            uuids = [device.uuid for device in reservation.devices]
            for uuid in uuids:
                assert uuid not in self.using, f"{user} and {self.using[uuid]} share {uuid}"
                self.using[uuid] = user
            try:
                await self._run(user, reservation, uuids)
            finally:
                for uuid in uuids:
                    del self.using[uuid]
        await self.allocator.release(Holder(user, "thesis"))

    async def _run(self, user: str, reservation: Reservation, uuids: list[str]) -> None:
        await self.pass_turns(4)
        if self.rng.random() < 0.2:
            raise ZeroDivisionError
        container = self.lab.host.start_server(Holder(user, "thesis"), uuids)
        try:
            await self.pass_turns(2)
            reservation.bind(container)
            await self.pass_turns(30)
        finally:
            self.lab.host.remove(container)

    async def pass_turns(self, most: int) -> None:
        """Let the others go on for some turns of the loop."""
        for _ in range(self.rng.randrange(most)):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(15))
async def test_any_mixture_of_launches_cancels_and_ends_shares_no_device(lab: Lab, seed: int) -> None:
    """Launches that fail, are cancelled at any await, and end in any order never meet on a device and leak none."""
    rng = random.Random(seed)
    mixture = Mixture(lab, rng)
    tasks = [asyncio.create_task(mixture.live(f"user{n}")) for n in range(30)]
    while pending := [task for task in tasks if not task.done()]:
        await mixture.pass_turns(8)
        if rng.random() < 0.1:
            rng.choice(pending).cancel()
        lab.clock.advance(rng.choice((0, 1, 60)))
        mixture.allocator.validate()
        await asyncio.wait(pending, timeout=0.001)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    wrong = [r for r in results if r and not isinstance(r, ZeroDivisionError | asyncio.CancelledError | DS01Error)]
    assert wrong == []
    await mixture.allocator.look()
    assert await free(mixture.allocator) == set(lab.host.devices)
    assert (await mixture.allocator.snapshot()).queue == ()


async def test_who_holds_what_is_told_after_looks_that_read_everything(lab: Lab) -> None:
    """Found or launched, it is told; a partial look tells nothing, and a listener that fails harms nobody."""
    lab.host.start_server(Holder("found", "thesis"), ["GPU-0"], hub="lab")
    told: list[list[str]] = []

    def listen(holders: Iterable[Holder]) -> None:
        told.append(sorted(holder.user for holder in holders))
        raise ZeroDivisionError

    allocator = lab.allocator(on_whole_look=listen)
    await allocator.look()
    await lab.launch(allocator, "ada")
    async with lab.reserve(allocator, "reserving", 0, kind=""):
        await allocator.look()
    assert told[0] == ["found"]
    assert told[-1] == ["ada", "found"]
    lab.probe.failure = fake.processes_cannot_be_listed
    before = len(told)
    await allocator.look()
    assert len(told) == before
