"""The ways on which a message reaches a user: terminals, a file in the project's folder, and the site's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ds01_spawner.adapters.activity import ContainerUnreadable, Place
from ds01_spawner.adapters.outbound import NotDelivered
from ds01_spawner.core.account import Account
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.culler.watch import Watch

PAGE = "page"
TERMINALS = "terminals"
FILE = "file"


class Terminals(Protocol):
    """Shows a text in a server's terminals."""

    async def show(self, place: Place, text: str) -> int:
        """Return in how many, or raise ContainerUnreadable."""


class Notes(Protocol):
    """The files in a project's folder that are about its retirement."""

    def keep_alive_seconds(self, account: Account, project: str, longest_seconds: float) -> float:
        """Return how long its keep-alive still holds, or raise AccountUnavailable."""

    def announce(self, account: Account, project: str, text: str) -> None:
        """Put an announcement there, or raise ProjectRefused or AccountUnavailable."""

    def withdraw(self, account: Account, project: str) -> None:
        """Remove it, or raise ProjectRefused or AccountUnavailable."""


class Outbound(Protocol):
    """The site's own command or webhook."""

    async def send(self, message: Mapping[str, Any]) -> None:
        """Deliver a message, or raise NotDelivered."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a message arrived, and where it did not and why."""

    arrived: tuple[str, ...]
    failed: Mapping[str, str]


class Channels:
    """Sends messages on every channel at once.

    Args:
        terminals: of the servers.
        notes: the users' files.
        outbound: the site's own channels by name.
        threads: where the users' files are touched; a home may hang.
        file_seconds: how long touching a file may take.
        files_at_once: how many are touched at the same time.
        hung_most: when this many calls hang, no further home is tried.
    """

    def __init__(
        self,
        terminals: Terminals,
        notes: Notes,
        outbound: Mapping[str, Outbound],
        threads: Executor,
        *,
        file_seconds: float = 10.0,
        files_at_once: int = 16,
        hung_most: int = 48,
    ) -> None:
        self._terminals = terminals
        self._notes = notes
        self._outbound = outbound
        self._threads = threads
        self._file_seconds = file_seconds
        self._files = asyncio.Semaphore(files_at_once)
        self._hung_most = hung_most
        self._hung: set[str] = set()

    async def warn(self, watch: Watch, text: str, message: Mapping[str, Any], *, announce: bool) -> Sent:
        """Tell a server's user something.

        Args:
            watch: whose server.
            text: what.
            message: the same for the site's own channels.
            announce: whether it is the announcement of an end, which is put into the project's folder as well.
        """
        tasks: dict[str, Awaitable[Any]] = {TERMINALS: self._show(watch, text)}
        if announce:
            tasks[FILE] = self._touch(watch, partial(self._notes.announce, text=text))
        return await self._send(tasks | self._messages(message))

    async def call_off(self, watch: Watch, text: str, message: Mapping[str, Any]) -> Sent:
        """Take a warning back; the file goes when no other warning stands."""
        tasks: dict[str, Awaitable[Any]] = {TERMINALS: self._show(watch, text)}
        if not any(delivery.rule.ends for delivery in watch.deliveries):
            tasks[FILE] = self._touch(watch, self._notes.withdraw)
        return await self._send(tasks | self._messages(message))

    async def bid_farewell(self, watch: Watch, message: Mapping[str, Any]) -> Sent:
        """Tell of the end, and leave the folder as it was."""
        return await self._send({FILE: self._touch(watch, self._notes.withdraw)} | self._messages(message))

    async def keep_alive_seconds(self, watch: Watch) -> float | None:
        """Return how long a server's keep-alive still holds, ``None`` when that is unknown."""
        longest = watch.limits.keepalive_seconds
        try:
            return float(await self._touch(watch, partial(self._notes.keep_alive_seconds, longest_seconds=longest)))
        except NotDelivered:
            return None

    async def _send(self, tasks: Mapping[str, Awaitable[Any]]) -> Sent:
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        arrived: list[str] = []
        failed: dict[str, str] = {}
        for name, result in zip(tasks, results, strict=True):
            if isinstance(result, BaseException):
                failed[name] = str(result) or type(result).__name__
            else:
                arrived.append(name)
        return Sent(tuple(arrived), failed)

    def _messages(self, message: Mapping[str, Any]) -> dict[str, Awaitable[Any]]:
        return {name: channel.send(message) for name, channel in self._outbound.items()}

    async def _show(self, watch: Watch, text: str) -> None:
        try:
            if not await self._terminals.show(watch.place, text):
                raise NotDelivered("no terminal is open")
        except ContainerUnreadable as error:
            raise NotDelivered(str(error)) from error

    async def _touch(self, watch: Watch, task: Callable[..., Any]) -> Any:
        if watch.account is None:
            raise NotDelivered("its user's account was not found")
        user = watch.account.name
        # The place in the row first: waiting there must not count as the home's silence.
        async with self._files:
            if user in self._hung or len(self._hung) >= self._hung_most:
                raise NotDelivered("the home has not answered an earlier call yet")
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, partial(task, watch.account, watch.project)
            )
            done, _ = await asyncio.wait({work}, timeout=self._file_seconds)
        if not done:
            # A thread in a hung system call cannot be called back; its user's home is left alone until it returns.
            self._hung.add(user)
            work.add_done_callback(lambda _: self._hung.discard(user))
            raise NotDelivered(f"the home did not answer in {self._file_seconds:g} s")
        try:
            return work.result()
        except (DS01Error, OSError) as error:
            raise NotDelivered(str(error)) from error
