"""Life on a host: people, hubs that crash, strangers, failing devices, and time, one small step after another.

Each step is drawn from a source of randomness, so hypothesis can shrink a failure and a long run needs only a seed.
After each step ``check`` compares the allocation with what ``hostmodel.Memory`` says must hold.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

from ds01_spawner.core import labels, tickets
from ds01_spawner.core.allocation import Allocation
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Device, Health, Holder, Observation, Request
from ds01_spawner.errors import DeviceRefused, LimitReached
from ds01_spawner.testing import devices as fake
from ds01_spawner.testing.devices import GIB, FakeClock, Host
from ds01_spawner.testing.hostchecks import Checker
from ds01_spawner.testing.hostmodel import (
    Held,
    Means,
    Memory,
    Seen,
    Violation,
    both,
    exactly,
    nothing,
    require,
    ways_to_claim,
)

T = TypeVar("T")
LAYOUTS = (("3g.20gb", "3g.20gb"), ("2g.10gb", "2g.10gb", "1g.5gb"), ("7g.40gb",), ())


class HostLife:
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
        self.clock = FakeClock()
        self.host = Host.of((), self.clock)
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
        self.holders = [Holder(f"user{n}", name) for n in range(users) for name in ("thesis", "course")]
        self.means: dict[str, Means] = {}
        self.owners: dict[str, str] = {}
        self.reaches: dict[int, tuple[str, str]] = {}
        self.dirty: set[str] = set()
        self.away: dict[str, Device] = {}
        self.cuts = itertools.count()
        self.text = ""
        self.pending: Seen | None = None
        self.looks = self.crashes = 0
        for number in range(gpus):
            self._cut(number, rng.choice(((), (), *LAYOUTS)), also_whole=rng.random() < 0.2)  # noqa: PLR2004
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
        if holder := _pick(rng, sorted(self.memory.tickets)):
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
        if holder := _pick(rng, self.memory.asked):
            self.hub.leave(holder)
            del self.memory.asked[holder]
            self._save()

    # -- the hub's launches -------------------------------------------------------------------------------------------

    def create(self, rng: random.Random) -> None:
        """A container is created for a reservation."""
        if holder := _pick(rng, (h for h, held in self.memory.held.items() if not held.container)):
            held = self.memory.held[holder]
            held.container = self._start_server(holder, held.devices, state="created")

    def bind(self, rng: random.Random) -> None:
        """A created container runs and carries its lease."""
        if holder := _pick(rng, (h for h, held in self.memory.held.items() if held.container and not held.bound)):
            held = self.memory.held[holder]
            if held.container in self.host.containers:
                self.host.set_state(held.container, "running")
            self.hub.ledger.bind(holder, held.container)
            held.bound, held.look = True, self.memory.looks

    def abandon(self, rng: random.Random) -> None:
        """A launch fails or is cancelled: its container goes first, unless the engine fails too, then the lease."""
        if holder := _pick(rng, (h for h, held in self.memory.held.items() if not held.bound)):
            container = self.memory.held[holder].container
            if container in self.host.containers and rng.random() < 0.8:  # noqa: PLR2004
                self._remove(container, rng)
            self._release(holder)

    def retire(self, rng: random.Random) -> None:
        """A server is retired, and sometimes leaves a process or memory behind."""
        if holder := _pick(rng, (h for h, held in self.memory.held.items() if held.bound)):
            container = self.memory.held[holder].container
            if container in self.host.containers:
                self._remove(container, rng)
            self._release(holder)

    def compute(self, rng: random.Random) -> None:
        """A server computes on a device of its own."""
        running = (h for h, held in self.memory.held.items() if held.devices and held.container in self.host.containers)
        if holder := _pick(rng, running):
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

    def crash(self, rng: random.Random) -> None:
        """The hub is killed and started again."""
        self.crashes += 1
        self._boot()

    # -- what others do -----------------------------------------------------------------------------------------------

    def vanish(self, rng: random.Random) -> None:
        """A container of the hub is removed behind its back."""
        if container := _pick(rng, (c for c, o in self.owners.items() if c in self.host.containers and o in USERS)):
            self._remove(container, rng)

    def a_stranger_starts_a_container(self, rng: random.Random) -> None:
        """Somebody runs a container that the hub did not start, with a claim in one of the many forms."""
        device = _pick(rng, self.host.devices)
        if device is None:
            return
        known = self.host.devices[device]
        claim, means = rng.choice(ways_to_claim(known))
        labelled, owner = {}, ""
        state = rng.choice(("running", "running", "created", "paused", "restarting", "exited"))
        way = rng.choice(("plain", "plain", "user", "command line", "other hub"))
        if way == "other hub":
            holder = rng.choice(self.holders)
            container = self.host.start_server(holder, [device], hub="other", state=state)
            self._note_container(container, f"{holder.user}", exactly(device))
            return
        if way != "plain":
            owner = rng.choice(self.holders).user
            labelled = {labels.USER: owner}
        if way == "command line":
            labelled[labels.GPU_UUIDS] = device
            means = both(means, exactly(device))
        container = self.host.start(f"x{next(self.cuts)}", [claim], labelled, state=state)
        self._note_container(container, owner, nothing if state == "exited" and way != "command line" else means)

    def a_strangers_container_goes(self, rng: random.Random) -> None:
        """A stranger's container is removed."""
        ours = set(self._ours())
        if container := _pick(rng, (c for c in self.host.containers if c not in ours)):
            self._remove(container, rng)

    def a_process_starts(self, rng: random.Random) -> None:
        """Somebody computes on the host itself."""
        if device := _pick(rng, self.host.devices):
            self._process(device, "")

    def processes_end(self, rng: random.Random) -> None:
        """A process ends, or memory that was left behind is given back."""
        if self.host.processes and rng.random() < 0.7:  # noqa: PLR2004
            self.host.processes.remove(rng.choice(self.host.processes))
        if (dirty := _pick(rng, sorted(self.dirty))) is not None:
            self.dirty.discard(dirty)
            self.host.memory_used_bytes[dirty] = 0

    def a_stranger_forges_labels(self, rng: random.Random) -> None:
        """Somebody gives a container the labels of this hub."""
        if device := _pick(rng, self.host.devices):
            self._start_server(rng.choice(self.holders), (device,))

    # -- devices and time ---------------------------------------------------------------------------------------------

    def a_device_fails(self, rng: random.Random) -> None:
        """A device becomes unhealthy, or nobody can tell."""
        if device := _pick(rng, self.host.devices):
            self.host.sicken(device, rng.choice((Health.UNHEALTHY, Health.UNKNOWN)))

    def a_device_recovers(self, rng: random.Random) -> None:
        """A device is healthy again, or is listed again."""
        for uuid, device in self.host.devices.items():
            if device.health is not Health.HEALTHY:
                self.host.sicken(uuid, Health.HEALTHY)
                return
        if back := _pick(rng, sorted(self.away)):
            self.host.devices[back] = self.away.pop(back)

    def a_device_is_not_listed(self, rng: random.Random) -> None:
        """A device falls off the bus."""
        if uuid := _pick(rng, self.host.devices):
            self.away[uuid] = self.host.devices.pop(uuid)

    def an_admin_cuts_a_gpu(self, rng: random.Random) -> None:
        """The MIG layout of a GPU changes, whoever holds it."""
        number = rng.choice(sorted({device.index.split(".")[0] for device in self.host.devices.values()} or {"0"}))
        for uuid, device in list(self.host.devices.items()):
            if device.index.split(".")[0] == number:
                del self.host.devices[uuid]
        self._cut(int(number), rng.choice(LAYOUTS), also_whole=rng.random() < 0.2)  # noqa: PLR2004

    def an_admin_changes_limits(self, rng: random.Random) -> None:
        """Somebody may have more, or less, than before; who waits is not asked again until it is his turn."""
        user = rng.choice(sorted(self.limits))
        amount = rng.choice((Fraction(1), Fraction(2)))
        self.limits[user] = replace(self.limits[user], max_gpu_equivalents=amount)
        self.hub.refresh_limits()

    def time_passes(self, rng: random.Random) -> None:
        """The clock goes on, or is set back."""
        self.clock.advance(rng.choice((1, 30, 300, 1800, 1800, 1800, -600)))

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
        self.memory.crash(self.clock())
        if not self.text:
            self.memory.charged_at = self.clock()

    def _save(self) -> None:
        self.text = self.hub.memory(self.clock())
        self.memory.save(self.clock())

    def _release(self, holder: Holder) -> None:
        self.hub.release(holder, self.clock())
        self.memory.end(holder, self.clock())

    def _ours(self) -> list[str]:
        return [c for c, found in self.host.containers.items() if found.labels.get(labels.HUB) == "lab"]

    def _start_server(self, holder: Holder, devices: Sequence[str], *, state: str = "running") -> str:
        container = self.host.start_server(holder, devices, state=state)
        self._note_container(container, holder.user, exactly(*devices))
        return container

    def _note_container(self, container: str, owner: str, means: Means) -> None:
        self.owners[container], self.means[container] = owner, means

    def _process(self, device: str, container: str) -> None:
        process = self.host.compute(device, container=container)
        self.reaches[process.pid] = (device, container)

    def _remove(self, container: str, rng: random.Random, *, clean: bool = False) -> None:
        """Remove a container; now and then its process or its memory stays for a while."""
        left = list(self.host.processes)
        self.host.remove(container)
        devices = [u for u in self.means.pop(container)(dict(self.host.devices)) if u in self.host.devices]
        del self.owners[container]
        if clean or rng.random() < 0.7 or not devices:  # noqa: PLR2004
            return
        if rng.random() < 0.5:  # noqa: PLR2004
            self.host.processes = left
            return
        device = rng.choice(sorted(devices))
        self.dirty.add(device)
        self.host.memory_used_bytes[device] = 5 * GIB

    def _cut(self, number: int, profiles: Sequence[str], *, also_whole: bool) -> None:
        cut = next(self.cuts)
        whole = replace(fake.gpus(number + 1)[number], uuid=f"GPU-{number}")
        instances = [
            replace(device, uuid=f"MIG-{number}.{cut}-{n}") for n, device in enumerate(fake.mig(number, profiles))
        ]
        for device in (*([whole] if also_whole or not instances else []), *instances):
            self.host.devices[device.uuid] = device

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


USERS = frozenset(f"user{n}" for n in range(100))

STEPS: dict[str, int] = {
    "ask": 10,
    "ask_again": 4,
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
    "crash": 1,
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
    "an_admin_changes_limits": 1,
    "time_passes": 8,
}


def _see_everything(seen: Observation) -> Observation:
    return seen


def _pick(rng: random.Random, choices: Iterable[T]) -> T | None:
    options = list(choices)
    return rng.choice(options) if options else None


def _expect(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise Violation(f"no {error.__name__}")
