"""The notebook runtime: makes any image with a usable Python into a JupyterLab, without changing the image.

For each Python version there is one read-only set of packages on the host, mounted at ``/opt/ds01``.  Before an image
is first launched it is examined: which Python, and whether its own packages get along with the runtime's.  The answers
are kept by image id, so that the launch of a known image runs nothing extra.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from ds01_spawner.core.container import Mount
from ds01_spawner.core.imagefacts import (
    SUPPORTED,
    ImageFacts,
    ImageSettings,
    TrialResult,
    choose_plan,
    parse_probe,
    parse_trial,
    read_facts,
    read_trial,
    refuse_facts,
    refuse_no_answer,
    refuse_no_python,
    refuse_settings,
)
from ds01_spawner.errors import DS01Error, ImageRefused, RuntimeUnavailable

log = logging.getLogger(__name__)

KERNEL_REQUIREMENTS = ("ipykernel>=6.29,<8",)
SERVER_REQUIREMENTS = ("jupyterhub>=5.2,<7", "jupyterlab>=4.4,<5", "jupyter-server-terminals>=0.5", "jinja2>=3.1")
LEFT_OUT = frozenset({"rfc3987-syntax", "lark", "isoduration", "arrow"})
"""Brought for checking IRIs and durations in JSON schemas, which ``jsonschema`` does without where they are missing.

Importing the first costs a second of every start, more than everything else together.
"""

TARGET = "/opt/ds01"
PROBE_TARGET = "/opt/ds01-probe"
SUBFOLDERS = ("server", "kernel", "boot")
PROBE_SECONDS = 20.0
TRIAL_SECONDS = 90.0
COMPILE_SECONDS = 300.0
INTERPRETERS = ("python3", "python")

UNCOMPILED = (
    "The site's notebook packages for Python {version} are not compiled, so this server starts some seconds slower; "
    "the administrators can change that."
)

T = TypeVar("T")
OnProgress = Callable[[str], None]


# -- what is needed of the others ---------------------------------------------------------------------------------


class Packages(Protocol):
    """Resolves, installs and compiles packages for a Python version."""

    async def resolve(  # noqa: D102
        self, version: str, requirements: Sequence[str], constraints: Sequence[str] = ()
    ) -> tuple[str, ...]: ...
    async def install(self, version: str, pins: Sequence[str], target: Path) -> None: ...  # noqa: D102
    async def find_interpreter(self, version: str) -> str | None: ...  # noqa: D102
    async def compile(  # noqa: D102
        self, version: str, interpreter: str, folder: Path, subfolders: Sequence[str]
    ) -> None: ...


class Answer(Protocol):
    """What a script printed in an image."""

    @property
    def output(self) -> bytes: ...  # noqa: D102
    @property
    def exit_code(self) -> int: ...  # noqa: D102
    @property
    def started(self) -> bool: ...  # noqa: D102
    @property
    def timed_out(self) -> bool: ...  # noqa: D102


class Probe(Protocol):
    """Looks into images."""

    async def image_id(self, reference: str) -> str: ...  # noqa: D102
    async def settings(self, image_id: str) -> ImageSettings: ...  # noqa: D102
    async def run(  # noqa: D102
        self, image_id: str, command: Sequence[str], folders: Mapping[Path, str], *, seconds: float
    ) -> Answer: ...
    async def compile(  # noqa: D102
        self, image_id: str, version: str, folder: Path, subfolders: Sequence[str], *, seconds: float
    ) -> None: ...


class PackageSet(Protocol):
    """A whole set on disk."""

    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def compiled(self) -> bool: ...  # noqa: D102


class Folder(Protocol):
    """The site's runtime folder."""

    def find(self, version: str, key: str) -> PackageSet | None: ...  # noqa: D102
    def lock(self, version: str) -> AbstractAsyncContextManager[None]: ...  # noqa: D102
    def begin(self, version: str) -> Path: ...  # noqa: D102
    def publish(  # noqa: D102
        self, folder: Path, *, version: str, key: str, pins: tuple[str, ...], compiled: bool
    ) -> PackageSet: ...
    def discard(self, folder: Path) -> None: ...  # noqa: D102
    def provide(self, name: str, content: bytes) -> Path: ...  # noqa: D102


