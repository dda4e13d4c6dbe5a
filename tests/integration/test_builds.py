"""Projects become images on a real engine, from real folders, by the whole builder."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import subprocess
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ds01_spawner.adapters.buildcontext import BuildContexts
from ds01_spawner.adapters.buildhistory import BuildRecords
from ds01_spawner.adapters.buildkit import BuildKit
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.builder import Builder
from ds01_spawner.core import labels
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import BuildLimits, BuildRecord, Image, Outcome, Source
from ds01_spawner.core.buildprogress import BuildProgress
from ds01_spawner.errors import BuildFailed, EngineUnavailable, ImageRefused, ProjectRefused

pytestmark = pytest.mark.engine

BASE = "ds01/debian:13"
PYTHON = "ds01/python:13"
FIRST_UID = 1_234_600


@dataclass
class Site:
    """A builder over a real engine, and people with real folders."""

    folder: Path
    engine: BuildKit
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    told: list[BuildProgress] = field(default_factory=list)
    _people: dict[str, Account] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = BuildRecords(self.folder / "builds")
        self.limit()

    def limit(self, **limits: float) -> None:
        """Begin anew with other limits."""
        self.builder = Builder(
            contexts=BuildContexts(Workspaces(self.folder / "run"), self.folder),
            engine=self.engine,
            history=self.records,
            limits=BuildLimits(**{"free_bytes": 1, **limits}),  # type: ignore[arg-type]
            clock=time.time,
            record=lambda kind, **facts: None,
        )

    def source(self, project: str = "thesis", user: str = "alice") -> Source:
        """Return what is asked for; the user's name is this test's own."""
        if user not in self._people:
            uid = FIRST_UID + len(self._people)
            self._people[user] = Account(user, uid, uid, (uid,), self.folder / user)
        name = f"{self.name}{user}"
        return Source(self._people[user], name, project, f"ds01-{name}/{project}", PYTHON)

    def write(self, files: dict[str, str], *, project: str = "thesis", user: str = "alice") -> None:
        """Write a project's files, owned by the user."""
        account = self.source(project, user).account
        for name, text in files.items():
            path = account.home / "workspace" / project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in (account.home, *account.home.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)

    async def ensure(self, project: str = "thesis", *, user: str = "alice", rebuild: bool = False) -> Image:
        """Ask for an image and wait for it."""
        return await self.builder.ensure(self.source(project, user), on_progress=self.told.append, rebuild=rebuild)

    async def build(self, dockerfile: str, **files: str) -> Image:
        """Write alice's thesis and ask for its image; no two tests share a step's cache."""
        self.write({"Dockerfile": f"{dockerfile}\nENV NONCE={self.name}\n", **files})
        return await self.ensure()

    def run(self, image: Image, *command: str) -> str:
        """Run a command in an image and return what it prints."""
        done = subprocess.run(["docker", "run", "--rm", image.id, *command], capture_output=True, text=True, check=True)
        return done.stdout

    def tags(self) -> list[str]:
        """Return the tags of this test's images."""
        listed = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
        lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
        return [line for line in lines if line.startswith(f"ds01-{self.name}")]

    def images(self) -> set[str]:
        """Return the ids of this test's images, those without a tag included."""
        found: set[str] = set()
        for user in self._people:
            listed = ["docker", "image", "ls", "-q", "--no-trunc", "--filter", f"label=ds01.user={self.name}{user}"]
            found |= set(subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split())
        return found

    def last_record(self) -> BuildRecord:
        """Return the newest record of alice's thesis."""
        return self.records.list(self.source().repository)[0]

    def last_log(self) -> str:
        """Return the newest log of alice's thesis."""
        return self.records.read_log(self.source().repository, self.last_record().id).text


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Make a site whose people can enter it, and leave no image behind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # noqa: ASYNC240 - a temporary folder does not block
        made = Site(folder, BuildKit())
        yield made
        await made.builder.close()
        for image in await asyncio.to_thread(made.images):
            await asyncio.to_thread(subprocess.run, ["docker", "image", "rm", "-f", image], capture_output=True)
        made.engine.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the host's processes send no events
            await asyncio.sleep(0.05)


