"""Hands out the devices of this host: one allocator per hub, whose steps never overlap.

A request enters the queue; one task looks at the host, decides (``core.allocation``), and wakes whoever got something.
It looks again after every release and every cancel, and now and then by itself, because containers of others come and
go, and admins edit limits, without telling anybody.  Forty requests that arrive together are served by one look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from ds01_spawner.core import tickets
from ds01_spawner.core.allocation import HALF_LIFE_SECONDS, Allocation, Decision, Grant, Snapshot
from ds01_spawner.core.expectation import IdleEnds
from ds01_spawner.core.ledger import MEMORY_TOLERANCE_BYTES, REPORT_AFTER_SECONDS, Ledger
from ds01_spawner.core.model import Device, Holder, Lease, LeaseState, Observation, Request
from ds01_spawner.core.queue import PATIENCE_SECONDS, Entry, Estimate, Waiting
from ds01_spawner.core.rules import LimitsOf
from ds01_spawner.core.sight import Change
from ds01_spawner.core.tickets import Remembered
from ds01_spawner.errors import DevicesUnavailable, DS01Error, LedgerBroken
from ds01_spawner.looker import Looker

log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
LOOK_TIMEOUT_SECONDS = 60.0
SAVE_SECONDS = 300.0

# What is done for everybody who waits is done for so many at a time, in a few milliseconds: the hub serves its pages
# from the same loop.
_AT_A_TIME = 50

_EVENTS = {
    "set-aside": "gpu.set_aside",
    "returned": "gpu.health_check",
    "health": "gpu.health_check",
    "occupied-by-container": "detection.unmanaged_container",
    "occupied-by-process": "detection.host_gpu_process",
    "notice": "health.check",
    "sight": "health.check",
}


class TicketStore(Protocol):
    """A small text that outlives the hub."""

    def read(self) -> str | None:
        """Return the text, ``None`` when there is none."""

    def write(self, text: str) -> None:
        """Replace the text at once: a reader sees the old one or the new one."""


class HostLock(Protocol):
    """A lock that every allocator of this host takes before it chooses a device."""

    def held(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock for a block.

        Raises:
            DevicesUnavailable: somebody else held it for too long; the block is not entered.
        """


class Reservation:
    """Devices of one launch, its own until the block is left, or for the container's life once bound.

    Attributes:
        devices: what was granted, in the order in which the container sees them; none on a CPU server.
        lease: the lease as it is now.
    """

    def __init__(self, allocator: Allocator, lease: Lease, devices: tuple[Device, ...]) -> None:
        self._allocator = allocator
        self.lease = lease
        self.devices = devices

    def bind(self, container_id: str) -> None:
        """Note that this container carries the lease from now on."""
        self.lease = self._allocator._bind(self.lease, container_id)  # noqa: SLF001  one piece with the allocator

    def creating(self) -> AbstractAsyncContextManager[None]:
        """Guard the creation of the container against other allocators of this host.

        With a host lock the block runs under it, and begins with a look that shows the devices still unclaimed; an
        allocator that chooses next sees the container.  Without one it guards nothing.

        Raises:
            DevicesUnavailable: another program took a device in the meantime, or the lock could not be had.
        """
        return self._allocator._creating(self.lease)  # noqa: SLF001


@dataclass(slots=True, eq=False)
class _Waiter:
    entry: Entry
    granted: asyncio.Future[Grant]
    on_wait: Callable[[Waiting], None]
    told: Waiting | None = field(default=None)


