"""Life on a host: people, hubs that crash, strangers, failing devices, and time, one small step after another.

Each step is drawn from a source of randomness, so hypothesis can shrink a failure and a long run needs only a seed.
After each step ``check`` compares the allocation with what ``hostmodel.Memory`` says must hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from ds01_spawner.core import labels, tickets
from ds01_spawner.core.allocation import Allocation
from ds01_spawner.core.expectation import IdleEnds
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Health, Holder, Observation, Request
from ds01_spawner.errors import DeviceRefused, LimitReached
from ds01_spawner.testing import devices as fake
from ds01_spawner.testing.devices import GIB
from ds01_spawner.testing.hostchecks import Checker
from ds01_spawner.testing.hostmodel import (
    Held,
    Memory,
    Seen,
    Violation,
    exactly,
    require,
)
from ds01_spawner.testing.hostworld import HostWorld, pick


class HostLife(HostWorld):
    """A host, its people, one hub, and everything that can happen to them.

    Args:
        rng: the source of randomness for the first state.
        users: how many people.
        gpus: how many GPUs, some of which are cut into instances.
        patience_seconds: see ``core.queue``.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        users: int = 4,
        gpus: int = 3,
        patience_seconds: float = 4 * 3600.0,
    ) -> None:
        super().__init__(rng, users=users, gpus=gpus)
        # One who may run for ten minutes only, one who is not retired for idleness, one who goes first, and others.
        common = Limits(
            max_gpu_equivalents=Fraction(2),
            max_gpu_slots_per_container=2,
            max_containers_per_user=3,
            idle_seconds=1800.0,
            max_runtime_seconds=7200.0,
        )
        special = (replace(common, max_runtime_seconds=600.0), replace(common, idle_seconds=None))
        limits = (*special, replace(common, priority=20), common)
        self.limits = {f"user{n}": limits[n % len(limits)] for n in range(users)}
        self.half_life = 24 * 3600.0
        self.patience = patience_seconds
        self.memory = Memory(self.limits, patience_seconds, self.half_life)
        self.checker = Checker(self.memory)
        self.text = ""
        self.pending: Seen | None = None
        self.looks = self.crashes = 0
        self._boot()

    # -- people -------------------------------------------------------------------------------------------------------

    def ask(self, rng: random.Random) -> None:
        """Somebody asks for devices."""
        kinds = sorted({device.kind for device in self.host.devices.values()})
        holder = rng.choice(self.holders)
        request = Request(
            holder,
            count=rng.choice((1, 1, 1, 2, 3)),
            kind=rng.choice((*kinds, *kinds, "", "1g.5gb")),
            min_memory_bytes=rng.choice((0, 0, 0, 10 * GIB, 30 * GIB)),
        )
        self.enter(request)

    def ask_again(self, rng: random.Random) -> None:
        """Somebody who waited when the hub died asks for the same."""
        if holder := pick(rng, sorted(self.memory.tickets)):
            self.enter(self.memory.tickets[holder][0])

    def enter(self, request: Request) -> None:
        """Put a request into the queue."""
        if request.holder in self.memory.asked:
            _expect(DeviceRefused, lambda: self.hub.enter(request, (), self.clock()))
            return
        self.hub.enter(request, (), self.clock())
        self.memory.ask(request, self.clock())

    def ask_for_a_cpu_server(self, rng: random.Random) -> None:
        """Somebody starts a server without a device; it is created and bound at once."""
        request = Request(rng.choice(self.holders))
        if self.memory.held.get(request.holder) or request.holder in self.memory.asked:
            return
        if not self.memory.allows(request, waiting_too=None):
            _expect(LimitReached, lambda: self.hub.reserve_nothing(request, (), self.clock()))
            return
        self.hub.reserve_nothing(request, (), self.clock())
        container = self._start_server(request.holder, ())
        self.hub.ledger.bind(request.holder, container)
        self.memory.held[request.holder] = Held((), self.clock(), container, bound=True, look=self.memory.looks)

    def cancel(self, rng: random.Random) -> None:
        """Somebody who waits gives up."""
        if holder := pick(rng, self.memory.asked):
            self.hub.leave(holder)
            del self.memory.asked[holder]
            self._save()

    def who_waits_runs_a_container(self, rng: random.Random) -> None:
        """Somebody who waits takes a device by the command line meanwhile, which counts towards his limits."""
        holder, device = pick(rng, self.memory.asked), pick(rng, self.host.devices)
        if holder and device:
            container = self.host.start(f"x{next(self.cuts)}", [device], {labels.USER: holder.user})
            self._note_container(container, holder.user, exactly(device))

    # -- the hub's launches -------------------------------------------------------------------------------------------

    def create(self, rng: random.Random) -> None:
        """A container is created for a reservation."""
        if holder := pick(rng, (h for h, held in self.memory.held.items() if not held.container)):
            held = self.memory.held[holder]
            held.container = self._start_server(holder, held.devices, state="created")

    def bind(self, rng: random.Random) -> None:
        """A created container runs and carries its lease."""
        if holder := pick(rng, (h for h, held in self.memory.held.items() if held.container and not held.bound)):
            held = self.memory.held[holder]
            if held.container in self.host.containers:
                self.host.set_state(held.container, "running")
            self.hub.ledger.bind(holder, held.container)
            held.bound, held.look = True, self.memory.looks

    def abandon(self, rng: random.Random) -> None:
        """A launch fails or is cancelled: its container goes first, unless the engine fails too, then the lease."""
        if holder := pick(rng, (h for h, held in self.memory.held.items() if not held.bound)):
            container = self.memory.held[holder].container
            if container in self.host.containers and rng.random() < 0.8:  # noqa: PLR2004
                self._remove(container, rng)
            self._release(holder)

    def retire(self, rng: random.Random) -> None:
        """A server is retired, and sometimes leaves a process or memory behind."""
        if holder := pick(rng, (h for h, held in self.memory.held.items() if held.bound)):
            container = self.memory.held[holder].container
            if container in self.host.containers:
                self._remove(container, rng)
            self._release(holder)

    def compute(self, rng: random.Random) -> None:
        """A server computes on a device of its own."""
        running = (h for h, held in self.memory.held.items() if held.devices and held.container in self.host.containers)
        if holder := pick(rng, running):
            held = self.memory.held[holder]
            device = rng.choice(held.devices)
            known = self.memory.device(device)
            on = known.parent if known and known.parent and rng.random() < 0.2 else device  # noqa: PLR2004
            self._process(on, held.container)

    # -- looks and crashes --------------------------------------------------------------------------------------------

    def begin_look(self, rng: random.Random) -> None:
        """The hub looks at the host, and what it sees is on its way."""
        if self.pending:
            return
        failing = rng.random() < 0.2  # noqa: PLR2004
        failure = fake.FAILURES[rng.choice(sorted(fake.FAILURES))] if failing else _see_everything
        self._begin_look(failure)

    def finish_look(self, rng: random.Random) -> None:
        """What was seen arrives and is decided on."""
        if self.pending:
            self._finish_look()

    def look(self, rng: random.Random) -> None:
        """The hub looks and decides with nothing in between."""
        self.finish_look(rng)
        self.begin_look(rng)
        self.finish_look(rng)

    def the_culler_passes(self, rng: random.Random) -> None:
        """The culler says when it will retire those servers that it could look at, or is away."""
        now, memory = self.clock(), self.memory
        memory.stops_at = now - rng.choice((0, 0, 60))
        watched = rng.sample(self.holders, len(self.holders) * 2 // 3)  # servers that have ended meanwhile, too
        memory.stops = {holder: now + rng.choice((-60, 300, 900, 1800, 9000)) for holder in watched}
        self.hub.idle_ends = IdleEnds(memory.stops_at, dict(memory.stops))
        if rng.random() < 0.2:  # noqa: PLR2004
            self._forget_the_culler()

    def crash(self, rng: random.Random) -> None:
        """The hub is killed and started again."""
        self.crashes += 1
        self._boot()

    # -- what admins decide --------------------------------------------------------------------------------------

    def an_admin_changes_limits(self, rng: random.Random) -> None:
        """Somebody may have more, or less, than before, and so may those who wait."""
        user = rng.choice(sorted(self.limits))
        amount = rng.choice((Fraction(1), Fraction(2)))
        self.limits[user] = replace(self.limits[user], max_gpu_equivalents=amount)
        for entry in self.hub.entries:
            self.hub.admit_again(entry)
            self.memory.asked[entry.request.holder].admitted = False

    # -- proof --------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare the allocation with the memory.

        Raises:
            Violation: they differ in something that matters.
        """
        self.checker.state(self.hub)

    def calm_down(self) -> None:
        """Let every disturbance end and everybody leave in time, and see that nothing is lost and nobody forgotten.

        Raises:
            Violation: somebody waits for what is free, or a device is free for nobody.
        """
        rng = random.Random(0)
        if self.pending:
            self._finish_look()
        ours = set(self._ours())
        for container in [c for c in self.host.containers if c not in ours]:
            self._remove(container, rng, clean=True)
        self.host.processes.clear()
        for uuid in list(self.dirty):
            self.host.memory_used_bytes[uuid] = 0
        self.dirty.clear()
        for device in list(self.host.devices):
            self.host.sicken(device, Health.HEALTHY)
        self._look_now()
        for _ in range(4 * len(self.holders)):
            for holder, held in list(self.memory.held.items()):
                if held.container in self.host.containers:
                    self._remove(held.container, rng, clean=True)
                self._release(holder)
            self._look_now()
            if not self.memory.asked and not self.memory.held:
                break
        for container in self._ours():
            self._remove(container, rng, clean=True)
        self._look_now()
        self._look_now()
        require(not self.memory.asked, f"{self.memory.asked} still wait although everybody left")
        require(not self.memory.held, f"{self.memory.held} still hold although everybody left")
        whole = {u for u, d in self.host.devices.items()}
        require(set(self.hub.ledger.free) == whole, f"free are {set(self.hub.ledger.free)} of {whole}")

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        remembered = tickets.decode(self.text) if self.text else None
        self.hub = Allocation(
            Ledger("lab"),
            limits=lambda user, _groups: self.limits[user],
            patience_seconds=self.patience,
            half_life_seconds=self.half_life,
            remembered=remembered,
            now=self.clock(),
        )
        self.pending = None
        self._forget_the_culler()
        self.memory.crash(self.clock())
        if not self.text:
            self.memory.charged_at = self.clock()

    def _forget_the_culler(self) -> None:
        self.hub.idle_ends = None
        self.memory.stops = {}

    def _save(self) -> None:
        self.text = self.hub.memory(self.clock())
        self.memory.save(self.clock())

    def _release(self, holder: Holder) -> None:
        self.hub.release(holder, self.clock())
        self.memory.end(holder, self.clock())

    def _begin_look(self, failure: Callable[[Observation], Observation]) -> None:
        self.memory.looks += 1
        host = self.host
        seen = failure(host.observation())
        unread = seen.devices is not None and not seen.memory_used_bytes
        self.pending = Seen(
            number=self.hub.ledger.begin_look(),
            seen=seen,
            means={container: self.means[container] for container in host.containers},
            owners={container: self.owners[container] for container in host.containers},
            processes=[self.reaches[process.pid] for process in host.processes],
            dirty=set(host.devices) if unread else set(self.dirty),
            ours=self._labelled(),
        )

    def _labelled(self) -> list[tuple[float, str, Holder, tuple[str, ...]]]:
        found = []
        for container in self._ours():
            text = self.host.containers[container].labels
            holder = Holder(text[labels.USER], text[labels.SERVER])
            uuids = tuple(uuid for uuid in text.get(labels.GPU_UUIDS, "").split(",") if uuid)
            decoded = labels.decode(text)
            found.append((decoded.created_at if decoded else 0.0, container, holder, uuids))
        return found

    def _look_now(self) -> None:
        self._begin_look(_see_everything)
        self._finish_look()

    def _finish_look(self) -> None:
        look, now = self.pending, self.clock()
        if look is None:
            return
        self.pending = None
        self.looks += 1
        decision = self.hub.decide(look.seen, look.number, now)
        self.checker.decision(decision, self.hub, look, now)
        self.hub.tell(now)
        self._save()


STEPS: dict[str, float] = {
    "ask": 10,
    "ask_again": 6,
    "ask_for_a_cpu_server": 2,
    "cancel": 2,
    "create": 8,
    "bind": 8,
    "abandon": 2,
    "retire": 6,
    "compute": 4,
    "begin_look": 3,
    "finish_look": 3,
    "look": 14,
    "who_waits_runs_a_container": 1,
    "the_culler_passes": 4,
    "crash": 1,
    "an_admin_changes_limits": 2,
    "time_passes": 8,
}
"""What people and hubs do, and how often."""

DISTURBANCES: dict[str, float] = {
    "vanish": 1,
    "a_stranger_starts_a_container": 2,
    "a_strangers_container_goes": 3,
    "a_process_starts": 2,
    "processes_end": 5,
    "a_stranger_forges_labels": 1,
    "a_device_fails": 1,
    "a_device_recovers": 3,
    "a_device_is_not_listed": 1,
    "an_admin_cuts_a_gpu": 1,
}
"""What happens to them, and how often."""


def steps(rng: random.Random, count: int, *, disturbed: bool) -> list[str]:
    """Return random steps; on an undisturbed host people mostly compete with each other."""
    share = 1.0 if disturbed else 0.1
    often = STEPS | {name: weight * share for name, weight in DISTURBANCES.items()}
    return rng.choices(list(often), list(often.values()), k=count)


def _see_everything(seen: Observation) -> Observation:
    return seen


def _expect(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise Violation(f"no {error.__name__}")
