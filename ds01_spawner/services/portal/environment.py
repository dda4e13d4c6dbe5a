"""A project's environment: its Dockerfile, packages, builds and tags."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tornado.web import HTTPError

from ds01_spawner.core import overview, packages
from ds01_spawner.core.build import Outcome
from ds01_spawner.core.options import TAG
from ds01_spawner.core.packages import Packages
from ds01_spawner.core.project import Dockerfile, dockerfile_candidates, quoted, validate_tag
from ds01_spawner.errors import DS01Error, ImageRefused, InvalidOptions
from ds01_spawner.services.portal.base import Page, Project

TAIL_BYTES = 24 * 1024
LOG_BYTES = 5 * 2**20
BUILDING_MILLISECONDS = 1000
QUIET_MILLISECONDS = 6000
MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Recipe:
    """A project's Dockerfile as the page shows and saves it.

    Attributes:
        text: what the editor holds.
        digest: of what is on disk, empty where there is no file yet; a save on top of anything else is refused.
        path: where it is, relative to the home.
        exists: whether there is a file.
    """

    text: str
    digest: str
    path: PurePosixPath
    exists: bool


class ProjectWork(Page):
    """What all pages and actions of one project share."""

    async def show_project(self, project: Project, *, typed: dict[str, str] | None = None, problem: str = "") -> None:
        """Show the whole page.

        Args:
            project: which.
            typed: what was typed and could not be done, by field.
            problem: why.
        """
        typed = typed or {}
        recipe = await self.recipe(project)
        present = packages.read_block(recipe.text)
        lost = await asyncio.to_thread(self.parts.notes.read, self.person.name, project.name)
        missing = packages.missing(lost, recipe.text)
        self.show(
            "project.html",
            **await self.builds(project),
            recipe=recipe,
            text=typed.get("text", recipe.text),
            typed=typed,
            problem=problem,
            packages=present or Packages(),
            can_edit_packages=present is not None or packages.BEGIN not in recipe.text,
            lost=missing,
            lost_line=packages.describe(missing) if missing else "",
            tags=await self.tags(project),
            said=self.get_query_argument("said", ""),
            spawn=self.hub_link("spawn", self.person.name, project.server),
        )

    async def recipe(self, project: Project) -> Recipe:
        """Return the project's Dockerfile."""
        read = self.parts.workspaces.read_dockerfile
        found: Dockerfile | None = await self.parts.threads.run(self.person.name, read, project.account, project.name)
        own, shared = dockerfile_candidates(project.name)
        if found is None:
            return Recipe(f"FROM {self.parts.default_image}\n", "", own, exists=False)
        path = shared if found.origin == f"~/{shared}" else own
        text = found.text.decode("utf-8", "replace")
        return Recipe(text, hashlib.sha256(found.text).hexdigest(), path, exists=True)

    async def builds(self, project: Project) -> dict[str, Any]:
        """Return what the page says of the project's builds."""
        records, log = await asyncio.to_thread(self._read_builds, project)
        mine = self.parts.builds.running(project.repository)
        running = next((record for record in records if record.outcome is Outcome.BUILDING), None)
        is_building = mine is not None or running is not None
        now = self.parts.clock()
        return {
            "project": project,
            "records": [
                {
                    "id": record.id,
                    "outcome": record.outcome.value,
                    "when": overview.span(now - record.started_at) + " ago",
                    "took": overview.took((record.ended_at or now) - record.started_at),
                    "size": f"{record.image_bytes / MEGABYTE:,.0f} MB" if record.image_bytes else "",
                    "reason": record.reason,
                }
                for record in records
            ],
            "log": log,
            "mine": mine,
            "running": running,
            "is_building": is_building,
            "refusal": self.parts.builds.refusal(project.repository),
            "watch": self.hub_link("spawn-pending", self.person.name, project.server),
            "poll": BUILDING_MILLISECONDS if is_building else QUIET_MILLISECONDS,
        }

    def _read_builds(self, project: Project) -> tuple[tuple[Any, ...], str]:
        records = self.parts.records.list(project.repository)
        return records, self.parts.records.read_tail(project.repository, records[0].id, TAIL_BYTES) if records else ""

    async def tags(self, project: Project) -> list[dict[str, str]]:
        """Return the images that were kept, the newest first."""
        images = sorted(await self.parts.shelf.of_user(self.person.name), key=lambda image: -image.created)
        now = self.parts.clock()
        return [
            {
                "name": tag,
                "size": f"{image.size_bytes / MEGABYTE:,.0f} MB",
                "when": f"{overview.span(now - image.created)} ago",
            }
            for image in images
            for repository, _, tag in (reference.rpartition(":") for reference in sorted(image.references))
            if repository == project.repository
        ]

    # -- what all actions share ---------------------------------------------------------------------------------------

    async def save(self, project: Project, recipe: Recipe, text: str) -> None:
        """Write the Dockerfile, unless it is another one by now.

        Raises:
            InvalidOptions: it was changed elsewhere since the page was loaded.
            ProjectRefused: it cannot be written.
        """
        present = await self.recipe(project)
        if present.digest != recipe.digest:
            raise InvalidOptions(
                "The Dockerfile was changed elsewhere while you edited it. What you typed is below; the page "
                "now saves on top of the other version, so compare first."
            )
        write = self.parts.workspaces.write_file
        await self.parts.threads.run(self.person.name, write, project.account, recipe.path, text.encode())

    def build(self, project: Project, *, rebuild: bool = False) -> None:
        """Build the image, unless that is under way."""
        source = self.parts.images.source(project.account, self.person.name, project.name)
        self.parts.builds.start(source, rebuild=rebuild)

    def to_project(self, project: Project, said: str = "") -> None:
        """Go back to the project's page."""
        self.go("p", project.name, **({"said": said} if said else {}))


