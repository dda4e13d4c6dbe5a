"""The GPU board, for admins: every device, who has it and why, who waits, and what is wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tornado.web import HTTPError

from ds01_spawner.adapters.hosttime import time_of_day
from ds01_spawner.adapters.limitsfile import LimitsFile
from ds01_spawner.core import overview
from ds01_spawner.core.idleclock import IdleClock, read_clock
from ds01_spawner.core.model import DeviceStatus
from ds01_spawner.core.queue import describe_request
from ds01_spawner.core.tickets import Ticket
from ds01_spawner.services.portal.base import Page
from ds01_spawner.services.portal.board import Look

POLL_MILLISECONDS = 5000


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device on the board.

    Attributes:
        name: its index and product name.
        kind: ``"GPU"`` or the MIG profile, and its memory.
        state: what it is to somebody who wants one.
        whose: who holds or occupies it; empty when nobody is known to.
        why: why it is not free, or what is wrong although it is leased.
        clock: what the culler says of the server that holds it.
    """

    name: str
    kind: str
    state: str
    whose: str
    why: str
    clock: str


@dataclass(frozen=True, slots=True)
class WaitRow:
    """Somebody who waits."""

    whose: str
    wants: str
    waited: str


class DevicesPage(Page):
    """What the allocator sees."""

    title = "GPUs"

    async def prepare(self) -> None:
        """Let admins in, and nobody else."""
        await super().prepare()
        if not self._finished and not self.person.is_admin:
            raise HTTPError(403, "Only administrators see this page. What you may use is on My projects.")

    async def get(self) -> None:
        """Show the board; with ``?part=board`` only what changes on it."""
        look, limits_file = await asyncio.gather(
            self.parts.board.look(), asyncio.to_thread(_read_again, self.parts.limits_file)
        )
        shown = {**describe(look), "limits_file": limits_file, "poll": POLL_MILLISECONDS}
        self.show("board.html" if self.get_query_argument("part", "") == "board" else "gpus.html", **shown)


def describe(look: Look) -> dict[str, Any]:
    """Return what the board shows of a look."""
    snapshot = look.snapshot
    return {
        "devices": [_device_row(status, look) for status in snapshot.devices] if snapshot else [],
        "waiting": [_wait_row(ticket, look.at) for ticket in look.queue],
        "problems": look.problems,
        "notices": snapshot.notices if snapshot else (),
    }


def _read_again(limits_file: LimitsFile | None) -> dict[str, Any]:
    return {"problem": limits_file.problem, "notes": limits_file.notes} if limits_file else {}


def _device_row(status: DeviceStatus, look: Look) -> DeviceRow:
    device, holder = status.device, status.holder
    watched = look.clocks.get(holder) if holder else None
    clock = read_clock(watched, lambda at: time_of_day(at, look.at)) if watched else IdleClock()
    return DeviceRow(
        name=f"{device.index} {device.name}".strip(),
        kind=f"{device.mig_profile or 'GPU'}, {device.memory_bytes / 2**30:.0f} GiB",
        state=str(status.state),
        whose=f"{holder.user} / {holder.server}" if holder else status.owner,
        why=status.reason,
        clock=" ".join(text for text in (*clock.lines, clock.warning) if text),
    )


def _wait_row(ticket: Ticket, now: float) -> WaitRow:
    request = ticket.request
    return WaitRow(
        f"{request.holder.user} / {request.holder.server}", describe_request(request), overview.span(now - ticket.since)
    )
