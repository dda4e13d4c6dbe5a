"""The recipe's digest, the image's labels, and whose images a Dockerfile may use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core import labels, recipe
from ds01_spawner.core.dockerfile import parse
from ds01_spawner.errors import ProjectRefused

OWN = "ds01-alice/thesis"


def check(text: str) -> None:
    """Check a Dockerfile of alice's."""
    recipe.check_images(parse(text), OWN)


@given(st.text(), st.text(), st.text(), st.text())
def test_digest_tells_recipes_apart(text: str, files: str, other_text: str, other_files: str) -> None:
    """Two recipes have one digest only if both their parts are equal."""
    same = (text, files) == (other_text, other_files)
    assert (recipe.digest(text, files) == recipe.digest(other_text, other_files)) is same


def test_digest_takes_any_bytes() -> None:
    """A Dockerfile that is not UTF-8 has a digest too."""
    assert len(recipe.digest(b"FROM \xff".decode("utf-8", "surrogateescape"), "")) == 64


@pytest.mark.parametrize("doubled", ["$a{}$a{}", "${{a{}}}${{a{}:-x}}", "${{x:-y}}$a{}$a{}"])
def test_values_that_double_are_not_followed(doubled: str) -> None:
    """A few lines cannot make a text of gigabytes: a value of a thousand characters counts as one nobody can tell."""
    lines = [f"ARG a{n}={doubled.format(n - 1, n - 1)}" for n in range(1, 60)]
    with pytest.raises(ProjectRefused, match="worked out"):
        check("\n".join(["ARG a0=xxxxxxxxxxxxxxxx", *lines, "FROM $a59"]))


def test_labels_are_recognised() -> None:
    """An image is current for the project, user and recipe that it was labelled with, and for no other."""
    made = recipe.image_labels(user="alice", project="thesis", recipe="r", base="b", at=1_000_000.7)
    assert made[labels.BUILT_AT] == "1970-01-12T13:46:40Z"
    assert made[labels.BASE] == "b"
    assert recipe.is_current(made, user="alice", project="thesis", recipe="r")
    assert not recipe.is_current(made, user="bob", project="thesis", recipe="r")
    assert not recipe.is_current(made, user="alice", project="other", recipe="r")
    assert not recipe.is_current(made, user="alice", project="thesis", recipe="s")
    assert not recipe.is_current({}, user="alice", project="thesis", recipe="r")


@pytest.mark.parametrize(
    "text",
    [
        "FROM python:3.12",
        "FROM ds01/python:13",
        "FROM nvcr.io/nvidia/pytorch:24.01-py3",
        "FROM ds01-alice/other:latest",
        "ARG V=13\nARG W=${V}\nFROM ds01/python:${W}",
        "ARG BASE=ds01/python\nFROM ${BASE}:13 AS x\nFROM x\nCOPY --from=x /a /b\nCOPY --from=0 /a /b",
        'ARG V="3.12"\nARG E=\nFROM python:$V${E}',
        "FROM --platform=$BUILDPLATFORM python:3.12",
        "FROM python:3.12-$TARGETARCH",
        "# syntax=docker/dockerfile:1.7-labs\nFROM python",
        "# syntax=docker.io/docker/dockerfile-upstream:master\nFROM python",
        "FROM scratch\nRUN --mount=type=cache,target=/x --mount=type=bind,from=python,target=/y true",
        "FROM a\nARG X='a b' Y\nRUN $X",
    ],
)
def test_images_for_everyone_are_allowed(text: str) -> None:
    """Images that belong to nobody else can be used."""
    check(text)


@pytest.mark.parametrize(
    "reference",
    [
        "ds01-bob/thesis",
        "ds01-bob/thesis:latest",
        "docker.io/ds01-bob/thesis",
        "index.docker.io/ds01-bob/thesis",
        "DS01-bob/thesis",
        "ds01-alicex/thesis",
        "ds01-bob/thesis@sha256:" + "0" * 64,
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "FROM {}",
        "from --platform=linux/amd64 {} as x",
        "FROM python AS x\nFROM {}",
        "FROM python\nCOPY --from={} /workspace /x",
        "FROM python\nADD --from={} /workspace /x",
        "FROM python\nRUN --mount=type=bind,from={},target=/x cp -r /x /y",
        "FROM python\nRUN --mount=FROM={},target=/x cp -r /x /y",
        "FROM python\nRUN --mount=from=python,from={},target=/x cp -r /x /y",
        "FROM python\nRUN \\\n # c\n --network=none \\\n --mount=type=cache,from={},target=/x true",
        "FROM python\nONBUILD COPY --from={} / /x\nFROM python",
        "ARG A={}\nFROM ${{A}}",
        "ARG A={} B=$A\nFROM $B",
        "FROM ${{NEVER:-{}}}",
        "ARG A=x\nFROM ${{A:+{}}}",
        "ARG A='{}'\nFROM $A",
    ],
)
def test_another_users_image_is_refused(form: str, reference: str) -> None:
    """Nobody builds on, copies from or mounts another user's image, however it is written."""
    with pytest.raises(ProjectRefused, match=r"another person's image|worked out"):
        check(form.format(reference))


