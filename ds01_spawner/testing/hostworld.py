"""A host as it is without any hub: containers of others, processes, devices that fail, and time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from ds01_spawner.core import labels
from ds01_spawner.core.model import Device, Health, Holder
from ds01_spawner.testing import devices as fake
from ds01_spawner.testing.devices import GIB, FakeClock, Host
from ds01_spawner.testing.hostmodel import Means, both, exactly, nothing, ways_to_claim

T = TypeVar("T")
LAYOUTS = (("3g.20gb", "3g.20gb"), ("2g.10gb", "2g.10gb", "1g.5gb"), ("7g.40gb",), ())


class HostWorld:
    """What happens on a host whatever the hub does.

    Args:
        rng: the source of randomness for the first state.
        users: how many people.
        gpus: how many GPUs, some of which are cut into instances.
    """

    def __init__(self, rng: random.Random, *, users: int, gpus: int) -> None:
        self.clock = FakeClock()
        self.host = Host.of((), self.clock)
        self.holders = [Holder(f"user{n}", name) for n in range(users) for name in ("thesis", "course")]
        self.means: dict[str, Means] = {}
        self.owners: dict[str, str] = {}
        self.reaches: dict[int, tuple[str, str]] = {}
        self.dirty: set[str] = set()
        self.away: dict[str, Device] = {}
        self.cuts = itertools.count()
        for number in range(gpus):
            self._cut(number, rng.choice(((), (), *LAYOUTS)), also_whole=rng.random() < 0.2)  # noqa: PLR2004

    # -- what others do -----------------------------------------------------------------------------------------------

    def vanish(self, rng: random.Random) -> None:
        """A container of the hub is removed behind its back."""
        if container := pick(rng, self._ours()):
            self._remove(container, rng)

    def a_stranger_starts_a_container(self, rng: random.Random) -> None:
        """Somebody runs a container that the hub did not start, with a claim in one of the many forms."""
        device = pick(rng, self.host.devices)
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
        if container := pick(rng, (c for c in self.host.containers if c not in ours)):
            self._remove(container, rng)

    def a_process_starts(self, rng: random.Random) -> None:
        """Somebody computes on the host itself."""
        if device := pick(rng, self.host.devices):
            self._process(device, "")

    def processes_end(self, rng: random.Random) -> None:
        """A process ends, or memory that was left behind is given back."""
        if self.host.processes and rng.random() < 0.7:  # noqa: PLR2004
            self.host.processes.remove(rng.choice(self.host.processes))
        if (dirty := pick(rng, sorted(self.dirty))) is not None:
            self.dirty.discard(dirty)
            self.host.memory_used_bytes[dirty] = 0

    def a_stranger_forges_labels(self, rng: random.Random) -> None:
        """Somebody gives a container the labels of this hub."""
        if device := pick(rng, self.host.devices):
            self._start_server(rng.choice(self.holders), (device,))

    # -- devices and time ---------------------------------------------------------------------------------------------

    def a_device_fails(self, rng: random.Random) -> None:
        """A device becomes unhealthy, or nobody can tell."""
        if device := pick(rng, self.host.devices):
            self.host.sicken(device, rng.choice((Health.UNHEALTHY, Health.UNKNOWN)))

    def a_device_recovers(self, rng: random.Random) -> None:
        """A device is healthy again, or is listed again."""
        for uuid, device in self.host.devices.items():
            if device.health is not Health.HEALTHY:
                self.host.sicken(uuid, Health.HEALTHY)
                return
        if back := pick(rng, sorted(self.away)):
            self.host.devices[back] = self.away.pop(back)

    def a_device_is_not_listed(self, rng: random.Random) -> None:
        """A device falls off the bus."""
        if uuid := pick(rng, self.host.devices):
            self.away[uuid] = self.host.devices.pop(uuid)

    def an_admin_cuts_a_gpu(self, rng: random.Random) -> None:
        """The MIG layout of a GPU changes, whoever holds it."""
        number = rng.choice(sorted({device.index.split(".")[0] for device in self.host.devices.values()} or {"0"}))
        for uuid, device in list(self.host.devices.items()):
            if device.index.split(".")[0] == number:
                del self.host.devices[uuid]
        self._cut(int(number), rng.choice(LAYOUTS), also_whole=rng.random() < 0.2)  # noqa: PLR2004

    def time_passes(self, rng: random.Random) -> None:
        """The clock goes on, or is set back."""
        self.clock.advance(rng.choice((1, 30, 300, 1800, 1800, 1800, -600)))

    # -- pieces -------------------------------------------------------------------------------------------------------

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


def pick(rng: random.Random, choices: Iterable[T]) -> T | None:
    """Return one of the choices, ``None`` when there are none."""
    options = list(choices)
    return rng.choice(options) if options else None
