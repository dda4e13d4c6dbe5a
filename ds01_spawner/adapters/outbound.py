"""Hands a message to the site's own command or webhook, which turn it into mail or chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import aiohttp

_SUCCESS: Final = range(200, 300)


class NotDelivered(Exception):
    """A message was not taken; the text says why."""


class Command:
    """Runs a command with the message as JSON on its standard input; exit code 0 means delivered.

    Args:
        argv: the command; no shell is involved.
        timeout_seconds: how long it may take; it is killed then.
    """

    def __init__(self, argv: Sequence[str], *, timeout_seconds: float = 30.0) -> None:
        self._argv = tuple(argv)
        self._timeout_seconds = timeout_seconds

    async def send(self, message: Mapping[str, Any]) -> None:
        """Deliver a message.

        Raises:
            NotDelivered: the command could not be run, failed, or took too long.
        """
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=nothing, stderr=pipe)
        except (OSError, ValueError) as error:
            raise NotDelivered(f"{self._argv[0]} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(self._timeout_seconds):
                _, said = await process.communicate(json.dumps(message).encode())
        except TimeoutError as error:
            raise NotDelivered(f"{self._argv[0]} took longer than {self._timeout_seconds:g} s") from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            tail = said.decode(errors="replace").strip()[-200:]
            raise NotDelivered(f"{self._argv[0]} ended with exit code {process.returncode}: {tail}")


class Webhook:
    """Posts the message as JSON; an answer from 200 to 299 means delivered.

    Args:
        url: where to.
        timeout_seconds: how long the answer may take.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def send(self, message: Mapping[str, Any]) -> None:
        """Deliver a message.

        Raises:
            NotDelivered: it was not taken.
        """
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(self._url, json=message, allow_redirects=False) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The address may carry a secret, so it is not repeated.
            raise NotDelivered(f"the webhook cannot be reached ({type(error).__name__})") from error
        if status not in _SUCCESS:
            raise NotDelivered(f"the webhook answered {status}")
