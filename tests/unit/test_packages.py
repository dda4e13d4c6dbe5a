"""Packages: accepted as names and versions, and nothing that a shell or pip would read as something else."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core import packages
from ds01_spawner.core.dockerfile import parse
from ds01_spawner.core.packages import Packages
from ds01_spawner.errors import InvalidOptions

NAMES = st.from_regex(r"\A[A-Za-z0-9](?:[A-Za-z0-9._-]{0,20}[A-Za-z0-9])?\Z")
VERSIONS = st.from_regex(r"\A(?:==|>=|~=|<)[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}\Z")
REQUIREMENTS = st.builds(lambda name, version: name + version, NAMES, st.one_of(st.just(""), VERSIONS))
DEBIAN = st.from_regex(r"\A[a-z0-9][a-z0-9+.-]{1,20}\Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pandas", ("pandas",)),
        ("pandas  numpy\nscipy", ("pandas", "numpy", "scipy")),
        ("torch >= 2, < 3", ("torch>=2,<3",)),
        ("numpy==2.1.* # a comment", ("numpy==2.1.*",)),
        ("uvicorn[standard]>=0.2 x [a, b] == 1", ("uvicorn[standard]>=0.2", "x[a,b]==1")),
        ("torch==2.8.0+cu126 pandas pandas", ("torch==2.8.0+cu126", "pandas")),
        ("", ()),
    ],
)
def test_python_packages_are_read_as_people_write_them(text: str, expected: tuple[str, ...]) -> None:
    """Blanks, lines, comments, extras and versions with blanks in them are understood."""
    assert packages.parse_pip(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "pandas; rm -rf /", "$(id)", "`id`", "a&&b", "a|b", "a>b; c", "-r requirements.txt", "--index-url=https://evil.example",
        "git+https://evil.example/x", "https://evil.example/x.whl", "./here", "../x", "/etc/passwd", "x @ https://evil.example",
        "'quoted'", '"quoted"', "a\\", "ä", "a\0b", "x" * 200,
        "a==1;python_version<'3'", "a==$HOME", "%20",
    ],
)  # fmt: skip
def test_what_is_no_package_is_refused_with_what_is_accepted(text: str) -> None:
    """Options, addresses, paths and everything that a shell reads is refused by name."""
    with pytest.raises(InvalidOptions, match=r"Use a name from PyPI"):
        packages.parse_pip(text)


@pytest.mark.parametrize("text", ["git;id", "-y", "./x.deb", "a b$(c)", "Git", "x", "git=1 2;", "git=$(id)"])
def test_what_is_no_debian_package_is_refused(text: str) -> None:
    """Options, paths, capitals and shell characters are no Debian packages."""
    with pytest.raises(InvalidOptions, match="Debian package"):
        packages.parse_apt(text)


@given(st.text(max_size=60))
def test_nothing_accepted_means_anything_to_a_shell(text: str) -> None:
    """Whatever comes, what is accepted stays one word of a Dockerfile's shell, without options."""
    try:
        accepted = packages.parse_pip(text)
    except InvalidOptions:
        return
    for requirement in accepted:
        assert shlex.split(shlex.quote(requirement)) == [requirement]
        assert not requirement.startswith("-")
        assert not set(requirement) & set(";&|$`\\'\"(){}#@/ \n\t")


@given(st.lists(REQUIREMENTS, max_size=6), st.lists(DEBIAN, max_size=4), st.text(alphabet="FROM x\n#RUN", max_size=30))
def test_the_block_is_read_back_as_it_was_written(pip: list[str], apt: list[str], rest: str) -> None:
    """What the page writes into a Dockerfile it reads back, and everything around the block stays."""
    wanted = Packages(tuple(dict.fromkeys(pip)), tuple(dict.fromkeys(apt)))
    written = packages.write_block(rest, wanted)
    assert packages.read_block(written) == wanted
    assert written.startswith(rest)
    emptied = packages.write_block(written, Packages())
    assert packages.read_block(emptied) == Packages()
    assert packages.write_block(emptied, wanted) == written


