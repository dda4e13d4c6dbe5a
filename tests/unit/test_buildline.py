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
    line, inside = BuildLine(1), []
    async with line.place(lambda _: None):
        second = asyncio.create_task(stay(line, asyncio.Event(), inside, "second"))
        third = asyncio.create_task(stay(line, asyncio.Event(), inside, "third"))
        await steps()
    second.cancel()  # it has the place, and has not run since
    await steps()
    assert inside == ["third"]
    third.cancel()
    await steps()
    assert inside == []
    assert await has_room(line)


async def test_cancelled_before_a_place_is_given() -> None:
    """Whoever was cancelled but has not run since is passed over."""
    line, inside = BuildLine(1), []
    async with line.place(lambda _: None):
        second = asyncio.create_task(stay(line, asyncio.Event(), inside, "second"))
        third = asyncio.create_task(stay(line, asyncio.Event(), inside, "third"))
        await steps()
        second.cancel()
    await steps()
    assert inside == ["third"]
    third.cancel()
    await steps()
    assert await has_room(line)


async def test_cancelled_while_waiting() -> None:
    """Who leaves the line gives nobody a place."""
    line, inside = BuildLine(1), []
    async with line.place(lambda _: None):
        second = asyncio.create_task(stay(line, asyncio.Event(), inside, "second"))
        third = asyncio.create_task(stay(line, asyncio.Event(), inside, "third"))
        await steps()
        second.cancel()
        await steps()
        assert inside == []
        fourth = asyncio.create_task(stay(line, asyncio.Event(), inside, "fourth"))
        await steps()
        assert inside == []
    await steps()
    assert inside == ["third"]
    for task in (third, fourth):
        task.cancel()
    await steps()
    assert await has_room(line)


async def has_room(line: BuildLine) -> bool:
    """Whether someone new gets in."""
    leave = asyncio.Event()
    leave.set()
    await asyncio.wait_for(stay(line, leave, [], "new"), 1)
    return True


async def test_an_error_inside_gives_the_place_back() -> None:
    """A build that fails makes room for the next."""
    line = BuildLine(1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with line.place(lambda _: None):
                raise RuntimeError