def runs(word: str) -> bool:
    """Whether a process of this host has a word in its command line."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in process.read_bytes().replace(b"\0", b" "):
                return True
    return False


# -- what is built ----------------------------------------------------------------------------------------------------


async def test_build_and_find_again(site: Site) -> None:
    """A project's image is built once, is labelled, and is found again without the builder until its recipe changes."""
    image = await site.build(f"FROM {BASE}\nCOPY requirements.txt /r\nRUN cat /r > /s", **{"requirements.txt": "six"})
    assert image.built
    assert site.tags() == [image.reference]
    found = await site.engine.inspect(image.reference)
    assert found is not None
    assert found.id == image.id
    assert found.labels[labels.USER] == f"{site.name}alice"
    assert found.labels[labels.PROJECT] == "thesis"
    assert found.labels[labels.RECIPE] == image.recipe
    assert found.labels[labels.BASE] == BASE
    assert found.labels[labels.MANAGED] == "true"
    assert abs(time.time() - time.mktime(time.strptime(found.labels[labels.BUILT_AT], "%Y-%m-%dT%H:%M:%SZ"))) < 86_400
    assert site.run(image, "cat", "/s") == "six"
    site.write({"notebook.ipynb": "saved", "data/big": "x" * 10_000})
    assert (await site.ensure()).built is False
    site.write({"requirements.txt": "seven"})
    second = await site.ensure()
    assert second.built
    assert site.run(second, "cat", "/s") == "seven"
    assert site.images() == {second.id}, "the image before is gone"


async def test_buildkit_features(site: Site) -> None:
    """Here-documents, cache mounts, several stages and pip from the network work."""
    image = await site.build(
        f"FROM {PYTHON} AS build\n"
        "RUN --mount=type=cache,target=/root/.cache pip install --quiet --target /packages six\n"
        "RUN <<EOF\nset -e\necho one > /made\necho two >> /made\nEOF\n"
        "COPY <<'EOF' /doc\n$HOME\nEOF\n"
        "RUN --mount=type=bind,source=src,target=/src cp /src/a /copied\n"
        f"FROM {BASE}\nCOPY --from=build /packages /packages\nCOPY --from=build /made /doc /copied /\n",
        **{"src/a": "bound"},
    )
    assert site.run(image, "cat", "/made", "/doc", "/copied") == "one\ntwo\n$HOME\nbound"
    assert "six.py" in site.run(image, "ls", "/packages")


async def test_rebuild_runs_every_step_anew(site: Site) -> None:
    """A rebuild of an unchanged project makes a new image, and its steps are run, not taken from the cache."""
    dockerfile = f"FROM {BASE}\nENV N={site.name}\nRUN cat /proc/sys/kernel/random/uuid > /u"
    first = await site.build(dockerfile)
    uuid = site.run(first, "cat", "/u")
    second = await site.ensure(rebuild=True)
    assert second.id != first.id
    assert site.run(second, "cat", "/u") != uuid


async def test_no_dockerfile(site: Site) -> None:
    """A project without a Dockerfile gets the site's image, and nothing is built."""
    site.write({"notebook.ipynb": "x"})
    image = await site.ensure()
    assert (image.reference, image.built) == (PYTHON, False)
    assert site.tags() == []


async def test_old_dockerfile_folder(site: Site) -> None:
    """A Dockerfile in ~/dockerfiles is built with the project's folder as its context."""
    site.write({"a": "from the project"})
    home = site.source().account.home
    (home / "dockerfiles").mkdir()
    (home / "dockerfiles" / "thesis.Dockerfile").write_text(f"FROM {BASE}\nCOPY a /a\nENV N={site.name}\n")
    site.write({})
    assert site.run(await site.ensure(), "cat", "/a") == "from the project"


async def test_triggers(site: Site) -> None:
    """ONBUILD instructions of a base image get the files that they read."""
    base = f"ds01-{site.name}alice/base:latest"
    await site.build(f"FROM {BASE}\nONBUILD COPY . /all\nONBUILD COPY a /one")
    await site.engine.tag((await site.ensure()).id, f"ds01-{site.name}alice/base", "latest")
    image = await site.build(f"FROM {base}", a="alpha", b="beta")
    assert site.run(image, "cat", "/all/a", "/all/b", "/one") == "alphabetaalpha"
    await asyncio.to_thread(subprocess.run, ["docker", "image", "rm", base], capture_output=True)


async def test_progress_and_record(site: Site) -> None:
    """Progress counts the steps and carries the output; record and log keep what happened."""
    await site.build(f"FROM {BASE}\nRUN echo {site.name} && sleep 1\nRUN printf '\\033[31mred\\033[0m\\a\\n'")
    assert max(progress.steps for progress in site.told) == 3
    assert any("sleep 1" in progress.sentence for progress in site.told)
    assert {"red", site.name} <= set(site.told[-1].lines)
    record = site.last_record()
    assert record.outcome is Outcome.BUILT
    assert record.ended_at - record.started_at > 1
    assert record.image_bytes > 10**6
    assert "red\n" in site.last_log()


# -- hostile Dockerfiles ----------------------------------------------------------------------------------------------


