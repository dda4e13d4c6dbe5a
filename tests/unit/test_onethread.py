"""One thread for calls that may never return."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from ds01_spawner.adapters.onethread import NoAnswer, OneThread


class Driver:
    """A call that hangs until it is let go, and counts."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = 0
        self.at_once = 0
        self._now = 0

    def hang(self) -> str:
        """Return when let go."""
        self.begun += 1
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        self.let_go.wait(30)
        self._now -= 1
        return "back"

    async def until_begun(self) -> None:
        """Return when a call hangs."""
        while not self.begun:  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0)


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A driver whose calls hang until the test ends."""
    driver = Driver()
    yield driver
    driver.let_go.set()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


async def test_returns_what_the_function_returns() -> None:
    """An ordinary call gives its value, in a thread that is not the event loop's."""
    thread = OneThread("t", timeout_seconds=5)
    assert await thread.call(threading.get_ident) != threading.get_ident()
    assert await thread.call(lambda: 7) == 7


async def test_raises_what_the_function_raises() -> None:
    """An error of the call is its caller's, even one that looks like a timeout."""
    thread = OneThread("t", timeout_seconds=5)

    def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await thread.call(fail)


async def test_calls_never_overlap() -> None:
    """Twenty callers at once are served one after the other by one thread."""
    thread = OneThread("t", timeout_seconds=5)
    running: list[int] = []
    seen: list[int] = []

    def work() -> int:
        running.append(1)
        seen.append(len(running))
        time.sleep(0.001)
        running.pop()
        return threading.get_ident()

    threads = await asyncio.gather(*(thread.call(work) for _ in range(20)))
    assert set(seen) == {1}
    assert len(set(threads)) == 1


async def test_a_hung_call_costs_a_timeout_and_later_ones_nothing(driver: Driver) -> None:
    """While a call hangs, the next caller is told at once and no second call is made."""
    thread = OneThread("t", timeout_seconds=0.05)
    with pytest.raises(NoAnswer, match=r"no answer within 0\.05 seconds"):
        await thread.call(driver.hang)
    begun = time.monotonic()
    with pytest.raises(NoAnswer, match="an earlier call has not returned"):
        await thread.call(driver.hang)
    assert time.monotonic() - begun < 0.04
    assert driver.begun == 1


async def test_the_event_loop_runs_on_while_a_call_hangs(driver: Driver) -> None:
    """Nothing else of the hub waits for the driver."""
    thread = OneThread("t", timeout_seconds=0.1)
    hanging = asyncio.ensure_future(thread.call(driver.hang))
    await asyncio.sleep(0)
    ticks = 0
    while not hanging.done():
        ticks += 1
        await asyncio.sleep(0.005)
    assert ticks >= 5
    with pytest.raises(NoAnswer):
        await hanging


async def test_a_call_that_comes_back_late_frees_its_thread(driver: Driver) -> None:
    """After a hung call returned, the same thread serves the next one."""
    thread = OneThread("t", timeout_seconds=0.05)
    with pytest.raises(NoAnswer):
        await thread.call(driver.hang)
    driver.let_go.set()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert await thread.call(lambda: "ok") == "ok"
        except NoAnswer:
            assert time.monotonic() < deadline
        else:
            break
    assert thread.given_up == 0


async def test_hung_threads_are_replaced_a_bounded_number_of_times(driver: Driver) -> None:
    """Each give-up time allows one new thread, until the bound; then no further call is made."""
    clock = Clock()
    thread = OneThread("t", timeout_seconds=0.02, give_up_seconds=60, max_given_up=2, clock=clock)
    for expected in (1, 2, 3):
        with pytest.raises(NoAnswer, match="no answer within"):
            await thread.call(driver.hang)
        assert driver.begun == expected
        clock.now += 59
        with pytest.raises(NoAnswer, match="earlier call"):
            await thread.call(driver.hang)
        clock.now += 2
    for _ in range(5):
        clock.now += 100
        with pytest.raises(NoAnswer, match="3 calls have not returned"):
            await thread.call(driver.hang)
    assert driver.begun == 3
    assert thread.given_up == 2


async def test_the_bound_is_on_threads_that_still_hang(driver: Driver) -> None:
    """When the hung calls return, their threads end and calls are made again."""
    clock = Clock()
    thread = OneThread("t", timeout_seconds=0.02, give_up_seconds=1, max_given_up=1, clock=clock)
    for _ in range(2):
        with pytest.raises(NoAnswer):
            await thread.call(driver.hang)
        clock.now += 2
    driver.let_go.set()
    deadline = time.monotonic() + 5
    while thread.given_up:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert await thread.call(lambda: "ok") == "ok"


async def test_a_cancelled_callers_call_is_not_made_later(driver: Driver) -> None:
    """Whoever went away while waiting for its turn is not served."""
    thread = OneThread("t", timeout_seconds=5)
    first = asyncio.ensure_future(thread.call(driver.hang))
    await driver.until_begun()
    made: list[int] = []
    second = asyncio.ensure_future(thread.call(lambda: made.append(1)))
    await asyncio.sleep(0)  # it has been submitted, and waits behind the first
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    driver.let_go.set()
    assert await first == "back"
    await thread.call(lambda: None)
    assert made == []
