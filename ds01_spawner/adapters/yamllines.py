"""Reads YAML that people write by hand: every value knows its line, and what YAML would misread stays text.

YAML 1.1 takes ``1:30`` for 90, ``0123`` for 83 and the later of two equal keys.  Here the first two stay text, for the
schema to judge, and the last is refused, as are aliases and tags, which a limits file has no use for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_BYTES = 256 * 1024

_WHOLE_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}")
_WORDS = {"null": None, "~": None, "": None, "true": True, "yes": True, "on": True, "false": False, "no": False}
_WORDS["off"] = False
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}

Path = tuple[str | int, ...]


class YamlRefused(ValueError):
    """The text is not YAML as it is read here.

    Attributes:
        line: where.
        problem: why.
        empty: whether the reason is that there is nothing but comments.
    """

    def __init__(self, line: int, problem: str, *, empty: bool = False) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem
        self.empty = empty


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text.

    Attributes:
        data: mappings with text keys, lists, text, whole numbers, decimals, booleans and ``None``.
        lines: line number per path, such as ``("groups", "student", "max_cpus")``: where its key stands.
    """

    data: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """Return the line of a path, or of its nearest parent that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse(content: bytes) -> Document:
    """Return what a file's content says.

    Raises:
        YamlRefused: too large, binary, empty, or not YAML as it is read here.
    """
    if len(content) > MAX_BYTES:
        raise YamlRefused(1, f"the file has {len(content):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        root = yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise YamlRefused(content.count(b"\n", 0, error.start) + 1, "this is not text (UTF-8)") from error
    except RecursionError as error:
        raise YamlRefused(1, "the values are nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlRefused(line, f"not YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids; its position counts characters
        position = int(getattr(error, "position", 0))
        line = content.decode("utf-8").count("\n", 0, position) + 1
        raise YamlRefused(line, "a control character; the file may be binary or half-written") from error
    if root is None:
        raise YamlRefused(1, "the file is empty", empty=True)
    builder = _Builder()
    return Document(builder.build(root, ()), builder.lines)


class _Builder:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._built: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        # The same node twice is an alias: useless here, and the way to make a small file expand without end.
        if id(node) in self._built:
            raise YamlRefused(line, "aliases (*name) are not read; write the value out")
        self._built.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
            return _scalar(node)
        raise YamlRefused(line, f"tags ({node.tag}) are not read")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlRefused(line, "a key must be a word")
            key = str(key_node.value)
            if key in built:
                raise YamlRefused(line, f"{key} is there twice; the first is on line {self.lines[(*path, key)]}")
            self.lines[(*path, key)] = line
            built[key] = self.build(value_node, (*path, key))
        return built


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block of text
        return text
    if _WHOLE_NUMBER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    return _WORDS.get(text.lower(), text)
