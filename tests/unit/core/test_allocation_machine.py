"""Random life on a host against a memory of its own; and bugs that are put in to see that they are caught."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ds01_spawner.core import allocation, claims, handover, ledger, queue, sight
from ds01_spawner.core.allocation import Allocation
from ds01_spawner.core.backfill import Table
from ds01_spawner.core.claims import Inventory
from ds01_spawner.core.expectation import Expectation
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.model import Health, LeaseState
from ds01_spawner.core.rules import Rules
from ds01_spawner.errors import LedgerBroken
from ds01_spawner.testing.hostlife import DISTURBANCES, STEPS, HostLife, steps
from ds01_spawner.testing.hostmodel import Violation

LIVES = 400  # the rarest bug shows in one life of a hundred; the first life that shows one ends the search
RANDOMS = st.randoms(use_true_random=False)


class AllocationMachine(RuleBasedStateMachine):
    """One host's life; every step is followed by a comparison with what must hold."""

    life: HostLife | None = None

    @initialize(rng=RANDOMS)
    def begin(self, rng: random.Random) -> None:
        """A host with some layout and a hub that starts on it."""
        self.life = HostLife(rng)

    @invariant()
    def holds(self) -> None:
        """Leases and queue are what they must be, and every rule of the ledger holds."""
        if self.life:
            self.life.check()

    def teardown(self) -> None:
        """When everybody has left, nothing is lost and nobody was forgotten."""
        if self.life:
            self.life.calm_down()


def _step(name: str) -> Callable[..., None]:
    def take(self: AllocationMachine, rng: random.Random) -> None:
        getattr(self.life, name)(rng)

    return rule(rng=RANDOMS)(take)


for _name, _weight in (STEPS | DISTURBANCES).items():
    for _n in range(int(min(_weight, 3))):  # hypothesis chooses rules evenly; what happens often is there more often
        setattr(AllocationMachine, f"{_name}_{_n}", _step(_name))


class TestAllocation(AllocationMachine.TestCase):
    """The machine, as far as it goes in an ordinary test run."""

    settings = settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


# -- bugs --------------------------------------------------------------------------------------------------------------


def strangers_containers_are_ignored(patch: Any) -> None:
    """Containers that the hub did not start count as nothing."""
    original = claims.occupants
    patch.setattr(claims, "occupants", lambda *a, **k: ({}, original(*a, **k)[1]))


def host_processes_are_ignored(patch: Any) -> None:
    """Whoever computes outside a container counts as nothing."""
    original = claims.occupants
    patch.setattr(claims, "occupants", lambda *a, **k: (original(*a, **k)[0], {}))


def index_claims_are_ignored(patch: Any) -> None:
    """Only UUIDs are understood as claims."""
    original = Inventory.resolve
    patch.setattr(Inventory, "resolve", lambda self, c: original(self, c) if "-" in c else frozenset())


def unknown_health_counts_as_healthy(patch: Any) -> None:
    """A device that could not be read is granted."""
    original = Inventory.__init__

    def lenient(self: Inventory, devices: Any = (), absent: Any = ()) -> None:
        well = [replace(d, health=Health.HEALTHY) if d.health is Health.UNKNOWN else d for d in devices]
        original(self, well, absent)

    patch.setattr(Inventory, "__init__", lenient)


def a_leased_device_is_offered_again(patch: Any) -> None:
    """A reservation does not take its device off the free list."""
    original = Ledger.reserve

    def reserve(self: Ledger, *arguments: Any) -> Any:
        free = dict(self._free)
        lease = original(self, *arguments)
        self._free = free
        return lease

    patch.setattr(Ledger, "reserve", reserve)


def a_look_drops_reservations(patch: Any) -> None:
    """A reservation whose container is not there yet is swept away."""
    original = Ledger.reconcile

    def reconcile(self: Ledger, seen: Any, look: int) -> Any:
        for lease in self.leases:
            if lease.state is LeaseState.RESERVED and seen.containers is not None:
                self.release(lease.holder, seen.at)
        return original(self, seen, look)

    patch.setattr(Ledger, "reconcile", reconcile)


def a_failed_look_frees(patch: Any) -> None:
    """A list of containers that could not be read counts as an empty one."""
    original = Ledger._end_vanished
    patch.setattr(
        Ledger,
        "reconcile",
        partial_first(Ledger.reconcile, lambda self, seen: original(self, replace(seen, containers=()), self._looks)),
    )


def partial_first(method: Any, before: Any) -> Any:
    """Return the method with something done before it when the engine could not be read."""

    def wrapped(self: Ledger, seen: Any, look: int) -> Any:
        if seen.containers is None and seen.devices is not None:
            before(self, seen)
        return method(self, seen, look)

    return wrapped


def a_look_from_before_the_binding_frees(patch: Any) -> None:
    """A list of containers that was read before the container existed ends its lease."""
    original = Ledger.bind

    def bind(self: Ledger, *arguments: Any) -> Any:
        lease = original(self, *arguments)
        self._entries[lease.holder].look = -1
        return lease

    patch.setattr(Ledger, "bind", bind)


def a_look_from_before_the_release_frees(patch: Any) -> None:
    """A device is granted on a look that was made while its last holder still had it."""
    patch.setattr(handover, "Departure", lambda holder, since, _look: sight.Departure(holder, since, -1))


def memory_in_use_is_ignored(patch: Any) -> None:
    """A device full of its last holder's data is granted."""
    original = sight._unclean
    patch.setattr(sight, "_unclean", lambda s, u, p, d: "" if "MiB" in (why := original(s, u, p, d)) else why)


