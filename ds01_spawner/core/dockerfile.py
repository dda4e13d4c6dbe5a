"""Reads a Dockerfile as BuildKit's own parser does, far enough to know what a build can see.

Two questions are answered: which instructions there are (continuations, comments, here-documents, parser directives),
and which files of the context they can read.  The second decides what is sent to the builder and what the recipe's
digest depends on, so it errs to one side only: what is not understood counts as reading the whole folder.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KEYWORDS = frozenset(
    [
        "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
        "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
    ]
)  # fmt: skip
_BLANK = " \t\v\f\r"
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)")
_FLAG = re.compile(rf"(--[^{_BLANK}]*)[{_BLANK}]*")
_HEREDOC = re.compile(r"^\d*<<(-?)([^<]+)$")
_QUOTED_PIECE = r"(?:\\.|'[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\\'\"\s])"
_QUOTED_WORD = re.compile(rf"{_QUOTED_PIECE}+", re.DOTALL)
_QUOTED_LINE = re.compile(rf"(?:{_QUOTED_PIECE}|\s)*", re.DOTALL)
_PLAIN_VARIABLE = re.compile(r"\$\{\w+(?::?[-+?][^\s{}\"'\\$]*)?\}")
_COPY_FLAGS = frozenset(["from", "chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack"])
_RUN_FLAGS = frozenset(["mount", "network", "security", "device"])
_CONTEXT_FREE_MOUNTS = frozenset(["cache", "tmpfs", "secret", "ssh"])
_REMOTE = ("http://", "https://", "git://", "ssh://", "git@")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    Attributes:
        line: number of its first line, from 1.
        keyword: in capitals, such as ``"COPY"``.
        flags: ``(name, value)`` pairs, such as ``("from", "builder")``; a flag without a value has ``""``.
        words: what follows the flags, split at blanks, or the strings of the JSON form.
        is_json: whether the JSON form was used.
        is_clear: false when quotes or escapes in flags could mean more than what was understood.
        trigger: the instruction that ``ONBUILD`` stores.
    """

    line: int
    keyword: str
    flags: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()
    is_json: bool = False
    is_clear: bool = True
    trigger: Instruction | None = None

    def flag(self, name: str) -> str | None:
        """Return the value of a flag, or ``None`` when it is absent."""
        return next((value for key, value in self.flags if key == name), None)


@dataclass(frozen=True, slots=True)
class ParsedDockerfile:
    """A Dockerfile's instructions.

    Attributes:
        instructions: in order.
        syntax: the frontend that ``# syntax=`` names, else empty.
        unclear: why the text as a whole may mean something else to BuildKit, as part of a sentence; else empty.
    """

    instructions: tuple[Instruction, ...]
    syntax: str = ""
    unclear: str = ""


@dataclass(frozen=True, slots=True)
class ContextUse:
    """Which files of the context a Dockerfile can read.

    Attributes:
        sources: paths relative to the context, ``/``-separated, possibly with ``*``, ``?`` and ``[…]``.
        whole_because: why all of it counts, as a sentence; empty when only ``sources`` do.
    """

    sources: tuple[str, ...] = ()
    whole_because: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether every file that ``.dockerignore`` leaves counts."""
        return bool(self.whole_because)

    @property
    def is_empty(self) -> bool:
        """Whether no file counts at all."""
        return not self.sources and not self.whole_because


def parse(text: str) -> ParsedDockerfile:
    """Return the instructions of a Dockerfile's text; text that is no Dockerfile parses to something unclear."""
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]
    directives = _directives(lines)
    unclear = ""
    if text.lstrip().startswith(("//", "{", "#!")):
        unclear = "it does not start like a Dockerfile"
    instructions: list[Instruction] = []
    reader = _LogicalLines(lines, "`" if directives.get("escape") == "`" else "\\")
    for number, line in reader:
        instruction = _instruction(line, number)
        instructions.append(instruction)
        carrier = instruction.trigger or instruction
        if carrier.keyword in ("RUN", "COPY", "ADD") and not carrier.is_json and "<<" in line:
            if not _heredocs_are_clear(line):
                unclear = unclear or f"line {number} writes “<<” in a way that is not followed here"
            for name, strips_tabs in _heredocs(line):
                if not reader.skip_heredoc(name, strips_tabs=strips_tabs):
                    unclear = unclear or f"the here-document of line {number} has no end"
        if carrier.keyword == "ONBUILD":
            unclear = unclear or f"line {number} has an ONBUILD in an ONBUILD"
        if carrier.keyword not in KEYWORDS:
            unclear = unclear or f"line {number} starts with “{carrier.keyword[:40]}”, which is not a known instruction"
    return ParsedDockerfile(tuple(instructions), directives.get("syntax", ""), unclear)


