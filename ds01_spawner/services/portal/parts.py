"""What the portal's pages work with, put together once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from jupyterhub.utils import url_path_join

from ds01_spawner.adapters.accounts import FolderAccounts, LinuxAccounts
from ds01_spawner.adapters.buildhistory import BuildRecords
from ds01_spawner.adapters.hubservers import HubServers
from ds01_spawner.adapters.limitsfile import LimitsFile
from ds01_spawner.adapters.portalnotes import Dismissed, LostPackages
from ds01_spawner.adapters.projectimages import ImageShelf
from ds01_spawner.adapters.userthreads import UserThreads
from ds01_spawner.adapters.workspace import Workspaces
from ds01_spawner.core.account import Account
from ds01_spawner.core.limits import Limits
from ds01_spawner.images import ProjectImages
from ds01_spawner.services.portal.board import Board
from ds01_spawner.services.portal.builds import Builds
from ds01_spawner.services.portal.leaving import Leaving
from ds01_spawner.services.portal.standings import Standings


@dataclass(frozen=True, slots=True)
class Parts:
    """The portal's parts.

    Attributes:
        prefix: its place on the site, such as ``/services/projects/``.
        hub_prefix: the hub's, such as ``/hub/``.
        default_image: the image of projects without a Dockerfile.
        people: accounts.
        workspaces: their files.
        threads: where both are used.
        hub: starts and stops servers.
        board: what everybody's page is made from.
        standings: how images stand to their Dockerfiles.
        shelf: images and tags.
        records: builds and their logs.
        builds: builds that were ordered here.
        images: says what the builder needs to know of a project.
        leaving: what a retire would lose.
        notes: packages that went with a retired container.
        dismissed: retirements that their users do not want to see any more.
        limits: what a user, in these groups, may have.
        limits_file: where that is from; ``None`` when the site has no such file.
        clock: epoch seconds.
    """

    prefix: str
    hub_prefix: str
    default_image: str
    people: FolderAccounts | LinuxAccounts
    workspaces: Workspaces
    threads: UserThreads
    hub: HubServers
    board: Board
    standings: Standings
    shelf: ImageShelf
    records: BuildRecords
    builds: Builds
    images: ProjectImages
    leaving: Leaving
    notes: LostPackages
    dismissed: Dismissed
    limits: Callable[[str, frozenset[str]], Limits]
    limits_file: LimitsFile | None
    clock: Callable[[], float] = field(repr=False)

    def check_project(self, account: Account, name: str) -> None:
        """Make sure that a project is there and the account's own; blocks as long as the home's file system does.

        Raises:
            ProjectRefused: it is not.
        """
        os.close(self.workspaces.open_project(account, name))

    def static_url(self, path: str) -> str:
        """Return the address of one of our own scripts and styles; it changes with its content."""
        return join(self.prefix, "static", path) + f"?v={_version(path)}"


def join(*parts: str) -> str:
    """Return an address made of parts, as the hub joins them."""
    return str(url_path_join(*parts))


@cache
def _version(path: str) -> str:
    try:
        return hashlib.sha256((files("ds01_spawner") / "static" / path).read_bytes()).hexdigest()[:12]
    except OSError:
        return ""
