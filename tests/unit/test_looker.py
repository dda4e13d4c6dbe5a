"""The task that looks again and again."""

from __future__ import annotations

import asyncio

from ds01_spawner.looker import Looker


async def test_who_asks_after_the_end_waits_for_nothing_and_starts_nothing() -> None:
    """A page that is answered while the hub ends must not bring the looks back."""
    looks = []

    async def look() -> None:
        looks.append(True)

    looker = Looker(look, lambda: 3600, lambda error: None)
    await looker.ask()
    await looker.close()
    await asyncio.wait_for(looker.ask(), 5)
    assert looks == [True]
