"""Which paths of a folder belong to a build: ``.dockerignore`` rules and the patterns of ``COPY``.

Paths are relative to the folder, ``/``-separated, without a leading slash.  The rules are those of BuildKit, which this
is tested against; they differ from ``.gitignore``: a pattern without a slash matches at the top only.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from functools import cached_property


class BadPatternError(ValueError):
    """A pattern that BuildKit would refuse; the text names it."""


@dataclass(frozen=True)
class Rule:
    """One line of a ``.dockerignore``.

    Attributes:
        pattern: cleaned, without the ``!``.
        keeps: whether it was an exception (``!``).
    """

    pattern: str
    keeps: bool

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(_translate(self.pattern, crosses_folders=True), re.DOTALL)

    def matches(self, path: str) -> bool:
        """Whether the pattern matches the path or a folder above it."""
        while path:
            if self._regex.fullmatch(path):
                return True
            path = path.rpartition("/")[0]
        return False

    def can_match_below(self, folder: str) -> bool:
        """Whether a path below the folder could match; true when in doubt."""
        plain = re.split(r"[*?\[\\]", self.pattern, maxsplit=1)[0]
        return plain.startswith(folder + "/") or (folder + "/").startswith(plain)


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """A ``.dockerignore``; the last rule that matches a path decides."""

    rules: tuple[Rule, ...] = ()

    def ignores(self, path: str) -> bool:
        """Whether the path is left out."""
        ignored = False
        for rule in self.rules:
            if rule.keeps == ignored and rule.matches(path):
                ignored = not rule.keeps
        return ignored

    def ignores_all_below(self, folder: str) -> bool:
        """Whether an ignored folder need not be looked into, because no exception reaches below it."""
        return not any(rule.keeps and rule.can_match_below(folder) for rule in self.rules)


def read_ignore_rules(text: str) -> IgnoreRules:
    """Return the rules of a ``.dockerignore``'s text.

    Raises:
        BadPatternError: a line is no pattern.
    """
    rules = []
    for line in text.removeprefix("\ufeff").split("\n"):
        if line.startswith("#") or not line.strip():
            continue
        pattern = line.strip()
        keeps = pattern.startswith("!")
        pattern = pattern.removeprefix("!").strip() if keeps else pattern
        if not pattern:
            raise BadPatternError("!")
        # A rule for the folder itself (".", "/") leaves nothing out, as with BuildKit.
        pattern = posixpath.normpath(pattern).lstrip("/")
        if pattern and pattern != ".":
            rule = Rule(pattern, keeps)
            try:
                rule.matches("x")
            except re.error:
                raise BadPatternError(line.strip()) from None
            rules.append(rule)
    return IgnoreRules(tuple(rules))


def matches_component(pattern: str, name: str) -> bool:
    """Whether one component of a ``COPY`` source matches a file's name; a malformed pattern matches nothing."""
    try:
        return re.fullmatch(_translate(pattern, crosses_folders=False), name, re.DOTALL) is not None
    except re.error:
        return False


def has_wildcards(component: str) -> bool:
    """Whether a component of a ``COPY`` source is a pattern."""
    return any(character in component for character in "*?[")


def _translate(pattern: str, *, crosses_folders: bool) -> str:
    """Return the regular expression of a pattern in Go's ``filepath.Match`` syntax, plus ``**`` for any depth."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if crosses_folders and pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
            parts.append(".*" if at == len(pattern) else "(?:.*/)?")
            continue
        at += 1
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "\\":
            if at == len(pattern):
                raise re.error("a pattern ends with a backslash")
            parts.append(re.escape(pattern[at]))
            at += 1
        elif character == "[":
            characters, at = _character_class(pattern, at)
            parts.append(characters)
        else:
            parts.append(re.escape(character))
    return "".join(parts)


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not (pattern.startswith("]", at) and ranges):
        low, at = _class_character(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_character(pattern, at + 1)
        # An empty range such as [z-a] is well-formed and matches nothing.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    inside = "".join(ranges)
    if not inside:
        return ("[^/]" if negated else r"(?!)"), at + 1
    return (f"(?!/)[^{inside}]" if negated else f"(?!/)[{inside}]"), at + 1


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise re.error("a character class is malformed")
    if pattern[at] == "\\":
        at += 1
        if at >= len(pattern):
            raise re.error("a character class is malformed")
    return pattern[at], at + 1
