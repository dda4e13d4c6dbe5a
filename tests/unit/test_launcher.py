"""A launch that ends early at any step, in any way, leaves no container, no mount and no lease."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder
from ds01_spawner.core.options import parse
from ds01_spawner.core.project import server_name
from ds01_spawner.errors import DS01Error, EngineUnavailable, ImageRefused, ProjectRefused, ServerDied
from ds01_spawner.launcher import Launcher, Order, in_full
from ds01_spawner.startgate import StartGate
from ds01_spawner.testing.launching import (
    FakeAllocator,
    FakeEngine,
    FakeFolders,
    FakeImages,
    FakePeople,
    FakeRuntime,
)

STEPS = ("build", "runtime", "list", "reserve", "create", "start", "answer")
ALICE = Holder("alice", "thesis")


class Boom(Exception):
    """Something nobody foresaw."""


@dataclass
class World:
    """A launcher and everything around it."""

    launcher: Launcher
    engine: FakeEngine
    folders: FakeFolders
    allocator: FakeAllocator
    port: int

    def order(self, project: str = "thesis", user: str = "alice", gpus: int = 1) -> Order:
        """Return an order for a project."""
        return Order(
            holder=Holder(user, server_name(project)),
            groups=frozenset(),
            options=parse({"project": project, "gpus": gpus}),
            environment={},
            port=self.port,
            ready_path="/api",
            ready_seconds=5,
        )

    def assert_nothing_is_left(self) -> None:
        """No container, no mount, no lease."""
        assert self.engine.containers == {}
        assert self.folders.mounted == {}
        assert self.allocator.leases == {}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world whose servers answer at once."""
    answering: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        try:
            await engine.before("answer")
            await reader.readline()
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()

    engine, folders, allocator = FakeEngine(), FakeFolders(), FakeAllocator()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    launcher = Launcher(
        hub="test",
        accounts=FakePeople(),
        workspaces=folders,
        threads=UserThreads(),
        images=FakeImages(),
        runtime=FakeRuntime(),
        allocator=allocator,
        engine=engine,
        limits=lambda user, groups: Limits(),
        gate=StartGate(2),
        record=lambda kind, **facts: None,
        clock=lambda: 1_000_000.0,
    )
    yield World(launcher, engine, folders, allocator, server.sockets[0].getsockname()[1])
    server.close()
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)
    await asyncio.sleep(0.01)  # transports close in the loop's next rounds


def fail_at(world: World, step: str, how: object) -> asyncio.Event:
    """Make a step raise ``how``, or hang when it is None; returns the event that says that it was reached."""
    reached = asyncio.Event()

    async def before(name: str) -> None:
        if name == step:
            reached.set()
            if how is None:
                await asyncio.sleep(3600)
            if isinstance(how, BaseException):
                raise how

    world.engine.before = before
    world.allocator.before = before
    world.launcher.images.before = before  # type: ignore[attr-defined]
    world.launcher.runtime.before = before  # type: ignore[attr-defined]
    return reached


def mend(world: World) -> None:
    """Let every step happen again."""
    fail_at(world, "nothing", None)


async def test_a_launch_ends_with_a_bound_lease_a_running_container_and_a_mounted_folder(world: World) -> None:
    """The container carries the record of who holds what, and retiring it leaves nothing."""
    launched = await world.launcher.launch(world.order(), lambda progress, text: None)
    container = world.engine.containers[launched.container_id]
    assert container.state == "running"
    assert container.server.labels["ds01.gpu.uuids"] == "GPU-0"
    assert list(world.folders.mounted.values()) == [1]
    await world.launcher.retire(ALICE, grace_seconds=1)
    world.assert_nothing_is_left()


@pytest.mark.parametrize("step", [step for step in STEPS if step != "answer"])
@pytest.mark.parametrize("error", [Boom("bug"), EngineUnavailable("down")], ids=["bug", "engine"])
async def test_an_error_at_any_step_leaves_nothing(world: World, step: str, error: Exception) -> None:
    """Whatever step fails, and the next launch works."""
    fail_at(world, step, error)
    with pytest.raises(type(error)):
        await world.launcher.launch(world.order(), lambda progress, text: None)
    mend(world)
    await world.launcher.retire(ALICE, grace_seconds=0)  # what the hub does after every failed start
    world.assert_nothing_is_left()
    await world.launcher.launch(world.order(), lambda progress, text: None)


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_at_any_step_leaves_nothing(world: World, step: str) -> None:
    """A cancel or a timeout arrives as CancelledError; what had begun is undone before it goes on."""
    reached = fail_at(world, step, None)
    launch = asyncio.ensure_future(world.launcher.launch(world.order(), lambda progress, text: None))
    await asyncio.wait_for(reached.wait(), 5)
    mend(world)
    launch.cancel()
    if step == "create":
        # The engine's thread cannot be called back: the call is awaited to its end, here by letting it go on.
        pending = [task for task in asyncio.all_tasks() if "create" in repr(task.get_coro())]
        for task in pending:
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(launch, 5)
    world.assert_nothing_is_left()


