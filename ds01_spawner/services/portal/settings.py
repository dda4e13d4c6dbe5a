"""What a site says about its portal; ``configure`` hands it over in one environment variable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

VARIABLE: Final = "DS01_PORTAL"

SERVICE: Final = "projects"
"""The service's name, and so its place on the site: ``/services/projects/``."""

SCOPES: Final = ("list:users", "read:users:groups", "read:servers", "admin:server_state")
"""What the service itself needs of the hub: to see who has which server, and why one ended."""

PERSON_SCOPES: Final = ("read:users!user", "servers!user")
"""What it may do for the person at the browser: see, start and stop their own servers."""


class SettingsRefused(ValueError):
    """The portal's settings cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the portal must be told.

    Attributes:
        hub: this hub's name in labels.
        state_folder: where the hub keeps the event log, the builds and the queue.
        people_folder: homes of people without an account on the host; ``None`` takes the host's accounts.
        limits_file: YAML file of limits; ``None`` limits nobody.
        network: on which servers live.
        default_image: the image of projects without a Dockerfile.
        simulated_gpus: made-up devices instead of NVIDIA's.
        docker: arguments for docker-py's ``APIClient``; the environment decides when empty.
    """

    hub: str
    state_folder: Path
    network: str
    default_image: str
    people_folder: Path | None = None
    limits_file: Path | None = None
    simulated_gpus: int = 0
    docker: Mapping[str, Any] = field(default_factory=dict, hash=False)

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
            for key in ("state_folder", "people_folder", "limits_file"):
                if found.get(key) is not None:
                    found[key] = Path(found[key])
            return cls(**found)
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsRefused(f"${VARIABLE} does not hold the portal's settings: {error}") from error
