"""BuildKit's event stream: steps, counts and log lines, whatever a Dockerfile prints."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.buildprogress import LINE_CHARACTERS, RECENT_LINES, BuildPhase, BuildState, clean_line


def vertex(digest: str, name: str, **more: Any) -> dict[str, Any]:
    """Return an event about one vertex."""
    return {"vertexes": [{"digest": digest, "name": name, **more}]}


def output(digest: str, data: bytes, stream: int = 1) -> dict[str, Any]:
    """Return an event with output of one vertex."""
    return {"logs": [{"vertex": digest, "stream": stream, "data": base64.b64encode(data).decode()}]}


def running(*chunks: bytes) -> list[str]:
    """Return the lines that a step's output makes, its heading left out."""
    state = BuildState()
    state.feed(vertex("v", "[1/1] RUN x", started="t"))
    lines = [line for chunk in chunks for line in state.feed(output("v", chunk))]
    lines += state.feed(vertex("v", "[1/1] RUN x", started="t", completed="t"))
    return lines[1:]


def test_steps_and_counts() -> None:
    """The snapshot names the present step and counts what is done and what came from the cache."""
    state = BuildState()
    assert state.snapshot().phase is BuildPhase.BUILDING
    state.feed(vertex("i", "[internal] load metadata for docker.io/x", started="t"))
    assert state.snapshot().sentence == "Preparing the build: load metadata for docker.io/x"
    state.feed(vertex("i", "[internal] load metadata for docker.io/x", started="t", completed="t"))
    state.feed(vertex("a", "[1/3] FROM x", started="t", completed="t", cached=True))
    state.feed(vertex("b", "[2/3] RUN make\n  all", started="t"))
    found = state.snapshot()
    assert (found.step, found.steps, found.done, found.cached) == (2, 3, 1, 1)
    assert found.instruction == "RUN make all"
    assert found.sentence == "Building the image, step 2 of 3: RUN make all"
    state.feed(vertex("b", "[2/3] RUN make\n  all", started="t", completed="t"))
    state.feed(vertex("c", "[3/3] RUN x", started="t", completed="t"))
    state.feed(vertex("e", "exporting to image", started="t"))
    assert state.snapshot().sentence == "Saving the image"
    assert (state.snapshot().done, state.snapshot().step) == (3, 3)


def test_stages_are_added_up() -> None:
    """The steps of all stages count, those that a base image adds included."""
    state = BuildState()
    state.feed(vertex("a", "[builder 1/2] FROM x", started="t", completed="t"))
    state.feed(vertex("b", "[stage-1 1/3] FROM y", started="t", completed="t"))
    assert state.snapshot().steps == 5
    assert not state.has_triggers
    state.feed(vertex("c", "[stage-1 4/3] RUN z", started="t"))
    assert state.snapshot().steps == 6
    assert state.has_triggers


def test_steps_that_stages_share_are_done_for_each() -> None:
    """BuildKit runs equal beginnings once, under one stage's name: the count still comes to its end."""
    state = BuildState()
    for digest, name in (("a", "[a 1/3] FROM x"), ("b", "[a 2/3] RUN same"), ("c", "[a 3/3] RUN one")):
        state.feed(vertex(digest, name, started="t", completed="t"))
    assert (state.snapshot().done, state.snapshot().steps) == (3, 3)
    state.feed(vertex("d", "[b 3/4] RUN two", started="t"))
    assert (state.snapshot().done, state.snapshot().steps) == (3, 7)
    state.feed(vertex("d", "[b 3/4] RUN two", started="t", completed="t"))
    state.feed(vertex("e", "[b 4/4] COPY --from=a /x /x", started="t"))
    assert state.snapshot().sentence == "Building the image, step 7 of 7: COPY --from=a /x /x"
    state.feed(vertex("e", "[b 4/4] COPY --from=a /x /x", started="t", completed="t"))
    assert (state.snapshot().done, state.snapshot().steps) == (7, 7)


def test_downloads() -> None:
    """While a base image comes, the sentence says how much of it is there."""
    state = BuildState()
    state.feed(vertex("a", "[1/2] FROM x", started="t"))
    for layer, current in (("l1", 2_000_000), ("l2", 9_000_000_000)):
        state.feed({"statuses": [{"id": layer, "vertex": "a", "current": current, "total": 6_000_000}]})
    assert state.snapshot().sentence.endswith("FROM x (8 of 12 MB)")


