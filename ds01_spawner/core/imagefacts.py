"""What a probe said about an image, and what follows: a refusal with a next step, or how the server is started in it.

The probe runs inside a user's image, so everything it says may be a lie.  A lie may spoil its author's own server and
nothing else: the version only chooses among package sets that exist, the path is only ever run inside that same image,
and texts are cut and cleaned before anyone sees them.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ds01_spawner.errors import ImageRefused

SUPPORTED = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
"""Python versions that the notebook runtime can be made for."""

OLDEST_GLIBC = (2, 28)
"""What the runtime's compiled packages need: Debian 10, Ubuntu 20.04, RHEL 8 and newer."""

PROBE_MARKER = "ds01-probe:"
TRIAL_MARKER = "ds01-trial:"
MOST_ANSWER_BYTES = 256 * 1024
LONGEST_PATH = 1024
LONGEST_TEXT = 300

KERNEL_PACKAGES = frozenset(
    {
        "appnope",
        "asttokens",
        "comm",
        "debugpy",
        "decorator",
        "exceptiongroup",
        "executing",
        "importlib-metadata",
        "ipykernel",
        "ipython",
        "ipython-pygments-lexers",
        "jedi",
        "jupyter-client",
        "jupyter-core",
        "matplotlib-inline",
        "nest-asyncio",
        "nest-asyncio2",
        "packaging",
        "parso",
        "pexpect",
        "platformdirs",
        "prompt-toolkit",
        "psutil",
        "ptyprocess",
        "pure-eval",
        "pygments",
        "python-dateutil",
        "pyzmq",
        "six",
        "stack-data",
        "tornado",
        "traitlets",
        "typing-extensions",
        "tzdata",
        "wcwidth",
        "zipp",
    }
)
"""What ``ipykernel`` brings: an image that has none of these cannot disagree with the runtime's."""

SERVER_PACKAGES = frozenset({"jupyterlab", "jupyter-server", "jupyterhub"})

OURS = {
    "/workspace": "/workspace is your project's own folder already, and what is written there stays",
    "/opt/ds01": "the site's notebook packages are there",
}
"""Folders that every server is given, and why an image needs no volume in them."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's name for a processor, and the engine's."""


class ServerPlan(StrEnum):
    """Which packages the notebook server runs from."""

    RUNTIME = "runtime"
    """The runtime's alone; the image has nothing of Jupyter."""
    RUNTIME_FIRST = "runtime-first"
    """The runtime's, with the image's behind it for its server extensions."""
    IMAGE_FIRST = "image-first"
    """The image's own complete JupyterLab; the runtime only supplies what it lacks."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """What the engine says about an image without running it.

    Attributes:
        architecture: the engine's name, such as ``"amd64"``.
        environment: its ENV.
        volumes: its VOLUME folders.
    """

    architecture: str
    environment: Mapping[str, str]
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a probe found out about an image's Python.

    Attributes:
        version: ``(major, minor, micro)``.
        executable: absolute path of the interpreter inside the image.
        implementation: ``"cpython"`` or another.
        bits: 32 or 64.
        free_threaded: whether it is a build without the GIL, for which the sets do not fit.
        glibc: ``"2.41"``, empty when the C library is another one.
        virtual: whether the interpreter belongs to a virtual environment.
        packages: name and version of the installed packages that matter here, and of no others.
        extensions: whether it brings lab or server extensions.
    """

    version: tuple[int, int, int]
    executable: str
    implementation: str
    bits: int
    free_threaded: bool
    glibc: str
    virtual: bool
    packages: Mapping[str, str]
    extensions: bool

    @property
    def minor(self) -> str:
        """Return ``"3.13"``."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def has_server(self) -> bool:
        """Return whether the image may have a notebook server of its own."""
        return {"jupyterlab", "jupyter-server"} <= self.packages.keys()

    @property
    def needs_trial(self) -> bool:
        """Return whether the image's packages could disagree with the runtime's, so that only trying tells."""
        return bool(self.packages)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What worked when the runtime was tried inside an image.

    Attributes:
        kernel_image_first: whether a kernel starts with the image's packages before the runtime's.
        kernel_error: why not, as Python said it.
        server_image_first: whether the image's own JupyterLab can be served.
        server_error: why not.
        cut_short: whether something was given up for want of time, so that another trial may end differently.
    """

    kernel_image_first: bool
    kernel_error: str
    server_image_first: bool
    server_error: str
    cut_short: bool = False


# -- reading answers that may be hostile --------------------------------------------------------------------------


def parse_probe(output: bytes) -> ImageFacts:
    """Return the facts in a probe's output.

    Raises:
        ValueError: there is no answer of the right shape in it.
    """
    return read_facts(_last_answer(output, PROBE_MARKER))


def parse_trial(output: bytes) -> TrialResult:
    """Return the result in a trial's output.

    Raises:
        ValueError: there is no answer of the right shape in it.
    """
    return read_trial(_last_answer(output, TRIAL_MARKER))


