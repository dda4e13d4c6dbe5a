"""Taking a retirement off the pages of its user, who has seen it."""

from __future__ import annotations

import asyncio

from tornado.web import HTTPError

from ds01_spawner.core.project import validate_name
from ds01_spawner.services.portal.base import Page


class DismissPage(Page):
    """Takes a retirement off its user's pages."""

    async def post(self) -> None:
        """Remember that it was seen; a later retirement is shown again."""
        name = validate_name(self.get_body_argument("project", strip=False))
        try:
            at = float(self.get_body_argument("at"))
        except ValueError:
            raise HTTPError(400, "The form does not say which retirement. Load the page again and repeat it.") from None
        seen = min(at, self.parts.clock())
        await asyncio.to_thread(self.parts.dismissed.add, self.person.name, name, seen)
        self.go()
