"""Reading Dockerfiles: instructions, and which files a build can see."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.dockerfile import ContextUse, context_use, parse


def use(text: str, *triggers: str) -> ContextUse:
    """Return what a Dockerfile reads."""
    return context_use(parse(text), triggers)


def keywords(text: str) -> list[str]:
    """Return the instructions' keywords."""
    return [instruction.keyword for instruction in parse(text).instructions]


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN pip install torch\nENV A=b\nWORKDIR /x",
        "FROM a AS b\nFROM c\nCOPY --from=b /x /y",
        "FROM a\nCOPY --from=0 /x /y",
        "FROM a\nCOPY --from=other/image:1 . /y",
        "FROM a\nRUN --mount=type=cache,target=/root/.cache pip install x",
        "FROM a\nRUN --mount=type=secret,id=x --mount=type=tmpfs,target=/t --mount=type=ssh true",
        "FROM a\nRUN --mount=type=bind,from=b,source=/x,target=/y true",
        "FROM a\nCOPY <<EOF /x\nCOPY . /\nEOF",
        "FROM a\nRUN <<EOF\nCOPY . /\nEOF\nRUN true",
        "FROM a\n# COPY . /\nRUN x \\\n# COPY . /\n y",
        "FROM a\nRUN echo \\\nCOPY . /",
        "FROM a\nADD https://example.org/x.tar.gz git@example.org:x/y.git /x",
        "# escape=`\nFROM a\nRUN echo `\nCOPY . /",
        "FROM a\nRUN echo $((1 << 2))",
    ],
)
def test_reads_no_file(text: str) -> None:
    """A Dockerfile that names no file of the folder does not depend on the folder."""
    assert use(text).is_empty


@pytest.mark.parametrize(
    ("line", "sources"),
    [
        ("COPY a /x", ("a",)),
        ("COPY a b* c/d /x/", ("a", "b*", "c/d")),
        ("COPY /a ./b ../c d/../e f/ /x/", ("a", "b", "c", "e", "f")),
        ("COPY --chown=1:2 --chmod=644 --link --exclude=*.x a /x", ("a",)),
        ('COPY ["a b", "c", "/x"]', ("a b", "c")),
        ("ADD a.tar https://example.org/b /x/", ("a.tar",)),
        ("ONBUILD COPY a /x", ("a",)),
        ("COPY \\\n  a \\\n\n  # no\n  b \\\n  /x/", ("a", "b")),
        ("COPY \\\r\n  a /x\r", ("a",)),
        ("COPY <<EOF a /x/\nCOPY b /y\nEOF", ("a",)),
        ("RUN --mount=type=bind,source=a/b,target=/x true", ("a/b",)),
        ("RUN --mount=SRC=/a,dst=/x --network=none true", ("a",)),
        ("RUN cat <<EOF > ${HOME}/x\nCOPY b /\nEOF\nCOPY a /x", ("a",)),
        ("RUN cat <<EOF > /x && cat <<-B\nEOF\n\tB\nCOPY a /x", ("a",)),
        ("copy\t a\t/x", ("a",)),
        ("RUN echo 'a << b' \"<<EOF\"\nCOPY a /x", ("a",)),
        ("RUN cat <<< word\nCOPY a /x", ("a",)),
        ("RUN <<EOF cat\nx \\\nEOF\nCOPY a /x", ("a",)),
        ("COPY a\\\\\nCOPY b /x", ("b",)),
    ],
)
def test_reads_named_files(line: str, sources: tuple[str, ...]) -> None:
    """The sources of COPY and ADD and of bind mounts are what is read."""
    assert use(f"FROM x\n{line}\n") == ContextUse(sources)


