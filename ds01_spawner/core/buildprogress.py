"""What a build is doing, computed from BuildKit's event stream (``--progress=rawjson``).

Everything in the stream that a Dockerfile controls is hostile: output of any length, without line ends, with terminal
control sequences.  Memory stays bounded whatever comes.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

LINE_CHARACTERS = 2000
"""Longer lines of output are cut."""

RECENT_LINES = 50
"""How many of the last lines a snapshot carries."""

FAILURE_LINES = 20
"""How many of a step's last lines explain its failure."""

_INSTRUCTION_CHARACTERS = 200
_STEP = re.compile(r"\[(?:(?P<stage>\S+) )?(?P<number>\d+)/(?P<total>\d+)\] (?P<text>.*)", re.DOTALL)
_TERMINAL_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # window titles, links, device strings
    r"|\x1b[ -/]*[0-~]?"
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class BuildPhase(StrEnum):
    """Where an order is on its way."""

    WAITING = "waiting"
    PACKING = "packing"
    BUILDING = "building"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A build's state at one moment.  Each one replaces the one before, so a reader may miss any of them.

    Attributes:
        phase: where it is.
        sentence: what is happening, for people.
        step: number of the present step, from 1; 0 before the first.
        steps: how many steps there are, as far as known.
        done: steps completed, those from the cache included.
        cached: steps that were taken from the cache.
        instruction: the present step's text, shortened.
        lines: the last lines of output, cleaned, at most ``RECENT_LINES``.
        line_count: how many lines there were so far; a reader who has seen ``n`` shows the last
            ``line_count - n`` of ``lines``.
    """

    phase: BuildPhase
    sentence: str
    step: int = 0
    steps: int = 0
    done: int = 0
    cached: int = 0
    instruction: str = ""
    lines: tuple[str, ...] = ()
    line_count: int = 0


def clean_line(text: str) -> str:
    """Return a line without terminal sequences and control characters, cut to ``LINE_CHARACTERS``."""
    text = _CONTROL.sub("", _TERMINAL_SEQUENCE.sub("", text).replace("\t", "    "))
    if len(text) > LINE_CHARACTERS:
        return f"{text[:LINE_CHARACTERS]} … ({len(text) - LINE_CHARACTERS:,} more characters)"
    return text


class _Output:
    """One stream of a step: bytes in, lines out; holds at most one cut line."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._dropped = 0
        self._returned = False

    def feed(self, data: bytes) -> list[str]:
        lines = []
        *ended, rest = self._decoder.decode(data).split("\n")
        for piece in ended:
            self._add(piece)
            lines.append(self.finish())
        self._add(rest)
        return lines

    def finish(self) -> str:
        more = f" … ({self._dropped:,} more characters)" if self._dropped else ""
        line = clean_line(self._text) + more
        self._text, self._dropped, self._returned = "", 0, False
        return line

    @property
    def is_empty(self) -> bool:
        return not self._text

    def _add(self, piece: str) -> None:
        if not piece:
            return
        # A carriage return starts the line over, as progress bars do; one before a line end is only Windows' manner.
        text = piece.rstrip("\r")
        if text and (self._returned or "\r" in text):
            self._text, self._dropped = "", 0
            text = text.rpartition("\r")[2]
        self._returned = piece.endswith("\r") or (self._returned and not text)
        room = LINE_CHARACTERS - len(self._text)
        self._text += text[:room]
        self._dropped += max(0, len(text) - room)


@dataclass(slots=True)
class _Vertex:
    name: str
    started: bool = False
    completed: bool = False
    cached: bool = False
    error: str = ""
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=FAILURE_LINES))
    outputs: dict[int, _Output] = field(default_factory=dict)
    transfers: dict[str, tuple[int, int]] = field(default_factory=dict)


