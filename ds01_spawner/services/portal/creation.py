"""New project: what may be chosen, and the order in which its folder comes to be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from ds01_spawner.adapters import gitclone
from ds01_spawner.adapters.projectimages import BASE_DESCRIPTION, BASE_NAME
from ds01_spawner.core import packages, scaffold
from ds01_spawner.core.account import Account
from ds01_spawner.core.packages import Packages
from ds01_spawner.core.project import project_path, validate_name
from ds01_spawner.core.scaffold import Base, Plan
from ds01_spawner.errors import DS01Error, InvalidOptions, ProjectRefused
from ds01_spawner.services.portal.base import Page
from ds01_spawner.services.portal.parts import Parts

SITE_BASE = "site"


@dataclass(slots=True)
class Form:
    """The form as it was filled in.

    Attributes:
        name: of the project.
        description: one line.
        kind: name of a kind.
        base: name of a base.
        usual: whether the kind's usual packages are installed.
        pip: Python packages, as typed.
        apt: Debian packages, as typed.
        repository: what to clone, empty for nothing.
        problems: what is wrong, by field; ``""`` is the form as a whole.
    """

    name: str = ""
    description: str = ""
    kind: str = "ml"
    base: str = ""
    usual: bool = True
    pip: str = ""
    apt: str = ""
    repository: str = ""
    problems: dict[str, str] = field(default_factory=dict)


class NewProjectPage(Page):
    """Makes a project."""

    title = "New project"

    async def get(self) -> None:
        """Show the empty form."""
        await self._show(Form())

    async def post(self) -> None:
        """Make the project, or show the form again with what is wrong."""
        form = Form(
            name=self.get_body_argument("name", "", strip=False),
            description=self.get_body_argument("description", ""),
            kind=self.get_body_argument("kind", ""),
            base=self.get_body_argument("base", ""),
            usual=bool(self.get_body_argument("usual", "")),
            pip=self.get_body_argument("pip", ""),
            apt=self.get_body_argument("apt", ""),
            repository=self.get_body_argument("repository", ""),
        )
        plan = read_form(form, await find_bases(self.parts), datetime.fromtimestamp(self.parts.clock(), UTC))
        if plan is not None:
            try:
                missing = await create(self.parts, await self.account(), plan, form.repository)
            except DS01Error as error:
                form.problems[""] = str(error)
            else:
                self.go(created=plan.name, **({"problem": missing} if missing else {}))
                return
        self.set_status(400)
        await self._show(form)

    async def _show(self, form: Form) -> None:
        bases = await find_bases(self.parts)
        form.base = form.base or next(iter(bases), "")
        shown: dict[str, Any] = {"form": form, "kinds": scaffold.KINDS.values(), "bases": bases.values()}
        self.show("new.html", **shown)


async def find_bases(parts: Parts) -> dict[str, Base]:
    """Return the images that a project can start from and that are on this host."""
    found: dict[str, Base] = {}
    for image in await parts.shelf.bases():
        name = image.labels.get(BASE_NAME, "")
        reference = next((r for r in sorted(image.references) if not r.startswith("ds01-")), "")
        if name and reference:
            found[name] = Base(name, reference, image.labels.get(BASE_DESCRIPTION, name))
    if parts.default_image not in {base.image for base in found.values()} and await parts.shelf.exists(
        parts.default_image
    ):
        found[SITE_BASE] = Base(SITE_BASE, parts.default_image, f"The site's own image ({parts.default_image})")
    return dict(sorted(found.items()))


def read_form(form: Form, bases: dict[str, Base], now: datetime) -> Plan | None:
    """Return what to make, or ``None`` with every problem noted in the form."""

    def tried(name: str, work: Any) -> Any:
        try:
            return work()
        except DS01Error as error:
            form.problems[name] = str(error)
            return None

    name = tried("name", lambda: validate_name(form.name.strip()))
    kind = tried("kind", lambda: scaffold.choose_kind(form.kind))
    base = tried("base", lambda: _choose_base(form.base, bases))
    description = tried("description", lambda: scaffold.check_description(form.description))
    pip = tried("pip", lambda: packages.parse_pip(form.pip))
    apt = tried("apt", lambda: packages.parse_apt(form.apt))
    if form.repository:
        tried("repository", lambda: gitclone.check_address(form.repository))
    if form.problems:
        return None
    chosen = scaffold.combine(kind, Packages(pip, apt), with_usual=form.usual)
    return Plan(name, kind, base, chosen, description, f"{now:%Y-%m-%d}")


def _choose_base(name: str, bases: dict[str, Base]) -> Base:
    if name not in bases:
        raise InvalidOptions("Choose what the environment starts from; this choice is not on this server (any more).")
    return bases[name]


async def create(parts: Parts, account: Account, plan: Plan, repository: str) -> str:
    """Make a project's folder with the user's rights; nothing that is there already is changed.

    Returns:
        Why the repository is not in it or not usable as it is; empty when all is well.

    Raises:
        DS01Error: it could not be made; the text says why.
    """
    await parts.threads.run(account.name, parts.workspaces.create_project_folder, account, plan.name)
    missing = ""
    if repository:
        opening = parts.workspaces.open_project
        folder = await parts.threads.run(account.name, opening, account, plan.name, unclaimed=os.close)
        try:
            await gitclone.clone(account, folder, repository)
        except ProjectRefused as error:
            missing = f"The project was created without the repository. {error}"
        finally:
            os.close(folder)
    try:
        await parts.threads.run(account.name, _write_files, parts, account, plan)
    except ProjectRefused as error:
        if not repository or missing:
            raise
        return f"The project was created, but the repository's Dockerfile cannot be used. {error}"
    return missing


def _write_files(parts: Parts, account: Account, plan: Plan) -> None:
    for path, text in scaffold.files(plan).items():
        where: PurePosixPath = project_path(plan.name) / path
        try:
            parts.workspaces.write_file(account, where, text.encode(), replace=False)
        except ProjectRefused:
            # A cloned repository brings its own; only a missing file is an error, and then the next one fails too.
            if path == "Dockerfile" and parts.workspaces.read_dockerfile(account, plan.name) is None:
                raise
