"""The start gate: as many starts as slots, in the order of arrival, and no slot is ever lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds01_spawner.startgate import StartGate


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class _Starter:
    """A start that holds its slot until told to leave."""

    def __init__(self, gate: StartGate) -> None:
        self.told: list[int] = []
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(gate))

    async def _run(self, gate: StartGate) -> None:
        async with gate.enter(self.told.append):
            self.inside = True
            await self.leave.wait()
        self.inside = False


async def test_no_more_than_the_slots_are_inside_and_the_first_to_come_is_the_first_to_enter() -> None:
    """With two slots the third start enters when one of the first two leaves, before the fourth."""
    gate = StartGate(2)
    starters = [_Starter(gate) for _ in range(4)]
    await _settle()
    assert [s.inside for s in starters] == [True, True, False, False]
    starters[1].leave.set()
    await _settle()
    assert [s.inside for s in starters] == [True, False, True, False]
    for starter in starters:
        starter.leave.set()
    await asyncio.gather(*(s.task for s in starters))


async def test_whoever_waits_is_told_how_many_are_before_them_each_time_it_changes() -> None:
    """The message of a waiting server is true at every moment, also after somebody before it gives up."""
    gate = StartGate(1)
    starters = [_Starter(gate) for _ in range(4)]
    await _settle()
    assert starters[0].told == []
    assert starters[3].told == [2]
    starters[1].task.cancel()
    await _settle()
    assert starters[3].told == [2, 1]
    starters[0].leave.set()
    await _settle()
    assert starters[3].told == [2, 1, 0]
    for starter in starters:
        starter.leave.set()
    await asyncio.gather(*(s.task for s in starters), return_exceptions=True)


async def test_a_cancel_in_the_moment_of_the_handover_passes_the_slot_on() -> None:
    """A start that is cancelled after the slot was given to it, but before it ran, does not keep it."""
    gate = StartGate(1)
    first, second, third = (_Starter(gate) for _ in range(3))
    await _settle()
    first.leave.set()
    while second.task and not second.inside and not first.task.done():
        await asyncio.sleep(0)
        if first.task.done() or gate.waiting == 1:
            second.task.cancel()
            break
    await _settle()
    assert third.inside
    third.leave.set()
    await asyncio.gather(first.task, second.task, third.task, return_exceptions=True)


async def test_a_cancel_in_the_same_turn_as_a_leave_is_only_a_cancel() -> None:
    """A start that is passed over because it was cancelled, and only then runs, ends like every cancelled one."""
    gate = StartGate(1)
    first, second, third = (_Starter(gate) for _ in range(3))
    await _settle()
    first.leave.set()
    second.task.cancel()
    assert (await asyncio.gather(first.task, second.task, return_exceptions=True))[0] is None
    assert second.task.cancelled()
    await _settle()
    assert third.inside
    third.leave.set()
    await third.task


def test_a_gate_without_slots_is_refused() -> None:
    """A gate that nobody could pass is a mistake in the configuration."""
    with pytest.raises(ValueError, match="at least one slot"):
        StartGate(0)


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 3), acts=st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(0, 9)))
)
def test_whatever_comes_leaves_and_gives_up_the_gate_ends_empty(slots: int, acts: list[tuple[str, int]]) -> None:
    """Never more inside than slots, nobody waits while a slot is free, and at the end every slot is free again."""

    async def run() -> None:
        gate = StartGate(slots)
        starters: list[_Starter] = []
        for act, which in acts:
            if act == "come":
                starters.append(_Starter(gate))
            elif starters:
                starter = starters[which % len(starters)]
                starter.leave.set() if act == "leave" else starter.task.cancel()
            await asyncio.sleep(0)
            await _settle()
            inside = sum(s.inside for s in starters if not s.task.done())
            assert inside <= slots
            assert gate.waiting == 0 or inside == slots
        for starter in starters:
            starter.leave.set()
        await asyncio.gather(*(s.task for s in starters), return_exceptions=True)
        late = [_Starter(gate) for _ in range(slots)]
        await _settle()
        assert all(s.inside for s in late)
        for starter in late:
            starter.leave.set()
        await asyncio.gather(*(s.task for s in late))

    asyncio.run(run())
