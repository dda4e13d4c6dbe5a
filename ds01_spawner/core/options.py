"""What a person chooses for a launch; the form, the REST API and the command line share it.

JupyterHub stores ``user_options`` before anybody has looked at them and hands them over raw, of any JSON shape.
``parse`` is where hostile input stops: everything behind it works with a valid ``SpawnOptions``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ds01_spawner.core.project import ACCEPTED_NAME, ACCEPTED_TAG, quoted, validate_name, validate_tag
from ds01_spawner.errors import InvalidOptions, ProjectRefused

PROFILE = "profile"
"""The key under which JupyterHub's admin page looks for a line to show.  We write it, and ignore what comes back."""

_KIND = re.compile(r"(?:[a-z0-9][a-z0-9.+-]{0,31})?")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SITE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_XSRF = "_xsrf"

DEVICE = "device"
"""The form's own field: one choice out of ``cpu``, ``any`` and the kinds, which becomes ``gpus`` and ``kind``."""


@dataclass(frozen=True, slots=True)
class Field:
    """One choice: the form, the command line and the reference page are made from it.

    Attributes:
        name: the key in ``user_options``.
        label: what the form calls it.
        help: one sentence for the person who chooses.
        accepted: the accepted form, as the end of the sentence "Use …".
        default: used when nothing was chosen and the site says nothing; ``None`` when it must be chosen.
        bounds: smallest and largest accepted number; ``None`` for a text.
        choices: the accepted texts, of a field that the site added.
    """

    name: str
    label: str
    help: str
    accepted: str
    default: int | str | None = None
    bounds: tuple[int, int] | None = None
    choices: tuple[str, ...] = ()


def _number(name: str, label: str, text: str, default: int, largest: int) -> Field:
    return Field(name, label, text, f"a whole number from 0 to {largest}", default, (0, largest))


PROJECT = Field("project", "Project", "The folder in ~/workspace that you will find at /workspace.", ACCEPTED_NAME)
GPUS = _number("gpus", "GPUs", "How many GPUs the project holds while it runs; 0 starts without one.", 1, 64)
KIND = Field(
    "kind",
    "Kind of GPU",
    "A whole GPU, a MIG profile, or whichever is free.",
    "'gpu' for a whole one, a MIG profile such as '1g.10gb', or nothing for any",
    "",
)
MIN_MEMORY_GIB = _number(
    "min_memory_gib", "GPU memory", "Each GPU has at least this many GiB of memory; 0 takes any.", 0, 4096
)
TAG = Field(
    "tag", "Image tag", "'latest' is built from the Dockerfile; another tag is one you made.", ACCEPTED_TAG, "latest"
)

FIELDS = (PROJECT, GPUS, KIND, MIN_MEMORY_GIB, TAG)
_NAMES = tuple(one.name for one in FIELDS)


def site_fields(described: Mapping[str, object]) -> tuple[Field, ...]:
    """Return the fields that a site adds: ``{"course": {"label": "Course", "choices": ["none", "ml"]}}``.

    The first choice is the default.

    Raises:
        ValueError: something is wrong with them; says what.
    """
    return tuple(_site_field(name, description) for name, description in described.items())


def _site_field(name: str, description: object) -> Field:
    if not _SITE_NAME.fullmatch(name) or name in {*_NAMES, PROFILE, DEVICE}:
        raise ValueError(
            f"{name!r} cannot be the name of a field. Use small letters, digits and _, and no name of ours."
        )
    if not isinstance(description, Mapping) or set(description) != {"label", "choices"}:
        raise ValueError(f"The field {name!r} needs a label and choices, and nothing else.")
    label, choices = description["label"], description["choices"]
    if not isinstance(label, str) or not label:
        raise ValueError(f"The label of {name!r} is {label!r}. Use a text.")
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(one, str) for one in choices):
        raise ValueError(f"The choices of {name!r} are {choices!r}. Use a list of texts.")
    return Field(name, label, "", f"one of {', '.join(map(repr, choices))}", choices[0], choices=tuple(choices))


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """A valid choice.

    Attributes:
        project: the project's exact name.
        gpus: how many devices; 0 is a CPU server.
        kind: ``"gpu"``, a MIG profile, or ``""`` for any; nothing is said about whether it exists here.
        min_memory_gib: the least memory of each device.
        tag: the tag of the project's image.
        site: what was chosen of the site's own fields, by name.
    """

    project: str
    gpus: int
    kind: str
    min_memory_gib: int
    tag: str
    site: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def profile(self) -> str:
        """One line for people, such as ``"thesis · 1 GPU"``."""
        if self.gpus == 0:
            devices = "CPU only"
        elif self.kind in {"", "gpu"}:
            devices = f"{self.gpus} GPU" + ("s" if self.gpus > 1 else "")
        else:
            devices = f"{self.gpus} x {self.kind}"
        memory = f"at least {self.min_memory_gib} GiB" if self.gpus and self.min_memory_gib else ""
        tag = f"image {self.tag}" if self.tag != TAG.default else ""
        return " · ".join(part for part in (self.project, devices, memory, tag) if part)

    def as_dict(self) -> dict[str, int | str]:
        """Return what ``user_options`` holds; ``parse`` turns it back into the same options."""
        return {**{name: getattr(self, name) for name in _NAMES}, **self.site, PROFILE: self.profile}


