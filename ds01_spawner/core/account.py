"""A person on this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """A person on this host.

    Attributes:
        name: the host's name for them, fit for a passwd entry: printable and without a colon.  It may differ from
            JupyterHub's name.
        uid: user id, never 0.
        gid: primary group id.
        groups: every group id that a container can have, the primary one included.
        home: absolute path of the home; its parents may contain links that the admin made.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path