class ProjectPage(ProjectWork):
    """Shows one project."""

    async def get(self, name: str) -> None:
        """Show the page; with ``?part=builds`` or ``?part=tags`` only what changes on it."""
        project = await self.project(name)
        part = self.get_query_argument("part", "")
        if part == "tags":
            spawn = self.hub_link("spawn", self.person.name, project.server)
            self.show("tags.html", project=project, tags=await self.tags(project), typed={}, spawn=spawn)
            return
        if part == "builds":
            shown = await self.builds(project)
            self.set_header("X-Poll-Milliseconds", str(shown["poll"]))
            self.show("builds.html", **shown)
            return
        await self.show_project(project)


class SaveDockerfile(ProjectWork):
    """Saves the editor's text, and builds when that was asked for."""

    async def post(self, name: str) -> None:
        """Save."""
        project = await self.project(name)
        text = self.get_body_argument("text", "", strip=False).replace("\r\n", "\n")
        recipe = await self.recipe(project)
        loaded = Recipe(text, self.get_body_argument("digest", ""), recipe.path, recipe.exists)
        try:
            await self.save(project, loaded, text)
        except DS01Error as error:
            self.set_status(error.status)
            await self.show_project(project, typed={"text": text}, problem=str(error))
            return
        if self.get_body_argument("build", ""):
            self.build(project)
        self.to_project(project, "The Dockerfile was saved.")


class EditPackages(ProjectWork):
    """Adds packages to the Dockerfile's own block, or takes one out of it."""

    async def post(self, name: str) -> None:
        """Change the block and save."""
        project = await self.project(name)
        typed = {field: self.get_body_argument(field, "") for field in ("pip", "apt")}
        removed = self.get_body_argument("remove", "")
        try:
            recipe = await self.recipe(project)
            if removed:
                text, said = self._without(recipe.text, removed), f"{removed} was taken out."
            else:
                wanted = Packages(packages.parse_pip(typed["pip"]), packages.parse_apt(typed["apt"]))
                if not wanted:
                    raise InvalidOptions("Name at least one package.")
                text, said = packages.add(recipe.text, wanted), f"Added {', '.join((*wanted.pip, *wanted.apt))}."
            await self.save(project, recipe, text)
        except DS01Error as error:
            self.set_status(error.status)
            await self.show_project(project, typed=typed, problem=str(error))
            return
        if self.get_body_argument("build", ""):
            self.build(project)
        self.to_project(project, said)

    def _without(self, text: str, removed: str) -> str:
        present = packages.read_block(text)
        if present is None:
            raise InvalidOptions("The Dockerfile has no block of packages that this page could edit.")
        left = Packages(
            tuple(one for one in present.pip if one != removed), tuple(one for one in present.apt if one != removed)
        )
        return packages.write_block(text, left)


class BuildNow(ProjectWork):
    """Builds the image."""

    async def post(self, name: str) -> None:
        """Begin."""
        project = await self.project(name)
        self.build(project, rebuild=bool(self.get_body_argument("rebuild", "")))
        self.redirect(self.link("p", project.name) + "#builds", status=303)


class CancelBuild(ProjectWork):
    """Stops a build that was ordered here."""

    async def post(self, name: str) -> None:
        """Stop it."""
        project = await self.project(name)
        self.parts.builds.cancel(project.repository)
        self.redirect(self.link("p", project.name) + "#builds", status=303)


class BuildLog(ProjectWork):
    """The whole log of one build."""

    async def get(self, name: str, build: str) -> None:
        """Show it."""
        project = await self.project(name)
        records = await asyncio.to_thread(self.parts.records.list, project.repository)
        record = next((record for record in records if record.id == build), None)
        if record is None:
            raise HTTPError(404, "This project has no such build. It may be too old: the last twenty are kept.")
        part = await asyncio.to_thread(self.parts.records.read_log, project.repository, build)
        self.show("log.html", project=project, record=record, text=part.text)


class Tags(ProjectWork):
    """Keeps the present image under a name, or lets a name go."""

    async def post(self, name: str) -> None:
        """Do it."""
        project = await self.project(name)
        tag = self.get_body_argument("tag", "")
        try:
            said = await self._act(self.get_body_argument("act", ""))(project, validate_tag(tag))
        except DS01Error as error:
            self.set_status(error.status)
            await self.show_project(project, typed={"tag": tag}, problem=str(error))
            return
        self.to_project(project, said)

    def _act(self, act: str) -> Callable[[Project, str], Any]:
        acts = {"keep": self._keep, "delete": self._delete}
        if act not in acts:
            raise InvalidOptions(f"{quoted(act)} is nothing that can be done with a tag.")
        return acts[act]

    async def _keep(self, project: Project, tag: str) -> str:
        if tag in {entry["name"] for entry in await self.tags(project)}:
            raise ImageRefused(f"There is an image kept as “{tag}” already. Choose another name, or delete that one.")
        await self.parts.shelf.keep(project.repository, tag)
        return f"The present image is kept as “{tag}”."

    async def _delete(self, project: Project, tag: str) -> str:
        if tag == TAG.default:
            raise ImageRefused("“latest” is what the Dockerfile makes; only tags of your own can be deleted.")
        await self.parts.shelf.forget(project.repository, tag)
        return f"“{tag}” was deleted."