def read_facts(answer: Mapping[str, Any]) -> ImageFacts:
    """Return the facts in an answer, of a probe or as ``dataclasses.asdict`` wrote it.

    Raises:
        ValueError: it has not the right shape.
    """
    version = answer.get("version")
    if not (isinstance(version, list | tuple) and len(version) == 3 and all(_is_count(part) for part in version)):  # noqa: PLR2004
        raise ValueError("no version")
    executable = answer.get("executable")
    if not (isinstance(executable, str) and executable.startswith("/") and executable.isprintable()):
        raise ValueError("no absolute path of the interpreter")
    if len(executable) > LONGEST_PATH:
        raise ValueError(f"a path of more than {LONGEST_PATH} characters")
    packages = answer.get("packages")
    if not isinstance(packages, dict):
        raise ValueError("no packages")  # noqa: TRY004 - one kind of error for every kind of nonsense
    return ImageFacts(
        version=(version[0], version[1], version[2]),
        executable=executable,
        implementation=_text(answer.get("implementation"), 40),
        bits=64 if answer.get("bits") == 64 else 32,  # noqa: PLR2004
        free_threaded=answer.get("free_threaded") is not False,
        glibc=_glibc(answer.get("glibc")),
        virtual=answer.get("virtual") is True,
        packages={
            name: _text(packages[name], 40) for name in sorted(KERNEL_PACKAGES | SERVER_PACKAGES) if name in packages
        },
        extensions=answer.get("extensions") is True,
    )


def read_trial(answer: Mapping[str, Any]) -> TrialResult:
    """Return the result in an answer, of a trial or as ``dataclasses.asdict`` wrote it."""
    return TrialResult(
        kernel_image_first=answer.get("kernel_image_first") is True,
        kernel_error=_text(answer.get("kernel_error"), LONGEST_TEXT),
        server_image_first=answer.get("server_image_first") is True,
        server_error=_text(answer.get("server_error"), LONGEST_TEXT),
        cut_short=answer.get("cut_short") is True,
    )


def _last_answer(output: bytes, marker: str) -> dict[str, Any]:
    if len(output) > MOST_ANSWER_BYTES:
        raise ValueError(f"more than {MOST_ANSWER_BYTES} bytes")
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.startswith(marker)]
    if not lines:
        raise ValueError("no answer")
    try:
        answer = json.loads(lines[-1][len(marker) :])
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(answer, dict) or answer.get("schema") != 1:
        raise ValueError("an answer of another kind")
    return answer


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000  # noqa: PLR2004


def _text(value: object, longest: int) -> str:
    """Return printable text of limited length, and nothing for what is no text."""
    if not isinstance(value, str):
        return ""
    return "".join(char if char.isprintable() else " " for char in value[:longest]).strip()


def _glibc(value: object) -> str:
    match = re.match(r"\d{1,3}\.\d{1,3}", value) if isinstance(value, str) else None
    return match[0] if match else ""


# -- saying no ----------------------------------------------------------------------------------------------------


def refuse_settings(settings: ImageSettings, host_machine: str) -> None:
    """Refuse what can be seen without running the image.

    Args:
        settings: what the engine says about the image.
        host_machine: the host's processor as its kernel names it, such as ``"x86_64"``.

    Raises:
        ImageRefused: the image cannot be started here; says what to change.
    """
    wanted = ARCHITECTURES.get(host_machine, host_machine)
    if settings.architecture != wanted:
        raise ImageRefused(
            f"This project's image is built for {_text(settings.architecture, 40) or 'an unknown processor'}, but this "
            f"server's processor is {wanted}. Use a base image for {wanted}, for example with "
            f"`FROM --platform=linux/{wanted} …` in the Dockerfile."
        )
    if settings.environment.get("LD_PRELOAD"):
        raise ImageRefused(
            "This project's image sets LD_PRELOAD for every process, which the notebook server cannot run with. Remove "
            "`ENV LD_PRELOAD` from the Dockerfile and set it only for the command that needs it, for example "
            "`RUN LD_PRELOAD=… make`, or in a notebook with `%env LD_PRELOAD=…` before starting that command."
        )
    if settings.environment.get("PYTHONHOME"):
        raise ImageRefused(
            "This project's image sets PYTHONHOME, which makes Python look for its own files in another place. Remove "
            "`ENV PYTHONHOME` from the Dockerfile; a Python in its own folder is chosen with "
            "`ENV PATH=<folder>/bin:$PATH`."
        )
    # The engine would lay a volume of its own over the folder, and remove it with everything in it on retire.
    for volume in settings.volumes:
        path = posixpath.normpath("/" + volume.lstrip("/"))
        why = next((why for folder, why in OURS.items() if path == folder or path.startswith(f"{folder}/")), None)
        if why is not None:
            raise ImageRefused(
                f"This project's image declares {_text(path, LONGEST_TEXT)} as a volume, which would hide what is "
                f"there and lose what is written to it. Remove that `VOLUME` from the Dockerfile: {why}. If it comes "
                "with the base image, use another one."
            )


