"""The spawn form: the user's projects, and with which devices one is launched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader
from jupyterhub.utils import url_path_join

from ds01_spawner.core import options as choices
from ds01_spawner.core import project as projects
from ds01_spawner.errors import DS01Error

_PAGES = Environment(loader=PackageLoader("ds01_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


class Source(Protocol):
    """Where the form's facts come from."""

    async def projects(self, user: str) -> tuple[str, ...]:
        """Return the names of the user's projects."""

    async def free_devices(self) -> Mapping[str, tuple[int, int]]:
        """Return, for every kind of device, how many are free and how many there are."""


@dataclass(frozen=True, slots=True)
class Row:
    """One project in the form.

    Attributes:
        name: the exact name.
        server: the name of its server.
        state: ``"running"``, ``"starting"``, ``"stopping"`` or ``""``.
        url: where its page or its server is.
    """

    name: str
    server: str
    state: str
    url: str


async def render(spawner: Any, source: Source) -> str:
    """Return the form's fields as HTML.

    The default server's page offers every project; another server's page offers the one project that it runs.  With
    JavaScript or without, each Launch button posts to its own project's server.

    Args:
        spawner: the spawner whose page this is; after a refused submit JupyterHub asks the default server's.
        source: where projects and devices are looked up.
    """
    problem = ""
    found: tuple[str, ...] = ()
    try:
        found, free = await asyncio.gather(source.projects(spawner.user.name), source.free_devices())
    except DS01Error as error:
        problem, free = str(error), {}
    if spawner.name:
        own = projects.project_of(spawner.name, found)
        found = (own,) if own is not None else ()
    asked = _asked(spawner)
    rows = [_row(spawner, name) for name in found]
    return _PAGES.get_template("form.html").render(
        rows=rows,
        preselected=asked.get(choices.PROJECT.name, ""),
        single=bool(spawner.name),
        all_projects=url_path_join(spawner.hub.base_url, "spawn", spawner.user.escaped_name),
        asked=asked,
        fields=choices,
        free=free,
        problem=problem,
    )


def _row(spawner: Any, name: str) -> Row:
    server = projects.server_name(name)
    user = spawner.user
    running = user.spawners.get(server) if server in user.spawners else None
    if running is not None and running.ready:
        return Row(name, server, "running", user.server_url(server))
    if running is not None and running.pending:
        state = "stopping" if running.pending == "stop" else "starting"
        return Row(name, server, state, url_path_join(spawner.hub.base_url, "spawn-pending", user.escaped_name, server))
    return Row(name, server, "", url_path_join(spawner.hub.base_url, "spawn", user.escaped_name, server))


def _asked(spawner: Any) -> dict[str, Any]:
    """Return what to preselect: this request's fields or ``opt-`` arguments, else the last launch's options."""
    asked = dict(spawner.user_options) if isinstance(spawner.user_options, dict) else {}
    handler = spawner.handler
    if handler is not None:
        for field in choices.FIELDS:
            value = handler.get_argument(f"opt-{field.name}", None) or handler.get_body_argument(field.name, None)
            if value is not None:
                asked[field.name] = value
    return {field.name: asked.get(field.name, field.default) for field in choices.FIELDS}