def parse(raw: object, *, defaults: Mapping[str, int | str] | None = None, added: Sequence[Field] = ()) -> SpawnOptions:
    """Return the options that came, completed with the site's defaults and then ours.

    Args:
        raw: anything; valid is a mapping from the names of the fields, and ``None``, which chooses nothing.
        defaults: the site's values for some of the fields; they are checked like any others.
        added: the site's own fields, from ``site_fields``.

    Raises:
        InvalidOptions: what came is not a valid choice.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise InvalidOptions(f"The options of a launch are {_shown(raw)}. Use an object with {_known_names(added)}.")
    every = (*FIELDS, *added)
    unknown = [key for key in raw if key not in {*(one.name for one in every), PROFILE}]
    if unknown:
        raise InvalidOptions(f"There is no option {_shown(unknown[0])}. Use {_known_names(added)}.")
    chosen: dict[str, object] = {one.name: one.default for one in every if one.default is not None}
    chosen.update(defaults or {})
    chosen.update({key: value for key, value in raw.items() if key != PROFILE})
    return SpawnOptions(
        project=_parse_project(chosen),
        gpus=_parse_number(GPUS, chosen),
        kind=_parse_kind(chosen),
        min_memory_gib=_parse_number(MIN_MEMORY_GIB, chosen),
        tag=_parse_tag(chosen),
        site={one.name: _parse_choice(one, chosen) for one in added},
    )


def from_form(
    form: Mapping[str, Sequence[str]],
    *,
    defaults: Mapping[str, int | str] | None = None,
    added: Sequence[Field] = (),
) -> SpawnOptions:
    """Return the options of a submitted form or query: every field a list of texts.

    A number or a tag that was left blank is one that was not chosen.

    Raises:
        InvalidOptions: what came is not a valid choice.
    """
    raw: dict[str, object] = {}
    for name, values in form.items():
        if name == _XSRF:
            continue
        if len(values) != 1:
            raise InvalidOptions(f"{quoted(name)} was given {len(values)} times. Give it once.")
        value = values[0]
        if name in {GPUS.name, MIN_MEMORY_GIB.name}:
            value = value.strip()
            if value:
                raw[name] = int(value) if _NUMBER.fullmatch(value) else value
        elif value or name != TAG.name:
            raw[name] = value
    return parse(raw, defaults=defaults, added=added)


def _parse_project(chosen: Mapping[str, object]) -> str:
    value = chosen.get(PROJECT.name)
    if value is None:
        raise InvalidOptions(f"No project was chosen. Give 'project': {PROJECT.accepted}.")
    if not isinstance(value, str):
        raise _invalid(PROJECT, value)
    try:
        return validate_name(value)
    except ProjectRefused as error:
        raise InvalidOptions(f"'project' is not valid: {error}") from error


def _parse_number(field: Field, chosen: Mapping[str, object]) -> int:
    value = chosen[field.name]
    # A bool is an int to Python, not to anybody who sends JSON.
    if not isinstance(value, int) or isinstance(value, bool) or field.bounds is None:
        raise _invalid(field, value)
    smallest, largest = field.bounds
    if not smallest <= value <= largest:
        raise _invalid(field, value)
    return value


def _parse_kind(chosen: Mapping[str, object]) -> str:
    value = chosen[KIND.name]
    if not isinstance(value, str) or not _KIND.fullmatch(value):
        raise _invalid(KIND, value)
    return value


def _parse_tag(chosen: Mapping[str, object]) -> str:
    value = chosen[TAG.name]
    if not isinstance(value, str):
        raise _invalid(TAG, value)
    try:
        return validate_tag(value)
    except InvalidOptions as error:
        raise _invalid(TAG, value) from error


def _parse_choice(field: Field, chosen: Mapping[str, object]) -> str:
    value = chosen[field.name]
    if not isinstance(value, str) or value not in field.choices:
        raise _invalid(field, value)
    return value


def _invalid(field: Field, value: object) -> InvalidOptions:
    return InvalidOptions(f"{field.name!r} is {_shown(value)}. Use {field.accepted}.")


def _known_names(added: Sequence[Field]) -> str:
    return ", ".join(repr(name) for name in (*_NAMES, *(one.name for one in added)))


class _Short(reprlib.Repr):
    """A repr that stays short whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist = 2, 2, 2

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002 -- reprlib's signature
        return quoted(x)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print an integer of more than 4300 digits.
        return super().repr_int(x, level) if x.bit_length() <= 64 else f"a number of {x.bit_length()} bits"  # noqa: PLR2004

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: ARG002, N802 -- reprlib looks it up by the type's name
        return "null"


def _shown(value: Any) -> str:
    return _Short().repr(value)
