from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from ds01_spawner.adapters.probecache import MOST_ENTRIES, ProbeCache
from ds01_spawner.adapters.runtimefolder import MANIFEST, RuntimeFolder, measure
from ds01_spawner.core.container import Mount
from ds01_spawner.errors import ImageRefused, RuntimeUnavailable
from ds01_spawner.runtime import Runtime
from ds01_spawner.testing.runtime import (
    FakeAnswer,
    FakePackages,
    FakeProbe,
    IncompleteInstall,
    UnreachableIndex,
    python_answer,
    trial_answer,
)

IMAGE = "sha256:" + "a" * 64


def make(root: Path, **parts: Any) -> Runtime:
    """Return a hub's runtime; two with the same root are two hubs, or one that was restarted."""
    parts.setdefault("packages", FakePackages())
    parts.setdefault("probe", FakeProbe())
    return Runtime(folder=RuntimeFolder(root / "runtime"), cache=ProbeCache(root / "images.json"), **parts)


def quiet(_text: str) -> None:
    """Take a line of progress."""


def sets(root: Path) -> list[Path]:
    """Return the sets that are there."""
    return sorted((root / "runtime" / "sets").iterdir())


# -- preparing an image -------------------------------------------------------------------------------------------


async def test_a_plain_image_runs_from_the_runtime(tmp_path: Path) -> None:
    """An image with only a Python is started by that Python, with the set read-only at /opt/ds01 and nothing to say."""
    probe = FakeProbe(python_answer(executable="/opt/py/bin/python3.13"))
    command = await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)
    assert command.argv == ("/opt/py/bin/python3.13", "-I", "-S", "/opt/ds01/boot/launch.py", "--plan=runtime")
    assert command.mounts == (Mount(str(sets(tmp_path)[0]), "/opt/ds01", read_only=True),)
    assert command.notices == ()
    assert len(probe.runs) == 1


async def test_a_known_image_is_not_run_again(tmp_path: Path) -> None:
    """Neither a second launch nor a restarted hub examines an image again."""
    probe = FakeProbe(python_answer(packages={"tornado": "6.4"}))
    packages = FakePackages()
    first = await make(tmp_path, probe=probe, packages=packages).prepare(IMAGE, on_progress=quiet)
    assert len(probe.runs) == 2
    restarted = make(tmp_path, probe=probe, packages=packages)
    assert await restarted.prepare(IMAGE, on_progress=quiet) == first
    assert await restarted.prepare(IMAGE, on_progress=quiet) == first
    assert len(probe.runs) == 2
    assert packages.installed == ["3.13"]


async def test_many_launches_of_a_new_image_examine_it_once(tmp_path: Path) -> None:
    """Eight launches of one new image at once make one probe and one set."""
    probe, packages = FakeProbe(), FakePackages()
    runtime = make(tmp_path, probe=probe, packages=packages)
    commands = await asyncio.gather(*(runtime.prepare(IMAGE, on_progress=quiet) for _ in range(8)))
    assert len({command.argv for command in commands}) == 1
    assert (len(probe.runs), packages.installed) == (1, ["3.13"])


async def test_python_is_asked_where_python3_is_missing(tmp_path: Path) -> None:
    """An image whose only interpreter is called ``python`` is as good as any."""

    def by_name(program: str) -> FakeAnswer:
        return python_answer() if program == "python" else FakeAnswer(b"not found", 127, started=False)

    assert await make(tmp_path, probe=FakeProbe(by_name)).prepare(IMAGE, on_progress=quiet)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (FakeAnswer(b"", 127, started=False), "no Python on its PATH"),
        (FakeAnswer(b"", -1, timed_out=True), "within 20 seconds"),
        (FakeAnswer(b"x" * 10_000_000), "does not start properly"),
        (FakeAnswer(b"ds01-probe:{}"), "does not start properly"),
        (FakeAnswer(b'ds01-probe:{"schema": 1, "version": ["; rm -rf /", 1, 1]}'), "does not start properly"),
        (python_answer(glibc=""), "Alpine"),
    ],
)
async def test_a_useless_answer_is_a_refusal(tmp_path: Path, answer: FakeAnswer, expected: str) -> None:
    """An image that answers with nonsense is refused with a sentence, and no set is made for it."""
    packages = FakePackages()
    with pytest.raises(ImageRefused, match=expected):
        await make(tmp_path, probe=FakeProbe(answer), packages=packages).prepare(IMAGE, on_progress=quiet)
    assert packages.installed == []