async def test_a_container_that_appears_after_the_cancel_is_removed(world: World) -> None:
    """The engine finishes a create call whose caller has gone: its container must not stay."""
    may_finish = asyncio.Event()
    reached = asyncio.Event()

    async def before(name: str) -> None:
        if name == "create":
            reached.set()
            await may_finish.wait()

    world.engine.before = before
    launch = asyncio.ensure_future(world.launcher.launch(world.order(), lambda progress, text: None))
    await reached.wait()
    launch.cancel()
    await asyncio.sleep(0)
    launch.cancel()
    await asyncio.sleep(0)
    assert not launch.done()
    may_finish.set()
    with pytest.raises(asyncio.CancelledError):
        await launch
    world.assert_nothing_is_left()


async def test_a_server_that_dies_while_it_starts_says_why_and_leaves_nothing(world: World) -> None:
    """Out of memory during the start is told as that, not as a timeout."""
    silent = socket.create_server(("127.0.0.1", 0))
    world.port = silent.getsockname()[1]

    async def die(container: str) -> str:
        world.engine.containers[container].state = "exited"
        world.engine.containers[container].out_of_memory = True
        return "127.0.0.1"

    world.engine.serve = die
    with pytest.raises(ServerDied, match="out of memory"):
        await world.launcher.launch(world.order(), lambda progress, text: None)
    silent.close()
    world.assert_nothing_is_left()


async def test_a_folder_that_cannot_be_opened_refuses_the_launch_before_a_container_exists(world: World) -> None:
    """A hostile folder costs a refusal, not a lease."""
    world.folders.problem = ProjectRefused("~/workspace/thesis is a link")
    with pytest.raises(ProjectRefused):
        await world.launcher.launch(world.order(), lambda progress, text: None)
    world.assert_nothing_is_left()


async def test_an_image_that_goes_while_the_launch_waits_refuses_it_and_leaves_nothing(world: World) -> None:
    """A build meanwhile discards the image that was found before the wait."""

    async def before(name: str) -> None:
        if name == "reserve":
            world.engine.gone.add("sha256:fake")

    world.allocator.before = before
    with pytest.raises(ImageRefused, match="Launch again"):
        await world.launcher.launch(world.order(), lambda percent, text: None)
    world.assert_nothing_is_left()


async def test_a_stale_container_of_the_same_server_is_replaced(world: World) -> None:
    """What a killed hub left behind does not stop the next launch."""
    first = await world.launcher.launch(world.order(), lambda progress, text: None)
    world.allocator.leases.clear()  # a new hub process remembers nothing
    second = await world.launcher.launch(world.order(), lambda progress, text: None)
    assert list(world.engine.containers) == [second.container_id]
    assert first.container_id != second.container_id


async def test_a_retire_while_the_engine_is_down_keeps_the_devices_and_is_made_up_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container may still compute, so its device is nobody else's; the retire happens when the engine is back."""
    monkeypatch.setattr("ds01_spawner.launcher.ENGINE_RETRY_SECONDS", 0)
    await world.launcher.launch(world.order(), lambda progress, text: None)
    world.engine.down = True
    with pytest.raises(EngineUnavailable):
        await world.launcher.retire(ALICE, grace_seconds=0)
    await world.launcher.retire_for_certain(ALICE)
    for _ in range(20):
        await asyncio.sleep(0)
    assert ALICE in world.allocator.leases
    world.engine.down = False
    async with asyncio.timeout(5):
        while world.allocator.leases or world.folders.mounted:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0)
    world.assert_nothing_is_left()


@pytest.fixture
async def away(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """A server that could not be retired because the engine is away; the engine is back when its next launch builds.

    The test says by a call how that build ends.
    """
    monkeypatch.setattr("ds01_spawner.launcher.ENGINE_RETRY_SECONDS", 0)
    await world.launcher.launch(world.order(gpus=0), lambda progress, text: None)
    world.engine.down = True
    await world.launcher.retire_for_certain(ALICE)

    def then(error: Exception | None) -> None:
        async def before(name: str) -> None:
            world.engine.down = False
            if error:
                raise error

        world.launcher.images.before = before  # type: ignore[attr-defined]

    return then


async def test_a_retire_that_is_made_up_for_does_not_reach_the_server_that_was_launched_since(
    world: World, away: Callable[[Exception | None], None]
) -> None:
    """The launch removes what the retire was to remove, so nothing is left to make up for."""
    away(None)
    (old,) = world.engine.containers
    launched = await world.launcher.launch(world.order(gpus=0), lambda progress, text: None)
    for _ in range(50):
        await asyncio.sleep(0)
    assert list(world.engine.containers) == [launched.container_id]
    assert launched.container_id != old
    assert ALICE in world.allocator.leases


async def test_a_launch_that_fails_before_it_removes_the_old_container_leaves_the_retire_to_be_made_up_for(
    world: World, away: Callable[[Exception | None], None]
) -> None:
    """A build that fails says nothing about the container that ought to be gone."""
    away(Boom())
    with pytest.raises(Boom):
        await world.launcher.launch(world.order(gpus=0), lambda progress, text: None)
    async with asyncio.timeout(5):
        while world.allocator.leases:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0)
    world.assert_nothing_is_left()