class Cache(Protocol):
    """Answers about images, which outlive the hub."""

    def get(self, key: str) -> dict[str, Any] | None: ...  # noqa: D102
    def put(self, key: str, answer: dict[str, Any]) -> None: ...  # noqa: D102


# -- the runtime --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How the notebook server is started in one image.

    Attributes:
        argv: the container's whole command; the image's ENTRYPOINT and CMD are not used.
        environment: on top of the image's own.
        mounts: what the command needs.
        notices: sentences that the user should see; usually none.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(hash=False)
    mounts: tuple[Mount, ...]
    notices: tuple[str, ...]


@dataclass(slots=True)
class _Making:
    """A set that is being made, and all who wait for it."""

    task: asyncio.Task[PackageSet]
    listeners: list[OnProgress]


class Runtime:
    """Prepares ``/opt/ds01`` for images.

    Args:
        folder: where the sets live.
        packages: makes them.
        probe: looks into images.
        cache: remembers what was seen there.
        trusted_images: local images that the site itself chose, such as its default image. Where the host has no
            interpreter of a version, one of these that has compiles that version's set, once, without network.
    """

    def __init__(
        self,
        *,
        folder: Folder,
        packages: Packages,
        probe: Probe,
        cache: Cache,
        trusted_images: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._packages = packages
        self._probe = probe
        self._cache = cache
        self._trusted_images = tuple(trusted_images)
        self._scripts = {
            item.name: item.read_bytes()
            for item in sorted((resources.files("ds01_spawner") / "container").iterdir(), key=lambda item: item.name)
            if item.is_file() and not item.name.endswith(".pyc")
        }
        self._ready: dict[str, PackageSet] = {}
        self._making: dict[str, _Making] = {}
        self._examining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self, image_id: str, *, on_progress: OnProgress) -> ServerCommand:
        """Return how the notebook server is started in an image; makes and examines what is not known yet.

        Args:
            image_id: the image's content id.
            on_progress: called with a line of text when something takes longer.

        Raises:
            ImageRefused: the image cannot become a JupyterLab; says what to change.
            RuntimeUnavailable: the packages for its Python cannot be had.
            EngineUnavailable: the engine did not let the image be examined.
        """
        # One examination per image: eight launches of one new image ask it once.
        alone = self._examining.get(image_id)
        if alone is None:
            alone = self._examining[image_id] = asyncio.Lock()
        async with alone:
            facts = await self._examine(image_id, on_progress)
            package_set = await self._provide(facts.minor, on_progress)
            trial = await self._try(image_id, facts, package_set, on_progress) if facts.needs_trial else None
        plan, notices = choose_plan(facts, trial)
        argv = [facts.executable, "-I", "-S", f"{TARGET}/boot/launch.py", f"--plan={plan}"]
        if trial is not None and not trial.kernel_image_first:
            argv.append("--own-kernel")
        if not package_set.compiled:
            notices = (*notices, UNCOMPILED.format(version=facts.minor))
        return ServerCommand(
            argv=tuple(argv),
            environment={},
            mounts=(Mount(str(package_set.folder), TARGET, read_only=True),),
            notices=notices,
        )

    async def make_set(self, version: str, *, on_progress: OnProgress = lambda _text: None) -> Path:
        """Return the folder of the package set for a Python version; makes it when there is no good one yet.

        A set that could not be compiled when it was made is made anew once an interpreter for it is there.

        Raises:
            RuntimeUnavailable: it cannot be made, or the version is not supported.
        """
        if version not in SUPPORTED:
            raise RuntimeUnavailable(
                f"There is no notebook runtime for Python {version!r}. Choose from {', '.join(SUPPORTED)}."
            )
        package_set = await self._provide(version, on_progress)
        if not package_set.compiled and await self._find_compiler(version):
            self._ready.pop(version, None)
            package_set = await self._provide(version, on_progress, compiled_only=True)
        return package_set.folder

    # -- examining an image ---------------------------------------------------------------------------------------

    async def _examine(self, image_id: str, on_progress: OnProgress) -> ImageFacts:
        script = self._scripts["probe.py"]
        key = f"probe {hashlib.sha256(script).hexdigest()[:16]} {image_id}"
        facts = self._recall(key, read_facts)
        if facts is None:
            refuse_settings(await self._probe.settings(image_id), platform.machine())
            on_progress("Looking at the image's Python")
            facts = await self._ask_python(image_id, script)
            self._cache.put(key, asdict(facts))
        refuse_facts(facts)
        return facts

    async def _ask_python(self, image_id: str, script: bytes) -> ImageFacts:
        """Run the probe with the image's ``python3``, or ``python`` where that does not answer."""
        folders = {self._folder.provide("probe.py", script): PROBE_TARGET}
        for interpreter in INTERPRETERS:
            command = [interpreter, "-I", "-B", f"{PROBE_TARGET}/probe.py"]
            answer = await self._probe.run(image_id, command, folders, seconds=PROBE_SECONDS)
            if not answer.started:
                continue
            try:
                return parse_probe(answer.output)
            except ValueError as error:
                log.info("%s of image %s gave no answer: %s", interpreter, image_id, error)
                seconds = PROBE_SECONDS if answer.timed_out else None
                raise refuse_no_answer(answer.output, seconds=seconds) from error
        raise refuse_no_python()

    async def _try(
        self, image_id: str, facts: ImageFacts, package_set: PackageSet, on_progress: OnProgress
    ) -> TrialResult:
        key = f"trial {package_set.folder.name} {image_id}"
        known = self._recall(key, read_trial)
        if known is not None:
            return known
        on_progress("Trying the image's own packages with the notebook server")
        command = [facts.executable, "-I", "-B", f"{TARGET}/boot/trial.py"]
        if facts.has_server:
            command.append("--server")
        answer = await self._probe.run(image_id, command, {package_set.folder: TARGET}, seconds=TRIAL_SECONDS)
        try:
            trial = parse_trial(answer.output)
        except ValueError as error:
            raise ImageRefused(
                f"This project's image could not be tried with the notebook server: {error}. Its Python ended with "
                f"exit code {answer.exit_code}. Check what `docker run --rm <image> {facts.executable} -c "
                "'import ssl, sqlite3'` says."
            ) from error
        if not trial.cut_short:  # the host may only have been busy
            self._cache.put(key, asdict(trial))
        return trial

    def _recall(self, key: str, read: Callable[[Mapping[str, Any]], T]) -> T | None:
        known = self._cache.get(key)
        try:
            return None if known is None else read(known)
        except ValueError:
            return None  # spoiled on disk: it is asked again

    # -- making sets ----------------------------------------------------------------------------------------------

    def _key(self, version: str) -> str:
        decides = json.dumps([version, KERNEL_REQUIREMENTS, SERVER_REQUIREMENTS, sorted(LEFT_OUT)])
        digest = hashlib.sha256(decides.encode())
        for name, content in self._scripts.items():
            digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
        return f"{platform.machine()}-{digest.hexdigest()[:12]}"

    async def _provide(self, version: str, on_progress: OnProgress, *, compiled_only: bool = False) -> PackageSet:
        ready = self._ready.get(version)
        # One that is not compiled is looked for again: `ds01-runtime` may have made a better one beside this hub.
        if ready is not None and ready.compiled and ready.folder.is_dir():
            return ready
        making = self._making.get(version)
        if making is None:
            listeners: list[OnProgress] = []
            task = asyncio.create_task(self._find_or_make(version, listeners, compiled_only=compiled_only))
            making = self._making[version] = _Making(task, listeners)
            task.add_done_callback(lambda _task: self._making.pop(version, None))
        making.listeners.append(on_progress)
        try:
            # Shielded: one user who gives up does not take the set away from the others who wait.
            return await asyncio.shield(making.task)
        finally:
            making.listeners.remove(on_progress)

    async def _find_or_make(self, version: str, listeners: list[OnProgress], *, compiled_only: bool) -> PackageSet:
        def say(text: str) -> None:
            for listener in list(listeners):
                listener(text)

        key = self._key(version)
        found = await asyncio.to_thread(self._folder.find, version, key)
        if found is None or (compiled_only and not found.compiled):
            say(f"Waiting for the notebook runtime for Python {version}")
            async with self._folder.lock(version):
                found = await asyncio.to_thread(self._folder.find, version, key)
                if found is None or (compiled_only and not found.compiled):
                    found = await self._make(version, key, say)
        self._ready[version] = found
        return found

    async def _make(self, version: str, key: str, say: OnProgress) -> PackageSet:
        say(f"Making the notebook runtime for Python {version}: once on this server, about a minute")
        folder = self._folder.begin(version)
        try:
            pins = await self._packages.resolve(version, SERVER_REQUIREMENTS + KERNEL_REQUIREMENTS)
            kernel = await self._packages.resolve(version, KERNEL_REQUIREMENTS, pins)
            server = tuple(pin for pin in pins if pin not in kernel and pin.partition("==")[0] not in LEFT_OUT)
            say(f"Installing {len(server) + len(kernel)} packages for Python {version}")
            await self._packages.install(version, server, folder / "server")
            await self._packages.install(version, kernel, folder / "kernel")
            await asyncio.to_thread(_write_scripts, folder, version, self._scripts)
            _expect_whole(folder, version)
            compiled = await self._compile(version, folder, say)
            return await asyncio.to_thread(
                self._folder.publish, folder, version=version, key=key, pins=server + kernel, compiled=compiled
            )
        except BaseException:
            await asyncio.to_thread(self._folder.discard, folder)
            raise

    async def _find_compiler(self, version: str) -> tuple[str, bool] | None:
        """Return an interpreter of the host, or a trusted image and ``True``; ``None`` when there is neither."""
        interpreter = await self._packages.find_interpreter(version)
        if interpreter is not None:
            return interpreter, False
        for image in self._trusted_images:
            try:
                facts = await self._examine(await self._probe.image_id(image), lambda _text: None)
            except DS01Error as error:
                log.info("trusted image %s cannot compile: %s", image, error)
                continue
            if facts.minor == version:
                return image, True
        return None

    async def _compile(self, version: str, folder: Path, say: OnProgress) -> bool:
        compiler = await self._find_compiler(version)
        if compiler is None:
            log.warning(
                "The notebook runtime for Python %s is not compiled, so servers with it start slower: install that "
                "Python on the host or add a local image that has it to the trusted images; then `ds01-runtime %s`.",
                version,
                version,
            )
            return False
        say(f"Compiling the notebook runtime for Python {version}")
        name, is_image = compiler
        if is_image:
            await self._probe.compile(name, version, folder, SUBFOLDERS, seconds=COMPILE_SECONDS)
        else:
            await self._packages.compile(version, name, folder, SUBFOLDERS)
        return True


