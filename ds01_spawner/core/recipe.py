"""What makes a project's image the image that it is: its recipe, the recipe's digest, and whose images it may use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ds01_spawner.core import labels
from ds01_spawner.core.dockerfile import Instruction, ParsedDockerfile, mount_options, parse
from ds01_spawner.errors import ProjectRefused

NO_FILES = ""
"""The files' digest of a recipe that reads none."""

_SCHEME = b"ds01-recipe-1"
_OWNED_PREFIX = "ds01-"
_HUB_OF_DOCKER = ("docker.io/", "index.docker.io/", "registry-1.docker.io/", "library/")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:[-+])([^${}'\"\\]*))?\})", re.ASCII)
_ARGUMENT = re.compile(r"(\w+)(?:=(?:([^\"'\\`]*)|\"([^\"\\`]*)\"|'([^'\\`$]*)'))?", re.ASCII)
_PLATFORM = re.compile(r"(?:TARGET|BUILD)(?:OS|ARCH|VARIANT)")
_HARMLESS_MOUNTS = frozenset(["bind", "tmpfs", "secret", "ssh"])
_LONGEST = 1000
"""Characters of a variable's value: names of images are shorter, and few lines can double a text a thousand times."""
_PLATFORM_MARK = "?"
"""Stands for the machine's architecture and the like, which no image name contains."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image that a Dockerfile takes from elsewhere.

    Attributes:
        line: where it is named.
        text: the reference, variables filled in.
        is_known: false when it contains what cannot be worked out without building.
    """

    line: int
    text: str
    is_known: bool = True


def digest(dockerfile: str, files: str) -> str:
    """Return a recipe's digest, 64 hexadecimal digits.

    Args:
        dockerfile: its text.
        files: digest of the files that the build reads, or ``NO_FILES``.
    """
    hashed = hashlib.sha256(_SCHEME)
    for part in (dockerfile.encode("utf-8", "surrogateescape"), files.encode()):
        hashed.update(b"%d:" % len(part) + part)
    return hashed.hexdigest()


def image_labels(*, user: str, project: str, recipe: str, base: str, at: float) -> dict[str, str]:
    """Return the labels of a project's image.

    Args:
        user: JupyterHub's name of the owner.
        project: the exact project name.
        recipe: the digest.
        base: the image it was built on, for show.
        at: epoch seconds of the build.
    """
    return {
        labels.MANAGED: "true",
        labels.USER: user,
        labels.PROJECT: project,
        labels.RECIPE: recipe,
        labels.BASE: base,
        labels.BUILT_AT: datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z"),
    }


def is_current(found: Mapping[str, str], *, user: str, project: str, recipe: str) -> bool:
    """Whether an image with these labels was built from this recipe for this project."""
    wanted = {labels.MANAGED: "true", labels.USER: user, labels.PROJECT: project, labels.RECIPE: recipe}
    return all(found.get(key) == value for key, value in wanted.items())


def base_images(dockerfile: ParsedDockerfile) -> tuple[str, ...]:
    """Return the images that the Dockerfile's stages start from, those of other stages and ``scratch`` left out."""
    found = dict.fromkeys(base for _, base, is_stage in _stages(dockerfile) if not is_stage and base != "scratch")
    return tuple(found)


def final_base(dockerfile: ParsedDockerfile) -> str:
    """Return the image that the result builds on, through stages; empty when there is none."""
    origins: dict[str, str] = {}
    base = ""
    for name, parent, is_stage in _stages(dockerfile):
        base = origins.get(parent.lower(), "") if is_stage else parent
        origins[name.lower()] = base
    return base


def check_images(dockerfile: ParsedDockerfile, repository: str) -> None:
    """Refuse a Dockerfile that takes from another user's image, or whose own builder could.

    Every user's images are on the one engine, where any build can name them.

    Args:
        dockerfile: the user's.
        repository: the project's own, such as ``"ds01-alice/thesis"``; what is beside it is the user's too.

    Raises:
        ProjectRefused: with the line and what to write instead.
    """
    if dockerfile.syntax and not re.match(r"(docker\.io/)?docker/dockerfile(-upstream)?([:@]|$)", dockerfile.syntax):
        raise ProjectRefused(
            f"The Dockerfile's first lines ask for a builder of their own (# syntax={dockerfile.syntax[:80]}). "
            "Here only docker/dockerfile is allowed: remove that line."
        )
    if dockerfile.unclear:
        raise ProjectRefused(f"The Dockerfile cannot be built: {dockerfile.unclear}. Correct it and launch again.")
    own = repository.partition("/")[0]
    for image in image_references(dockerfile):
        if not image.is_known:
            raise ProjectRefused(
                f"Line {image.line} of the Dockerfile names an image as “{image.text[:80]}”, which cannot be worked "
                "out before building. Write the image's name out, or use an ARG with a plain default before the "
                "first FROM."
            )
        owner = _owner(image.text)
        if owner.startswith(_OWNED_PREFIX) and owner != own:
            raise ProjectRefused(
                f"Line {image.line} of the Dockerfile uses “{image.text[:80]}”, which is another person's image. "
                "Ask them for their Dockerfile and start from the image that it starts from."
            )


def has_cache_folders(dockerfile: ParsedDockerfile, triggers: Iterable[str] = ()) -> bool:
    """Whether a step may use a folder that outlives the build (``RUN --mount=type=cache``); true when in doubt.

    Args:
        dockerfile: the user's, checked.
        triggers: the base images' ``ONBUILD`` instructions.
    """
    stored = (instruction for text in triggers for instruction in parse(text).instructions)
    for outer in (*dockerfile.instructions, *stored):
        instruction = outer.trigger or outer
        for name, value in instruction.flags:
            kinds = [text for key, text in mount_options(value) if key == "type"] if name == "mount" else []
            if not _HARMLESS_MOUNTS.issuperset(kinds):
                return True
    return False


def image_references(dockerfile: ParsedDockerfile) -> Iterator[ImageReference]:
    """Yield every name that could be an image's: of ``FROM``, ``COPY --from`` and ``RUN --mount``, stages included."""
    arguments = _Arguments()
    for stored in dockerfile.instructions:
        arguments.read(stored)
        instruction = stored.trigger or stored
        if instruction.keyword not in ("FROM", "COPY", "ADD", "RUN"):
            continue
        if not instruction.is_clear:
            yield ImageReference(instruction.line, instruction.keyword, is_known=False)
        if instruction.keyword == "FROM":
            written = instruction.words[0] if instruction.words else ""
            yield _reference(instruction.line, arguments.expand(written), written)
        for origin in _named_origins(instruction):
            yield _reference(instruction.line, origin, origin)


def _named_origins(instruction: Instruction) -> Iterator[str]:
    for name, value in instruction.flags:
        if name == "from":
            yield value
        elif name == "mount":
            yield from (text for key, text in mount_options(value) if key == "from")


def _reference(line: int, text: str | None, written: str) -> ImageReference:
    if text is None or re.search(r"[$'\"\\`\s]", text) or _PLATFORM_MARK in _owner(text):
        return ImageReference(line, written, is_known=False)
    return ImageReference(line, text)


def _owner(reference: str) -> str:
    name = reference.lower()
    for prefix in _HUB_OF_DOCKER:
        name = name.removeprefix(prefix)
    return name.partition("/")[0] if "/" in name else ""


def _stages(dockerfile: ParsedDockerfile) -> Iterator[tuple[str, str, bool]]:
    """Yield ``(name, base, whether that is an earlier stage)`` of each stage; a stage without a name has ``""``."""
    arguments, names = _Arguments(), set[str]()
    for instruction in dockerfile.instructions:
        arguments.read(instruction)
        if instruction.keyword == "FROM" and instruction.words:
            base = arguments.expand(instruction.words[0]) or instruction.words[0]
            named = len(instruction.words) == 3 and instruction.words[1].upper() == "AS"  # noqa: PLR2004
            name = instruction.words[2] if named else ""
            yield name, base, base.lower() in names
            names.add(name.lower())


class _Arguments:
    """The ``ARG`` defaults that a ``FROM`` can use: those before the first stage, as far as they can be followed."""

    def __init__(self) -> None:
        self._values: dict[str, str | None] = {}
        self._is_open = True
        self._is_followed = True

    def read(self, instruction: Instruction) -> None:
        if instruction.keyword == "FROM":
            self._is_open = False
        if instruction.keyword != "ARG" or not self._is_open:
            return
        for word in instruction.words:
            match = _ARGUMENT.fullmatch(word)
            if match is None:
                # A quote or an escape may join words, so nothing after it is where it seems to be.
                self._is_followed = False
                return
            self._values[match[1]] = self.expand(match[2] or match[3] or match[4] or "")

    def expand(self, text: str) -> str | None:
        """Fill variables in, or return ``None`` where BuildKit's result cannot be told."""
        if "$" in text and not self._is_followed:
            return None
        result, at = "", 0
        for match in _VARIABLE.finditer(text):
            value = self._value(match[1] or match[2], match[3], match[4] or "")
            if value is None:
                return None
            result += text[at : match.start()] + value
            if len(result) > _LONGEST:
                return None
            at = match.end()
        result += text[at:]
        return None if "$" in result else result

    def _value(self, name: str, operator: str | None, alternative: str) -> str | None:
        if name.startswith("BUILDKIT_") or name.endswith("PLATFORM"):
            return None
        if _PLATFORM.fullmatch(name):
            return None if operator else _PLATFORM_MARK
        value = self._values.get(name, "")
        if value is None or operator is None:
            return value
        if operator == ":-":
            return value or alternative
        return alternative if value else ""