async def test_a_retire_that_fails_in_a_way_nobody_foresaw_is_made_up_for_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be unmounted keeps the lease; once it can be, the device is free again."""
    monkeypatch.setattr("ds01_spawner.launcher.ENGINE_RETRY_SECONDS", 0)
    await world.launcher.launch(world.order(), lambda progress, text: None)
    world.folders.stuck = Boom()
    await world.launcher.retire_for_certain(ALICE)
    await world.launcher.retire_for_certain(ALICE)  # asked twice, made up for once
    assert ALICE in world.allocator.leases
    world.folders.stuck = None
    async with asyncio.timeout(5):
        while world.allocator.leases:  # noqa: ASYNC110 - a condition with a deadline
            await asyncio.sleep(0)
    world.assert_nothing_is_left()


async def test_two_launches_of_one_server_never_overlap(world: World) -> None:
    """A double click makes one container at a time, and one remains."""
    results = await asyncio.gather(
        *(world.launcher.launch(world.order(gpus=0), lambda progress, text: None) for _ in range(3)),
        return_exceptions=True,
    )
    assert not [result for result in results if isinstance(result, (DS01Error, Exception))]
    assert len(world.engine.containers) == 1


async def test_in_full_awaits_the_work_and_then_tells_of_the_cancel() -> None:
    """A cancel is neither lost nor allowed to break off the work."""
    done = []

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.append(True)

    task = asyncio.ensure_future(in_full(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_a_retire_waits_for_the_launch_of_the_same_server(world: World) -> None:
    """The container of a launch that is under way is removed by the launch, never from under it."""
    reached = fail_at(world, "start", None)
    launch = asyncio.ensure_future(world.launcher.launch(world.order(), lambda progress, text: None))
    await asyncio.wait_for(reached.wait(), 5)
    retire = asyncio.ensure_future(world.launcher.retire(ALICE, grace_seconds=0))
    for _ in range(50):
        await asyncio.sleep(0)
    assert world.engine.containers
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await asyncio.wait_for(retire, 5)
    world.assert_nothing_is_left()


class TestForgotten:
    """Servers that run although the hub let go of them."""

    async def test_what_the_hub_let_go_of_is_retired_and_nothing_else(self, world: World) -> None:
        """One server that the hub runs and one that it does not: the second is gone, and its lease."""
        world.launcher.let_go = lambda holder: holder.user == "bob"
        alice = await world.launcher.launch(world.order(), lambda progress, text: None)
        await world.launcher.launch(world.order(user="bob", gpus=0), lambda progress, text: None)
        world.launcher.retire_forgotten([*world.allocator.leases])
        await self._all_done(world)
        assert list(world.engine.containers) == [alice.container_id]
        assert list(world.allocator.leases) == [ALICE]

    async def test_a_server_that_is_being_launched_is_left_alone(self, world: World) -> None:
        """Even when the hub says for a moment that it does not run."""
        world.launcher.let_go = lambda holder: True
        reached = fail_at(world, "start", None)
        launch = asyncio.ensure_future(world.launcher.launch(world.order(), lambda progress, text: None))
        await asyncio.wait_for(reached.wait(), 5)
        world.launcher.retire_forgotten([ALICE])
        assert not world.launcher._forgotten
        launch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launch

    async def test_a_launch_that_comes_first_is_not_undone(self, world: World) -> None:
        """Between the look and the retire the project was launched again: the hub is asked once more."""
        await world.launcher.launch(world.order(gpus=0), lambda progress, text: None)
        gone = True
        world.launcher.let_go = lambda holder: gone
        async with world.launcher._alone(ALICE):
            world.launcher._forgotten[ALICE] = asyncio.create_task(world.launcher._retire_forgotten(ALICE))
            await asyncio.sleep(0)
            gone = False
        await self._all_done(world)
        assert len(world.engine.containers) == 1

    async def test_what_fails_is_done_after_the_next_look(self, world: World) -> None:
        """An engine that is away keeps the lease; once it is back the next look retires."""
        await world.launcher.launch(world.order(), lambda progress, text: None)
        world.launcher.let_go = lambda holder: True
        world.engine.down = True
        world.launcher.retire_forgotten([ALICE])
        await self._all_done(world)
        assert ALICE in world.allocator.leases
        world.engine.down = False
        world.launcher.retire_forgotten([ALICE])
        await self._all_done(world)
        world.assert_nothing_is_left()

    @staticmethod
    async def _all_done(world: World) -> None:
        await asyncio.wait_for(asyncio.gather(*world.launcher._forgotten.values()), 5)
