"""Earlier limits files: keys of the DS01 system that have another name now, or do nothing here.

Every one is noted with its line and with what takes its place, so that nobody trusts a limit that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ds01_spawner.adapters.limitsvalues import duration_seconds, show_value
from ds01_spawner.adapters.yamllines import Document, Path

# Earlier names, with the same value.
RENAMED = {
    "max_gpu_slots": "max_gpu_equivalents",
    "max_gpus_per_user": "max_gpu_equivalents",
    "max_mig_instances": "max_gpu_equivalents",
    "max_gpus_per_container": "max_gpu_slots_per_container",
    "max_mig_per_container": "max_gpu_slots_per_container",
    "sigterm_grace_seconds": "sigterm_grace_s",
}

# Earlier names whose value carried the unit, and how many seconds the new key's unit has.
DURATIONS = {
    "idle_timeout": ("idle_timeout_h", 3600),
    "max_runtime": ("max_runtime_h", 3600),
    "grace_period": ("grace_period_m", 60),
    "keepalive_max_duration": ("keepalive_max_duration_h", 3600),
}

_REMOVED_AT_ONCE = "a server that ends is removed at once, and its GPU is free; nothing replaces it"
_BOUNDED = "max_containers_per_user times the limits of one server bound what a user can take"
_NEVER_ENFORCED = "it was never enforced; nothing replaces it"

# Keys that load and do nothing, and what does it instead.
NO_EFFECT = {
    "max_tasks": "pids_limit is the limit of one server",
    "gpu_hold_after_stop_h": _REMOVED_AT_ONCE,
    "gpu_hold_after_stop": _REMOVED_AT_ONCE,
    "container_hold_after_stop_h": _REMOVED_AT_ONCE,
    "container_hold_after_stop": _REMOVED_AT_ONCE,
    "gpu_hold_after_manual_stop_m": _REMOVED_AT_ONCE,
    "gpu_hold_after_manual_stop": _REMOVED_AT_ONCE,
    "created_container_timeout_m": "a launch that fails removes its container itself",
    "created_container_timeout": "a launch that fails removes its container itself",
    "idle_detection_window": "a server is idle after idle_timeout_h without activity, observed every minute",
    "gpu_memory": "a request may ask for devices with enough memory; sharing one device is not possible",
    "io_read_bps": _NEVER_ENFORCED,
    "io_write_bps": _NEVER_ENFORCED,
    "ulimit_nofile": "set the engine's default-ulimits",
    "storage_workspace": "use the quotas of the file system",
    "storage_data": "use the quotas of the file system",
    "storage_tmp": "use the quotas of the file system",
    "auto_stop_idle": "idle_timeout_h: null keeps idle servers",
    "checkpoint_warning": "users are always warned before a retirement",
    "require_workspace_mount": "a project's folder is always mounted",
    "enforce_storage_quotas": "use the quotas of the file system",
    "soft_limit_threshold": _NEVER_ENFORCED,
    "graceful_errors": "every refusal says its reason and a next step",
    "suggest_alternatives": "every refusal says its reason and a next step",
}

NO_EFFECT_SECTIONS = {
    "enforcement": _BOUNDED,
    "gpu_allocation": "devices and their MIG instances are read from the driver; the placement is set in configure()",
    "container_types": "containers that the hub did not start are seen and counted, and never stopped",
    "monitoring": "every container that holds a GPU counts, whoever started it",
    "bare_metal_access": "processes of the host that use a GPU are seen and counted, and never stopped",
    "access_control": "users of the hub have no access to the engine; JupyterHub's roles say who is an admin",
    "advanced": _NEVER_ENFORCED,
    "wizard": "the spawn form takes its place",
}

# A line of the file and a sentence about it.
Remark = tuple[int, str]

_VALUE_PATHS: tuple[tuple[str, ...], ...] = (("defaults",), ("groups", "*"), ("user_overrides", "*"))


class Renewal:
    """A document with its earlier keys renamed or left out.

    Args:
        name: the file's name, for the sentences.
        document: the parsed file; its data is a mapping.

    Attributes:
        data: the data as the schema wants it.
        notes: a sentence for each earlier key.
        problems: a sentence for each that contradicts another key, or has no meaning.
    """

    def __init__(self, name: str, document: Document) -> None:
        self.notes: list[Remark] = []
        self.problems: list[Remark] = []
        self._name = name
        self._document = document
        self._renamed: dict[Path, Path] = {}
        self.data = self._renewed()

    def remark(self, path: Path, what: str) -> Remark:
        """Return a sentence about a path in ``data``, which it names as it stands in the file."""
        path = next((old + path[len(new) :] for new, old in self._renamed.items() if path[: len(new)] == new), path)
        line = self._document.line(path)
        return line, f"{self._name}:{line}: {'.'.join(map(str, path))} {what}"

    def _renewed(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in self._document.data.items():
            if key in NO_EFFECT_SECTIONS:
                self._note((key,), f"has no effect: {NO_EFFECT_SECTIONS[key]}")
            elif value is not None:  # a section whose keys are all commented out is an empty section
                data[key] = value
        if "policies" in data:
            data["policies"] = self._renew_keys(data["policies"], ("policies",))
        for path, section in list(_sections(data)):
            _put(data, path, self._renew_values(section, path))
        for path, section in _sections(data):
            if isinstance(section, dict):
                self._drop_aggregate(section, path, data.get("defaults"))
        return data

    def _renew_values(self, section: Any, path: Path) -> Any:
        section = self._renew_keys(section, path)
        if not isinstance(section, dict):
            return section
        if "policies" in section:
            section["policies"] = self._renew_keys(section["policies"], (*path, "policies"))
        if "memory_swap" in section and section.pop("memory_swap") != section.get("memory"):
            self._problem((*path, "memory_swap"), "differs from memory, but swap is never added; remove memory_swap")
        return section

    def _renew_keys(self, section: Any, path: Path) -> Any:
        if section is None:
            return {}
        if not isinstance(section, dict):
            return section
        renewed: dict[str, Any] = {}
        for key, value in section.items():
            here = (*path, key)
            if key in NO_EFFECT:
                self._note(here, f"has no effect: {NO_EFFECT[key]}")
                continue
            new, unit_seconds = DURATIONS.get(key) or (RENAMED.get(key) or str(key), 0)
            if new == key:
                renewed[key] = value
            elif new in section or new in renewed:
                self._problem(here, f"says the same as another key; write {new} alone")
            else:
                self._rename(renewed, here, (*path, new), value, unit_seconds)
        return renewed

    def _rename(self, renewed: dict[str, Any], old: Path, new: Path, value: Any, unit_seconds: int) -> None:
        name = str(new[-1])
        if unit_seconds and value is not None:
            try:
                value = duration_seconds(value) / unit_seconds
            except ValueError as error:
                self._problem(old, f"must be {error}, not {show_value(value)}; better, write {name}")
                return
        self._note(old, f"is an earlier name: read as {name}: {show_value(value)}")
        self._renamed[new] = old
        renewed[name] = value

    def _drop_aggregate(self, section: dict[str, Any], path: Path, defaults: Any) -> None:
        """Leave out the limits of systemd slices; a stricter limit on GPUs among them must not be lost in silence."""
        if "aggregate" not in section:
            return
        aggregate = section.pop("aggregate")
        self._note((*path, "aggregate"), f"has no effect: {_BOUNDED}")
        inherited = defaults.get("max_gpu_equivalents", 1) if isinstance(defaults, dict) else 1
        most = section.get("max_gpu_equivalents", inherited)
        limit = aggregate.get("gpu_limit") if isinstance(aggregate, dict) else None
        if isinstance(limit, int | float) and (most is None or (isinstance(most, int | float) and limit < most)):
            self._problem(
                (*path, "aggregate", "gpu_limit"),
                f"is stricter than max_gpu_equivalents: {show_value(most)}; write {show_value(limit)} there instead",
            )

    def _note(self, path: Path, what: str) -> None:
        self.notes.append(self.remark(path, what))

    def _problem(self, path: Path, what: str) -> None:
        self.problems.append(self.remark(path, what))


def _sections(data: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for top, *below in _VALUE_PATHS:
        section = data.get(top)
        if not below and top in data:
            yield (top,), section
        elif below and isinstance(section, dict):
            for name, inner in section.items():
                yield (top, name), inner


def _put(data: dict[str, Any], path: Path, value: Any) -> None:
    inner: Any = data
    for part in path[:-1]:
        inner[part] = dict(inner[part])
        inner = inner[part]
    inner[path[-1]] = value
