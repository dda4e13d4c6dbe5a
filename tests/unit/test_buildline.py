"""The line of builds: nobody gets in twice, and no place is lost."""

from __future__ import annotations

import asyncio

import pytest

from ds01_spawner.buildline import BuildLine


async def stay(line: BuildLine, leave: asyncio.Event, inside: list[str], name: str) -> None:
    """Be inside until told to leave."""
    async with line.place(lambda _: None):
        inside.append(name)
        try:
            await leave.wait()
        finally:
            inside.remove(name)


async def steps() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_cancelled_at_the_moment_of_being_let_in() -> None:
    """A place that was given to someone who leaves before entering goes to the next."""
    line, leave, inside = BuildLine(1), asyncio.Event(), []
    first = asyncio.create_task(stay(line, leave, inside, "first"))
    second = asyncio.create_task(stay(line, asyncio.Event(), inside, "second"))
    third = asyncio.create_task(stay(line, asyncio.Event(), inside, "third"))
    await steps()
    leave.set()
    await asyncio.wait([first])  # which has given its place to the second, who has not run since
    second.cancel()
    await steps()
    assert inside == ["third"]
    third.cancel()
    await steps()
    assert inside == []
    leave.set()
    await asyncio.wait_for(stay(line, leave, inside, "fourth"), 1)


async def test_cancelled_before_a_place_is_given() -> None:
    """Whoever was cancelled but has not run since is passed over."""
    line, leave, inside = BuildLine(1), asyncio.Event(), []
    first = asyncio.create_task(stay(line, leave, inside, "first"))
    second = asyncio.create_task(stay(line, asyncio.Event(), inside, "second"))
    third = asyncio.create_task(stay(line, asyncio.Event(), inside, "third"))
    await steps()
    leave.set()
    second.cancel()
    await steps()
    assert (first.done(), second.cancelled()) == (True, True)
    assert inside == ["third"]
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    await asyncio.wait_for(stay(line, leave, inside, "fourth"), 1)


async def test_an_error_inside_gives_the_place_back() -> None:
    """A build that fails makes room for the next."""
    line = BuildLine(1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with line.place(lambda _: None):
                raise RuntimeError
