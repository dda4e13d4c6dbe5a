"""Retiring from the portal: one click, one question when something would be lost."""

from __future__ import annotations

import asyncio

from ds01_spawner.core.model import Holder
from ds01_spawner.core.project import server_name, validate_name
from ds01_spawner.services.portal.base import Page


class RetirePage(Page):
    """Retires a project's server."""

    async def post(self) -> None:
        """Retire, or ask first when kernels compute or files outside the folder would go."""
        name = validate_name(self.get_body_argument("project", strip=False))
        server = server_name(name)
        running = (await self.parts.board.look()).servers.get(self.person.name, {})
        if server not in running:
            self.go(problem=f"{name} is not running.")
            return
        losses = await self.parts.leaving.look(Holder(self.person.name, server))
        if losses and not self.get_body_argument("confirmed", ""):
            self.show("retire.html", project=name, losses=losses)
            return
        if losses.packages:
            await asyncio.to_thread(self.parts.notes.write, self.person.name, name, losses.packages)
        await self.parts.hub.stop(self.person.name, server, self.person.token)
        self.parts.board.forget(self.person.name)
        self.go(retired=name)
