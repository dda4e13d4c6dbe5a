"""`.dockerignore` rules and the patterns of `COPY`; that they mean what BuildKit means is tested on the engine."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.contextpaths import BadPatternError, has_wildcards, matches_component, read_ignore_rules

PARTS = st.sampled_from(["a", "b.txt", "c", "*", "?", "**", "[a-b]*", "*.txt", "data"])
PATTERNS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
RULES = st.lists(st.tuples(st.sampled_from(["", "!"]), PATTERNS).map("".join), max_size=5)
PATHS = st.lists(st.sampled_from(["a", "b.txt", "c", "data", "ab"]), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("text", "ignored", "kept"),
    [
        ("", [], ["a"]),
        ("data", ["data", "data/x", "data/x/y"], ["sub/data", "datax"]),
        ("/data/", ["data", "data/x"], ["x/data"]),
        ("*.txt", ["a.txt"], ["s/a.txt", "a.txtx"]),
        ("**/*.txt", ["a.txt", "s/a.txt", "s/t/a.txt"], ["a.py"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("**", ["a", "a/b"], []),
        ("data\n!data/keep", ["data", "data/x"], ["data/keep", "data/keep/x"]),
        ("!a\na", ["a"], []),
        ("# a\n  b  \n\n#c", ["b"], ["a", "#c", "c"]),
        (" # a", ["# a"], ["a"]),
        ("./a\nb/../c", ["a", "c"], ["b"]),
        (".", [], ["a"]),
        ("/", [], ["a"]),
        ("a+b(c).x", ["a+b(c).x"], ["aab(c)_x"]),
        (r"a\*b", ["a*b"], ["axb"]),
        ("[^a]b", ["xb"], ["ab", "s/b"]),
        ("\ufeffa\r\nb\r\n", ["a", "b"], []),
    ],
)
def test_rules(text: str, ignored: list[str], kept: list[str]) -> None:
    """A rule leaves out what it matches and everything below; the last that matches decides."""
    rules = read_ignore_rules(text)
    assert [path for path in ignored if not rules.ignores(path)] == []
    assert [path for path in kept if rules.ignores(path)] == []


@pytest.mark.parametrize("text", ["!", "a\n! ", "a[", "a[]", "a[b-", "a\\", "[-a]", "x[^]"])
def test_bad_patterns_are_named(text: str) -> None:
    """What is no pattern is refused, as BuildKit refuses it."""
    with pytest.raises(BadPatternError):
        read_ignore_rules(text)


@given(RULES, PATHS)
def test_folders_are_skipped_only_when_nothing_below_is_kept(lines: list[str], path: str) -> None:
    """A folder that is not looked into has nothing in it that would have been sent."""
    rules = read_ignore_rules("\n".join(lines))
    parents = [path[:at] for at, character in enumerate(path) if character == "/"]
    if any(rules.ignores(folder) and rules.ignores_all_below(folder) for folder in parents):
        assert rules.ignores(path)


@given(st.text("ab*?[]^-\\", max_size=8), st.text("ab^-]", max_size=4))
def test_any_component_pattern_is_decided(pattern: str, name: str) -> None:
    """Every text is a pattern that matches or does not; a malformed one matches nothing."""
    assert matches_component(pattern, name) in (True, False)


@given(st.text("ab*?", max_size=6), st.text("ab", max_size=6))
def test_plain_patterns_are_the_shells(pattern: str, name: str) -> None:
    """Stars and question marks mean what they mean in a shell."""
    assert matches_component(pattern, name) == fnmatch.fnmatchcase(name, pattern)
    assert has_wildcards(pattern) == any(character in pattern for character in "*?")


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", ".hidden", True),
        ("[a-c]", "b", True),
        ("[^a-c]", "b", False),
        ("[!a]", "b", False),
        ("[z-a]", "b", False),
        ("[a-c", "b", False),
        ("[]a]", "]", False),
        ("a*c", "a\nc", True),
    ],
)
def test_components(pattern: str, name: str, matches: bool) -> None:  # noqa: FBT001
    """Character classes are Go's, and nothing is special about dots and line ends."""
    assert matches_component(pattern, name) is matches
