"""How long one decision takes: reconcile a look, refuse what cannot be, put the queue in order, place who can start.

    python bench/allocate.py [--json] [--rounds 21]

Rows are devices x waiting.  "full" is a host on which everything is held; "freed" is the same host right after one
device in eight was released, so that people are placed; "telling" is what follows a decision without holding up anybody
who was served: place and estimate for everybody who still waits.  Times are processor time, because a decision does
nothing but compute and a busy machine would add its own waits.  --json prints one object as the last line:
{"decision_ms": {"64x100": 0.7, ...}}, medians of the slower of the two.

    python bench/allocate.py --steps 1000000 [--seed 1]

lives through that many random steps on made-up hosts instead (people, strangers, crashes, failing devices, MIG changes,
time) and counts what must never happen: a device given twice, a device lost, somebody forgotten.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter

from ds01_spawner.core.allocation import Allocation
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder, Request
from ds01_spawner.errors import LedgerBroken
from ds01_spawner.testing.devices import FakeClock, Host, gpus
from ds01_spawner.testing.hostlife import HostLife, steps
from ds01_spawner.testing.hostmodel import Violation

DEVICES = (8, 64, 1024)
WAITING = (0, 100, 10_000)
LIMITS = Limits(max_gpu_equivalents=None, max_gpu_slots_per_container=None, max_containers_per_user=None)


def decide(devices: int, waiting: int, *, freed: bool) -> tuple[float, float]:
    """Return the seconds that one decision and the telling take on a fresh host."""
    clock = FakeClock()
    host = Host.of(gpus(devices), clock)
    for n, uuid in enumerate(list(host.devices)):
        host.start_server(Holder(f"holder{n}", "p"), [uuid])
    allocation = Allocation(Ledger("lab"), limits=lambda _u, _g: LIMITS, now=clock())
    look = allocation.ledger.begin_look()
    allocation.decide(host.observation(), look, clock())
    for n in range(waiting):
        allocation.use._hours[f"user{n}"] = float(n % 7)  # noqa: SLF001
        allocation.enter(Request(Holder(f"user{n}", "p"), 1 + (n % 10 == 9), "gpu"), (), clock())
    look = allocation.ledger.begin_look()
    allocation.decide(host.observation(), look, clock())  # admits everybody
    if freed:
        for identity, container in list(host.containers.items())[::8]:
            host.remove(identity)
            user = container.name.partition("._.")[2]
            allocation.release(Holder(user, "p"), clock())
    clock.advance(10)
    seen = host.observation()
    began = time.process_time()
    look = allocation.ledger.begin_look()
    decision = allocation.decide(seen, look, clock())
    took = time.process_time() - began
    began = time.process_time()
    allocation.tell(clock())
    telling = time.process_time() - began
    expected = min(devices // 8, waiting) if freed else 0
    if waiting and bool(decision.grants) != bool(expected):
        raise SystemExit(f"{len(decision.grants)} were served, which cannot be")
    return took, telling


def measure(rounds: int) -> dict[str, float]:
    """Print the table and return the medians in milliseconds."""
    medians: dict[str, float] = {}
    print(f"{'devices':>8} {'waiting':>8} {'full ms':>9} {'freed ms':>9} {'telling ms':>11}")
    for devices in DEVICES:
        for waiting in WAITING:
            times = [
                (*decide(devices, waiting, freed=False), *decide(devices, waiting, freed=True)) for _ in range(rounds)
            ]
            full, telling, freed, _ = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
            medians[f"{devices}x{waiting}"] = round(max(full, freed), 3)
            print(f"{devices:8} {waiting:8} {full:9.3f} {freed:9.3f} {telling:11.3f}", flush=True)
    return medians


def live(many: int, seed: int) -> bool:
    """Live through random steps on one host after another; return whether nothing forbidden happened."""
    done, lives, counts = 0, 0, Counter[str]()
    longest = 0.0
    began = time.perf_counter()
    while done < many:
        rng = random.Random(f"{seed}:{lives}")
        lives += 1
        try:
            life = HostLife(
                rng, users=rng.randint(2, 8), gpus=rng.randint(1, 5), patience_seconds=rng.choice((900.0, 7200.0))
            )
            for step in steps(rng, min(1000, many - done), disturbed=rng.random() < 0.5):
                getattr(life, step)(rng)
                life.check()
                done += 1
            life.calm_down()
        except (Violation, LedgerBroken) as violation:
            counts["violations"] += 1
            print(f"life {seed}:{lives - 1}: {violation}")
        counts += Counter(
            grants=life.checker.grants, refusals=life.checker.refusals, looks=life.looks, crashes=life.crashes
        )
        longest = max(longest, life.checker.longest_wait)
        if lives % 100 == 0:
            print(f"{done:9} steps, {dict(counts)}, {time.perf_counter() - began:.0f} s", flush=True)
    wrong = counts["violations"]
    print(
        f"{done} steps in {lives} lives: {counts['looks']} looks, {counts['grants']} grants,"
        f" {counts['refusals']} refusals, {counts['crashes']} crashes of the hub; longest wait {longest / 3600:.1f} h;"
        f" double grants, leaks and people forgotten: {wrong}"
    )
    return not wrong


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the medians as the last line")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=0, help="live through so many random steps instead")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.steps:
        raise SystemExit(0 if live(options.steps, options.seed) else 1)
    medians = measure(options.rounds)
    if options.json:
        print(json.dumps({"decision_ms": medians}))


if __name__ == "__main__":
    main()