async def test_labels_cannot_be_forged(site: Site) -> None:
    """A Dockerfile cannot make its image look like another user's, or as if it were unchanged for ever."""
    forged = " ".join(f"{key}=forged" for key in (labels.USER, labels.PROJECT, labels.RECIPE, labels.MANAGED))
    image = await site.build(f"FROM {BASE}\nLABEL {forged}\nRUN true\nLABEL {forged}")
    found = await site.engine.inspect(image.id)
    assert found is not None
    assert "forged" not in found.labels.values()


async def test_cache_folders_are_the_users_own(site: Site) -> None:
    """What one user puts into a cache mount is not there in another user's build, even under the same id."""
    mount = f"--mount=type=cache,id=c{site.name},target=/c"
    site.write({"Dockerfile": f"FROM {BASE}\nRUN {mount} echo poison{site.name} > /c/x"})
    await site.ensure()
    for user, sees in (("bob", "empty"), ("alice", f"poison{site.name}")):
        site.write({"Dockerfile": f"FROM {BASE}\nRUN {mount} cat /c/x > /y || echo empty > /y"}, user=user)
        assert site.run(await site.ensure(user=user), "cat", "/y").strip() == sees


async def test_steps_with_cache_folders_are_the_users_own(site: Site) -> None:
    """A step that read one user's cache folder is not taken as the result of another user's same step."""
    mount = f"--mount=type=cache,id=c{site.name},target=/c"
    step = f"FROM {BASE}\nRUN {mount} echo {site.name}; cat /c/x > /y || cat /proc/sys/kernel/random/uuid > /y"
    made = {}
    for user in ("alice", "bob"):
        site.write({"Dockerfile": step}, user=user)
        made[user] = site.run(await site.ensure(user=user), "cat", "/y")
    assert made["alice"] != made["bob"]


async def test_other_steps_are_shared(site: Site) -> None:
    """A step without a cache folder is run once for all users, which saves time and disk."""
    step = f"FROM {BASE}\nRUN echo {site.name}; cat /proc/sys/kernel/random/uuid > /y"
    made = set()
    for user in ("alice", "bob"):
        site.write({"Dockerfile": step}, user=user)
        made.add(site.run(await site.ensure(user=user), "cat", "/y"))
    assert len(made) == 1


async def test_another_users_image_cannot_be_read(site: Site) -> None:
    """Neither FROM nor COPY --from nor a mount reaches bob's image, though the engine has it."""
    site.write({"Dockerfile": f"FROM {BASE}\nCOPY secret /secret", "secret": "bob's"}, user="bob")
    theirs = (await site.ensure(user="bob")).reference
    for dockerfile in (
        f"FROM {theirs}",
        f"FROM {BASE}\nCOPY --from={theirs} /secret /s",
        f"FROM {BASE}\nRUN --mount=type=bind,from={theirs},target=/m cp /m/secret /s",
        f"ARG I={theirs}\nFROM $I",
    ):
        with pytest.raises(ProjectRefused, match="another person"):
            await site.build(dockerfile)


@pytest.mark.parametrize(
    ("dockerfile", "says"),
    [
        (f"FROM {BASE}\nRUN --network=host true", "Remove that flag"),
        (f"FROM {BASE}\nRUN --security=insecure true", "security"),
        ("# syntax=docker/dockerfile:1\nFROM x", "Remove that line"),
        ("FROM nosuch/image:1", "could be fetched: nosuch/image:1"),
        (f"FROM {BASE}\nCOPY nosuch /", "leaves out: nosuch"),
        (f"FROM {BASE}\nRUN exit 42", "exit code 42"),
        (f"FROM {PYTHON}\nRUN python3 -m pip install --break-system-packages nosuch-package-ds01", "nosuch-package"),
        (f"FROM {BASE}\nRUN nosuchcommand", "no command nosuchcommand"),
        (f"FROM {BASE}\nRUN test -S /var/run/docker.sock", "exit code 1"),
        (f"FROM {BASE}\nFROM", "Dockerfile"),
        ("", "Dockerfile"),
    ],
)
async def test_failures_say_what_to_do(site: Site, dockerfile: str, says: str) -> None:
    """A Dockerfile that does not build says why; the image before still has the tag, and nothing else is left."""
    before = await site.build(f"FROM {BASE}\nRUN true")
    site.write({"Dockerfile": dockerfile})
    with pytest.raises(BuildFailed, match=says) as failed:
        await site.ensure()
    assert str(failed.value).endswith(".")
    assert site.images() == {before.id}
    assert site.tags() == [before.reference]
    assert site.last_record().outcome is Outcome.FAILED
    assert site.last_record().reason == str(failed.value)