async def test_an_image_without_an_answer_is_asked_again(tmp_path: Path) -> None:
    """A refusal for want of an answer is not kept: the host may only have been too busy."""
    probe = FakeProbe(FakeAnswer(b"", -1, timed_out=True))
    runtime = make(tmp_path, probe=probe)
    with pytest.raises(ImageRefused):
        await runtime.prepare(IMAGE, on_progress=quiet)
    probe.probe = python_answer()
    assert await runtime.prepare(IMAGE, on_progress=quiet)


async def test_refused_settings_run_nothing(tmp_path: Path) -> None:
    """Nothing of an image with LD_PRELOAD is ever run."""
    probe = FakeProbe(environment={"LD_PRELOAD": "/x.so"})
    with pytest.raises(ImageRefused, match="LD_PRELOAD"):
        await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)
    assert probe.runs == []


async def test_old_packages_put_the_runtime_first_in_kernels(tmp_path: Path) -> None:
    """Where a kernel does not start behind the image's packages, ours is used and the user is told why."""
    trial = trial_answer(kernel_image_first=False, kernel_error="ImportError: cannot import name 'X'")
    probe = FakeProbe(python_answer(packages={"traitlets": "4.3"}), trial)
    command = await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)
    assert "--own-kernel" in command.argv
    assert "cannot import name 'X'" in command.notices[0]


async def test_the_images_own_lab_is_used_when_it_works(tmp_path: Path) -> None:
    """An image with a working JupyterLab keeps it, and the trial is told to try it."""
    probe = FakeProbe(python_answer(packages={"jupyterlab": "4.2", "jupyter-server": "2.14"}))
    command = await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)
    assert "--plan=image-first" in command.argv
    assert probe.runs[-1][-1] == "--server"


async def test_a_trial_that_was_cut_short_is_not_kept(tmp_path: Path) -> None:
    """A host too busy to finish a trial does not brand the image for ever."""
    slow = trial_answer(kernel_image_first=False, kernel_error="it took more than 40 seconds", cut_short=True)
    probe = FakeProbe(python_answer(packages={"tornado": "6.4"}), slow)
    runtime = make(tmp_path, probe=probe)
    assert "--own-kernel" in (await runtime.prepare(IMAGE, on_progress=quiet)).argv
    probe.trial = trial_answer()
    assert "--own-kernel" not in (await runtime.prepare(IMAGE, on_progress=quiet)).argv


async def test_a_spoiled_trial_is_a_refusal(tmp_path: Path) -> None:
    """An image that answers the probe and then not the trial is refused, not guessed at."""
    probe = FakeProbe(python_answer(packages={"tornado": "6"}), FakeAnswer(b"Killed", 137))
    with pytest.raises(ImageRefused, match="exit code 137"):
        await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)


async def test_a_spoiled_memory_is_asked_again(tmp_path: Path) -> None:
    """Nonsense in the file of known images costs one more probe and nothing else."""
    await make(tmp_path).prepare(IMAGE, on_progress=quiet)
    path = tmp_path / "images.json"
    kept = json.loads(path.read_text())
    kept["answers"] = {key: {"version": "3"} for key in kept["answers"]}
    path.write_text(json.dumps(kept))
    probe = FakeProbe()
    await make(tmp_path, probe=probe).prepare(IMAGE, on_progress=quiet)
    assert len(probe.runs) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 1}', '{"schema": 1, "answers": {"x": 1}}', "\x00"])
def test_a_spoiled_file_is_an_empty_one(tmp_path: Path, content: str) -> None:
    """Whatever the file holds, the cache starts and keeps new answers."""
    path = tmp_path / "images.json"
    path.write_text(content)
    cache = ProbeCache(path)
    assert cache.get("x") is None
    cache.put("x", {"a": 1})
    assert ProbeCache(path).get("x") == {"a": 1}


def test_the_oldest_answers_go(tmp_path: Path) -> None:
    """The file of known images does not grow for ever."""
    cache = ProbeCache(tmp_path / "images.json")
    cache._entries = {str(number): {} for number in range(MOST_ENTRIES)}
    cache.put("new", {})
    assert cache.get("0") is None
    assert cache.get("1") == cache.get("new") == {}


# -- making sets --------------------------------------------------------------------------------------------------


async def test_a_set_is_read_only_for_everyone_else(tmp_path: Path) -> None:
    """Nothing in a set may be written by anyone but its owner, and everything may be read by all."""
    folder = await make(tmp_path).make_set("3.13")
    paths = [folder, *folder.rglob("*")]
    assert all(path.stat().st_mode & 0o022 == 0 for path in paths)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in paths)
    assert all(path.stat().st_mode & 0o111 == 0o111 for path in paths if path.is_dir())