def nothing_is_adopted(patch: Any) -> None:
    """A hub that starts again does not look for its containers."""
    patch.setattr(Ledger, "_adopt", lambda *_: [])


def adoption_takes_what_is_leased(patch: Any) -> None:
    """A container whose labels name a leased device is adopted all the same."""
    patch.setattr(Ledger, "_rival", lambda *_: None)


def other_hubs_containers_are_adopted(patch: Any) -> None:
    """The hub's name in the labels is not looked at."""
    original = ledger.labels.decode
    patch.setattr(ledger.labels, "decode", lambda text: (d := original(text)) and replace(d, hub="lab"))


def shared_hardware_is_ignored(patch: Any) -> None:
    """A GPU and the instances that are cut from it are granted side by side."""
    patch.setattr(Inventory, "overlapping", lambda *_: ())


def whoever_cancels_stays_in_the_queue(patch: Any) -> None:
    """A place is not given up, and what comes to it is lost."""
    patch.setattr(Allocation, "leave", lambda *_: None)


def nothing_is_kept_for_the_first(patch: Any) -> None:
    """A small request takes what a large one before it waits for."""
    patch.setattr(Table, "keep", lambda *_: None)


def kept_devices_are_lent_for_any_time(patch: Any) -> None:
    """A kept device is lent to somebody who may run past the start of whom it is kept for."""
    original = Table._set_apart
    patch.setattr(Table, "_set_apart", lambda self, device, until: original(self, device, until + 7200))


def an_idle_clock_that_is_not_known_stands_still(patch: Any) -> None:
    """A server that the culler says nothing about is not expected to end before its run limit."""
    patch.setattr(Expectation, "_soonest", lambda self, lease: self._ends_of(lease)[0])


def limits_are_not_checked_again(patch: Any) -> None:
    """What the user got while waiting is not counted."""
    original = Allocation._serve

    def serve(self: Allocation, queue: Any, table: Any, rules: Any, *results: Any) -> None:
        rules.check = lambda *_: None
        original(self, queue, table, rules, *results)

    patch.setattr(Allocation, "_serve", serve)


def changed_limits_are_not_heard(patch: Any) -> None:
    """Who waits is judged by the limits of when he asked, until it is his turn."""
    patch.setattr(Allocation, "admit_again", lambda *_: None)


def patience_is_ignored(patch: Any) -> None:
    """Whoever has waited longest has no more right than others."""
    original = queue.order
    patch.setattr(allocation, "order", lambda entries, use, now, _patience: original(entries, use, now, 1e18))


def use_does_not_count(patch: Any) -> None:
    """Who has used much goes before who has used little, if he asked first."""
    patch.setattr(allocation.DecayedUse, "hours", lambda *_: 0.0)


def places_are_lost_in_a_crash(patch: Any) -> None:
    """A hub that starts again gives everybody a new place."""
    original = Allocation.__init__

    def forgetful(self: Allocation, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self._tickets.clear()

    patch.setattr(Allocation, "__init__", forgetful)


def a_request_that_is_impossible_waits(patch: Any) -> None:
    """Nobody says no to five GPUs on a host of four."""
    patch.setattr(Rules, "refuse_impossible", lambda *_: None)


# Bugs that show only where people compete much: many people and few devices.
CROWDED = {"users": 5, "gpus": 2, "patience_seconds": 5400.0}

BUGS: tuple[Callable[[Any], None], ...] = (
    strangers_containers_are_ignored,
    host_processes_are_ignored,
    index_claims_are_ignored,
    unknown_health_counts_as_healthy,
    a_leased_device_is_offered_again,
    a_look_drops_reservations,
    a_failed_look_frees,
    a_look_from_before_the_binding_frees,
    a_look_from_before_the_release_frees,
    memory_in_use_is_ignored,
    nothing_is_adopted,
    adoption_takes_what_is_leased,
    other_hubs_containers_are_adopted,
    shared_hardware_is_ignored,
    whoever_cancels_stays_in_the_queue,
    nothing_is_kept_for_the_first,
    kept_devices_are_lent_for_any_time,
    an_idle_clock_that_is_not_known_stands_still,
    limits_are_not_checked_again,
    changed_limits_are_not_heard,
    patience_is_ignored,
    use_does_not_count,
    places_are_lost_in_a_crash,
    a_request_that_is_impossible_waits,
)


def _live(seed: int) -> None:
    """Live through one life; every other one is on a host where little happens but that many share few devices."""
    rng = random.Random(seed)
    crowded = seed % 2 == 1
    life = HostLife(rng, **CROWDED) if crowded else HostLife(rng, patience_seconds=7200.0)
    for step in steps(rng, 250, disturbed=not crowded):
        getattr(life, step)(rng)
        life.check()
    life.calm_down()


@pytest.mark.parametrize("bug", BUGS, ids=[bug.__name__ for bug in BUGS])
def test_a_bug_is_caught(bug: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some life on a host ends in a violation on an allocator with this bug in it."""
    bug(monkeypatch)
    for seed in range(LIVES):
        try:
            _live(seed)
        except (Violation, LedgerBroken):
            return
    pytest.fail(f"nobody noticed in {LIVES} lives of 250 steps")


def test_the_same_lives_are_in_order_without_a_bug() -> None:
    """What catches the bugs does not cry wolf."""
    for seed in range(LIVES):
        _live(seed)


def test_the_bugs_are_listed_in_the_docs() -> None:
    """What the page says is caught is what is put in here."""
    page = (Path(__file__).parents[3] / "docs" / "explanation" / "allocation.md").read_text("utf-8")
    table = page.partition("| Bug |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table] == [bug.__name__.replace("_", " ") for bug in BUGS]
