"""Project names, and every name that is derived from one.

A project is a folder in ``~/workspace``; its name is that folder's, exactly.  JupyterHub, Docker and DNS accept
much less than a file system does, so each gets a name of its own.  A name that already has their form is used as
it is.  Any other becomes a readable slug and a hash of the exact name: ``Müller 2024`` is the server
``muller-2024-`` and twelve hexadecimal digits.  A name that merely looks hashed is hashed as well, so the two kinds
never meet.

The hash of a project has 48 bits.  It only has to tell apart the projects of one person, and among a thousand of
them two share one with a probability of 2e-9; whoever computes a collision meets nobody else with it.  The hash of
a user has 80 bits, because a collision there would reach somebody else, and a site may let people choose their own
names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ds01_spawner.errors import InvalidOptions, ProjectRefused

WORKSPACE = "workspace"
"""The folder in a home whose folders are the projects."""

DOCKERFILES = "dockerfiles"
"""The folder in a home where older projects keep ``<project>.Dockerfile``."""

NAME_BYTES_MAX = 255
"""What Linux file systems allow for one name."""

ACCEPTED_NAME = (
    f"a name of 1 to {NAME_BYTES_MAX} bytes without '/', control characters and a leading dot, "
    "for example My_Thesis, 2024-run or Übung 3"
)
ACCEPTED_TAG = (
    "1 to 128 letters, digits, '.', '_' and '-', beginning with none of '.' and '-', for example latest or v1.2"
)

_SERVER_MAX = 30
_LABEL_MAX = 63
_PART_MAX = 100
_PROJECT_DIGITS = 12
_USER_DIGITS = 20

_SERVER = re.compile(r"[a-z](?:-?[a-z0-9])*")
_CONTAINER_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_IMAGE_PART = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONTAINER_JOINT = "._."

# Embeddings, overrides and isolates make a name read as another one.  Joiners and direction marks are left alone:
# Persian, Hebrew and Arabic need them.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Mn"})

# Letters that Unicode does not decompose into a Latin one and a mark.
_LATIN = str.maketrans({"ø": "o", "Ø": "o", "æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "ł": "l", "Ł": "l"})


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A project's Dockerfile as it was read.

    Attributes:
        text: its content, at most 128 KiB, not checked for being text.
        origin: where it is, for people, such as ``"~/workspace/thesis/Dockerfile"``.
    """

    text: bytes
    origin: str


def quoted(text: str, limit: int = 60) -> str:
    """Return text for a message: in quotes, unprintable characters escaped, at most ``limit`` characters of it."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


def validate_name(name: str) -> str:
    """Return a project's name exactly as it came.

    Raises:
        ProjectRefused: no folder of that name is a project.
    """
    problem = _problem_with_form(name) or _problem_with_characters(name)
    if problem:
        raise ProjectRefused(
            f"{quoted(name)} cannot be a project: {problem}. "
            f"A project is a folder in ~/{WORKSPACE} with {ACCEPTED_NAME}. Rename the folder or choose another one."
        )
    return name


def _problem_with_form(name: str) -> str:
    length = len(name.encode("utf-8", "surrogatepass"))
    rules = (
        (not name, "the name is empty"),
        (name in {".", ".."}, "it means another folder"),
        (name.startswith("."), "a name that begins with a dot is a hidden folder"),
        ("/" in name, "'/' separates folders"),
        (length > NAME_BYTES_MAX, f"it has {length} bytes"),
    )
    return next((problem for broken, problem in rules if broken), "")


def _problem_with_characters(name: str) -> str:
    for character in name:
        category = unicodedata.category(character)
        if category == "Cs":
            return "it is not valid UTF-8"
        if category in {"Cc", "Zl", "Zp"}:
            return f"it contains the control character U+{ord(character):04X}"
        if character in _BIDI_CONTROLS:
            return f"it contains the text direction control U+{ord(character):04X}"
    if all(unicodedata.category(character) in _INVISIBLE for character in name):
        return "nothing of it can be seen"
    return ""


def project_path(project: str) -> PurePosixPath:
    """Return the project's folder, relative to the home."""
    return PurePosixPath(WORKSPACE, validate_name(project))


def dockerfile_candidates(project: str) -> tuple[PurePosixPath, ...]:
    """Return where the project's Dockerfile may be, relative to the home; the first that exists counts."""
    folder = project_path(project)
    return (folder / "Dockerfile", PurePosixPath(DOCKERFILES, f"{project}.Dockerfile"))