async def test_what_is_left_out_is_not_installed(tmp_path: Path) -> None:
    """A package on the list of useless ones is neither installed nor named in the manifest."""
    folder = await make(tmp_path).make_set("3.13")
    assert not any(pin.startswith("lark") for pin in json.loads((folder / MANIFEST).read_text())["pins"])
    assert "lark" not in (folder / "server/jupyterlab/labapp.py").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "kernel/zmq/__init__.py").unlink(),
        lambda folder: (folder / "boot/launch.py").write_text(""),
        lambda folder: (folder / "boot/launch.py").chmod(0o666),
        lambda folder: (folder / "boot/extra.py").write_text("x"),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
async def test_a_damaged_set_is_made_anew_beside_it(tmp_path: Path, damage: Any) -> None:
    """A set with a missing, changed, opened-up or added file is not used again, and not touched either."""
    first = await make(tmp_path).make_set("3.13")
    damage(first)
    broken = measure(first)
    second = await make(tmp_path).make_set("3.13")
    assert second != first
    assert measure(first) == broken
    assert await make(tmp_path).make_set("3.13") == second


async def test_a_set_that_vanishes_under_a_running_hub_is_made_anew(tmp_path: Path) -> None:
    """A hub that has already used a set notices that an administrator removed it."""
    import shutil

    runtime = make(tmp_path)
    shutil.rmtree(await runtime.make_set("3.13"))
    assert (await runtime.make_set("3.13")).is_dir()


async def test_a_failed_making_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    """Without the package index there is a clear error, no half-made set, and the next try works."""
    packages = UnreachableIndex()
    runtime = make(tmp_path, packages=packages)
    with pytest.raises(RuntimeUnavailable, match=r"3\.13.*no network"):
        await runtime.make_set("3.13")
    assert list((tmp_path / "runtime" / "making").iterdir()) == []
    packages.reachable = True
    assert (await runtime.make_set("3.13")).is_dir()


async def test_an_incomplete_install_is_never_published(tmp_path: Path) -> None:
    """An installer that claims success is not believed."""
    with pytest.raises(RuntimeUnavailable, match=r"incomplete: .*extension\.py is missing"):
        await make(tmp_path, packages=IncompleteInstall()).make_set("3.13")
    assert sets(tmp_path) == []


async def test_a_link_in_a_package_is_refused(tmp_path: Path) -> None:
    """A package that brings a link out of the set is not published."""

    class LinkingPackages(FakePackages):
        async def install(self, version: str, pins: Any, target: Path) -> None:
            await super().install(version, pins, target)
            (target / "passwd").symlink_to("/etc/shadow")

    with pytest.raises(RuntimeUnavailable, match="passwd"):
        await make(tmp_path, packages=LinkingPackages()).make_set("3.13")
    assert sets(tmp_path) == []


async def test_remains_of_a_killed_maker_are_removed(tmp_path: Path) -> None:
    """What a killed hub left half-made is gone after the next making of that version, and another version's is not."""
    for version in ("3.13", "3.130"):
        (tmp_path / "runtime" / "making" / f"{version}-dead" / "server").mkdir(parents=True)
    await make(tmp_path).make_set("3.13")
    assert [path.name for path in (tmp_path / "runtime" / "making").iterdir()] == ["3.130-dead"]


async def test_a_user_who_gives_up_takes_the_set_from_nobody(tmp_path: Path) -> None:
    """When one of two waiting launches is cancelled, the set is still made for the other."""
    packages = FakePackages()
    packages.gate.clear()
    runtime = make(tmp_path, packages=packages)
    heard: list[str] = []
    first = asyncio.create_task(runtime.prepare(IMAGE, on_progress=quiet))
    second = asyncio.create_task(runtime.prepare("sha256:other", on_progress=heard.append))
    await packages.waiting.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    packages.gate.set()
    assert (await second).mounts
    assert packages.installed == ["3.13"]
    assert any("Installing" in text or "Compiling" in text for text in heard)


async def test_two_hubs_make_one_set(tmp_path: Path) -> None:
    """Two processes that need the same set at the same time make it once, one after the other."""
    packages = FakePackages()
    runtimes = [make(tmp_path, packages=packages) for _ in range(4)]
    folders = await asyncio.gather(*(runtime.make_set("3.13") for runtime in runtimes))
    assert len(set(folders)) == 1
    assert packages.installed == ["3.13"]


