"""The spawn form: the user's projects, and with which image and devices one is launched.

It stands by itself: it needs neither JavaScript nor the portal, and says before a submit what cannot work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from jupyterhub.utils import url_path_join

from ds01_spawner.core import limits as rules
from ds01_spawner.core import options as choices
from ds01_spawner.core import project as projects
from ds01_spawner.core.limits import Held, Limits
from ds01_spawner.core.model import Holder, Request
from ds01_spawner.core.queue import Estimate, show_duration
from ds01_spawner.errors import DS01Error, LimitReached

_PAGES = Environment(loader=PackageLoader("ds01_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True)

CPU, ANY = "cpu", "any"
_REFUSED_SECONDS = 10.0
_MANY_DEVICES = 8


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a person could get now.

    Attributes:
        free: for every kind of device, how many are free and how many there are.
        starts: for every kind, between which times one would be granted; ``None`` where that cannot be told.
        now: epoch seconds of it all.
        limits: the person's.
        holding: what their servers take.
    """

    free: Mapping[str, tuple[int, int]]
    starts: Mapping[str, Estimate | None]
    now: float
    limits: Limits
    holding: Sequence[Held]


class Source(Protocol):
    """Where the form's facts come from."""

    @property
    def retire_path(self) -> str:
        """Where a project is retired, below the site's own address."""

    async def projects(self, user: str) -> tuple[str, ...]:
        """Return the names of the user's projects."""

    async def outlook(self, user: str, groups: frozenset[str]) -> Outlook:
        """Return what the user could get now."""

    async def tags(self, user: str, project: str) -> tuple[str, ...]:
        """Return the tags under which the user kept images of a project, ``latest`` left out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One project in the form.

    Attributes:
        name: the exact name.
        server: the name of its server.
        state: ``"running"``, ``"starting"``, ``"stopping"`` or ``""``.
        url: where its page or its server is.
        retire: where it is retired, empty when there is nothing to retire or somebody else looks.
    """

    name: str
    server: str
    state: str
    url: str
    retire: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """One choice of device.

    Attributes:
        value: of the form's field.
        label: what it is.
        note: what to expect of it.
        refusal: why it cannot work now; empty when it can.
    """

    value: str
    label: str
    note: str = ""
    refusal: str = ""


