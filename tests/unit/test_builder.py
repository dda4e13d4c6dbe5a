"""Orders of builds: what is not built, who joins, who waits, what a cancel and a limit do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ds01_spawner.builder import Builder
from ds01_spawner.core import labels
from ds01_spawner.core.build import BuildLimits, Image, Outcome, Source
from ds01_spawner.core.buildprogress import BuildPhase, BuildProgress
from ds01_spawner.errors import BuildFailed, EngineUnavailable, ImageRefused, ProjectRefused
from ds01_spawner.testing.builds import (
    ALICE,
    EngineDown,
    FakeBuildEngine,
    FakeContexts,
    FakeHistory,
    OversizedProject,
    SlowToStop,
    UnwillingToTag,
)

NOW = 1_700_000_000.0
DEFAULT = "ds01/python:13"


@dataclass
class Begun:
    """A caller that waits for an image."""

    task: asyncio.Task[Image]
    heard: list[BuildProgress]


@dataclass
class Site:
    """A builder and its surroundings."""

    engine: FakeBuildEngine = field(default_factory=FakeBuildEngine)
    contexts: FakeContexts = field(default_factory=FakeContexts)
    history: FakeHistory = field(default_factory=FakeHistory)
    limits: BuildLimits = field(default_factory=BuildLimits)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine.add(DEFAULT)
        self.builder = Builder(
            contexts=self.contexts,
            engine=self.engine,
            history=self.history,
            limits=self.limits,
            clock=lambda: NOW,
            record=lambda kind, **facts: self.events.append((kind, facts)),
        )
        self.told: list[BuildProgress] = []

    def source(self, project: str = "thesis", user: str = "alice") -> Source:
        """Return what is asked for."""
        return Source(ALICE, user, project, f"ds01-{user}/{project}", DEFAULT)

    async def ensure(self, project: str = "thesis", *, user: str = "alice", rebuild: bool = False) -> Image:
        """Ask for an image and wait for it."""
        return await self.builder.ensure(self.source(project, user), on_progress=self.told.append, rebuild=rebuild)

    async def begin(self, project: str = "thesis", told: Callable[[BuildProgress], None] | None = None) -> Begun:
        """Begin to wait for an image, and return when its build is known."""
        heard: list[BuildProgress] = []

        def listen(progress: BuildProgress) -> None:
            heard.append(progress)
            if told:
                told(progress)

        task = asyncio.create_task(self.builder.ensure(self.source(project), on_progress=listen))
        await until(lambda: heard)
        return Begun(task, heard)

    def outcomes(self) -> list[Outcome]:
        """Return how the builds so far ended."""
        return [record.outcome for record in self.history.records.values()]


async def until(condition: Callable[[], object]) -> None:
    """Let things happen until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what happens, happens in short calls of threads
            await asyncio.sleep(0)


async def ended(task: asyncio.Task[Image]) -> None:
    """Wait until a task is over, however it ends."""
    await asyncio.wait([task])


def site(dockerfile: str = "FROM x\nRUN true", **more: object) -> Site:
    """Return a site where alice has the project thesis."""
    made = Site(**more)  # type: ignore[arg-type]
    made.contexts.dockerfiles["thesis"] = dockerfile
    return made


# -- what is built, and what is not -----------------------------------------------------------------------------------


async def test_first_launch_builds() -> None:
    """A project without an image gets one, tagged, labelled and remembered."""
    here = site("FROM x AS y\nFROM y\nRUN true")
    image = await here.ensure()
    assert image.built
    assert image.reference == "ds01-alice/thesis:latest"
    found = here.engine.images[image.id]
    assert found.tags == ("ds01-alice/thesis:latest",)
    assert found.labels == {
        labels.MANAGED: "true",
        labels.USER: "alice",
        labels.PROJECT: "thesis",
        labels.RECIPE: image.recipe,
        labels.BASE: "x",
        labels.BUILT_AT: "2023-11-14T22:13:20Z",
    }
    (record,) = here.history.records.values()
    assert (record.outcome, record.image_id, record.recipe) == (Outcome.BUILT, image.id, image.recipe)
    ((kind, facts),) = here.events
    assert (kind, facts["user"], facts["project"]) == ("image.build", "alice", "thesis")
    assert (facts["outcome"], facts["image"]) == ("built", image.id)
    assert record.image_bytes > 0
    assert record.id.startswith("20231114T221320000000Z-")


async def test_unchanged_is_not_built() -> None:
    """A second launch finds the image and does not call the builder."""
    here = site()
    first = await here.ensure()
    again = await here.ensure()
    assert (again.id, again.recipe, again.built) == (first.id, first.recipe, False)
    assert len(here.engine.builds) == 1
    assert here.contexts.scans == 0