@pytest.mark.parametrize(
    "text",
    [
        "FROM ds01${TARGETVARIANT}-bob/x",
        "FROM ds01${TARGETVARIANT:--}bob/x",
        "ARG X\nFROM ds01${X--}bob/x",
        "FROM ${BUILDKIT_CACHE_MOUNT_NS}/x",
        "FROM ds01-${TARGETPLATFORM}",
        "ARG A=x\\ B=ds01-alice\nFROM ${B}/x",
        'ARG A="x B=ds01-alice"\nFROM ${B}/x',
        "FROM ${A%b}/x",
        "FROM ${A#b}/x",
        "FROM ${A/b/c}/x",
        "FROM ds01\\-bob/x",
        "FROM 'ds01-bob'/x",
        'FROM "ds01-bob/x"',
        "FROM x\nCOPY --from=$A /a /b",
        'FROM x\nCOPY --fr"om=ds01-bob/x" /a /b',
        "FROM x\nRUN --mo'unt=from=ds01-bob/x,target=/x' true",
        'FROM x\nRUN --mount="type=bind,from=ds01-bob/x,target=/x" true',
        "FROM x\nARG A=ds01-bob/x\nRUN --mount=from=$A,target=/x true",
        'FROM x\nRUN --mount=type=bind,"from=ds01-bob/x",target=/x true',
        "# escape=`\nFROM ds01`-bob/x",
    ],
)
def test_what_cannot_be_worked_out_is_refused(text: str) -> None:
    """A name that only the build itself could work out is refused, because it could be anybody's."""
    with pytest.raises(ProjectRefused):
        check(text)


@pytest.mark.parametrize(
    "text",
    [
        "# syntax=evil/frontend\nFROM x",
        "# syntax=docker/dockerfilex:1\nFROM x",
        "# syntax=evil/docker/dockerfile:1\nFROM x",
        "# a comment\n# syntax=evil/frontend\nFROM x",
        "#!/bin/x\n#syntax=evil/frontend\nFROM x",
        "// syntax=evil/frontend",
        '{"syntax": "evil/frontend"}',
        "FROM x\nRUN cat <<E$X\nFROM ds01-bob/x\nE",
        "NEW instruction",
    ],
)
def test_a_builder_of_ones_own_is_refused(text: str) -> None:
    """Neither another frontend nor text that the builder may read differently gets past the check."""
    with pytest.raises(ProjectRefused):
        check(text)


def test_refusal_names_the_line() -> None:
    """The refusal says where."""
    with pytest.raises(ProjectRefused, match=r"^Line 3 .*ds01-bob/x"):
        check("FROM a\n\nCOPY --from=ds01-bob/x /a /b")


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("FROM a\nRUN pip install x\nCOPY a /b", False),
        ("FROM a\nRUN --mount=type=bind,source=a,target=/b --mount=type=secret,id=x true", False),
        ("FROM a\nRUN --mount=source=a,target=/b true", False),
        ("FROM a\nRUN --mount=type=cache,target=/b true", True),
        ("FROM a\nRUN --network=none --mount=target=/b,TYPE=cache true", True),
        ("FROM a\nRUN --mount=type=$T,target=/b true", True),
        ("FROM a\nRUN --mount=type=bind,type=cache,target=/b true", True),
        ("FROM a\nONBUILD RUN --mount=type=cache,target=/b true", True),
    ],
)
def test_cache_folders_are_seen(text: str, has: bool) -> None:  # noqa: FBT001
    """A Dockerfile that may use a folder from an earlier build is told from one that does not."""
    assert recipe.has_cache_folders(parse(text)) is has
    assert recipe.has_cache_folders(parse("FROM a"), text.splitlines()[1:]) is has


@pytest.mark.parametrize(
    ("text", "bases", "final"),
    [
        ("FROM a", ("a",), "a"),
        ("FROM a AS x\nFROM b\nFROM X", ("a", "b"), "a"),
        ("FROM a AS x\nFROM x AS y\nFROM scratch", ("a",), "scratch"),
        ("ARG V=1\nFROM a:$V\nARG V=2\nFROM b:$V", ("a:1", "b:1"), "b:1"),
        ("RUN x", (), ""),
    ],
)
def test_base_images(text: str, bases: tuple[str, ...], final: str) -> None:
    """The images that stages start from, and the one that the result builds on."""
    assert recipe.base_images(parse(text)) == bases
    assert recipe.final_base(parse(text)) == final


@pytest.mark.parametrize("text", ["FROM x\n" + "ONBUILD " * 2000 + "RUN x", "FROM x\nONBUILD --a onbuild RUN x"])
def test_instructions_that_store_one_another_are_refused(text: str) -> None:
    """A chain of ONBUILD is refused in words, however long it is."""
    with pytest.raises(ProjectRefused, match="ONBUILD in an ONBUILD"):
        check(text)


def test_brackets_by_the_thousand_are_a_shells_business() -> None:
    """What is no JSON form is the shell's, as BuildKit reads it."""
    check("FROM x\nRUN " + "[" * 20_000)
    check("FROM x\nRUN " + "[" * 20_000 + "]" * 20_000)
