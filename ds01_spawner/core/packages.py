"""Packages as people name them: validated as names and versions, never as text for a shell.

What is accepted is the part of pip's and apt's own grammar that says which package and which version.  Addresses,
paths, options and anything that a shell would read are refused, so an accepted requirement can stand in a Dockerfile
as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ds01_spawner.core.dockerfile import parse
from ds01_spawner.core.project import quoted
from ds01_spawner.errors import InvalidOptions

ACCEPTED_PIP = "a name from PyPI with or without versions, such as pandas, torch==2.8.0 or scikit-learn>=1.4,<2"
ACCEPTED_APT = "a Debian package's name with or without its version, such as ffmpeg or git=1:2.47.3-0"

PACKAGES_MAX = 200
_PIP_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_EXTRAS = rf"\[\s*{_PIP_NAME}(?:\s*,\s*{_PIP_NAME})*\s*\]"
_VERSION = r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]{0,60})?(?:\.\*)?"
_CLAUSE = rf"(?:===|==|~=|!=|<=|>=|<|>)\s*{_VERSION}"
_PIP = re.compile(rf"({_PIP_NAME})\s*({_EXTRAS})?\s*({_CLAUSE}(?:\s*,\s*{_CLAUSE})*)?", re.ASCII)
_APT = re.compile(
    r"([a-z0-9][a-z0-9+.-]{1,98})(?::([a-z0-9-]{1,20}))?(?:=([A-Za-z0-9][A-Za-z0-9.+:~-]{0,98}))?", re.ASCII
)
# "torch >= 2, < 3" is one requirement although there are blanks in it.
_SPACED = re.compile(r"[ \t]*(?:===|==|~=|!=|<=|>=|<|>|,|\[)[ \t]*(?=\S)|[ \t]+\]")

BEGIN = "# >>> packages: the project's page edits the lines from here"
END = "# <<< packages: to here; everything else is yours"
_APT_HEAD = "RUN apt-get update && apt-get install -y --no-install-recommends \\"
_APT_TAIL = "    && rm -rf /var/lib/apt/lists/*"
_USER_HEAD = "USER root"
_PIP_HEAD = "RUN python3 -m pip install --no-cache-dir \\"


@dataclass(frozen=True, slots=True)
class Packages:
    """What a project installs beyond its base.

    Attributes:
        pip: requirements, in order.
        apt: Debian packages, in order.
    """

    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pip or self.apt)


def parse_pip(text: str) -> tuple[str, ...]:
    """Return the requirements in a text, separated by blanks or lines, each in one way of writing it.

    Raises:
        InvalidOptions: something in it is no requirement; says which.
    """
    return _unique(_parse_pip(word) for word in _words(_SPACED.sub(lambda match: match[0].strip(), text)))


def parse_apt(text: str) -> tuple[str, ...]:
    """Return the Debian packages in a text, separated by blanks or lines.

    Raises:
        InvalidOptions: something in it is no package's name; says which.
    """
    return _unique(_parse_apt(word) for word in _words(text))


def name_of(requirement: str) -> str:
    """Return the name that a requirement is about, in the form in which pip compares names."""
    match = _PIP.fullmatch(requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else requirement.lower()


def read_block(dockerfile: str) -> Packages | None:
    """Return the packages in a Dockerfile's own block, ``None`` when it has none that the page could edit."""
    found = _find_block(dockerfile)
    if found is None:
        return None
    pip: list[str] = []
    apt: list[str] = []
    into: list[str] | None = None
    lines = dockerfile[found[0] : found[1]].split("\n")[1:-1]
    if lines and lines[0] == _USER_HEAD and lines[-1].startswith("USER "):
        lines = lines[1:-1]
    for line in lines:
        word = line.strip().removesuffix("\\").strip()
        if line == _PIP_HEAD:
            into = pip
        elif line == _APT_HEAD:
            into = apt
        elif not word or line == _APT_TAIL:
            continue
        elif into is None:
            return None  # somebody wrote something else there
        else:
            into += [shlex.split(word)[0]] if _is_quotable(word) else [word]
    try:
        return Packages(parse_pip("\n".join(pip)), parse_apt("\n".join(apt)))
    except InvalidOptions:
        return None


def missing(lost: Iterable[str], dockerfile: str) -> tuple[str, ...]:
    """Return the packages of a removed container that its Dockerfile does not name, in its block or anywhere else.

    Which version is the Dockerfile's business: whoever names a package there has decided about it.
    """
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    named = {name_of(word) for word in re.findall(_PIP_NAME, "\n".join(lines), re.ASCII)}
    return tuple(one for one in lost if name_of(one) not in named)