async def test_a_saved_notebook_changes_nothing() -> None:
    """Files that the Dockerfile cannot read do not make a new image; those that it reads do."""
    here = site("FROM x\nCOPY requirements.txt /")
    here.contexts.files = {"requirements.txt": "six", "notebook.ipynb": "1"}
    first = await here.ensure()
    here.contexts.files["notebook.ipynb"] = "2"
    assert (await here.ensure()).id == first.id
    here.contexts.files["requirements.txt"] = "seven"
    assert (await here.ensure()).id != first.id


async def test_a_changed_dockerfile_is_built() -> None:
    """Another recipe makes another image, and the one before, which nothing names any more, is removed."""
    here = site()
    first = await here.ensure()
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo new"
    second = await here.ensure()
    assert second.built
    assert first.id not in here.engine.images
    assert here.engine.images[second.id].tags == ("ds01-alice/thesis:latest",)


async def test_the_image_of_a_running_server_stays() -> None:
    """An image that a container uses, or that the user kept under a tag, survives a new build."""
    here = site()
    first = await here.ensure()
    here.engine.used.add(first.id)
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo new"
    second = await here.ensure()
    await here.engine.tag(second.id, "ds01-alice/thesis", "keep")
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo newer"
    await here.ensure()
    assert first.id in here.engine.images
    assert second.id in here.engine.images


async def test_an_image_of_other_labels_is_not_trusted() -> None:
    """An image under the project's name that was not made from this recipe is replaced."""
    here = site()
    here.engine.add("ds01-alice/thesis:latest")
    assert (await here.ensure()).built


async def test_rebuild() -> None:
    """A rebuild builds an unchanged project, every step anew."""
    here = site()
    first = await here.ensure()
    second = await here.ensure(rebuild=True)
    assert second.built
    assert second.id != first.id
    assert [order.from_scratch for order in here.engine.builds] == [False, True]


async def test_changed_while_looking() -> None:
    """The label tells what was packed, not what was there at the look before; so the next launch is not fooled."""
    here = site("FROM x\nCOPY a /")
    here.contexts.files = {"a": "1"}
    here.contexts.before_pack = lambda: here.contexts.files.update(a="2")
    image = await here.ensure()
    assert here.engine.images[image.id].labels[labels.RECIPE] == image.recipe
    here.contexts.before_pack = lambda: None
    assert not (await here.ensure()).built
    here.contexts.files["a"] = "1"
    assert (await here.ensure()).built


async def test_triggers_of_a_local_base_are_known() -> None:
    """ONBUILD instructions of a base image on this host decide what is sent; of one that is not here they cannot."""
    here = site("FROM with-triggers")
    here.engine.add("with-triggers:latest", triggers=("COPY a /",))
    here.contexts.files = {"a": "1", "b": "2"}
    await here.ensure()
    assert here.engine.builds[0].context.contents.file_count == 1
    assert here.engine.builds[0].knows_triggers
    here.contexts.dockerfiles["thesis"] = "FROM elsewhere"
    await here.ensure()
    assert not here.engine.builds[1].knows_triggers


async def test_no_dockerfile() -> None:
    """A project without a Dockerfile uses the site's image; where that is missing, the refusal names it."""
    here = Site()
    image = await here.ensure()
    assert (image.reference, image.built, image.recipe) == (DEFAULT, False, "")
    here.engine.images.clear()
    with pytest.raises(ImageRefused, match=DEFAULT):
        await here.ensure()


async def test_a_kept_image() -> None:
    """An image that the user kept under a tag is found under it; any other tag is refused."""
    here = site()
    image = await here.ensure()
    await here.engine.tag(image.id, "ds01-alice/thesis", "v1")
    assert await here.builder.find_tagged(here.source(), "v1") == Image(
        image.id, "ds01-alice/thesis:v1", image.recipe, built=False
    )
    with pytest.raises(ImageRefused, match="v2"):
        await here.builder.find_tagged(here.source(), "v2")


async def test_another_users_image_is_refused_before_building() -> None:
    """Alice cannot build on bob's image."""
    here = site("FROM ds01-bob/thesis")
    with pytest.raises(ProjectRefused, match="another person"):
        await here.ensure()
    assert here.engine.builds == []


async def test_users_share_no_cache_folders() -> None:
    """Cache mounts of different users are apart; those of one user's projects are shared."""
    here = site()
    here.contexts.dockerfiles["other"] = "FROM x\nRUN echo o"
    await here.ensure()
    await here.ensure("other")
    await here.ensure(user="bob")
    alice, other, bob = (order.cache_namespace for order in here.engine.builds)
    assert alice == other != bob


# -- joining and leaving ----------------------------------------------------------------------------------------------