def context_use(dockerfile: ParsedDockerfile, triggers: Iterable[str] = ()) -> ContextUse:
    """Return which files a build can read.

    Args:
        dockerfile: the user's.
        triggers: instructions that base images run in a build on top of them (``ONBUILD``), as the engine lists them.
    """
    if dockerfile.unclear:
        return ContextUse(whole_because=f"{dockerfile.unclear}.")
    if dockerfile.syntax and "docker/dockerfile" not in dockerfile.syntax:
        return ContextUse(whole_because="# syntax names a builder of its own.")
    sources: dict[str, None] = {}
    stored = (instruction for text in triggers for instruction in parse(text).instructions)
    for instruction in (*dockerfile.instructions, *stored):
        try:
            sources.update(dict.fromkeys(_sources(instruction.trigger or instruction)))
        except _ReadsAllError as why:
            where = f"line {instruction.line}" if instruction in dockerfile.instructions else "the base image's ONBUILD"
            return ContextUse(whole_because=f"{where} {why}.")
    return ContextUse(tuple(sources))


class _ReadsAllError(Exception):
    """An instruction reads the whole context, or may; the text completes "line 3 …"."""


def _sources(instruction: Instruction) -> Iterator[str]:
    if instruction.keyword in ("COPY", "ADD"):
        yield from _copy_sources(instruction)
    elif instruction.keyword == "RUN":
        yield from _mount_sources(instruction)


def _copy_sources(instruction: Instruction) -> Iterator[str]:
    unknown = [name for name, _ in instruction.flags if name not in _COPY_FLAGS]
    if unknown or not instruction.is_clear:
        raise _ReadsAllError(f"has a flag that is not followed here ({', '.join(unknown) or 'quoted'})")
    origin = instruction.flag("from")
    if origin and "$" not in origin:
        return
    if origin is not None:
        raise _ReadsAllError("copies from a place that a variable names")
    for source in instruction.words[:-1]:
        if not instruction.is_json and _HEREDOC.match(source):
            continue
        if instruction.keyword == "ADD" and source.startswith(_REMOTE):
            continue
        yield _context_path(source)


def _mount_sources(instruction: Instruction) -> Iterator[str]:
    unknown = [name for name, _ in instruction.flags if name not in _RUN_FLAGS]
    if unknown or not instruction.is_clear:
        raise _ReadsAllError(f"has a flag that is not followed here ({', '.join(unknown) or 'quoted'})")
    for name, value in instruction.flags:
        if name != "mount":
            continue
        mount = dict(mount_options(value))
        kind = mount.get("type", "bind")
        if "$" in value:
            raise _ReadsAllError("has a mount with a variable in it")
        if kind in _CONTEXT_FREE_MOUNTS or mount.get("from"):
            continue
        if kind != "bind":
            raise _ReadsAllError(f"has a mount of the unknown type “{kind[:40]}”")
        source = mount.get("source", mount.get("src", ""))
        if any(character in source for character in "*?["):
            raise _ReadsAllError("has a mount whose source is not a plain path")
        yield _context_path(source)


def mount_options(value: str) -> list[tuple[str, str]]:
    """Return what ``RUN --mount=`` says as ``(lower-case key, value)``; a key without a value has ``""``."""
    pairs = (field.partition("=") for field in value.split(","))
    return [(key.strip().lower(), text) for key, _, text in pairs]


def _context_path(source: str) -> str:
    if any(character in source for character in "$'\"\\`"):
        raise _ReadsAllError("names its source with a variable, quotes or escapes")
    path = posixpath.normpath("/" + source).lstrip("/")
    if not path:
        raise _ReadsAllError("reads the whole folder")
    return path


def _directives(lines: list[str]) -> dict[str, str]:
    """Return ``# key=value`` lines at the top.  Blank lines and comments before one are passed over, so a directive
    that BuildKit would take for a comment is believed: for ``syntax`` the stricter reading."""  # noqa: D205, D209
    found: dict[str, str] = {}
    for number, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match:
            # Only an unbroken run of directives from the first line on changes how the rest is read.
            counts = match[1].lower() == "syntax" or len(found) == number
            if counts:
                found.setdefault(match[1].lower(), match[2])
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return found