async def test_ten_megabyte_lines(site: Site) -> None:
    """Endless output neither fills the hub's memory nor its disk nor keeps it from its other work."""
    late = 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - before - 0.01)

    watcher = asyncio.create_task(watch())
    await site.build(
        f"FROM {BASE}\n"
        f"RUN : {site.name}; head -c 10000000 /dev/zero | tr '\\0' x; echo; seq 300000; head -c 1000000 /dev/urandom"
    )
    watcher.cancel()
    log = site.last_log()
    assert len(log.encode()) < 6_000_000
    assert "more characters" in log
    assert max(len(line) for progress in site.told for line in progress.lines) < 2100
    assert late < 0.5, "on a machine that others use; alone it is some 20 ms"


# -- limits and cancels -----------------------------------------------------------------------------------------------


async def test_time_limit(site: Site) -> None:
    """A build over its time is stopped, with everything that it started, and says so."""
    site.limit(seconds=2)
    nonce = 10_000 + secrets.randbelow(80_000)
    with pytest.raises(BuildFailed, match="stopped after 2 seconds"):
        await site.build(f"FROM {BASE}\nRUN sleep {nonce}")
    await until(lambda: not runs(f"sleep {nonce}"))
    assert not runs(f"ds01.user={site.name}alice")
    assert site.images() == set()


async def test_cancel(site: Site) -> None:
    """When the last of two callers leaves, the build is stopped and no image or tag is left."""
    nonce = 10_000 + secrets.randbelow(80_000)
    site.write({"Dockerfile": f"FROM {BASE}\nRUN sleep {nonce}"})
    first, second = asyncio.create_task(site.ensure()), asyncio.create_task(site.ensure())
    await until(lambda: runs(f"sleep {nonce}"))
    first.cancel()
    await asyncio.wait([first])
    await asyncio.sleep(0.5)
    assert runs(f"sleep {nonce}")
    second.cancel()
    await until(lambda: not runs(f"sleep {nonce}"))
    await until(lambda: not runs(f"ds01.user={site.name}alice"))
    await until(lambda: site.last_record().outcome is Outcome.CANCELLED)
    assert site.images() == set()
    assert site.tags() == []


async def test_close_leaves_nothing(site: Site) -> None:
    """When the hub stops, so do its builds."""
    nonce = 10_000 + secrets.randbelow(80_000)
    site.write({"Dockerfile": f"FROM {BASE}\nRUN trap '' INT TERM; sleep {nonce}"})
    task = asyncio.create_task(site.ensure())
    await until(lambda: runs(f"sleep {nonce}"))
    await site.builder.close()
    with pytest.raises(BuildFailed, match="hub stops"):
        await task
    await until(lambda: not runs(f"sleep {nonce}"))
    assert not runs(f"ds01.user={site.name}alice")


async def test_eight_builds_two_at_once(site: Site) -> None:
    """Of many builds at once all succeed, no more than allowed at a time, and those behind know their place."""
    site.limit(concurrent=2)
    for number in range(8):
        site.write({"Dockerfile": f"FROM {BASE}\nRUN echo {number}{site.name} > /n"}, project=f"p{number}")
    images = await asyncio.gather(*(site.ensure(f"p{number}") for number in range(8)))
    assert len({image.id for image in images}) == 8
    assert any("place 6 of 6" in progress.sentence for progress in site.told)


async def test_one_build_for_many_callers(site: Site) -> None:
    """Ten launches of one project at once are one build."""
    site.write({"Dockerfile": f"FROM {BASE}\nRUN echo {site.name}"})
    images = await asyncio.gather(*(site.ensure() for _ in range(10)))
    assert len({image.id for image in images}) == 1
    assert len(site.records.list(site.source().repository)) == 1


async def test_no_engine(site: Site) -> None:
    """Without an engine the fault says so, at the look as at the build."""
    site.write({"Dockerfile": f"FROM {BASE}"})
    site.engine.close()
    site.engine = BuildKit(options={"base_url": "unix:///nonexistent.sock"})
    site.limit()

    async def refusal() -> str:
        try:
            await site.ensure()
        except EngineUnavailable as error:
            return str(error)
        return ""

    assert "does not answer" in await refusal()
    await asyncio.to_thread(site.engine._docker._threads.shutdown)
    # The look asks the engine for several images at once, and only the first answer was waited for.
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # docker-py does not close a socket that could not be connected


async def test_no_client(site: Site) -> None:
    """Without Docker's client the fault says what to install."""
    site.write({"Dockerfile": f"FROM {BASE}"})
    site.engine.close()
    site.engine = BuildKit(command=("no-such-docker",))
    site.limit()
    with pytest.raises(EngineUnavailable, match="no-such-docker could not be started"):
        await site.ensure()


async def test_missing_default(site: Site) -> None:
    """A default image that is not there is named."""
    site.write({"a": "x"})
    source = site.source()
    missing = Source(source.account, source.user, source.project, source.repository, "nosuch/default:1")
    with pytest.raises(ImageRefused, match="nosuch/default:1"):
        await site.builder.ensure(missing, on_progress=site.told.append)
