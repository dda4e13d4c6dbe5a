"""Retiring in the browser, from whichever page: one click, one question when something would be lost.

The hub's own pages lead here too.  A link can do no more than show the question; what retires is its form, which the
page's script sends at once when nothing would be lost and one of the site's own buttons was pressed.
"""

from __future__ import annotations

import asyncio

from ds01_spawner.adapters.hubservers import ServerRecord
from ds01_spawner.core.losses import Losses
from ds01_spawner.core.model import Holder
from ds01_spawner.core.project import server_name, validate_name
from ds01_spawner.services.portal.base import Page


class RetirePage(Page):
    """Retires a project's server."""

    async def get(self) -> None:
        """Ask, whatever would be lost; changes nothing."""
        name = validate_name(self.get_query_argument("project", strip=False))
        record = await self._running(name)
        if record is None:
            self.go(problem=f"{name} is not running.")
            return
        self.show("retire.html", project=name, losses=await self._losses(record))

    async def post(self) -> None:
        """Retire, or ask first when kernels compute or files outside the folder would go."""
        name = validate_name(self.get_body_argument("project", strip=False))
        record = await self._running(name)
        if record is None:
            self.go(problem=f"{name} is not running.")
            return
        losses = await self._losses(record)
        if losses and not self.get_body_argument("confirmed", ""):
            self.show("retire.html", project=name, losses=losses)
            return
        if losses.packages is not None:
            # Also when there are none: those of the container before are then no longer what went last.
            await asyncio.to_thread(self.parts.notes.write, self.person.name, name, losses.packages)
        await self.parts.hub.stop(self.person.name, record.name, self.person.token)
        self.parts.board.forget(self.person.name)
        self.go(retired=name)

    async def _running(self, project: str) -> ServerRecord | None:
        record = (await self.parts.hub.of(self.person.name)).get(server_name(project))
        return record if record is not None and (record.ready or record.pending) else None

    async def _losses(self, record: ServerRecord) -> Losses:
        if not record.ready:
            return Losses(packages=None)  # nobody has worked yet in one that starts
        return await self.parts.leaving.look(Holder(self.person.name, record.name))
