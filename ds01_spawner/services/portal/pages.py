"""My projects: the page that everybody sees after login."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from jupyterhub.utils import url_path_join

from ds01_spawner.adapters.hosttime import time_of_day
from ds01_spawner.adapters.hubservers import ServerRecord
from ds01_spawner.core import overview, packages, retirements
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import Source
from ds01_spawner.core.idleclock import IdleClock, read_clock
from ds01_spawner.core.model import Holder
from ds01_spawner.core.overview import Row, ServerSeen, Standing, State
from ds01_spawner.core.project import Dockerfile, server_name
from ds01_spawner.core.retirements import Retirement
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.portal.base import Page
from ds01_spawner.services.portal.board import FRESH_SECONDS, STOPPED_SECONDS, Look

BUSY_MILLISECONDS = 1500
QUIET_MILLISECONDS = 5000


class ProjectsPage(Page):
    """Every project of the person, what it is doing, and what can be done with it."""

    async def get(self) -> None:
        """Show the page; with ``?part=rows`` only what changes on it."""
        is_part = self.get_query_argument("part", "") == "rows"
        # A page that is loaded, after a launch that failed at once for example, tells what is true now.
        shown = await self._observe(STOPPED_SECONDS if is_part else FRESH_SECONDS)
        if is_part:
            self.set_header("X-Poll-Milliseconds", str(shown["poll"]))
            self.show("rows.html", **shown)
            return
        self.show("projects.html", **shown, **self._notices())

    def _notices(self) -> dict[str, str]:
        return {key: self.get_query_argument(key, "") for key in ("retired", "created", "problem")}

    async def _observe(self, max_age_seconds: float) -> dict[str, Any]:
        parts, person = self.parts, self.person
        problem = ""
        names: tuple[str, ...] = ()
        dockerfiles: dict[str, Dockerfile | None] = {}
        standings: dict[str, Standing] = {}
        look, stopped = await asyncio.gather(parts.board.look(), parts.board.stopped(person.name, max_age_seconds))
        try:
            account = await self.account()
            names, dockerfiles = await parts.threads.run(person.name, self._read_projects, account)
            standings = await self._standings(account, names, dockerfiles)
        except DS01Error as error:
            problem = str(error)
        rows = await asyncio.to_thread(self._rows, names, standings, look, stopped)
        told = await asyncio.to_thread(self._told, look, dockerfiles)
        limits = await asyncio.to_thread(parts.limits, person.name, person.groups)
        holding = look.snapshot.holding.get(person.name, ()) if look.snapshot else ()
        return {
            "rows": rows,
            "retirements": told,
            "open": self._open_links(look),
            "spawn": {row.name: self.hub_link("spawn", person.name, row.server) for row in rows},
            "watch": {row.name: self.hub_link("spawn-pending", person.name, row.server) for row in rows},
            "free": overview.free_by_kind(look.snapshot.devices) if look.snapshot else None,
            "waiting": look.queue,
            "uses": overview.describe_use(limits, holding),
            "limits": overview.describe_limits(limits),
            "group": limits.group,
            "has_no_project": not rows and not problem,
            "problems": [text for text in (problem, *look.problems) if text],
            "poll": BUSY_MILLISECONDS if any(row.is_busy for row in rows) else QUIET_MILLISECONDS,
            "states": State,
            "standing": Standing,
        }

    def _read_projects(self, account: Account) -> tuple[tuple[str, ...], dict[str, Dockerfile | None]]:
        workspaces = self.parts.workspaces
        names = workspaces.list_projects(account)
        found: dict[str, Dockerfile | None] = {}
        for name in names:
            try:
                found[name] = workspaces.read_dockerfile(account, name)
            except DS01Error:
                continue  # the environment page says why
        return names, found

    async def _standings(
        self, account: Account, names: tuple[str, ...], dockerfiles: dict[str, Dockerfile | None]
    ) -> dict[str, Standing]:
        sources = [self._source(account, name) for name in names]
        images: dict[str, str] = {}
        for image in await self.parts.shelf.of_user(self.person.name):
            for reference in image.references:
                repository, _, tag = reference.rpartition(":")
                if tag == "latest":
                    images[repository] = image.id
        return await self.parts.standings.of(sources, dockerfiles, images)

    def _told(self, look: Look, dockerfiles: dict[str, Dockerfile | None]) -> list[tuple[Retirement, tuple[str, ...]]]:
        """Return the retirements to tell of, each with the packages that went with it and are not in its image yet."""
        user, parts = self.person.name, self.parts
        shown = retirements.choose(
            look.retired.get(user, ()),
            active=look.servers.get(user, {}),
            dismissed=parts.dismissed.__contains__,
            now=look.at,
        )
        return [(one, self._lost(one.project, dockerfiles.get(one.project))) for one in shown]

    def _lost(self, project: str, dockerfile: Dockerfile | None) -> tuple[str, ...]:
        text = dockerfile.text.decode("utf-8", "replace") if dockerfile else ""
        return packages.missing(self.parts.notes.read(self.person.name, project), text)

    def _source(self, account: Account, name: str) -> Source:
        return self.parts.images.source(account, self.person.name, name)

    def _rows(
        self, names: tuple[str, ...], standings: dict[str, Standing], look: Look, stopped: dict[str, ServerRecord]
    ) -> list[Row]:
        return [self._row(name, standings.get(name, Standing.UNKNOWN), look, stopped) for name in names]

    def _row(self, name: str, standing: Standing, look: Look, stopped: dict[str, ServerRecord]) -> Row:
        server = server_name(name)
        holder = Holder(self.person.name, server)
        record = look.servers.get(self.person.name, {}).get(server)
        last = record or stopped.get(server)
        seen = ServerSeen(record.ready, record.pending, record.last_activity) if record else None
        failure = last.failure if last and not record else ""
        newest = self.parts.records.newest(self.parts.images.repository(self.person.name, name))
        watched = look.clocks.get(holder) if seen else None
        clock = read_clock(watched, lambda at: time_of_day(at, look.at)) if watched else IdleClock()
        return Row(
            name=name,
            server=server,
            state=overview.state_of(
                seen,
                is_waiting=any(ticket.request.holder == holder for ticket in look.queue),
                build=newest.outcome if newest else "",
                has_failed=bool(failure),
            ),
            image=standing,
            devices=overview.describe_held(look.snapshot.devices, holder) if look.snapshot else "",
            clock=clock,
            failure=failure,
            last_used=overview.ago(last.last_activity, look.at) if last and last.last_activity else "",
        )

    def _open_links(self, look: Look) -> dict[str, str]:
        base = url_path_join(self.parts.hub_prefix.removesuffix("hub/"), "user", self.person.path)
        return {name: url_path_join(base, quote(name)) + "/" for name in look.servers.get(self.person.name, {})}


class Health(Page):
    """Whether the portal answers: for the hub, which asks before anybody is logged in."""

    async def prepare(self) -> None:
        """Ask for nobody."""

    def get(self) -> None:
        """Say that it does."""
        self.finish("ok")
