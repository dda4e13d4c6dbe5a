"""The hub's REST API as the portal uses it: its own token to look, a person's token to start and stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp

from ds01_spawner.errors import HubUnavailable

_PAGED: Final = "application/jupyterhub-pagination+json"
_PAGE_SIZE: Final = 200
_GONE: Final = 404
_ERROR: Final = 400


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One of the hub's servers.

    Attributes:
        name: its name.
        ready: whether it can be opened.
        pending: ``"spawn"`` or ``"stop"`` while it is, else empty.
        url: its path on the site.
        started: when, in the hub's words; empty when it does not run.
        last_activity: when it was last used, in the hub's words; empty when never.
        options: ``user_options`` of its last launch, unchecked.
        failure: why it was not launched or ended by itself; empty when it runs, was retired, or was never launched.
    """

    name: str
    ready: bool
    pending: str
    url: str
    started: str = ""
    last_activity: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    failure: str = ""


class StartRefused(Exception):
    """The hub did not start a server; the text is the hub's own for the user."""


class HubServers:
    """The hub, seen by the portal; an async context manager.

    Args:
        api_url: such as ``http://127.0.0.1:8081/hub/api``.
        token: the service's own.
        timeout_seconds: how long one answer may take; the hub answers a start or stop within about ten.
    """

    def __init__(self, api_url: str, token: str, *, timeout_seconds: float = 60.0) -> None:
        self._api_url = api_url.rstrip("/")
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._opened = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def active(self) -> dict[str, dict[str, ServerRecord]]:
        """Return every server that is ready, starting or stopping, by user and name.

        Raises:
            HubUnavailable: the list could not be read completely.
        """
        found: dict[str, dict[str, ServerRecord]] = {}
        offset: int | None = 0
        while offset is not None:
            page = {"state": "active", "offset": str(offset), "limit": str(_PAGE_SIZE)}
            status, body = await self._ask("GET", "/users", params=page, accept=_PAGED)
            try:
                for user in body["items"]:
                    found[user["name"]] = _servers(user)
                following = body["_pagination"]["next"]
                offset = int(following["offset"]) if following else None
            except (KeyError, TypeError, ValueError) as error:
                raise HubUnavailable(f"The hub did not list its servers: {status} {_message(body)}") from error
        return found

    async def of(self, user: str) -> dict[str, ServerRecord]:
        """Return all servers of one user, those that do not run included; none for an unknown user.

        Raises:
            HubUnavailable: nothing can be said.
        """
        status, body = await self._ask("GET", f"/users/{quote(user, safe='')}", params={"include_stopped_servers": "1"})
        if status == _GONE:
            return {}
        if status >= _ERROR or not isinstance(body, dict):
            raise HubUnavailable(f"The hub did not describe a user: {status} {_message(body)}")
        return _servers(body)

    async def start(self, user: str, name: str, options: Mapping[str, Any], token: str) -> None:
        """Start a server with its owner's token; returns when the hub has begun.

        Raises:
            StartRefused: the hub would not, with its reason.
            HubUnavailable: it did not answer.
        """
        path = f"/users/{quote(user, safe='')}/servers/{quote(name, safe='')}"
        status, body = await self._ask("POST", path, token=token, json={"user_options": dict(options)})
        if status >= _ERROR:
            raise StartRefused(_message(body) or f"The hub answered {status}.")

    async def stop(self, user: str, name: str, token: str) -> None:
        """Stop a server with its owner's token; returns when it is gone, or the hub still works on it.

        Raises:
            HubUnavailable: it was not stopped.
        """
        path = f"/users/{quote(user, safe='')}/servers/{quote(name, safe='')}"
        status, body = await self._ask("DELETE", path, token=token)
        if status >= _ERROR and status != _GONE:
            raise HubUnavailable(f"The hub did not stop it: {status} {_message(body)}")

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        accept: str = "application/json",
    ) -> tuple[int, Any]:
        if self._opened is None:
            raise HubUnavailable("The hub is asked within `async with` only.")
        headers = {"Authorization": f"token {token or self._token}", "Accept": accept}
        try:
            async with self._opened.request(
                method, self._api_url + path, params=params, json=json, headers=headers, allow_redirects=False
            ) as response:
                text = await response.read()
                return response.status, await response.json(content_type=None) if text else None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise HubUnavailable(f"The hub does not answer ({type(error).__name__}). Try again in a moment.") from error


def _servers(user: Mapping[str, Any]) -> dict[str, ServerRecord]:
    return {
        server["name"]: ServerRecord(
            name=server["name"],
            ready=bool(server.get("ready")),
            pending=server.get("pending") or "",
            url=server.get("url") or "",
            started=server.get("started") or "",
            last_activity=server.get("last_activity") or "",
            options=server.get("user_options") or {},
            failure=_failure(server.get("state") or {}),
        )
        for server in (user.get("servers") or {}).values()
    }


def _failure(state: Mapping[str, Any]) -> str:
    return str(state.get("ended") or "") if state.get("failed") else ""


def _message(body: Any) -> str:
    return str(body.get("message") or "") if isinstance(body, dict) else ""
