"""What every page of the portal shares: who is asking, protection, rendering, and errors that people can read."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from jupyterhub.services.auth import HubOAuthenticated
from tornado.web import HTTPError, RequestHandler

from ds01_spawner.core import overview
from ds01_spawner.core.account import Account
from ds01_spawner.core.project import image_repository, quoted, server_name, validate_name
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.portal.parts import Parts, join

log = logging.getLogger("ds01_spawner.portal")

PAGES = Environment(loader=PackageLoader("ds01_spawner"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
PAGES.filters["span"] = overview.span
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Person:
    """Who is at the browser.

    Attributes:
        name: the hub's name of them.
        groups: names of their groups at the hub.
        is_admin: whether the hub calls them an admin.
        token: can do at the hub what they can, to their own servers.
    """

    name: str
    groups: frozenset[str]
    is_admin: bool
    token: str

    @property
    def path(self) -> str:
        """Their name in an address."""
        return quote(self.name, safe="@~")


@dataclass(frozen=True, slots=True)
class Project:
    """One project of the person who asks.

    Attributes:
        name: exact.
        account: whose rights its files are touched with.
        repository: what its image is called.
        server: its server's name.
    """

    name: str
    account: Account
    repository: str
    server: str


class Page(HubOAuthenticated, RequestHandler):
    """A page for somebody who is logged in; everything it shows or does is that person's own."""

    parts: Parts
    person: Person
    nonce: str
    title: ClassVar[str] = "My projects"

    def initialize(self, parts: Parts) -> None:
        """Take the portal's parts."""
        self.parts = parts

    async def prepare(self) -> None:
        """Find out who asks, or send them to the login."""
        model = await self.hub_auth.get_user(self, sync=False)
        if model is None or model.get("kind") != "user" or not self._may_enter(model):
            if model is not None:
                raise HTTPError(403, f"{model.get('name', '')} has no access to this page.")
            if self.request.method not in {"GET", "HEAD"} or self.get_query_argument("part", ""):
                # A form or a script cannot follow a login; its page says what to do.
                raise HTTPError(403, "Your login has ended. Load the page again to log in; nothing was changed.")
            self.redirect(self.get_login_url())
            return
        self.person = Person(
            name=model["name"],
            groups=frozenset(model.get("groups") or ()),
            is_admin=bool(model.get("admin")),
            token=self.hub_auth.get_token(self),
        )

    def _may_enter(self, model: dict[str, Any]) -> bool:
        return bool(self.hub_auth.check_scopes(self.hub_scopes, model))

    def get_current_user(self) -> Any:
        """Return what ``prepare`` found: asking the hub again here would block."""
        return getattr(self, "person", None)

    def set_default_headers(self) -> None:
        """Allow nothing but our own scripts and styles, so that what slips through an escape still does nothing.

        Scripts by a nonce: on a hub without subdomains, ``'self'`` is everybody's server, too.
        """
        self.nonce = secrets.token_urlsafe(16)
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'nonce-{self.nonce}'; style-src 'self' 'nonce-{self.nonce}'; "
            "img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        )
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    # -- the person's own things --------------------------------------------------------------------------------------

    async def account(self) -> Account:
        """Return the person's account.

        Raises:
            AccountUnavailable: it cannot be used.
        """
        return await self.parts.threads.run(self.person.name, self.parts.people.find, self.person.name)

    async def project(self, name: str) -> Project:
        """Return one of the person's projects by its exact name.

        Raises:
            ProjectRefused: there is none.
        """
        validate_name(name)
        account = await self.account()
        await self.parts.threads.run(self.person.name, self.parts.check_project, account, name)
        return Project(name, account, image_repository(self.person.name, name), server_name(name))

    # -- rendering ----------------------------------------------------------------------------------------------------

    def link(self, *path: str, **query: str) -> str:
        """Return an address within the portal."""
        where = join(self.parts.prefix, *(quote(part, safe="") for part in path))
        where = where if path else self.parts.prefix
        return where + (
            "?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items()) if query else ""
        )

    def hub_link(self, *path: str) -> str:
        """Return an address of the hub."""
        return join(self.parts.hub_prefix, *(quote(part, safe="@~") for part in path))

    def show(self, template: str, **values: Any) -> None:
        """Finish with a page or a part of one."""
        self.finish(PAGES.get_template(f"portal/{template}").render(**self._shared(), **values))

    def _shared(self) -> dict[str, Any]:
        return {
            "person": getattr(self, "person", None),
            "link": self.link,
            "hub_link": self.hub_link,
            "hub_static": lambda path: join(self.parts.hub_prefix, "static", path),
            "static": self.parts.static_url,
            "xsrf": self.xsrf_token.decode(),
            "nonce": self.nonce,
            "title": self.title,
        }

    def go(self, *path: str, **query: str) -> None:
        """Answer a form: the browser gets the next page, and its back button no second submit."""
        self.redirect(self.link(*path, **query), status=303)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what went wrong, and what to do."""
        _, error, _ = kwargs.get("exc_info", (None, None, None))
        if isinstance(error, DS01Error):
            status_code, text = error.status, str(error)
        elif isinstance(error, HTTPError):
            text = error.log_message or error.reason or ""
            if "_xsrf" in text or "XSRF" in text:
                text = "This form is too old, or came from another page. Load the page again and repeat it."
        else:
            text = "Something unexpected happened here. Your projects go on; tell an administrator if it stays so."
        self.set_status(status_code)
        # Read as it came: the error may be that it is no text.
        if self.request.query_arguments.get("part"):
            # It may repeat what was asked for; a browser that is led here must not take it for a page.
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(text)
            return
        self.show(
            "error.html", problem=text or f"The page answered {status_code}.", is_ours=status_code >= _SERVER_ERROR
        )

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is ours; a refusal is no defect."""
        if isinstance(value, DS01Error) and value.status < _SERVER_ERROR:
            log.info("%s: %s", quoted(self.request.path), value)
            return
        super().log_exception(typ, value, tb)