def test_failure() -> None:
    """The step that failed is told apart from those that were cancelled with it, and its own last lines are kept."""
    state = BuildState()
    state.feed(vertex("a", "[a 2/2] RUN x", started="t"))
    state.feed(vertex("b", "[b 2/2] RUN y", started="t"))
    for number in range(30):
        state.feed(output("b", f"b{number}\n".encode()))
        state.feed(output("a", f"a{number}\n".encode()))
    state.feed(vertex("a", "[a 2/2] RUN x", error='process "x" did not complete: context canceled'))
    state.feed(vertex("b", "[b 2/2] RUN y", error='process "y" did not complete: exit code: 3'))
    step, error, lines = state.failure()
    assert step == "[b 2/2] RUN y"
    assert "exit code: 3" in error
    assert lines == tuple(f"b{number}" for number in range(10, 30))
    assert BuildState().failure() == ("", "", ())


def test_log_names_the_step_when_it_changes() -> None:
    """Output of steps that run at once stays readable: a heading says whose lines follow."""
    state = BuildState()
    state.feed(vertex("a", "[a 2/2] RUN x", started="t"))
    state.feed(vertex("b", "[b 2/2] RUN y", started="t"))
    lines = [*state.feed(output("a", b"1\n2\n")), *state.feed(output("b", b"3\n")), *state.feed(output("a", b"4\n"))]
    assert lines == ["── [a 2/2] RUN x", "1", "2", "── [b 2/2] RUN y", "3", "── [a 2/2] RUN x", "4"]
    assert state.snapshot().lines == tuple(lines)
    assert state.snapshot().line_count == len(lines)


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a", b"b\n", b"c"], ["ab", "c"]),
        ([b"a\r\nb\r", b"\nc\r\n"], ["a", "b", "c"]),
        ([b"10%\r20%\r", b"30%\r", b"done\n"], ["done"]),
        ([b"10%\r20%\r\n"], ["20%"]),
        ([b"\x1b[31mred\x1b[0m\n"], ["red"]),
        ([b"\x1b[3", b"1mred\n"], ["red"]),
        ([b"\x1b]0;title\x07text\n"], ["text"]),
        ([b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n"], ["link"]),
        ([b"a\tb\x00\x08\x7fc\n"], ["a    bc"]),
        (["ü".encode()[:1], "ü".encode()[1:] + b"\n"], ["ü"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([b"\n\n"], ["", ""]),
    ],
)
def test_lines(chunks: list[bytes], lines: list[str]) -> None:
    """Output becomes clean lines, however it is cut into pieces."""
    assert running(*chunks) == lines


def test_ten_megabytes_without_a_line_end() -> None:
    """A line of any length is cut, and says how much is missing."""
    (line,) = running(*[b"x" * 1_000_000] * 10)
    assert line == "x" * LINE_CHARACTERS + f" … ({10_000_000 - LINE_CHARACTERS:,} more characters)"


def test_a_million_progress_bars() -> None:
    """A line that is written over and over keeps its last state, and no more memory than that."""
    assert running(*[b"\r" + b"=" * 1500] * 1000, b"\n") == ["=" * 1500]


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_no_control_character_survives(chunks: list[bytes]) -> None:
    """Whatever is printed, no terminal sequence and no control character reaches a page."""
    for line in running(*chunks):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)


@given(st.text(max_size=60), st.integers(1, 5))
def test_chunks_do_not_matter(text: str, size: int) -> None:
    """The same output gives the same lines however it is cut."""
    data = text.encode("utf-8", "replace")
    assert running(*(data[at : at + size] for at in range(0, len(data), size))) == running(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["a", "abc", "[1/2] x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["digest", "name", "started", "error", "vertex", "stream", "data", "id", "current", "total"])


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["vertexes", "logs", "statuses", "warnings"]),
            JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=5), max_size=3),
        ),
        max_size=5,
    )
)
def test_any_event_is_taken(events: list[dict[str, Any]]) -> None:
    """Events of any shape are taken in, and a snapshot can be had after each."""
    state = BuildState()
    for event in events:
        state.feed(event)
        assert len(state.snapshot().lines) <= RECENT_LINES


def test_clean_line_is_bounded() -> None:
    """A cleaned line is short."""
    assert len(clean_line("x" * 100_000)) < LINE_CHARACTERS + 50
