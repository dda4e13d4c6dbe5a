"""Compares what an allocation decided with what the memory of the host says it must decide."""

from __future__ import annotations

from dataclasses import replace

from ds01_spawner.core.allocation import Allocation, Decision
from ds01_spawner.core.model import Holder, Request
from ds01_spawner.testing.hostmodel import Held, Memory, Seen, matches, require


class Checker:
    """Follows the decisions of one hub after another.

    Args:
        memory: what happened; it learns of grants and refusals here.

    Attributes:
        grants: how many there were.
        refusals: how many there were.
        passings: how often somebody was served before an earlier one who waits for such a device too.
        longest_wait: of those who were served, seconds.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.grants = self.refusals = self.passings = 0
        self.longest_wait = 0.0
        self._refused: dict[Holder, str] = {}

    def state(self, hub: Allocation) -> None:
        """Compare leases and queue.

        Raises:
            Violation: they differ.
        """
        hub.validate()
        said = {lease.holder: (set(lease.devices), lease.container_id) for lease in hub.ledger.leases}
        must = {h: (set(held.devices), held.container if held.bound else "") for h, held in self.memory.held.items()}
        require(said == must, f"leases are {said} and must be {must}")
        waiting = {entry.request.holder for entry in hub.entries}
        require(waiting == set(self.memory.asked), f"waiting are {waiting} and must be {set(self.memory.asked)}")

    def decision(self, decision: Decision, hub: Allocation, look: Seen, now: float) -> None:
        """Compare a decision, and note what it changes.

        Raises:
            Violation: somebody got what was not free or not his turn, or did not get what was.
        """
        free = self.memory.reconcile(look, now)
        self._check_refusals(decision, look)
        self._check_grants(decision, hub, free, now)

    def _check_refusals(self, decision: Decision, look: Seen) -> None:
        """Compare the refusals on admission; those at a grant follow in ``_check_grants``."""
        memory = self.memory
        whole = None not in (look.seen.devices, look.seen.containers, look.seen.processes)
        self._refused = {entry.request.holder: str(why) for entry, why in decision.refusals}
        self.refusals += len(self._refused)
        for holder, asked in list(memory.asked.items()):
            doomed = not memory.inventory_known
            if whole and not doomed:
                new = not asked.admitted
                doomed = new and (holder in memory.held or not memory.allows(asked.request, waiting_too=asked.sequence))
                doomed = doomed or not memory.possible(asked.request)
                asked.admitted = True
            if doomed:
                require(holder in self._refused, f"{asked} must be refused")
                del self._refused[holder]
                del memory.asked[holder]

    def _check_grants(self, decision: Decision, hub: Allocation, free: set[str], now: float) -> None:
        memory = self.memory
        granted = {grant.lease.holder: grant for grant in decision.grants}
        line = memory.line(now)
        exact = line is not None
        rest = set(free)
        blocked: list[Request] = []
        for holder in line or [*granted, *(set(memory.asked) - set(granted))]:
            request = memory.asked[holder].request
            allowed = holder not in memory.held and memory.allows(request, waiting_too=None)
            open_ = [u for u in rest if matches(request, memory.inventory[u]) and self._may(request, u)]
            undisputed = [u for u in open_ if not any(self._wants(b, u) for b in blocked)]
            kinds = {memory.inventory[u].kind for u in undisputed}
            enough = any(sum(memory.inventory[u].kind == k for u in undisputed) >= request.count for k in kinds)
            if grant := granted.get(holder):
                uuids = set(grant.lease.devices)
                require(uuids <= rest, f"{holder} was given {uuids}; free were {rest} of {free}")
                require(len(uuids) == request.count, f"{holder} was given {uuids} for {request}")
                require(uuids <= set(open_), f"{holder} was given {uuids} for {request}")
                require(allowed, f"{holder} was given {uuids} beyond the limits")
                if exact:
                    self._check_passing(holder, uuids, blocked, rest, now)
                rest -= {u for u in rest if any(memory.share_hardware(u, mine) for mine in uuids)}
                self._note_grant(holder, grant.lease.devices, now)
            elif holder in self._refused:
                require(not allowed, f"{request} was refused although allowed: {self._refused[holder]}")
                del memory.asked[holder]
            else:
                if exact and allowed:
                    require(not enough, f"{holder} waits for {request} although {undisputed} are free")
                blocked.append(request)
        require(set(hub.ledger.free) == rest, f"free are {set(hub.ledger.free)} and must be {rest}")

    def _may(self, request: Request, uuid: str) -> bool:
        """Whether the limits allow one more device of this size, for a request that takes any."""
        kind = self.memory.inventory[uuid].kind
        return self.memory.allows(replace(request, kind=kind), waiting_too=None)

    def _wants(self, request: Request, uuid: str) -> bool:
        """Whether somebody earlier could be served with a device, or with one that shares hardware with it."""
        inventory = self.memory.inventory
        return any(matches(request, d) and self.memory.share_hardware(uuid, d.uuid) for d in inventory.values())

    def _check_passing(
        self, holder: Holder, uuids: set[str], blocked: list[Request], free: set[str], now: float
    ) -> None:
        ends = now + (self.memory.limits[holder.user].max_runtime_seconds or 0.0)
        for request, start, times in self.memory.promises(blocked, free, now):
            wanted = [times[uuid] for uuid in uuids if request.kind and self._wants(request, uuid)]
            if wanted:
                self.passings += 1
                earliest = max(start, min(wanted))
                require(ends <= earliest, f"{holder} passes {request}, which could start at {earliest - now:+.0f} s")

    def _note_grant(self, holder: Holder, devices: tuple[str, ...], now: float) -> None:
        memory = self.memory
        asked = memory.asked.pop(holder)
        self.grants += 1
        self.longest_wait = max(self.longest_wait, now - asked.since)
        memory.held[holder] = Held(devices, now)
        memory.devices |= {uuid: memory.inventory[uuid] for uuid in devices}