def _hold_lock(root: Path, held: Any, release: Any) -> None:
    async def hold() -> None:
        async with RuntimeFolder(root).lock("3.13"):
            held.set()
            await asyncio.to_thread(release.wait, 30)

    asyncio.run(hold())


async def test_the_lock_holds_among_processes(tmp_path: Path) -> None:
    """While another process makes a version, this one waits for it; another version is free."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(tmp_path / "runtime", held, release))
    other.start()
    try:
        assert await asyncio.to_thread(held.wait, 30)
        waiting = asyncio.create_task(make(tmp_path).make_set("3.13"))
        assert (await make(tmp_path).make_set("3.11")).is_dir()
        assert not waiting.done()
        release.set()
        assert (await asyncio.wait_for(waiting, 30)).is_dir()
    finally:
        release.set()
        other.join()


async def test_an_upgrade_makes_a_new_set_and_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin with other requirements makes its own set; the one that containers have mounted stays as it is."""
    old = await make(tmp_path).make_set("3.13")
    before = measure(old)
    monkeypatch.setattr("ds01_spawner.runtime.SERVER_REQUIREMENTS", ("jupyterlab>=5",))
    new = await make(tmp_path).make_set("3.13")
    assert new != old
    assert measure(old) == before


@pytest.mark.parametrize("version", ["3.8", "3.15", "", "../../etc", "3.13; rm"])
async def test_only_supported_versions_are_made(tmp_path: Path, version: str) -> None:
    """Nothing but a supported version ever names a folder."""
    with pytest.raises(RuntimeUnavailable, match=r"Choose from 3\.9"):
        await make(tmp_path).make_set(version)


async def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    """A runtime folder that cannot be made says so, with its name."""
    (tmp_path / "runtime").write_text("a file where the folder should be")
    with pytest.raises(RuntimeUnavailable, match="cannot be written"):
        await make(tmp_path).make_set("3.13")


# -- compiling ----------------------------------------------------------------------------------------------------


async def test_an_uncompiled_set_works_and_says_so(tmp_path: Path) -> None:
    """Without any interpreter of the version a server still starts, and user and log hear that it is slower."""
    command = await make(tmp_path, packages=FakePackages(interpreters=())).prepare(IMAGE, on_progress=quiet)
    assert "not compiled" in command.notices[0]


async def test_a_set_is_compiled_once_there_is_an_interpreter(tmp_path: Path) -> None:
    """Making a set again after installing its Python compiles it, beside the old one."""
    slow = await make(tmp_path, packages=FakePackages(interpreters=())).make_set("3.13")
    runtime = make(tmp_path)
    fast = await runtime.make_set("3.13")
    assert fast != slow
    assert (await runtime.prepare(IMAGE, on_progress=quiet)).notices == ()
    assert await make(tmp_path).make_set("3.13") == fast


async def test_a_hub_that_runs_takes_up_a_set_that_was_compiled_beside_it(tmp_path: Path) -> None:
    """Following the advice of the notice needs no restart of the hub."""
    hub = make(tmp_path, packages=FakePackages(interpreters=()))
    assert (await hub.prepare(IMAGE, on_progress=quiet)).notices
    fast = await make(tmp_path).make_set("3.13")
    command = await hub.prepare(IMAGE, on_progress=quiet)
    assert command.notices == ()
    assert command.mounts[0].source == str(fast)


async def test_a_trusted_image_compiles_its_own_version_only(tmp_path: Path) -> None:
    """A site's image stands in for a missing interpreter if it has that very Python."""
    probe = FakeProbe()
    runtime = make(tmp_path, packages=FakePackages(interpreters=()), probe=probe, trusted_images=("site/base",))
    await runtime.make_set("3.12")
    assert probe.compiled == []
    await runtime.make_set("3.13")
    assert probe.compiled == [("site/base", "3.13")]


async def test_an_untrusted_image_never_compiles(tmp_path: Path) -> None:
    """A user's image whose Python would fit does not get to write into a set."""
    probe = FakeProbe()
    runtime = make(tmp_path, packages=FakePackages(interpreters=()), probe=probe)
    await runtime.prepare(IMAGE, on_progress=quiet)
    assert probe.compiled == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can show what others may do")
async def test_the_probe_script_is_readable_by_nobody(tmp_path: Path) -> None:
    """The folder that an image sees of the host holds the probe alone, readable by all and writable by its owner."""
    folder = RuntimeFolder(tmp_path / "runtime").provide("probe.py", b"print(1)")
    assert [path.name for path in folder.iterdir()] == ["probe.py"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "probe.py").stat().st_mode & 0o777 == 0o644
