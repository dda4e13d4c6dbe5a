"""A new project's files: readable, valid, and right for every kind."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core import packages, scaffold
from ds01_spawner.core.dockerfile import context_use, parse
from ds01_spawner.core.packages import Packages
from ds01_spawner.core.recipe import check_images, final_base
from ds01_spawner.core.scaffold import Base, Plan
from ds01_spawner.errors import InvalidOptions, ProjectRefused

BASE = Base("python", "ds01/python:latest", "Plain Python")


def plan(**changes: object) -> Plan:
    """Return a plan for a project."""
    fields = {
        "name": "thesis",
        "kind": scaffold.KINDS["ml"],
        "base": BASE,
        "packages": Packages(("pandas",), ("git",)),
        "description": "",
        "created": "2026-03-01",
    }
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_eight_kinds_of_the_command_line_are_there() -> None:
    """People who know the old system find its kinds, and all their packages are valid ones."""
    assert set(scaffold.KINDS) == {"ml", "cv", "nlp", "rl", "audio", "ts", "llm", "custom"}
    for kind in scaffold.KINDS.values():
        assert packages.parse_pip(" ".join(kind.pip)) == kind.pip
        assert packages.parse_apt(" ".join(kind.apt)) == kind.apt


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_every_kind_makes_a_dockerfile_that_builds_without_files(kind: str) -> None:
    """It is understood, starts from the chosen base, installs the packages, and copies nothing of the folder."""
    chosen = scaffold.combine(scaffold.KINDS[kind], Packages(("polars",)), with_usual=True)
    text = scaffold.dockerfile(plan(kind=scaffold.KINDS[kind], packages=chosen))
    parsed = parse(text)
    assert not parsed.unclear
    assert final_base(parsed) == BASE.image
    assert context_use(parsed).is_empty
    check_images(parsed, "ds01-ada/thesis")
    assert packages.read_block(text) == chosen


def test_a_package_of_ones_own_wins_over_the_kinds() -> None:
    """Who names a version gets that version, once."""
    chosen = scaffold.combine(scaffold.KINDS["ml"], Packages(("Pandas==2.2",)), with_usual=True)
    assert [one for one in chosen.pip if one.lower().startswith("pandas")] == ["Pandas==2.2"]
    assert scaffold.combine(scaffold.KINDS["ml"], Packages(("x",)), with_usual=False) == Packages(("x",))


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_name_and_description_make_valid_files(name: str, description: str) -> None:
    """pyproject.toml is TOML, and no text reaches the Dockerfile as an instruction, whatever people write."""
    try:
        made = scaffold.files(plan(name=name, description=scaffold.check_description(description)))
    except ProjectRefused:
        return
    read = tomllib.loads(made["pyproject.toml"])
    assert read["project"]["description"] == scaffold.check_description(description)
    assert read["tool"]["ds01"]["type"] == "ml"
    assert [one.keyword for one in parse(made["Dockerfile"]).instructions] == ["FROM", "RUN", "RUN"]
    assert set(made) == {"Dockerfile", ".dockerignore", ".gitignore", "README.md", "pyproject.toml"}


def test_an_unknown_kind_and_a_long_description_are_refused() -> None:
    """The form's choices can be forged; the answer names what is accepted."""
    with pytest.raises(InvalidOptions, match="ml, cv"):
        scaffold.choose_kind("<script>")
    with pytest.raises(InvalidOptions, match="301 characters"):
        scaffold.check_description("x" * 301)
