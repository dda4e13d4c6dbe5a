"""DS01Spawner: JupyterHub's side of a launch.  Thin: traits in, a running server out, refusals into ``SpawnException``.

The order of the steps is in ``launcher``; what can be chosen is in ``core.options``; the page is in ``form``.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

from dockerspawner import DockerSpawner
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import url_path_join
from traitlets import Dict, TraitError, default, validate

from ds01_spawner import form
from ds01_spawner.core import options, project
from ds01_spawner.core.container import CLEAN_END
from ds01_spawner.core.model import Holder
from ds01_spawner.core.options import SpawnOptions
from ds01_spawner.errors import BuildFailed, DS01Error, InvalidOptions
from ds01_spawner.launcher import Launched, Launcher, Order
from ds01_spawner.narration import Narration, stage_of


class LaunchRefused(SpawnException):
    """A refusal or fault in the form in which JupyterHub shows it to users.

    ``SpawnException`` alone does not reach them as text: the hub's pages read ``jupyterhub_message`` and
    ``jupyterhub_html_message``.
    """

    def __init__(self, error: DS01Error) -> None:
        super().__init__(str(error), reason=error.reason, status_code=error.status)
        self.jupyterhub_message = str(error)
        self.jupyterhub_html_message = as_html(error)

    def __str__(self) -> str:
        return self.jupyterhub_message


def as_html(error: DS01Error) -> str:
    """Return an error as HTML for the hub's pages: the sentence, and the log of a failed build as it was printed."""
    sentence, _, detail = str(error).partition("\n")
    parts = [f"<p>{html.escape(sentence)}</p>"]
    if detail:
        parts.append(f'<pre class="text-start">{html.escape(detail)}</pre>')
    if isinstance(error, BuildFailed):
        if error.step:
            parts.append(f"<p>The step that failed: <code>{html.escape(error.step)}</code></p>")
        if error.log:
            log = html.escape("\n".join(error.log))
            parts.append(f'<pre class="text-start">{log}</pre>')
    return "".join(parts)


def let_go(holder: Holder) -> bool:
    """Return whether the hub of this process knows a server and knows that it does not run.

    Not true of a server that the hub never heard of: a hub with another database than yesterday's must not end what
    runs; nor before the hub serves, when it may not have loaded its servers yet.
    """
    app = JupyterHub.instance() if JupyterHub.initialized() else None
    if app is None or app.http_server is None:
        return False
    row = (
        app.db.query(orm.User.id, orm.Spawner.server_id)
        .join(orm.Spawner, orm.Spawner.user_id == orm.User.id)
        .filter(orm.User.name == holder.user, orm.Spawner.name == holder.server)
        .first()
    )
    if row is None or row.server_id is not None:
        return False
    spawners = app.users[row.id].spawners if row.id in app.users else {}
    return holder.server not in spawners or not spawners[holder.server].active


