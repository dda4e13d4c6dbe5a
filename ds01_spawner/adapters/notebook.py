"""Asks a notebook server about its kernels and terminals, without becoming activity itself.

The server is the user's own program: what it answers is read with limits on time and size, no redirect is followed, and
it is only ever shown the token that it was started with (``JUPYTERHUB_API_TOKEN``), never one of the hub's services.
JupyterHub does not count requests made with that token as activity of the user, and ``no_track_activity`` keeps the
notebook server from counting them as its own.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from ds01_spawner.core.activity import Kernel, Terminal

_ANSWER_BYTES_MAX: Final = 2**20
_LISTED_MAX: Final = 1000
_TEXT_MAX: Final = 200


class NotebookSilent(Exception):
    """The notebook server did not answer, or not with what its interface promises; the text says which."""


@dataclass(frozen=True, slots=True)
class NotebookAddress:
    """Where a notebook server is.

    Attributes:
        url: its root with the base path, such as ``http://172.18.0.2:8888/user/ada/thesis/``.
        token: the one it was started with.
    """

    url: str
    token: str


class Notebooks:
    """Notebook servers, asked over HTTP; used within one event loop.

    Args:
        timeout_seconds: how long one answer may take.
        at_once: how many are asked at the same time.
    """

    def __init__(self, *, timeout_seconds: float = 5.0, at_once: int = 64) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._at_once = asyncio.Semaphore(at_once)
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            # No cookie of one server is shown to another, and a small compressed answer stays small.
            self._opened = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        return self._opened

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()

    async def kernels(self, address: NotebookAddress) -> tuple[Kernel, ...]:
        """Return the server's kernels.

        Raises:
            NotebookSilent: nothing can be said about them.
        """
        found = await self._list(address, "api/kernels")
        return tuple(
            Kernel(_text(model, "id"), _text(model, "execution_state") == "busy", _text(model, "last_activity"))
            for model in found
        )

    async def terminals(self, address: NotebookAddress) -> tuple[Terminal, ...]:
        """Return the server's terminals; none where it has no terminals at all.

        Raises:
            NotebookSilent: nothing can be said about them.
        """
        # Terminals can be switched off, and their interface is then away; that of the kernels never is.
        found = await self._list(address, "api/terminals", can_be_off=True)
        return tuple(Terminal(_text(model, "name"), _text(model, "last_activity")) for model in found)

    async def _list(self, address: NotebookAddress, path: str, *, can_be_off: bool = False) -> list[dict[str, Any]]:
        try:
            # The place in the row first: waiting there must not count as the server's silence.
            async with (
                self._at_once,
                self._session.get(
                    address.url + path,
                    params={"no_track_activity": "1"},
                    headers={"Authorization": f"token {address.token}", "Accept-Encoding": "identity"},
                    allow_redirects=False,
                    timeout=self._timeout,
                ) as response,
            ):
                if can_be_off and response.status == 404:  # noqa: PLR2004 - HTTP's own number
                    return []
                if response.status != 200:  # noqa: PLR2004
                    raise NotebookSilent(f"the notebook server answered {response.status} to {path}")
                body = await _read(response)
        except TimeoutError as error:
            raise NotebookSilent("the notebook server did not answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotebookSilent(f"the notebook server cannot be reached ({type(error).__name__})") from error
        return _parse(body, path)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _ANSWER_BYTES_MAX:
            raise NotebookSilent("the notebook server's answer is too long")
    return body


def _parse(body: bytes, path: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotebookSilent(f"the notebook server's answer to {path} is not JSON") from error
    if not isinstance(found, list) or len(found) > _LISTED_MAX or not all(isinstance(model, dict) for model in found):
        raise NotebookSilent(f"the notebook server's answer to {path} is not a list of them")
    return found


def _text(model: dict[str, Any], key: str) -> str:
    value = model.get(key)
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise NotebookSilent(f"the notebook server described something without a usable {key!r}")
    return value
