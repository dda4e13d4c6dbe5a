"""What a site says about its culler; ``configure`` hands it over in one environment variable."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from ds01_spawner.core.idlerules import Rules

VARIABLE: Final = "DS01_CULLER"

SCOPES: Final = ("list:users", "read:users:groups", "read:servers", "admin:server_state", "delete:servers")
"""What the service needs of the hub, and no more."""

_GAP_PASSES: Final = 5


class SettingsRefused(ValueError):
    """The culler's settings cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the culler must be told.

    Attributes:
        hub: this hub's name in labels.
        folder: where the culler keeps its files.
        packages_folder: where projects' pages find which packages went with a retired container.
        events: the event log.
        people_folder: homes of people without an account on the host; ``None`` takes the host's accounts.
        limits_file: YAML file of limits; ``None`` gives everybody the defaults.
        queue_file: who waits for a device; ``None`` where nobody can.
        simulated_gpus: made-up devices instead of NVIDIA's.
        docker: arguments for docker-py's ``APIClient``; the environment decides when empty.
        pass_seconds: time between two passes.
        warn_seconds: how long before its end a user is warned, longest first.
        notice_seconds: the least time between a delivered warning and the end.
        command: is run for each message, with the message as JSON on its standard input; empty for none.
        webhook: each message is posted to this address as JSON; empty for none.
    """

    hub: str
    folder: Path
    packages_folder: Path
    events: Path
    people_folder: Path | None = None
    limits_file: Path | None = None
    queue_file: Path | None = None
    simulated_gpus: int = 0
    docker: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pass_seconds: float = 60.0
    warn_seconds: tuple[float, ...] = (900.0, 300.0)
    notice_seconds: float = 300.0
    command: tuple[str, ...] = ()
    webhook: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.pass_seconds < math.inf:
            raise SettingsRefused(f"pass_seconds is {self.pass_seconds}; it is at least 1 second. The usual is 60.")
        try:
            Rules(lead_seconds=self.warn_seconds, notice_seconds=self.notice_seconds)
        except ValueError as error:
            raise SettingsRefused(f"warn_seconds and notice_seconds cannot be used: {error}") from error
        if self.webhook and not self.webhook.startswith(("https://", "http://")):
            raise SettingsRefused("webhook is not an address that begins with https:// or http://.")

    @property
    def gap_seconds(self) -> float:
        """How long nothing may be known before an idle time begins anew."""
        return _GAP_PASSES * self.pass_seconds

    def to_json(self) -> str:
        """Return them for the environment."""
        plain = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        return json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in plain.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read them from the environment.

        Raises:
            SettingsRefused: they are not what ``to_json`` returns.
        """
        try:
            found = json.loads(text)
            for key in ("folder", "packages_folder", "events", "people_folder", "limits_file", "queue_file"):
                if found.get(key) is not None:
                    found[key] = Path(found[key])
            for key in ("warn_seconds", "command"):
                if key in found:
                    found[key] = tuple(found[key])
            return cls(**found)
        except SettingsRefused:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsRefused(f"${VARIABLE} does not hold the culler's settings: {error}") from error