def test_adding_a_package_again_replaces_its_version() -> None:
    """A name is installed once; pip's different spellings of a name are one name."""
    text = packages.add("FROM x\n", Packages(("Scikit_Learn==1.4", "pandas")))
    text = packages.add(text, Packages(("scikit-learn>=1.5",), ("git",)))
    assert packages.read_block(text) == Packages(("pandas", "scikit-learn>=1.5"), ("git",))
    assert [one.keyword for one in parse(text).instructions] == ["FROM", "RUN", "RUN"]


def test_a_block_edited_by_hand_is_left_alone() -> None:
    """Lines that the page did not write are neither lost nor rewritten: it says so instead."""
    text = packages.add("FROM x\n", Packages(("pandas",))).replace("RUN python3", "ENV A=b\nRUN python3")
    assert packages.read_block(text) is None
    with pytest.raises(InvalidOptions, match="edited by hand"):
        packages.add(text, Packages(("numpy",)))


def test_too_many_packages_are_refused() -> None:
    """A list of thousands is a mistake or an attack."""
    with pytest.raises(InvalidOptions, match="201 packages"):
        packages.parse_pip(" ".join(f"p{number}" for number in range(201)))


@pytest.mark.parametrize(
    ("above", "user"),
    [
        ("FROM x\nUSER nobody\n", "nobody"),
        ("FROM x\nUSER root\nRUN id\nUSER 1000:100\nRUN id\n", "1000:100"),
        ("FROM x\nuser  $NB_UID\n", "$NB_UID"),
        ("FROM x\nUSER nobody\nUSER root\n", ""),
        ("FROM x\nUSER 0:0\n", ""),
        ("FROM x AS a\nUSER nobody\nFROM y\n", ""),
        ("FROM x AS a\nUSER nobody\nFROM a\n", "nobody"),
        ("FROM x as Base\nUSER nobody\nFROM base AS b\nRUN id\nFROM y\nUSER root\nFROM b\n", "nobody"),
        ("FROM x AS a\nUSER nobody\nFROM a\nUSER root\n", ""),
        ("FROM x\nUSER nobody\nFROM y\n", ""),
        ("FROM x\n# USER nobody\nRUN <<E\nUSER nobody\nE\n", ""),
    ],
)
def test_packages_are_installed_as_root_whoever_was_before(above: str, user: str) -> None:
    """Installers need root; whoever the Dockerfile named before is in force again after the block."""
    text = packages.add(above, Packages(("pandas",), ("git",)))
    instructions = [(one.keyword, *one.words[:1]) for one in parse(text[len(above) :]).instructions]
    installs = [("RUN", "apt-get"), ("RUN", "python3")]
    assert instructions == ([("USER", "root"), *installs, ("USER", user)] if user else installs)
    assert packages.read_block(text) == Packages(("pandas",), ("git",))
    more = packages.add(text, Packages(("numpy",)))
    assert packages.read_block(more) == Packages(("pandas", "numpy"), ("git",))
    assert more.count("USER root") == text.count("USER root")
    assert packages.write_block(more, Packages()).count("USER") == above.count("USER")


@pytest.mark.parametrize(
    "above",
    [
        "FROM x\nRUN id \\",
        "FROM x\nRUN id \\\n",
        "FROM x\nRUN id && \\\n\n# a comment\n",
        "# escape=`\nFROM x\nRUN id `\n",
        "FROM x\nRUN <<E\nid\n",
    ],
)
def test_an_unfinished_instruction_does_not_swallow_the_block(above: str) -> None:
    """The block would become part of it; it is said instead, also where a block stands already."""
    for text in (above, f"{above}\n{packages.block_of(Packages(('numpy',)))}\n"):
        with pytest.raises(InvalidOptions, match="not finished"):
            packages.add(text, Packages(("pandas",)))


def test_a_user_that_is_named_above_a_block_later_is_heeded() -> None:
    """The block follows what is above it each time that it is written."""
    text = packages.add("FROM x\n", Packages(("pandas",)))
    text = packages.add(text.replace("FROM x\n", "FROM x\nUSER nobody\n"), Packages(("numpy",)))
    assert [one.words[0] for one in parse(text).instructions if one.keyword == "USER"] == ["nobody", "root", "nobody"]
    assert packages.read_block(text) == Packages(("pandas", "numpy"))
