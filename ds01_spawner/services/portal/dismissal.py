"""Taking a retirement off the pages of its user, who has seen it."""

from __future__ import annotations

import asyncio

from ds01_spawner.services.portal.base import Page


class DismissPage(Page):
    """Takes a retirement off its user's pages."""

    async def post(self) -> None:
        """Remember that it was seen; a later retirement is shown again, and one that is not shown needs nothing."""
        named = self.get_body_argument("project", strip=False), self.get_body_argument("at")
        shown = (await self.parts.board.look()).retired.get(self.person.name, ())
        for one in shown:
            if (one.project, str(one.at)) == named:
                await asyncio.to_thread(self.parts.dismissed.add, self.person.name, one.project, one.at)
        self.go()
