"""The narration of a launch: complete for late readers, live for present ones, and it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from ds01_spawner.narration import KEPT_EVENTS, Narration


async def _read(narration: Narration) -> list[dict[str, Any]]:
    return [event async for event in narration.events()]


async def test_early_and_late_readers_hear_the_same_story() -> None:
    """A page opened in the middle of a launch shows what was told before it."""
    narration = Narration()
    early = asyncio.ensure_future(_read(narration))
    narration.say(10, "building")
    await asyncio.sleep(0)
    narration.say(50, "starting")
    late = asyncio.ensure_future(_read(narration))
    await asyncio.sleep(0)
    narration.end()
    assert (
        await early
        == await late
        == [
            {"progress": 10, "message": "building"},
            {"progress": 50, "message": "starting"},
        ]
    )


async def test_progress_never_goes_back_and_a_repeated_line_is_told_once() -> None:
    """The bar only grows, and a message that has not changed adds no line to the log."""
    narration = Narration()
    narration.say(40, "waiting")
    narration.say(20, "building")
    narration.say(30, "building")
    narration.end()
    assert [(e["progress"], e["message"]) for e in await _read(narration)] == [(40, "waiting"), (40, "building")]


async def test_a_long_story_is_bounded_and_a_slow_reader_loses_only_its_oldest_lines() -> None:
    """A build with a hundred thousand lines costs bounded memory, and its end is always heard."""
    narration = Narration()
    told = []

    async def read_slowly() -> None:
        async for event in narration.events():
            told.append(event["message"])
            await asyncio.sleep(0)

    reader = asyncio.ensure_future(read_slowly())
    for number in range(5 * KEPT_EVENTS):
        narration.say(1, f"line {number}")
        if number % 7 == 0:
            await asyncio.sleep(0)
    narration.end()
    await reader
    assert told[-1] == f"line {5 * KEPT_EVENTS - 1}"
    assert len(told) == len(set(told))
    assert len(await _read(narration)) == KEPT_EVENTS
