"""Prints docs/reference/limits.md from the schema of the limits file.

python dev/limits_reference.py > docs/reference/limits.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from ds01_spawner.adapters import limitsold
from ds01_spawner.adapters.limitsschema import ATTRIBUTES, ExemptionEntry, GroupSection, Policies, Sections, Values
from ds01_spawner.core.limits import Limits, show

# How many of the attribute's unit one of the key's unit is.
UNITS = {"_h": 3600, "_m": 60, "_s": 1}

INTRODUCTION = """\
# The limits file

One YAML file says who may have what. `configure(limits_file=…)` names it. It is read again when it changes, a second
after the last change, without a restart of the hub. A change that cannot be used leaves the limits of before in
force; the log and a `config.change` event say what is wrong, with file, line and the accepted form. The hub does not
start with a file that it cannot use, nor with one that everybody may write to.

```yaml
defaults:
  max_gpu_equivalents: 1
  memory: 32g
default_group: student
groups:
  student:
    max_gpu_equivalents: 2
  researcher:
    members: [ada, first.last@example.org]
    linux_groups: [phd]
    max_gpu_equivalents: 4
    idle_timeout_h: 1
user_overrides:
  ada:
    max_runtime_h: 72
exemptions:
  - username: ada
    exempt_from: [max_runtime_h]
    expires_on: 2027-06-30
    reason: thesis, training for a week
```

Each value of a user is the user's own if `user_overrides` has one, else that of the user's group, else that of
`defaults`, else the default below; every key by itself. A user is in a group by name (`members`), by the JupyterHub
group of the same name, or by a group of the host (`linux_groups`). Of several groups the one furthest down in the
file counts. Without any, `default_group` does.

A whole GPU is 1 GPU-equivalent, a MIG instance its compute slices / 7, reckoned exactly: write `3/7`, or `0.43`,
which is taken for it. `null` means no limit, where it is accepted.

YAML's traps are closed: a key that is there twice, an alias and a tag are refused; `1:30` and `010` are text, not
numbers.
"""

OLD = """\
## Files of the DS01 system

Its `resource-limits.yaml` can be used as it is, with what lies beside it: `groups/<group>.members` (one login name a
line), `user-overrides.yaml` and `lifecycle-exemptions.yaml`. Every key with another name, or without effect, is named
in the log with its line, when the hub starts and after every change.
"""


def rows(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a table."""
    header = list(header)
    table = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table) + "\n"


def accepted(field: FieldInfo) -> str:
    """Return what a key accepts, in the words of the refusal of anything else."""
    for rule in field.metadata:
        if isinstance(rule, BeforeValidator):
            try:
                rule.func(object())  # type: ignore[call-arg]
            except ValueError as error:
                return str(error)
    annotation = str(field.annotation)
    if "Literal" in annotation:
        return "a list of `idle_timeout_h` and `max_runtime_h`"
    return "a list, such as [ada, bob]" if annotation.startswith("list") else "keys, each on its own line"


def default(key: str) -> str:
    """Return a key's default as it would stand in the file."""
    attribute = ATTRIBUTES.get(key, key)
    if not hasattr(Limits(), attribute):
        return ""
    value: Any = getattr(Limits(), attribute)
    if attribute.endswith("_bytes"):
        return f"{value // 1024**3}g"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if attribute == "max_gpu_equivalents":
        return show(value)
    return f"{value / UNITS.get(key[-2:], 1):.10g}"


def keys(model: type[BaseModel], *, of: type[BaseModel] | None = None, defaults: bool = True) -> str:
    """Return the table of a section's keys, without those it shares with another section."""
    shared = of.model_fields if of else {}
    fields = {key: field for key, field in model.model_fields.items() if key not in shared}
    header = ["Key", "Accepted", *(["Default"] if defaults else []), "Meaning"]
    return rows(
        header,
        (
            [f"`{key}`", accepted(field), *([default(key)] if defaults else []), str(field.description)]
            for key, field in fields.items()
        ),
    )


def old_keys() -> str:
    """Return the table of earlier keys."""
    renamed: Mapping[str, str] = limitsold.RENAMED | {old: new for old, (new, _) in limitsold.DURATIONS.items()}
    lines = [[f"`{old}`", f"read as `{new}`"] for old, new in renamed.items()]
    lines += [["`memory_swap`", "accepted when it equals `memory`: swap is never added"]]
    lines += [["`aggregate`", "no effect, and refused when its `gpu_limit` is stricter than `max_gpu_equivalents`"]]
    lines += [
        [f"`{key}`", f"no effect: {why}"] for key, why in (limitsold.NO_EFFECT | limitsold.NO_EFFECT_SECTIONS).items()
    ]
    return rows(["Earlier key", "Here"], lines)


def page() -> str:
    """Return the whole page."""
    sections = rows(
        ["Section", "Meaning"], ([f"`{key}`", str(field.description)] for key, field in Sections.model_fields.items())
    )
    parts = [
        INTRODUCTION,
        f"## Sections\n\n{sections}",
        f"## Limits\n\nIn `defaults`, in a group, and for a user.\n\n{keys(Values)}",
        f"## Groups\n\nBesides the limits, a group has:\n\n{keys(GroupSection, of=Values, defaults=False)}",
        f"## Policies\n\nAt the top for everybody, in a group, and for a user.\n\n{keys(Policies)}",
        f"## Exemptions\n\n{keys(ExemptionEntry, defaults=False)}",
        f"{OLD}\n{old_keys()}",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