def to_options(form_data: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return a submitted form with the one choice of device taken apart into the options that the API knows."""
    fields = {name: list(values) for name, values in form_data.items()}
    device = fields.pop(choices.DEVICE, [])
    if device == [CPU]:
        fields[choices.GPUS.name] = ["0"]
        fields[choices.KIND.name] = [""]
    elif device:
        fields[choices.KIND.name] = ["" if value == ANY else value for value in device]
        if fields.get(choices.GPUS.name, ["0"]) in (["0"], [""]):
            fields[choices.GPUS.name] = ["1"]
    return fields


async def render(spawner: Any, source: Source) -> str:
    """Return the form's fields as HTML.

    The default server's page offers every project; another server's page offers the one project that it runs.  With
    JavaScript or without, each Launch button posts to its own project's server.

    Args:
        spawner: the spawner whose page this is; after a refused submit JupyterHub asks the default server's.
        source: where projects and devices are looked up.
    """
    refused = _take_refused(spawner)
    server = refused[0] if refused else spawner.name
    user, groups = spawner.user.name, frozenset(group.name for group in spawner.user.groups)
    problem = ""
    found: tuple[str, ...] = ()
    outlook: Outlook | None = None
    try:
        found, outlook = await asyncio.gather(source.projects(user), source.outlook(user, groups))
    except DS01Error as error:
        problem = str(error)
    if server:
        own = projects.project_of(server, found)
        found = (own,) if own is not None else ()
    asked = {**_asked(spawner), **(refused[1] if refused else {})}
    tags: tuple[str, ...] = ()
    if server and found:
        try:
            tags = await source.tags(user, found[0])
        except DS01Error as error:
            problem = problem or str(error)
    rows = [_row(spawner, name, source.retire_path) for name in found]
    devices = _devices(outlook, Holder(user, server)) if outlook else ()
    return _PAGES.get_template("form.html").render(
        rows=rows,
        preselected=asked.get(choices.PROJECT.name, ""),
        single=bool(server),
        all_projects=url_path_join(spawner.hub.base_url, "spawn", spawner.user.escaped_name),
        asked=asked,
        chosen=_chosen(asked, devices),
        devices=devices,
        most=_most_devices(outlook),
        tags=tags,
        fields=choices,
        added=spawner.site_fields,
        problem=problem,
    )


def remember_refused(spawner: Any, form_data: Mapping[str, Any]) -> None:
    """Keep what was submitted, so that the form that says why it was refused still holds it.

    After a refusal JupyterHub renders the default server's form, without the request.
    """
    values = {name: _one(value) for name, value in form_data.items()}
    spawner.user.ds01_refused = (time.monotonic(), spawner.name, values)


def _take_refused(spawner: Any) -> tuple[str, dict[str, Any]] | None:
    handler = _present_request(spawner)
    if handler is not None and handler.request.method != "POST":
        return None
    kept: tuple[float, str, dict[str, Any]] | None = getattr(spawner.user, "ds01_refused", None)
    spawner.user.ds01_refused = None
    if kept is None or time.monotonic() - kept[0] > _REFUSED_SECONDS:
        return None
    _, server, values = kept
    return server, {name: values[name] for name in _names(spawner) if name in values}


def _present_request(spawner: Any) -> Any:
    """Return the request for which the form is rendered; the hub leaves that of an earlier page in the same place."""
    handler = spawner.handler
    return None if handler is None or getattr(handler, "_finished", False) else handler


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _devices(outlook: Outlook, holder: Holder) -> tuple[Device, ...]:
    """Return the choices of device, with what each means now."""
    found = [Device(CPU, "CPU only", "starts at once", _refusal(outlook, Request(holder)))]
    if len(outlook.free) > 1:
        free = sum(now for now, _ in outlook.free.values())
        every = sum(all_ for _, all_ in outlook.free.values())
        found.append(Device(ANY, "Any GPU", f"{free} of {every} free", _refusal(outlook, Request(holder, 1, ""))))
    for kind, (now, all_) in sorted(outlook.free.items(), key=lambda item: (item[0] != "gpu", item[0])):
        label = "Whole GPU" if kind == "gpu" else f"GPU slice {kind}"
        note = f"{now} of {all_} free"
        if not now:
            note += f", {_wait(outlook.starts.get(kind), outlook.now)}"
        found.append(Device(kind, label, note, _refusal(outlook, Request(holder, 1, kind))))
    return tuple(found)


def _wait(start: Estimate | None, now: float) -> str:
    if start is None:
        return "the wait cannot be told"
    low, high = (show_duration(max(at - now, 0.0)) for at in start)
    return f"expected wait {low}" if low == high else f"expected wait {low} to {high}"


def _refusal(outlook: Outlook, request: Request) -> str:
    try:
        rules.check(outlook.limits, request, outlook.holding)
    except LimitReached as refusal:
        return str(refusal)
    return ""


def _most_devices(outlook: Outlook | None) -> int:
    """Return how many devices can be asked for in one server."""
    if outlook is None:
        return 1
    here = max((every for _, every in outlook.free.values()), default=0)
    allowed = outlook.limits.max_gpu_slots_per_container
    return max(1, min(here, _MANY_DEVICES, here if allowed is None else allowed))


def _chosen(asked: Mapping[str, Any], devices: Sequence[Device]) -> str:
    values = [device.value for device in devices]
    if str(asked.get(choices.GPUS.name)) == "0":
        return CPU
    wanted = asked.get(choices.KIND.name) or (ANY if ANY in values else next((v for v in values if v != CPU), CPU))
    return wanted if wanted in values else CPU


def _row(spawner: Any, name: str, retire_path: str) -> Row:
    server = projects.server_name(name)
    user, hub = spawner.user, spawner.hub.base_url
    running = user.spawners.get(server) if server in user.spawners else None
    if running is not None and running.ready:
        return Row(name, server, "running", user.server_url(server), _retire_link(spawner, name, retire_path))
    if running is not None and running.pending:
        state = "stopping" if running.pending == "stop" else "starting"
        return Row(name, server, state, url_path_join(hub, "spawn-pending", user.escaped_name, server))
    return Row(name, server, "", url_path_join(hub, "spawn", user.escaped_name, server))


def _retire_link(spawner: Any, name: str, path: str) -> str:
    handler = _present_request(spawner)
    if handler is not None and handler.current_user.name != spawner.user.name:
        return ""  # the page retires what belongs to whoever opens it, and this is an admin with another's form
    where = url_path_join(spawner.hub.base_url.removesuffix("hub/"), path)
    return f"{where}?project={quote(name, safe='')}"


def _asked(spawner: Any) -> dict[str, Any]:
    """Return what to preselect: this request's fields or ``opt-`` arguments, else the last launch's options."""
    asked = dict(spawner.user_options) if isinstance(spawner.user_options, dict) else {}
    if not asked:
        asked = dict(getattr(spawner, "option_defaults", {}))
    handler = _present_request(spawner)
    if handler is not None:
        for name in _names(spawner):
            value = handler.get_argument(f"opt-{name}", None) or handler.get_body_argument(name, None)
            if value is not None:
                asked[name] = value
    return {field.name: asked.get(field.name, field.default) for field in (*choices.FIELDS, *spawner.site_fields)}


def _names(spawner: Any) -> list[str]:
    return [field.name for field in (*choices.FIELDS, *spawner.site_fields)]
