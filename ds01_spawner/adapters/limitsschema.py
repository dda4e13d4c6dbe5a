"""The shape of a limits file: its sections and keys, and the keys of earlier files with what replaces them.

The descriptions are the reference documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ds01_spawner.adapters.limitsold import Remark, Renewal
from ds01_spawner.adapters.limitsvalues import (
    HOURS,
    End,
    Equivalents,
    Text,
    User,
    YesOrNo,
    count,
    number,
    one_of,
    or_none,
    show_value,
    size,
    times,
)
from ds01_spawner.adapters.yamllines import Document, Path
from ds01_spawner.core.activity import Counting


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Percent = number("a percentage from 0 to 100, such as 5", least=0, most=100)
_ProcessorPercent = number("a percentage, 100 being one processor, such as 2.0", least=0, most=100_000)
_Share = number("a share from 0 to 1, such as 0.8", least=0, most=1)


class Policies(_Section):
    """When a server counts as idle, and how it is retired.  Allowed at the top, in a group, and for a user."""

    gpu_idle_threshold: Annotated[Any, BeforeValidator(_Percent)] = Field(
        default=None, description="GPU utilisation, in percent, below which a GPU is idle."
    )
    cpu_idle_threshold: Annotated[Any, BeforeValidator(_ProcessorPercent)] = Field(
        default=None, description="Processor use, in percent of one processor, below which a server is idle."
    )
    network_idle_threshold: Annotated[
        Any, BeforeValidator(number("a number of bytes per minute, such as 1048576", least=0, most=10**15, whole=True))
    ] = Field(
        default=None, description="Traffic, in bytes per minute in and out together, below which a server is idle."
    )
    grace_period_m: Annotated[
        Any, BeforeValidator(times(number("a number of minutes from 0 to 1440, such as 30", least=0, most=1440), 60))
    ] = Field(default=None, description="A server younger than this many minutes is not idle.")
    keepalive_max_duration_h: Annotated[Any, BeforeValidator(HOURS)] = Field(
        default=None, description="For how many hours a `.keep-alive` file defers retirement for idleness."
    )
    sigterm_grace_s: Annotated[
        Any, BeforeValidator(number("a number of seconds from 0 to 3600, such as 60", least=0, most=3600))
    ] = Field(default=None, description="Seconds that processes have to end when the hub retires their server.")
    high_demand_threshold: Annotated[Any, BeforeValidator(_Share)] = Field(
        default=None, description="Share of the devices held from which on idle times are shortened."
    )
    high_demand_idle_reduction: Annotated[
        Any, BeforeValidator(number("a share from 0.1 to 1, such as 0.5", least=0.1, most=1))
    ] = Field(
        default=None,
        description="What the idle time of a server that holds a device is multiplied with then; 1 shortens nothing.",
    )
    counting: Annotated[Any, BeforeValidator(one_of(Counting))] = Field(
        default=None,
        description="What counts as use of a server that holds a device: see "
        "[what counts](idleness.md#what-counts). One that only uses the processor is kept by `work`, not by `gpu`.",
    )


class Values(_Section):
    """The limits themselves.  Allowed in `defaults`, in a group, and for a user."""

    max_gpu_equivalents: Equivalents = Field(
        default=None,
        description="GPUs in all servers of a user together; a MIG instance counts its compute slices / 7.",
    )
    max_gpu_slots_per_container: Annotated[
        Any, BeforeValidator(or_none(count("a whole number from 0 to 1024, such as 2", least=0, most=1024)))
    ] = Field(default=None, description="Devices, whole GPUs or MIG instances, in one server.")
    allow_full_gpu: YesOrNo = Field(default=None, description="Whether whole GPUs are granted, or MIG instances only.")
    max_cpus: Annotated[
        Any, BeforeValidator(number("a number of processors from 0.1 to 4096, such as 32", least=0.1, most=4096))
    ] = Field(default=None, description="Processors per server.")
    memory: Annotated[
        Any, BeforeValidator(size("a size of at least 256m with its unit, such as 32g", least=256 * 1024**2))
    ] = Field(default=None, description="Memory per server. Swap is not added to it.")
    shm_size: Annotated[
        Any, BeforeValidator(size("a size of at least 1m with its unit, such as 16g", least=1024**2))
    ] = Field(default=None, description="Size of `/dev/shm` per server. It is part of the memory.")
    pids_limit: Annotated[
        Any, BeforeValidator(count("a whole number from 64 to 4194304, such as 4096", least=64, most=4_194_304))
    ] = Field(default=None, description="Processes and threads per server.")
    max_containers_per_user: Annotated[
        Any, BeforeValidator(or_none(count("a whole number from 0 to 1000, such as 3", least=0, most=1000)))
    ] = Field(default=None, description="Servers of a user running at once.")
    idle_timeout_h: Annotated[Any, BeforeValidator(or_none(HOURS))] = Field(
        default=None, description="Hours without activity after which a server is retired."
    )
    max_runtime_h: Annotated[Any, BeforeValidator(or_none(HOURS))] = Field(
        default=None, description="Hours after which a server is retired, active or not."
    )
    priority: Annotated[Any, BeforeValidator(count("a whole number from 1 to 100, such as 10", least=1, most=100))] = (
        Field(default=None, description="Who waits with a higher priority gets the next device.")
    )
    policies: Policies = Field(default_factory=Policies, description="When a server counts as idle; see below.")


class GroupSection(Values):
    """A group: who is in it, and its values where they differ from the defaults."""

    members: list[User] = Field(default=[], description="Login names.")
    linux_groups: list[Text] = Field(
        default=[],
        description="Groups of the host whose members belong to it. JupyterHub's group of the same name does.",
    )


class ExemptionEntry(_Section):
    """A user is spared retirement, until a date and for a reason."""

    username: User = Field(description="Login name.")
    exempt_from: Annotated[list[Literal["idle_timeout_h", "max_runtime_h"]], Field(min_length=1)] = Field(
        description="What the user is spared: `idle_timeout_h`, `max_runtime_h`, or both."
    )
    expires_on: End = Field(
        description="When it ends: a day (to its end, in UTC), a time with its zone, or null for never."
    )
    reason: Text = Field(description="Why; the user and the admins see it.")
    approved_by: Text = Field(default="", description="Who decided; for the record.")
    approved_on: Text = Field(default="", description="When; for the record.")
    category: Text = Field(default="", description="For the record.")


class Sections(_Section):
    """The whole file."""

    defaults: Values = Field(default_factory=Values, description="What holds for everybody.")
    default_group: Text = Field(default="", description="The group of a user who is in none.")
    groups: dict[str, GroupSection] = Field(
        default={}, description="Groups by name. Of several that a user is in, the one furthest down counts."
    )
    user_overrides: dict[User, Values] = Field(default={}, description="Values for single users, by login name.")
    policies: Policies = Field(default_factory=Policies, description="When a server counts as idle, for everybody.")
    exemptions: list[ExemptionEntry] = Field(default=[], description="Who is spared retirement, why, and how long.")


# The attribute of Limits that a key sets, where it is not the key's own name.
ATTRIBUTES = {
    "memory": "memory_bytes",
    "shm_size": "shm_size_bytes",
    "idle_timeout_h": "idle_seconds",
    "max_runtime_h": "max_runtime_seconds",
    "gpu_idle_threshold": "gpu_idle_percent",
    "cpu_idle_threshold": "cpu_idle_percent",
    "network_idle_threshold": "network_idle_bytes_per_minute",
    "grace_period_m": "grace_seconds",
    "keepalive_max_duration_h": "keepalive_seconds",
    "sigterm_grace_s": "sigterm_grace_seconds",
}


def read_sections(name: str, document: Document) -> tuple[Sections | None, list[str], list[str]]:
    """Return the sections of a document, what is worth noting about it, and what is wrong with it.

    Args:
        name: the file's name, for the sentences.
        document: the parsed file.

    Returns:
        The sections, ``None`` when anything is wrong; notes on earlier keys; problems.
    """
    if not isinstance(document.data, dict):
        return None, [], [f"{name}:1: the file must start with keys such as defaults: and groups:"]
    renewal = Renewal(name, document)
    notes, problems = list(renewal.notes), list(renewal.problems)
    sections = None
    try:
        sections = Sections.model_validate(renewal.data)
    except ValidationError as error:
        problems += (_problem(renewal, dict(detail)) for detail in error.errors(include_url=False))
    return (None if problems else sections), [text for _, text in sorted(notes)], [text for _, text in sorted(problems)]


def changes(values: Values) -> dict[str, Any]:
    """Return what a section sets, by attribute of ``Limits``."""
    set_here = {key: getattr(values, key) for key in values.model_fields_set & set(Values.model_fields) - {"policies"}}
    return {ATTRIBUTES.get(key, key): value for key, value in set_here.items()} | policy_changes(values.policies)


def policy_changes(policies: Policies) -> dict[str, Any]:
    """Return what a ``policies`` section sets, by attribute of ``Limits``."""
    return {ATTRIBUTES.get(key, key): getattr(policies, key) for key in policies.model_fields_set}


def _problem(renewal: Renewal, detail: Mapping[str, Any]) -> Remark:
    """Return the sentence for one of pydantic's errors."""
    path: Path = tuple(part for part in detail["loc"] if part != "[key]")
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_beside(path)
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return renewal.remark(path, f"is not a key of the limits file; {hint}")
    if kind == "value_error":
        return renewal.remark(path, f"must be {detail['ctx']['error']}, not {show_value(detail['input'])}")
    accepted = {
        "missing": "must be there",
        "model_type": "must hold keys, each on its own line",
        "dict_type": "must hold names, each with keys below it",
        "list_type": "must be a list, such as [ada, bob]",
        "too_short": "must not be empty",
        "literal_error": "must be idle_timeout_h or max_runtime_h",
    }
    return renewal.remark(path, accepted.get(kind, detail["msg"]))


def _keys_beside(path: Path) -> list[str]:
    """Return the keys that are known where an unknown one stands."""
    model: type[BaseModel] = Sections
    parent = path[:-1]
    if parent[-1:] == ("policies",):
        model = Policies
    elif parent[:1] == ("groups",):
        model = GroupSection
    elif parent[:1] == ("exemptions",):
        model = ExemptionEntry
    elif parent:
        model = Values
    return list(model.model_fields)