def _write_scripts(folder: Path, version: str, scripts: Mapping[str, bytes]) -> None:
    boot = folder / "boot"
    boot.mkdir()
    for name, content in scripts.items():
        (boot / name).write_bytes(content)
    kernel = folder / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    # The debugger cannot stop in frozen modules, which Python has since 3.11.
    options = ["-Xfrozen_modules=off"] if SUPPORTED.index(version) >= SUPPORTED.index("3.11") else []
    spec = {
        # "python3" stands for the interpreter that runs the server: the image's.
        "argv": ["python3", *options, f"{TARGET}/boot/kernel.py", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
        "kernel_protocol_version": "5.5",
    }
    (kernel / "kernel.json").write_text(json.dumps(spec, indent=1))
    for logo in (folder / "kernel" / "ipykernel" / "resources").glob("logo-*"):
        (kernel / logo.name).write_bytes(logo.read_bytes())


def _expect_whole(folder: Path, version: str) -> None:
    """Raise RuntimeUnavailable when what a server needs is not there, whatever the installer said."""
    for path in (
        "server/jupyterhub/singleuser/extension.py",
        "server/jupyter_server/serverapp.py",
        "server/jupyterlab/labapp.py",
        "server/share/jupyter/lab/static/index.html",
        "kernel/ipykernel/kernelapp.py",
        "kernel/zmq/__init__.py",
        "kernel/tornado/web.py",
        "boot/launch.py",
    ):
        if not (folder / path).is_file():
            raise RuntimeUnavailable(f"The notebook runtime for Python {version} is incomplete: {path} is missing.")
