"""The hub's REST API, for the services.

aiohttp is what JupyterHub 6 itself talks with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp

from ds01_spawner.errors import HubUnavailable

_PAGED: Final = "application/jupyterhub-pagination+json"
_PAGE_SIZE: Final = 200
_OK: Final = 200
_ACCEPTED: Final = 202
_NO_CONTENT: Final = 204
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class HubServer:
    """One server as the hub describes it.

    Attributes:
        user: its user's login name.
        groups: names of the user's JupyterHub groups.
        name: the server's name; empty for the default server.
        ready: whether it can be used; one that is starting or stopping is not.
        pending: ``"spawn"`` or ``"stop"`` while it is, else empty.
        display_name: as its user named it.
        state: what its spawner keeps; empty without the scope ``admin:server_state``.
        started: when it was started, in the hub's own words; a server that was started again has another one.
    """

    user: str
    groups: frozenset[str]
    name: str
    ready: bool
    pending: str
    display_name: str = ""
    state: Mapping[str, Any] = field(default_factory=dict, hash=False)
    started: str = ""


class Hub:
    """The hub, seen by one of its services; an async context manager.

    Args:
        api_url: such as ``http://127.0.0.1:8081/hub/api`` (``JUPYTERHUB_API_URL``).
        token: the service's own (``JUPYTERHUB_API_TOKEN``).
        timeout_seconds: how long one answer may take; stopping a server can take a while.
    """

    def __init__(self, api_url: str, token: str, *, timeout_seconds: float = 120.0) -> None:
        self._api_url = api_url.rstrip("/")
        self._headers = {"Authorization": f"token {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._opened = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def active_servers(self) -> tuple[HubServer, ...]:
        """Return every server that is ready, starting or stopping, with its state.

        Scopes: ``list:users``, ``read:servers``, ``read:users:groups``, ``admin:server_state``.

        Raises:
            HubUnavailable: the list could not be read completely.
        """
        return tuple([server async for server in self._servers({"state": "active"})])

    async def server(self, user: str, name: str) -> HubServer | None:
        """Return one server, ``None`` when it does not run.

        Raises:
            HubUnavailable: nothing can be said about it.
        """
        status, body = await self._request("GET", f"/users/{quote(user, safe='')}")
        if status == _NOT_FOUND:
            return None
        if status != _OK:
            raise _refused("describe a user", status, body)
        return next((server for server in _read_user(body) if server.name == name), None)

    async def stop(self, user: str, name: str) -> bool:
        """Stop a server.  Scope: ``delete:servers``.

        Returns:
            Whether it has stopped; else it is still stopping.

        Raises:
            HubUnavailable: it was not stopped.
        """
        status, body = await self._request("DELETE", f"/users/{quote(user, safe='')}/servers/{quote(name, safe='')}")
        if status in {_NO_CONTENT, _NOT_FOUND}:
            return True
        if status == _ACCEPTED:
            return False
        raise _refused("stop a server", status, body)

    async def _servers(self, query: Mapping[str, str]) -> AsyncIterator[HubServer]:
        offset: int | None = 0
        while offset is not None:
            page = {**query, "offset": str(offset), "limit": str(_PAGE_SIZE)}
            status, body = await self._request("GET", "/users", params=page, accept=_PAGED)
            if status != _OK:
                raise _refused("list its users", status, body)
            try:
                users = body["items"]
                following = body["_pagination"]["next"]
                offset = int(following["offset"]) if following else None
            except (KeyError, TypeError, ValueError) as error:
                raise HubUnavailable("The hub's list of users is not in pages; is it JupyterHub 6?") from error
            for user in users:
                for server in _read_user(user):
                    yield server

    async def _request(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, accept: str = "application/json"
    ) -> tuple[int, Any]:
        if self._opened is None:
            raise HubUnavailable("The hub is asked within `async with` only.")
        try:
            async with self._opened.request(
                method, self._api_url + path, params=params, headers={"Accept": accept}, allow_redirects=False
            ) as response:
                text = await response.read()
                body = await response.json(content_type=None) if text else None
                return response.status, body
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HubUnavailable(f"The hub does not answer ({type(error).__name__}: {error}).") from error


def _read_user(user: Any) -> tuple[HubServer, ...]:
    try:
        groups = frozenset(user.get("groups") or ())
        return tuple(
            HubServer(
                user=user["name"],
                groups=groups,
                name=server["name"],
                ready=bool(server.get("ready")),
                pending=server.get("pending") or "",
                display_name=server.get("display_name") or "",
                state=server.get("state") or {},
                started=server.get("started") or "",
            )
            for server in (user.get("servers") or {}).values()
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise HubUnavailable("The hub described a user in an unknown form; is it JupyterHub 6?") from error


def _refused(what: str, status: int, body: Any) -> HubUnavailable:
    message = body.get("message", "") if isinstance(body, dict) else ""
    return HubUnavailable(f"The hub did not {what}: {status} {message}".rstrip() + ".")