@pytest.mark.parametrize(
    "line",
    [
        "COPY . /x",
        "COPY ./ /x",
        "COPY a/.. /x",
        "COPY / /x",
        'COPY ["./", "/x"]',
        "ADD . /x",
        "ONBUILD COPY . /x",
        "COPY $A /x",
        "COPY ${A:-b} /x",
        'COPY "a" /x',
        "COPY a\\ b /x",
        "COPY --parents a/b /x",
        "COPY --from=$A /a /x",
        'COPY "--from=b" a /x',
        "RUN --mount=target=/x true",
        "RUN --mount=type=bind,source=$A,target=/x true",
        "RUN --mount=type=bind,source=a*,target=/x true",
        "RUN --mount=type=new,target=/x true",
        'RUN --mount="type=cache,target=/y" true',
        "INCLUDE other",
        "RUN cat <<E${X%}F\nEOF",
        "RUN cat <<EOF\nnever ends",
        "RUN <<-'END OF IT' cat\nx\nEND OF IT",
    ],
)
def test_doubt_reads_everything(line: str) -> None:
    """What reads the whole folder, or is not understood, counts as reading the whole folder."""
    assert use(f"FROM x\n{line}").is_whole


def test_triggers_of_the_base_image_count() -> None:
    """Instructions that a base image runs in the build read files like the Dockerfile's own."""
    assert use("FROM x", "COPY a /x", "RUN true") == ContextUse(("a",))
    assert use("FROM x", "COPY . /x").is_whole
    assert "ONBUILD" in use("FROM x", "COPY . /x").whole_because


def test_line_numbers() -> None:
    """The reason names the line where the instruction begins, as an editor counts."""
    assert "line 4 " in use("\n# c\nFROM x\nCOPY \\\n . /x").whole_because


def test_syntax_is_found() -> None:
    """The frontend is found wherever BuildKit would find it."""
    assert parse("# syntax=docker/dockerfile:1\nFROM x").syntax == "docker/dockerfile:1"
    assert parse("#SYNTAX = a/b \r\nFROM x").syntax == "a/b"
    assert parse("\ufeff# escape=`\n# syntax=a/b\nFROM x").syntax == "a/b"
    assert parse("FROM x\n# syntax=a/b").syntax == ""
    assert parse("// syntax=a/b\nFROM x").unclear
    assert parse('{"syntax": "a/b"}').unclear
    assert parse("#!/usr/bin/env x\n# syntax=a/b\nFROM x").unclear


def test_escape_counts_only_at_the_top() -> None:
    """`# escape=` below a comment or an instruction changes nothing."""
    assert keywords("# escape=`\nFROM x\nRUN a `\n b\nRUN c") == ["FROM", "RUN", "RUN"]
    assert keywords("# a comment\n# escape=`\nFROM x\nRUN a \\\nCOPY b") == ["FROM", "RUN"]


WORDS = st.sampled_from(
    ["COPY", "RUN", "ADD", "FROM", "ONBUILD", "a", ".", "/x", "--from=b", "--mount=target=/x", "<<EOF", "<<-'E'", "EOF",
     "\\", "\n", "\n", "\n", "`", '"', "'", "$A", "#", "# escape=`", "[", '["a", "/b"]', " ", "\t", "\r", "é", "\x00"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=40))
def test_any_text_is_read(words: list[str]) -> None:
    """Any text gives an answer, the same each time, and never an error."""
    text = " ".join(words)
    assert use(text) == use(text)


@given(st.lists(WORDS, max_size=20))
def test_an_instruction_at_the_end_is_not_lost(words: list[str]) -> None:
    """Whatever comes before, a COPY after the end of every continuation and here-document is seen."""
    before = " ".join(words)
    found = use(f"FROM x\n{before}\n\nEOF\n\tE\nE\n\nFROM y\nCOPY wanted /x\n")
    assert found.is_whole or "wanted" in found.sources


@pytest.mark.parametrize(
    "text",
    [
        "RUN " + "--a " * 200_000,
        "COPY " + "a " * 400_000,
        "RUN " + "x \\\n" * 200_000,
        "RUN " + "<<a " * 200_000,
        "# syntax=a" + " " * 900_000 + "b",
        "ARG " + "${a:-" * 200_000,
        "RUN x" + "\\ " * 400_000,
    ],
)
def test_a_megabyte_of_malice_is_read_in_time(text: str) -> None:
    """No text of the largest allowed size takes more than a few seconds."""
    began = time.process_time()
    use(text)
    assert time.process_time() - began < 5