def write_block(dockerfile: str, packages: Packages) -> str:
    """Return a Dockerfile whose own block, made at the end where there is none, installs exactly these packages.

    Where another user than root is in force, the block is root's and gives back to that one: both installers need it.

    Raises:
        InvalidOptions: what stands above the block is not finished and would swallow it.
    """
    found = _find_block(dockerfile)
    if found is None:
        head = dockerfile if dockerfile.endswith("\n") or not dockerfile else dockerfile + "\n"
        head, rest = head + "\n", "\n"
    else:
        head, rest = dockerfile[: found[0]], dockerfile[found[1] :]
    if len(parse(head + _USER_HEAD).instructions) == len(parse(head).instructions):
        raise InvalidOptions(
            "The last instruction above the packages block is not finished: its last line ends as if another followed, "
            "or the end of its here-document is missing. Finish it in the Dockerfile below and try again."
        )
    return head + block_of(packages, _user_after(head)) + rest


def add(dockerfile: str, packages: Packages) -> str:
    """Return a Dockerfile that installs these packages too; a requirement of the same name is replaced.

    Raises:
        InvalidOptions: the lines between the marks are not ones that the page could edit.
    """
    present = read_block(dockerfile)
    if present is None:
        if _find_block(dockerfile) is not None:
            raise InvalidOptions(
                "The lines between the marks of the packages block were edited by hand into something else. "
                "Edit the Dockerfile below, or remove the block with its two marks and add the packages again."
            )
        present = Packages()
    names = {name_of(requirement) for requirement in packages.pip}
    kept = tuple(requirement for requirement in present.pip if name_of(requirement) not in names)
    return write_block(dockerfile, Packages(kept + packages.pip, _unique((*present.apt, *packages.apt))))


def block_of(packages: Packages, user: str = "") -> str:
    """Return the block, with its marks, that installs these packages as root and leaves another user in force."""
    switches = bool(user and packages)
    lines = [BEGIN, *([_USER_HEAD] if switches else [])]
    if packages.apt:
        lines += [_APT_HEAD, *(f"        {name} \\" for name in packages.apt), _APT_TAIL]
    if packages.pip:
        *first, last = packages.pip
        lines += [_PIP_HEAD, *(f"        {shlex.quote(one)} \\" for one in first), f"        {shlex.quote(last)}"]
    return "\n".join([*lines, *([f"USER {user}"] if switches else []), END])


def _user_after(dockerfile: str) -> str:
    """Return the user that a Dockerfile has named for what follows it; empty for root, and for the base image's own."""
    user = stage = ""
    users: dict[str, str] = {}
    for instruction in parse(dockerfile).instructions:
        words = instruction.words
        if instruction.keyword == "FROM":
            # A stage that begins from an earlier one goes on as that one's user.
            user = users.get(words[0].lower(), "") if words else ""
            stage = words[2].lower() if [word.lower() for word in words[1:2]] == ["as"] and words[2:] else ""
        elif instruction.keyword == "USER":
            user = " ".join(words)
        users[stage] = user
    return "" if user.partition(":")[0] in {"root", "0"} else user


def _find_block(dockerfile: str) -> tuple[int, int] | None:
    begin, end = dockerfile.find(BEGIN), dockerfile.find(END)
    if begin < 0 or end < begin or (begin and dockerfile[begin - 1] != "\n"):
        return None
    return begin, end + len(END)


def _is_quotable(word: str) -> bool:
    return bool(re.fullmatch(r"'[^']*'", word))


def _parse_pip(word: str) -> str:
    match = _PIP.fullmatch(word)
    if match is None:
        raise InvalidOptions(f"{quoted(word)} is no Python package here. Use {ACCEPTED_PIP}.")
    return re.sub(r"\s+", "", word)


def _parse_apt(word: str) -> str:
    if not _APT.fullmatch(word):
        raise InvalidOptions(f"{quoted(word)} is no Debian package. Use {ACCEPTED_APT}.")
    return word


def _words(text: str) -> list[str]:
    lines = (line.split("#", 1)[0] for line in text.splitlines())
    words = "\n".join(lines).split()
    if len(words) > PACKAGES_MAX:
        raise InvalidOptions(f"{len(words)} packages are too many for one list; {PACKAGES_MAX} are the most.")
    return words


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def describe(packages: Sequence[str]) -> str:
    """Return the one line to add to a Dockerfile for some Python packages."""
    return "RUN python3 -m pip install --no-cache-dir " + " ".join(shlex.quote(package) for package in packages)