class _LogicalLines:
    """Yields ``(number, text)`` of each instruction: continuations joined, comments and blank lines left out."""

    def __init__(self, lines: list[str], escape: str) -> None:
        self._lines = lines
        self._next = 0
        mark = re.escape(escape)
        self._continued = re.compile(rf"(?:(?<=[^{mark}])|^){mark}[ \t]*$")

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self._next < len(self._lines):
            line = self._take().lstrip(_BLANK)
            number = self._next
            if not line or line.startswith("#"):
                continue
            part, goes_on = self._split(line)
            parts = [part]
            while goes_on and self._next < len(self._lines):
                line = self._take()
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                part, goes_on = self._split(line)
                parts.append(part)
            text = "".join(parts).strip()
            if text:
                yield number, text

    def skip_heredoc(self, name: str, *, strips_tabs: bool) -> bool:
        """Pass over a here-document's body; return whether its end was found."""
        while self._next < len(self._lines):
            line = self._take()
            if (line.lstrip("\t") if strips_tabs else line) == name:
                return True
        return False

    def _take(self) -> str:
        self._next += 1
        return self._lines[self._next - 1]

    def _split(self, line: str) -> tuple[str, bool]:
        match = self._continued.search(line)
        return (line[: match.start()], True) if match else (line, False)


def _instruction(line: str, number: int) -> Instruction:
    keyword, _, rest = re.sub(rf"[{_BLANK}]+", " ", line, count=1).partition(" ")
    keyword = keyword.upper()
    rest = rest.strip()
    flags, rest, is_clear = _take_flags(rest)
    if keyword == "ONBUILD":
        # One in another is refused, by BuildKit too; following a chain of thousands would exhaust the stack.
        trigger = None if rest.upper().startswith("ONBUILD") else _instruction(rest, number)
        return Instruction(number, keyword, flags, is_clear=is_clear, trigger=trigger)
    strings = _json_strings(rest)
    words = tuple(word for word in re.split(rf"[{_BLANK}]+", rest) if word) if strings is None else strings
    return Instruction(number, keyword, flags, words, strings is not None, is_clear)


def _take_flags(rest: str) -> tuple[tuple[tuple[str, str], ...], str, bool]:
    flags: list[tuple[str, str]] = []
    at, is_clear = 0, True
    while match := _FLAG.match(rest, at):
        at = match.end()
        if match[1] == "--":
            break
        is_clear = is_clear and not any(character in match[1] for character in "'\"\\`")
        name, _, value = match[1][2:].partition("=")
        flags.append((name, value))
    return tuple(flags), rest[at:], is_clear


def _json_strings(rest: str) -> tuple[str, ...] | None:
    if not rest.startswith("["):
        return None
    try:
        values = json.loads(rest)
    except (ValueError, RecursionError):  # brackets in brackets by the thousand are no list of strings
        return None
    return tuple(values) if all(isinstance(value, str) for value in values) else None


def _heredocs(line: str) -> list[tuple[str, bool]]:
    """Return ``(end mark, whether tabs are stripped)`` of each here-document that a line opens."""
    found = []
    for word in _shell_words(line) or ():
        match = _HEREDOC.match(word)
        if match:
            found.append((match[2].replace("'", "").replace('"', ""), match[1] == "-"))
    return found


def _heredocs_are_clear(rest: str) -> bool:
    """Whether BuildKit's and our reading of ``<<`` cannot differ: no quoting or expansion inside those words."""
    if "${" in _PLAIN_VARIABLE.sub("", rest):
        return False
    words = _shell_words(rest)
    if words is None:
        return False
    marks = [match[2] for match in map(_HEREDOC.match, words) if match]
    return all(re.fullmatch(r"[^\s'\"\\$`]+|'[^\s'\"\\$`]+'|\"[^\s'\"\\$`]+\"", mark) for mark in marks)


def _shell_words(line: str) -> list[str] | None:
    """Split at blanks outside quotes, keeping the quotes; ``None`` when a quote is not closed."""
    if not _QUOTED_LINE.fullmatch(line):
        return None
    return _QUOTED_WORD.findall(line)