class DS01Spawner(DockerSpawner):
    """Launches a project of the user: its own image, its folder at ``/workspace``, the devices it asked for.

    ``ds01_spawner.configure`` sets it up.
    """

    # One launcher for all servers of the hub.  It is on the class because traitlets copies configured values into
    # each instance, and a copied allocator would give the same device twice.
    launcher: ClassVar[staticmethod[[], Launcher]]
    form_source: ClassVar[staticmethod[[], form.Source]]

    option_defaults = Dict(
        help="""
        Options of a launch that are used where the user chose nothing, such as ``{"gpus": 0}``.

        The keys are those of ``user_options``; see the reference of launch options.
        """,
    ).tag(config=True)

    extra_fields = Dict(
        help="""
        Further choices on the spawn form, such as ``{"course": {"label": "Course", "choices": ["none", "ml"]}}``.

        The first choice is the default. What was chosen is checked like every option and is in ``user_options`` for the
        site's own hooks: ``environment``, ``extra_host_config`` and the like may be functions of the spawner.
        """,
    ).tag(config=True)

    @validate("extra_fields")
    def _check_extra_fields(self, proposal: Any) -> dict[str, Any]:
        try:
            self.site_fields = options.site_fields(proposal.value)
        except ValueError as error:
            raise TraitError(f"extra_fields: {error}") from error
        return dict(proposal.value)

    site_fields: tuple[options.Field, ...] = ()
    """``extra_fields``, checked."""

    @default("start_timeout")
    def _start_timeout(self) -> int:
        # Building an image or waiting for a device is not failing; each step of a launch has its own limit.
        return 7 * 24 * 3600

    @default("options_form")
    def _options_form(self) -> Callable[[DS01Spawner], Awaitable[str]]:
        return lambda spawner: form.render(spawner, self.form_source())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._narration = Narration()
        self._launching = False
        self._launched: dict[str, Any] = {}
        self.ended = ""
        self.failed = False

    @property
    def holder(self) -> Holder:
        """Who holds this server's devices."""
        return Holder(self.user.name, self.name)

    # -- what the user asks for ---------------------------------------------------------------------------------------

    @default("apply_user_options")
    def _apply_user_options(self) -> Callable[..., None]:
        # Options come by form, API and database alike, so they are validated once, in ``start``, and not here.
        return lambda spawner, user_options: None  # noqa: ARG005

    @default("options_from_form")
    def _options_from_form(self) -> Callable[..., dict[str, Any]]:
        return self._read_form

    def _read_form(self, form_data: dict[str, list[str]]) -> dict[str, Any]:
        """Return ``user_options`` for a submitted form.

        Raises:
            LaunchRefused: a field holds something impossible; the text names the field.
        """
        fields = form.to_options(form_data)
        try:
            return options.from_form(fields, defaults=self.option_defaults, added=self.site_fields).as_dict()
        except DS01Error as error:
            form.remember_refused(self, fields)
            raise LaunchRefused(error) from error

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:  # noqa: ARG002
        """Refuse to start on a bare GET, for which the hub checks no XSRF; the form preselects what was asked.

        Raises:
            LaunchRefused: always.
        """
        refusal = LaunchRefused(InvalidOptions("Nothing was started yet. Check the choice below, then press Launch."))
        refusal.status_code = 200  # the page that follows is what was asked for
        raise refusal

    def _validated_options(self) -> SpawnOptions:
        chosen = options.parse(self.user_options, defaults=self.option_defaults, added=self.site_fields)
        expected = project.server_name(chosen.project)
        if self.name != expected:
            # One possible server name per project is what makes it impossible that two servers run the same folder.
            where = url_path_join(self.hub.base_url, "spawn", self.user.escaped_name, expected)
            raise InvalidOptions(
                f"The project {chosen.project!r} runs as the server {expected!r}, not as {self.name!r}. "
                f"Open {where} to launch it."
            )
        return chosen

    # -- launch and retire --------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Launch the project and return the server's address once it answers.

        Raises:
            LaunchRefused: with the reason for the user; nothing is left running or reserved.
        """
        self._narration = Narration()
        self._launching = True
        self.ended, self.failed = "", False
        try:
            chosen = self._validated_options()
            self.user_options = chosen.as_dict()  # complete, for the site's own hooks and the next form
            self._show_as(project.display_name(chosen.project))
            launched = await self.launcher().launch(await self._order(chosen), self._narration.say)
        except DS01Error as error:
            self.log.warning("%s was not launched (%s): %s", self._log_name, error.reason, error)
            form.remember_refused(self, self.user_options if isinstance(self.user_options, dict) else {})
            # A failed build is told by the project's builds, and is past when a later one succeeds.
            self.ended, self.failed = str(error), not isinstance(error, BuildFailed)
            raise LaunchRefused(error) from error
        except Exception:
            self.ended, self.failed = (
                "It was not launched, for a reason that is not yours. Tell an administrator.",
                True,
            )
            raise
        finally:
            self._launching = False
            self._narration.end()
        self._remember(launched, chosen)
        return f"http://{launched.address}:{self.port}"

    def _show_as(self, display_name: str) -> None:
        if self.orm_spawner.display_name != display_name:
            self.orm_spawner.display_name = display_name
            # Another request would roll the change back, were it not committed before the next wait.
            self.user.db.commit()

    async def _order(self, chosen: SpawnOptions) -> Order:
        extra = await self._rendered(self.extra_create_kwargs)
        extra_host = await self._rendered(self.extra_host_config)
        if self.volume_binds:
            extra_host.setdefault("binds", self.volume_binds)
        return Order(
            holder=self.holder,
            groups=self._groups(),
            options=chosen,
            environment=self.get_env(),
            port=self.port,
            ready_path=url_path_join(self.server.base_url, "api"),
            ready_seconds=self.http_timeout,
            extra=extra,
            extra_host=extra_host,
        )

    def _groups(self) -> frozenset[str]:
        return frozenset(group.name for group in self.user.groups)

    async def _rendered(self, value: Any) -> dict[str, Any]:
        # The site's own additions keep DockerSpawner's meaning: a dict or a callable, with {username} and the like.
        value = self._eval_if_callable(value)
        if inspect.isawaitable(value):
            value = await value
        return dict(self._render_templates(value))

    def _remember(self, launched: Launched, chosen: SpawnOptions) -> None:
        self.object_id = launched.container_id
        self.object_name = launched.container_name
        self._launched = {
            "container_id": launched.container_id,
            "project": chosen.project,
            "devices": list(launched.devices),
            "workspace": launched.workspace,
            "started_at": launched.started_at,
            "url": f"http://{launched.address}:{self.port}",
        }

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the launch is doing, from its beginning, for every page that asks."""
        async for event in self._narration.events():
            yield event | {"stage": stage_of(event["progress"])}

    async def poll(self) -> str | int | None:
        """Return ``None`` while the server runs or may run, else why it does not.

        An engine that does not answer leaves a server running: unknown is not gone.
        """
        if self._launching:
            return None
        if not self.object_id:
            return 0
        why = await self.launcher().explain_end(self.holder, self.object_id)
        if why is not None:
            self.ended, self.failed = why, not why.startswith(CLEAN_END)
        return why

    async def stop(self, now: bool = False) -> None:  # noqa: FBT001, FBT002 - JupyterHub's signature
        """Retire the project: when this returns its container is gone, its devices are free, its folder untouched."""
        limits = self.launcher().limits(self.user.name, self._groups())
        await self.launcher().retire(self.holder, grace_seconds=0 if now else int(limits.sigterm_grace_seconds))
        if not self.ended:
            self.ended = "It was retired. The project's files are safe; launch it again whenever you like."

    async def run_post_stop_hook(self) -> None:
        """Clean up whatever way the server ended: the hub calls ``stop`` only for a server that still runs."""
        await self.launcher().retire_for_certain(self.holder)
        hook = super().run_post_stop_hook()
        if inspect.isawaitable(hook):
            await hook

    # -- what survives a hub restart ----------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return what the hub's database keeps: for display and ``poll``; who holds a device is in the labels."""
        state: dict[str, Any] = super().get_state()
        if self.object_id:
            state |= self._launched
        if self.ended:
            state |= {"ended": self.ended, "failed": self.failed}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what an earlier hub process kept."""
        super().load_state(state)
        self.ended, self.failed = state.get("ended", ""), state.get("failed", False)
        kept = ("container_id", "project", "devices", "workspace", "started_at", "url")
        self._launched = {key: state[key] for key in kept if key in state}

    def clear_state(self) -> None:
        """Forget the container; why it ended stays until the next launch, for the page that tells it."""
        super().clear_state()
        self.object_id = ""
        self._launched = {}