async def test_second_caller_joins() -> None:
    """Two launches of one recipe share one build; the later one is told at once where it is."""
    here = site("FROM x\nRUN echo one")
    here.engine.may_end.clear()
    first = await here.begin()
    await until(lambda: "one" in first.heard[-1].lines)
    second = await here.begin()
    assert second.heard[0] == first.heard[-1]
    assert second.heard[0].phase is BuildPhase.BUILDING
    here.engine.may_end.set()
    assert await first.task == await second.task
    assert len(here.engine.builds) == 1
    assert second.heard[-1].phase is BuildPhase.DONE


async def test_a_caller_that_leaves_stops_nobody() -> None:
    """A build goes on as long as anyone waits for it, whoever came first."""
    here = site()
    here.engine.may_end.clear()
    first, second = await here.begin(), await here.begin()
    await until(lambda: here.engine.running)
    first.task.cancel()
    await ended(first.task)
    assert first.task.cancelled()
    assert here.engine.running == 1
    here.engine.may_end.set()
    assert (await second.task).built


async def test_the_last_caller_stops_it() -> None:
    """When nobody waits any more the build ends; nothing of it stays, and the image before is still there."""
    here = site()
    before = await here.ensure()
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo new"
    here.engine.may_end.clear()
    first, second = await here.begin(), await here.begin()
    await until(lambda: here.engine.running)
    first.task.cancel()
    second.task.cancel()
    await until(lambda: not here.engine.running)
    await until(lambda: here.outcomes() == [Outcome.BUILT, Outcome.CANCELLED])
    assert sorted(facts["outcome"] for _, facts in here.events) == ["built", "cancelled"]
    assert [image.id for image in here.engine.images.values() if image.labels] == [before.id]
    here.engine.may_end.set()
    assert (await here.ensure()).built


async def test_who_comes_while_a_build_is_being_stopped_gets_their_own() -> None:
    """A launch right after a cancel does not inherit the cancel, and waits until the stopped build is gone."""
    engine = SlowToStop()
    here = site(engine=engine)
    engine.may_end.clear()
    first = await here.begin()
    await until(lambda: engine.running)
    first.task.cancel()
    await until(lambda: not engine.running)
    second = await here.begin()
    await until(lambda: "earlier build of this project" in second.heard[-1].sentence)
    assert len(engine.builds) == 1
    engine.may_end.set()
    engine.may_stop.set()
    assert (await second.task).built


async def test_a_failing_watcher_harms_nobody() -> None:
    """An error in one caller's callback neither ends the build nor keeps others from being told."""
    here = site()
    here.engine.may_end.clear()

    def fail(progress: BuildProgress) -> None:
        raise RuntimeError(progress.sentence)

    first = await here.begin(told=fail)
    second = await here.begin()
    here.engine.may_end.set()
    assert (await first.task).id == (await second.task).id
    assert second.heard[-1].phase is BuildPhase.DONE


async def test_two_recipes_of_one_project_follow_each_other() -> None:
    """A changed recipe is built after the one under way, so that the tag ends at the later one."""
    here = site()
    here.engine.may_end.clear()
    first = await here.begin()
    await until(lambda: here.engine.running)
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo new"
    second = await here.begin()
    await until(lambda: "earlier build of this project" in second.heard[-1].sentence)
    assert here.engine.running == 1
    here.engine.may_end.set()
    await first.task
    image = await second.task
    assert here.engine.images[image.id].tags == ("ds01-alice/thesis:latest",)
    assert here.engine.most_running == 1


async def test_close() -> None:
    """When the hub stops, builds end and those who wait are told why."""
    here = site(limits=BuildLimits(concurrent=1))
    here.contexts.dockerfiles["other"] = "FROM x"
    here.engine.may_end.clear()
    running = await here.begin()
    await until(lambda: here.engine.running)
    waiting = await here.begin("other")
    await here.builder.close()
    assert here.engine.running == 0
    for begun in (running, waiting):
        with pytest.raises(BuildFailed, match="hub stops"):
            await begun.task


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_only_so_many_at_once() -> None:
    """Builds beyond the limit wait in order and know their place; a place that somebody leaves is closed up."""
    here = Site(limits=BuildLimits(concurrent=2))
    here.contexts.dockerfiles = {f"p{number}": f"FROM x\nRUN echo {number}" for number in range(5)}
    here.engine.may_end.clear()
    begun = []
    for number in range(5):
        begun.append(await here.begin(f"p{number}"))
        await until(lambda: here.engine.running == min(2, len(begun)))
        await until(lambda: len(begun) <= 2 or "Waiting" in begun[-1].heard[-1].sentence)
    assert begun[2].heard[-1].sentence == "Waiting for one of 2 other builds to end, place 1 of 3"
    assert begun[4].heard[-1].sentence == "Waiting for one of 2 other builds to end, place 3 of 3"
    begun[3].task.cancel()
    await until(lambda: begun[4].heard[-1].sentence == "Waiting for one of 2 other builds to end, place 2 of 2")
    here.engine.may_end.set()
    await asyncio.wait([each.task for each in begun])
    assert here.engine.most_running == 2
    assert [order.labels[labels.PROJECT] for order in here.engine.builds] == ["p0", "p1", "p2", "p4"]