class Allocator:
    """The devices of one host, for one hub.

    Args:
        hub: this hub's name in the labels.
        observe: makes a look at the host that begins after the call; what it cannot read is ``None``.
        clock: seconds since the epoch.
        record: writes an event: ``record(kind, user=…, server=…, **facts)``.
        placement: ``packed``, ``spread`` or ``affinity``.
        limits: a user's limits by login name and groups; ``None`` when the site has none.
        limits_revision: returns the same object for as long as nobody's limits were changed.
        idle_ends: returns what the culler says of idle servers, for estimates; ``None`` while it says nothing.
        on_whole_look: told, after each look that read everything, who holds a lease that a container carries.
        ticket_store: keeps places in the queue over a restart of the hub.
        host_lock: shared with other allocators of this host.
        patience_seconds: after this long a request goes before every later one.
        half_life_seconds: of the GPU-hours that decide between equals.
        recheck_seconds: how often to look while somebody waits or a device is set aside.
        memory_tolerance_bytes: see ``Ledger``.
        report_after_seconds: see ``Ledger``.
        infrastructure: see ``Ledger``.
    """

    def __init__(
        self,
        *,
        hub: str,
        observe: Callable[[], Awaitable[Observation]],
        clock: Callable[[], float],
        record: Callable[..., None],
        placement: str = "packed",
        limits: LimitsOf | None = None,
        limits_revision: Callable[[], object] = lambda: None,
        idle_ends: Callable[[], Awaitable[IdleEnds | None]] | None = None,
        on_whole_look: Callable[[Iterable[Holder]], None] = lambda _: None,
        ticket_store: TicketStore | None = None,
        host_lock: HostLock | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        half_life_seconds: float = HALF_LIFE_SECONDS,
        recheck_seconds: float = 10.0,
        memory_tolerance_bytes: int = MEMORY_TOLERANCE_BYTES,
        report_after_seconds: float = REPORT_AFTER_SECONDS,
        infrastructure: Iterable[str] = (),
    ) -> None:
        self._observe = observe
        self._clock = clock
        self._record = record
        self._ticket_store = ticket_store
        self._host_lock = host_lock
        self._idle_ends = idle_ends
        self._on_whole_look = on_whole_look
        self._limits_revision = limits_revision
        self._revision = limits_revision()
        self._recheck_seconds = recheck_seconds
        self._ledger = Ledger(
            hub,
            memory_tolerance_bytes=memory_tolerance_bytes,
            report_after_seconds=report_after_seconds,
            infrastructure=infrastructure,
        )
        self._allocation = Allocation(
            self._ledger,
            placement=placement,
            limits=limits,
            patience_seconds=patience_seconds,
            half_life_seconds=half_life_seconds,
            remembered=self._recall(),
            now=clock(),
        )
        self._waiters: dict[Holder, _Waiter] = {}
        self._looker = Looker(self._evaluate, self._pause, self._refuse_all)
        self._looking = asyncio.Lock()
        self._looked_at: float | None = None
        self._saved: tuple[int, ...] = ()
        self._saved_at: float | None = None

    def __deepcopy__(self, memo: Any) -> NoReturn:
        """Refuse: a copy would grant every device a second time.

        traitlets copies configuration values into each spawner; hand the allocator over in a closure or as a class
        attribute.
        """
        raise TypeError(
            "The allocator cannot be copied: a copy would grant every device a second time."
            " Hand it to spawners in a closure or as a class attribute, not as a configuration value."
        )

    def __copy__(self) -> NoReturn:
        """Refuse, as ``__deepcopy__`` does."""
        self.__deepcopy__(None)

    def __reduce__(self) -> NoReturn:
        """Refuse, as ``__deepcopy__`` does."""
        self.__deepcopy__(None)

    # -- for the spawner ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def reservation(
        self, request: Request, *, on_wait: Callable[[Waiting], None], groups: Iterable[str] = ()
    ) -> AsyncIterator[Reservation]:
        """Reserve what is asked for, waiting in the queue while it is not free.

        Leaving the block without ``bind``, or by an exception, releases the devices: make sure before that the
        container is gone.

        Args:
            request: what is asked for.
            on_wait: is called with the place in the queue, first when the wait begins and whenever it changes.
            groups: the user's groups at the hub.

        Raises:
            Refusal: the request can never be granted, or not to this user; the text says why.
            DevicesUnavailable: no device of this host was ever readable.
        """
        reservation = await self._obtain(request, tuple(groups), on_wait)
        try:
            yield reservation
        except BaseException:
            self._end(reservation.lease, "launch ended early")
            raise
        if reservation.lease.state is LeaseState.RESERVED:
            self._end(reservation.lease, "not used")

    async def release(self, holder: Holder) -> None:
        """End the holder's lease; none is no error.  Call it once the container is proven gone."""
        lease = self._ledger.lease_of(holder)
        if lease:
            self._end(lease, "retired")

    async def look(self) -> None:
        """Return after a look that began after this call, and everything that follows from it."""
        await asyncio.shield(self._looker.ask())

    async def snapshot(self, max_age_seconds: float = 5.0) -> Snapshot:
        """Return what is held, occupied and waited for, by a look that is not older than this."""
        age = None if self._looked_at is None else self._clock() - self._looked_at
        if age is None or not 0 <= age <= max_age_seconds:
            await self.look()
        return self._allocation.snapshot()

    def expected_starts(self) -> dict[str, Estimate | None]:
        """Return, as of the last look, when somebody who asks for one device of a kind now would get it."""
        return self._allocation.expected_starts(self._clock())

    def validate(self) -> None:
        """Derive every rule of the ledger and the queue again.

        Raises:
            LedgerBroken: one does not hold.
        """
        self._allocation.validate()
        waiting = {holder for holder, waiter in self._waiters.items() if not waiter.granted.done()}
        strangers = waiting - {entry.request.holder for entry in self._allocation.entries}
        if strangers:
            raise LedgerBroken(f"{strangers} wait for ever: they are not in the queue.")

    async def close(self) -> None:
        """Stop looking.  Leases and places in the queue are left as they are for the next hub."""
        await self._looker.close()

    # -- one launch ---------------------------------------------------------------------------------------------------

    async def _obtain(
        self, request: Request, groups: tuple[str, ...], on_wait: Callable[[Waiting], None]
    ) -> Reservation:
        holder, began = request.holder, self._clock()
        devices: tuple[Device, ...] = ()
        try:
            if request.count == 0:
                lease = await self._reserve_nothing(request, groups)
            else:
                grant = await self._wait(request, groups, on_wait)
                lease, devices = grant.lease, grant.devices
        except DS01Error as refusal:
            self._note("gpu.reject", user=holder.user, server=holder.server, reason=refusal.reason, text=str(refusal))
            raise
        if devices:
            self._note(
                "gpu.allocate",
                user=holder.user,
                server=holder.server,
                devices=lease.devices,
                kind=devices[0].kind,
                gpu_equivalents=sum(device.gpu_equivalents for device in devices),
                waited_seconds=round(self._clock() - began, 1),
            )
        return Reservation(self, lease, devices)

    async def _reserve_nothing(self, request: Request, groups: tuple[str, ...]) -> Lease:
        age = None if self._looked_at is None else self._clock() - self._looked_at
        if age is None or not 0 <= age <= QUIET_SECONDS or self._ledger.lease_of(request.holder):
            await self.look()
        return self._allocation.reserve_nothing(request, groups, self._clock())

    async def _wait(self, request: Request, groups: tuple[str, ...], on_wait: Callable[[Waiting], None]) -> Grant:
        holder = request.holder
        entry = self._allocation.enter(request, groups, self._clock())
        waiter = _Waiter(entry, asyncio.get_running_loop().create_future(), on_wait)
        self._waiters[holder] = waiter
        self._looker.ask()
        outcome = "cancelled"
        try:
            grant = await waiter.granted
            outcome = "granted"
        except asyncio.CancelledError:
            # The grant may have come in the same turn of the loop as the cancel.
            if not waiter.granted.cancelled() and not waiter.granted.exception():
                self._end(waiter.granted.result().lease, "cancelled")
            raise
        except DS01Error:
            outcome = "refused"
            raise
        finally:
            del self._waiters[holder]
            if not (outcome == "cancelled" and self._looker.ending):
                self._allocation.leave(holder)
                self._save()
            if waiter.told:
                waited = round(self._clock() - entry.since, 1)
                self._note(
                    "queue.leave", user=holder.user, server=holder.server, outcome=outcome, waited_seconds=waited
                )
            if outcome == "cancelled" and not self._looker.ending:
                self._looker.ask()  # what was kept for it is for others now
        return grant

    def _bind(self, lease: Lease, container_id: str) -> Lease:
        self._require_current(lease)
        return self._ledger.bind(lease.holder, container_id)

    def _end(self, lease: Lease, why: str) -> None:
        """End a lease unless it has ended, or been followed by another of the same holder."""
        current = self._ledger.lease_of(lease.holder)
        if current is None or current.number != lease.number:
            return
        now = self._clock()
        self._allocation.release(lease.holder, now)
        self._record_release(lease, now, why)
        if lease.devices and not self._looker.ending:
            self._looker.ask()

    @asynccontextmanager
    async def _creating(self, lease: Lease) -> AsyncIterator[None]:
        async with self._host_lock.held() if self._host_lock else nullcontext():
            if self._host_lock and lease.devices:
                await self._evaluate(withheld="A container is being created.", locked=True)
                self._require_current(lease)
                taken = [self._ledger.judged[uuid] for uuid in lease.devices if self._ledger.judged[uuid].reason]
                if taken or not self._ledger.whole:
                    why = taken[0].reason if taken else self._ledger.seen.problem
                    raise DevicesUnavailable(f"The device cannot be used after all: {why} Launch again.")
            yield

    def _require_current(self, lease: Lease) -> None:
        current = self._ledger.lease_of(lease.holder)
        if current is None or current.number != lease.number:
            raise LedgerBroken(f"{lease} has ended.")

    # -- looking ------------------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        return self._recheck_seconds if self._allocation.waits or self._ledger.settling else QUIET_SECONDS

    async def _evaluate(self, withheld: str = "", *, locked: bool = False) -> None:
        # The host lock is taken before ours: whoever creates a container holds it and needs a look.
        async with AsyncExitStack() as locks:
            held = locked or self._host_lock is None
            if self._host_lock and self._waiters and not locked:
                try:
                    await locks.enter_async_context(self._host_lock.held())
                    held = True
                except DevicesUnavailable as error:
                    withheld = str(error)
            async with self._looking:
                await self._heed_limits()
                look = self._ledger.begin_look()
                self._allocation.idle_ends = await self._read_idle_ends()
                seen = await self._see()
                # Whoever came during a look that nobody waited for has asked for the next one, which takes the lock.
                early = bool(self._waiters) and not (held or withheld)
                why = "The lock of this host's GPUs is taken first." if early else withheld
                decision = self._allocation.decide(seen, look, self._clock(), why)
                self._looked_at = self._clock()
                self._carry_out(decision)
                if not locked:
                    if not early:
                        await self._tell_all()
                    self._tell_of_holders()

    async def _heed_limits(self) -> None:
        """Once the limits were changed, let everybody who waits be judged by the new ones."""
        revision = self._limits_revision()
        if revision is self._revision:
            return
        self._revision = revision
        for number, entry in enumerate(self._allocation.entries, 1):
            self._allocation.admit_again(entry)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    async def _read_idle_ends(self) -> IdleEnds | None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_SECONDS):
                return await self._idle_ends() if self._idle_ends else None
        except Exception:  # estimates know run limits only, then; nobody's device waits for the culler's file
            log.warning("When idle servers end is not known", exc_info=True)
            return None

    async def _see(self) -> Observation:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_SECONDS):
                return await self._observe()
        except Exception as error:  # a failed look is a look that saw nothing, whatever failed
            log.warning("The host could not be looked at: %s", error, exc_info=not isinstance(error, DS01Error))
            problem = str(error) if isinstance(error, DS01Error) else f"{type(error).__name__}: {error}"
            return Observation(at=self._clock(), devices=None, containers=None, processes=None, problem=problem)

    def _carry_out(self, decision: Decision) -> None:
        # First what others wait for, then what may fail.
        for grant in decision.grants:
            waiter = self._waiters.get(grant.lease.holder)
            if waiter is None or waiter.entry is not grant.entry or waiter.granted.done():
                self._end(grant.lease, "cancelled")
            else:
                waiter.granted.set_result(grant)
        for entry, refusal in decision.refusals:
            waiter = self._waiters.get(entry.request.holder)
            if waiter and waiter.entry is entry and not waiter.granted.done():
                waiter.granted.set_exception(refusal)
        for change in decision.changes:
            self._report(change)
        self._save()

    async def _tell_all(self) -> None:
        for number, (holder, waiting) in enumerate(self._allocation.tell(self._clock()).items(), 1):
            waiter = self._waiters.get(holder)
            if waiter and waiter.entry.request is waiting.request and not waiter.granted.done():
                self._tell(waiter, waiting)
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _tell_of_holders(self) -> None:
        if self._ledger.whole:
            try:
                self._on_whole_look(lease.holder for lease in self._ledger.leases if lease.state is LeaseState.BOUND)
            except Exception:
                log.exception("Nobody was told who holds what")

    def _tell(self, waiter: _Waiter, waiting: Waiting) -> None:
        holder = waiter.entry.request.holder
        if waiter.told is None:
            self._note("queue.enter", user=holder.user, server=holder.server, place=waiting.place, wants=waiting.wants)
        elif waiter.told.sentence == waiting.sentence:
            return
        waiter.told = waiting
        try:
            waiter.on_wait(waiting)
        except Exception:
            log.exception("Telling %s about the queue failed", holder.user)

    def _refuse_all(self, error: Exception) -> None:
        """Tell everybody who waits that no decision can be made: waiting for one would be for ever."""
        for waiter in self._waiters.values():
            if not waiter.granted.done():
                refusal = DevicesUnavailable("No device can be granted: the allocator failed. Tell an administrator.")
                refusal.__cause__ = error
                waiter.granted.set_exception(refusal)

    def _report(self, change: Change) -> None:
        holder = change.holder or Holder("", "")
        log.warning("%s %s/%s: %s", change.kind, holder.user, holder.server, change.text)
        if change.lease:
            self._record_release(change.lease, self._clock(), change.text)
        elif event := _EVENTS.get(change.kind):
            facts = {"server": holder.server} if change.holder else {}
            self._note(event, user=holder.user, **facts, devices=change.devices, why=change.text)

    def _record_release(self, lease: Lease, now: float, why: str) -> None:
        if lease.devices:
            self._note(
                "gpu.release",
                user=lease.holder.user,
                server=lease.holder.server,
                devices=lease.devices,
                held_seconds=round(now - lease.since, 1),
                why=why,
            )

    def _note(self, event: str, /, **facts: Any) -> None:
        """Write an event; a log that fails stops no launch."""
        try:
            self._record(event, **facts)
        except Exception:
            log.exception("Event %s is lost", event)

    # -- tickets ------------------------------------------------------------------------------------------------------

    def _recall(self) -> Remembered | None:
        try:
            text = self._ticket_store.read() if self._ticket_store else None
            return tickets.decode(text) if text else None
        except (OSError, ValueError) as error:
            log.warning("Places in the queue are lost, because their file cannot be read: %s", error)
            return None

    def _save(self) -> None:
        now = self._clock()
        places = tuple(sorted(entry.sequence for entry in self._allocation.entries))
        old = self._saved_at is None or not 0 <= now - self._saved_at < SAVE_SECONDS
        if self._ticket_store is None or not (old or places != self._saved):
            return
        self._saved, self._saved_at = places, now
        try:
            self._ticket_store.write(self._allocation.memory(now))
        except OSError as error:
            log.warning("Places in the queue would not outlive the hub, their file cannot be written: %s", error)