def server_name(project: str) -> str:
    """Return the JupyterHub server that runs the project, unique among one user's projects.

    JupyterHub's rule: 1 to 30 of ``a-z``, ``0-9`` and single hyphens, first a letter, last no hyphen.
    """
    return _plain_or_hashed(project, project, _SERVER, _PROJECT_DIGITS, room=_SERVER_MAX, first="p-")


def project_of(server: str, projects: Iterable[str]) -> str | None:
    """Return the one of a user's projects that the server runs, or ``None``."""
    return next((project for project in projects if server_name(project) == server), None)


def display_name(project: str) -> str:
    """Return the name to show in JupyterHub, which accepts no invisible characters and no two spaces in a row."""
    visible = "".join(
        " " if character.isspace() else character
        for character in project
        if character.isspace() or unicodedata.category(character)[0] in "LMNPS"
    )
    return " ".join(visible.split()) or server_name(project)


def container_name(user: str, project: str) -> str:
    """Return ``<project>._.<user>``, unique on the host, at most 203 characters.

    Docker's rule: ``[a-zA-Z0-9][a-zA-Z0-9_.-]+``.
    """
    # The first joint ends the project, so a project with one inside could be read as another project and user.
    left = "" if _CONTAINER_JOINT in project else project
    return _plain_or_hashed(left, project, _CONTAINER_PART, _PROJECT_DIGITS) + _CONTAINER_JOINT + folder_name(user)


def image_repository(user: str, project: str) -> str:
    """Return ``ds01-<user>/<project>``, unique on the host, at most 206 characters.

    The user's part has no dot: Docker would take ``ds01-first.last`` for the address of a registry and ask it.
    """
    owner = _plain_or_hashed(_spell(user, {"@": "-at-", ".": "__"}), user, _IMAGE_PART, _USER_DIGITS)
    return f"ds01-{owner}/{_plain_or_hashed(project, project, _IMAGE_PART, _PROJECT_DIGITS)}"


def folder_name(user: str) -> str:
    """Return a folder's name for a user, unique on the host, at most 100 characters, never hidden."""
    return _plain_or_hashed(_spell(user, {"@": "-at-"}), user, _CONTAINER_PART, _USER_DIGITS)


def hostname(project: str) -> str:
    """Return a readable DNS label of at most 63 characters; two projects may share one."""
    return _slug(project, _LABEL_MAX)


def validate_tag(tag: str) -> str:
    """Return an image's tag exactly as it came.

    Raises:
        InvalidOptions: Docker would not accept it.
    """
    if not _TAG.fullmatch(tag):
        raise InvalidOptions(f"{quoted(tag)} is not an image tag. Use {ACCEPTED_TAG}.")
    return tag


def _spell(user: str, table: dict[str, str]) -> str:
    """Return the user's name with some characters spelled out, or nothing where it could not be read back."""
    spelled = user
    for character, spelling in table.items():
        spelled = spelled.replace(character, spelling)
    read = spelled
    for character, spelling in table.items():
        read = read.replace(spelling, character)
    return spelled if read == user else ""


def _plain_or_hashed(
    plain: str, exact: str, form: re.Pattern[str], digits: int, *, room: int = _PART_MAX, first: str = ""
) -> str:
    """Return ``plain`` where it has the form, fits and does not look hashed, else a slug and the hash of ``exact``."""
    if len(plain) <= room and form.fullmatch(plain) and not re.search(rf"-[0-9a-f]{{{digits}}}\Z", plain):
        return plain
    digest = hashlib.sha256(exact.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    return f"{_slug(exact, room - digits - 1, first)}-{digest}"


def _slug(text: str, room: int, first: str = "") -> str:
    """Return lowercase ASCII words joined by single hyphens, at least one character and at most ``room``.

    Args:
        text: any text.
        room: how many characters it may have.
        first: what goes before a digit that would otherwise come first.
    """
    decomposed = unicodedata.normalize("NFKD", text.translate(_LATIN)).casefold()
    letters = "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
    slug = re.sub(r"[^a-z0-9]+", "-", letters).strip("-") or "project"
    if slug[0].isdigit():
        slug = first + slug
    return slug[:room].strip("-")