def refuse_no_python() -> ImageRefused:
    """Return the refusal for an image that has neither ``python3`` nor ``python`` on its PATH."""
    return ImageRefused(
        "This project's image has no Python on its PATH, and JupyterLab runs on the image's own Python "
        f"({SUPPORTED[0]} to {SUPPORTED[-1]}). Add one to the Dockerfile, for example "
        "`RUN apt-get update && apt-get install -y python3` on Debian and Ubuntu; nothing of Jupyter is needed."
    )


def refuse_no_answer(output: bytes, *, seconds: float | None) -> ImageRefused:
    """Return the refusal for an image whose Python gave no usable answer.

    Args:
        output: what it printed instead.
        seconds: the time it was given, when it used it up; else ``None``.
    """
    if seconds is not None:
        return ImageRefused(
            f"The Python of this project's image did not answer within {seconds:.0f} seconds. Check what "
            "`docker run --rm --network none <image> python3 -c 'print(1)'` does, and what the image's "
            "sitecustomize or .pth files start."
        )
    said = _text(output.decode("utf-8", "replace").strip()[-LONGEST_TEXT:], LONGEST_TEXT)
    return ImageRefused(
        "The Python of this project's image does not start properly"
        + (f'; it said: "{said}"' if said else "")
        + f". JupyterLab needs a working CPython {SUPPORTED[0]} to {SUPPORTED[-1]} as `python3` on the image's PATH."
    )


def refuse_facts(facts: ImageFacts) -> None:
    """Refuse a Python that no package set fits.

    Raises:
        ImageRefused: says what to change in the Dockerfile.
    """
    name = ".".join(str(part) for part in facts.version)
    if facts.version < _version(SUPPORTED[0]):
        raise ImageRefused(
            f"This project's image has Python {name}, but JupyterLab needs {SUPPORTED[0]} or newer. Use a newer base "
            "image (Debian 11 or Ubuntu 22.04 and later have one), or install a newer Python and put it first on PATH."
        )
    if facts.minor not in SUPPORTED:
        raise ImageRefused(
            f"This project's image has Python {name}, which is newer than this site's notebook runtime supports "
            f"({SUPPORTED[0]} to {SUPPORTED[-1]}). Use Python {SUPPORTED[-1]} in the Dockerfile, or ask the "
            "administrators for an update."
        )
    if facts.implementation != "cpython" or facts.free_threaded or facts.bits != 64:  # noqa: PLR2004
        kind = "a 32-bit Python" if facts.bits != 64 else facts.implementation  # noqa: PLR2004
        kind = "the free-threaded build of CPython" if facts.free_threaded and kind == "cpython" else kind
        raise ImageRefused(
            f"This project's image has {kind} as its `python3`, but JupyterLab runs on the usual 64-bit CPython. "
            "Install CPython and put it first on PATH in the Dockerfile; others can be added as further kernels."
        )
    if not facts.glibc:
        raise ImageRefused(
            "This project's image is built on Alpine Linux or another system without the GNU C library, for which the "
            "notebook server's packages do not exist. Use a Debian or Ubuntu based image, for example "
            "`python:3.13-slim` instead of `python:3.13-alpine`."
        )
    if tuple(int(part) for part in facts.glibc.split(".")) < OLDEST_GLIBC:
        raise ImageRefused(
            f"This project's image has the C library glibc {facts.glibc}, but the notebook server "
            f"needs {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]} or newer. Use a base image of 2019 or later: Debian 10, "
            "Ubuntu 20.04, Rocky Linux 8 and all that follow."
        )


def _version(minor: str) -> tuple[int, int, int]:
    major, _, rest = minor.partition(".")
    return int(major), int(rest), 0


# -- saying how ---------------------------------------------------------------------------------------------------


def choose_plan(facts: ImageFacts, trial: TrialResult | None) -> tuple[ServerPlan, tuple[str, ...]]:
    """Return which packages the server runs from, and what the user should know about it.

    Args:
        facts: of an image that was not refused.
        trial: what worked in it; ``None`` when nothing in it could disagree.
    """
    notices = []
    plan = ServerPlan.RUNTIME
    if facts.extensions or SERVER_PACKAGES & facts.packages.keys():
        plan = ServerPlan.RUNTIME_FIRST
    if trial is not None and not trial.kernel_image_first:
        notices.append(
            "A notebook kernel does not start with this image's own packages"
            + (f" ({trial.kernel_error})" if trial.kernel_error else "")
            + f". So in notebooks, and there only, the site's copies of a few come first: {_shared(facts)}. To use "
            "your own, upgrade them in the Dockerfile, for example with `RUN pip install --upgrade ipykernel`."
        )
    if facts.has_server and trial is not None:
        if trial.server_image_first:
            plan = ServerPlan.IMAGE_FIRST
        else:
            notices.append(
                f"This image's own JupyterLab {facts.packages['jupyterlab']} cannot be used"
                + (f" ({trial.server_error})" if trial.server_error else "")
                + ", so the site's is. To use your own, upgrade it in the Dockerfile: "
                "`RUN pip install --upgrade jupyterlab`."
            )
    return plan, tuple(notices)


def _shared(facts: ImageFacts) -> str:
    names = [name for name in facts.packages if name in KERNEL_PACKAGES]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")  # noqa: PLR2004