async def test_a_place_is_not_lost() -> None:
    """Whatever mixture of cancels and ends happens, later builds still find their place."""
    here = Site(limits=BuildLimits(concurrent=1))
    here.contexts.dockerfiles = {f"p{number}": f"FROM x\nRUN echo {number}" for number in range(8)}
    here.engine.may_end.clear()
    begun = [await here.begin(f"p{number}") for number in range(6)]
    await until(lambda: all("Waiting" in each.heard[-1].sentence for each in begun[1:]))
    begun[0].task.cancel()  # runs
    begun[1].task.cancel()  # gets the place at this very moment
    begun[3].task.cancel()  # waits
    await until(lambda: "echo 2" in begun[2].heard[-1].instruction)
    begun[2].task.cancel()
    here.engine.may_end.set()
    await asyncio.wait([each.task for each in begun])
    assert (await here.ensure("p6")).built
    assert (await here.ensure("p7")).built
    assert here.engine.most_running == 1


async def test_too_long() -> None:
    """A build over the time limit is stopped, and the refusal names the limit."""
    here = site("FROM x\nRUN echo almost\nRUN sleep 60", limits=BuildLimits(seconds=0.1))
    with pytest.raises(BuildFailed, match=r"after 0 seconds, the limit") as failed:
        await here.ensure()
    assert "sleep 60" in failed.value.step
    assert "almost" in failed.value.log
    assert here.engine.running == 0
    assert here.outcomes() == [Outcome.FAILED]
    assert [(facts["outcome"], bool(facts["reason"])) for _, facts in here.events] == [("failed", True)]


async def test_no_room() -> None:
    """A build does not begin on a nearly full disk; the refusal has both numbers."""
    here = site(limits=BuildLimits(free_bytes=10 * 2**30))
    here.engine.free = 3 * 2**30
    with pytest.raises(BuildFailed, match=r"3\.0 GiB free .* 10\.0 GiB"):
        await here.ensure()
    assert here.engine.builds == []


async def test_an_unchanged_project_needs_no_room() -> None:
    """Neither a full disk nor a busy builder keeps a project with an image from being launched."""
    here = site()
    await here.ensure()
    here.engine.free = 0
    assert not (await here.ensure()).built


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failed_build_leaves_the_image_before() -> None:
    """After a failure the tag means what it meant, and everyone who waited hears the same reason."""
    here = site()
    before = await here.ensure()
    here.contexts.dockerfiles["thesis"] = "FROM x\nRUN echo oops && exit 4"
    here.engine.may_end.clear()
    first, second = await here.begin(), await here.begin()
    here.engine.may_end.set()
    for begun in (first, second):
        with pytest.raises(BuildFailed, match="exit code 4") as failed:
            await begun.task
        assert failed.value.log == ("oops",)
    latest = await here.engine.inspect("ds01-alice/thesis:latest")
    assert latest is not None
    assert latest.id == before.id
    assert here.outcomes() == [Outcome.BUILT, Outcome.FAILED]
    assert "exit code 4" in list(here.history.records.values())[-1].reason
    with pytest.raises(BuildFailed):
        await here.ensure()  # a failure is not remembered as an answer


async def test_engine_down() -> None:
    """An engine that does not answer is a fault, is remembered, and keeps no place."""
    here = site(engine=EngineDown(), limits=BuildLimits(concurrent=1))
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await here.ensure()
    assert here.outcomes() == [Outcome.FAILED, Outcome.FAILED]


async def test_unwilling_to_tag() -> None:
    """An image that could not be tagged is removed again."""
    here = site(engine=UnwillingToTag())
    with pytest.raises(EngineUnavailable):
        await here.ensure()
    assert [image for image in here.engine.images.values() if image.labels] == []


async def test_oversized_project() -> None:
    """A project that is too large is refused before anything is built or waited for."""
    here = site("FROM x\nCOPY . /", contexts=OversizedProject())
    with pytest.raises(ProjectRefused, match="dockerignore"):
        await here.ensure()
    assert here.engine.builds == []


async def test_the_log_says_what_was_given() -> None:
    """When every file counts, the log says how many, why, and how to leave some out."""
    here = site("FROM x\nCOPY . /")
    here.contexts.files = {"a": "1", "b": "2"}
    await here.ensure()
    (log,) = here.history.logs.values()
    assert "2 files" in log[0]
    assert "line 2 reads the whole folder" in log[0]
    assert ".dockerignore" in log[0]