class BuildState:
    """Folds BuildKit's events into the build's present state."""

    def __init__(self) -> None:
        self._vertices: dict[str, _Vertex] = {}
        self._speaking = ""
        self._present = ""
        self._recent: deque[str] = deque(maxlen=RECENT_LINES)
        self._line_count = 0
        self._started_count = 0

    def feed(self, event: Mapping[str, Any]) -> list[str]:
        """Take one event in and return the lines it adds to the log."""
        lines: list[str] = []
        for update in _dicts(event.get("vertexes")):
            lines += self._update(update)
        for status in _dicts(event.get("statuses")):
            vertex = self._vertices.get(str(status.get("vertex")))
            total, current = status.get("total"), status.get("current")
            if vertex and isinstance(total, int) and isinstance(current, int) and total > 0:
                vertex.transfers[str(status.get("id"))] = (min(current, total), total)
        for log in _dicts(event.get("logs")):
            lines += self._log(str(log.get("vertex")), log.get("stream"), log.get("data"))
        return lines

    def _update(self, update: Mapping[str, Any]) -> list[str]:
        digest = str(update.get("digest"))
        vertex = self._vertices.setdefault(digest, _Vertex(str(update.get("name") or "")))
        was_completed = vertex.completed
        if update.get("started") and not vertex.started:
            vertex.started = True
            self._started_count += 1
        vertex.completed = vertex.completed or bool(update.get("completed"))
        vertex.cached = vertex.cached or bool(update.get("cached"))
        vertex.error = vertex.error or str(update.get("error") or "")
        if vertex.started and not vertex.completed:
            self._present = digest
        lines: list[str] = []
        if vertex.completed and not was_completed:
            for output in vertex.outputs.values():
                if not output.is_empty:
                    lines += self._keep(digest, vertex, output.finish())
            if not vertex.outputs and _STEP.match(vertex.name):
                lines += self._head(digest, vertex)
        return lines

    def _log(self, digest: str, stream: Any, data: Any) -> list[str]:
        vertex = self._vertices.get(digest)
        if vertex is None or not isinstance(data, str):
            return []
        try:
            printed = base64.b64decode(data)
        except ValueError:
            return []
        output = vertex.outputs.setdefault(2 if stream == 2 else 1, _Output())  # noqa: PLR2004
        return [line for text in output.feed(printed) for line in self._keep(digest, vertex, text)]

    def _keep(self, digest: str, vertex: _Vertex, line: str) -> list[str]:
        head = self._head(digest, vertex)
        vertex.recent.append(line)
        self._remember(line)
        return [*head, line]

    def _head(self, digest: str, vertex: _Vertex) -> list[str]:
        if self._speaking == digest:
            return []
        self._speaking = digest
        head = f"── {_shorten(vertex.name)}"
        self._remember(head)
        return [head]

    def _remember(self, line: str) -> None:
        self._recent.append(line)
        self._line_count += 1

    @property
    def started_count(self) -> int:
        """How many steps have begun, those included that are no instruction."""
        return self._started_count

    @property
    def has_triggers(self) -> bool:
        """Whether a base image added steps of its own (``ONBUILD``): they are numbered past the Dockerfile's."""
        steps = [match for match in map(_STEP.match, self._names()) if match]
        return any(int(match["number"]) > int(match["total"]) for match in steps)

    def failure(self) -> tuple[str, str, tuple[str, ...]]:
        """Return the failing step's name, its error and its last lines; all empty when no step failed."""
        failed = [vertex for vertex in self._vertices.values() if vertex.error]
        # When one stage fails, BuildKit cancels the others.
        failed.sort(key=lambda vertex: "context canceled" in vertex.error)
        if not failed:
            return "", "", ()
        return _shorten(failed[0].name), failed[0].error, tuple(failed[0].recent)

    def snapshot(self) -> BuildProgress:
        """Return the present state."""
        stages: dict[str, int] = {}
        completed: dict[str, int] = {}
        cached = 0
        for vertex in self._vertices.values():
            match = _STEP.match(vertex.name)
            if match:
                stage = match["stage"] or ""
                stages[stage] = max(stages.get(stage, 0), int(match["number"]), int(match["total"]))
                if vertex.completed:
                    # Steps that two stages begin with are done once and bear one stage's name, so the other's are not
                    # seen; but a step is done after all that are before it.
                    completed[stage] = max(completed.get(stage, 0), int(match["number"]))
                cached += vertex.cached
        steps, done = sum(stages.values()), sum(completed.values())
        present = self._vertices.get(self._present)
        match = _STEP.match(present.name) if present else None
        instruction = _shorten(match["text"] if match else present.name if present else "")
        step = min(done + 1, steps) if match else done
        return BuildProgress(
            BuildPhase.BUILDING,
            _sentence(present, match is not None, step, steps, instruction),
            step=step,
            steps=steps,
            done=done,
            cached=cached,
            instruction=instruction,
            lines=tuple(self._recent),
            line_count=self._line_count,
        )

    def _names(self) -> list[str]:
        return [vertex.name for vertex in self._vertices.values()]


def _sentence(present: _Vertex | None, is_step: bool, step: int, steps: int, instruction: str) -> str:  # noqa: FBT001
    if present is None:
        return "Building the image"
    transferred = ""
    total = sum(size for _, size in present.transfers.values())
    if total and not present.completed:
        current = sum(size for size, _ in present.transfers.values())
        transferred = f" ({current / 1e6:,.0f} of {total / 1e6:,.0f} MB)"
    if is_step:
        return f"Building the image, step {step} of {steps}: {instruction}{transferred}"
    if present.name.startswith("exporting"):
        return f"Saving the image{transferred}"
    return f"Preparing the build: {instruction.removeprefix('[internal] ')}{transferred}"


def _shorten(text: str) -> str:
    text = " ".join(clean_line(text.replace("\n", " ")).split())
    return text if len(text) <= _INSTRUCTION_CHARACTERS else text[: _INSTRUCTION_CHARACTERS - 1] + "…"


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
