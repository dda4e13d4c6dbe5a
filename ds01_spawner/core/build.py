"""The nouns of building images, shared by what orders builds and what carries them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO

from ds01_spawner.core.account import Account


@dataclass(frozen=True, slots=True)
class Contents:
    """The files that a build can read.

    Attributes:
        digest: over paths, modes and content; empty when there are none.
        file_count: entries, folders and links included.
        total_bytes: of content.
        skipped: paths of devices, FIFOs and sockets, which no image can contain.
    """

    digest: str = ""
    file_count: int = 0
    total_bytes: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedContext:
    """What is handed to the builder.

    Attributes:
        archive: a tar of the Dockerfile and the files, at its beginning; a real file.
        dockerfile_name: the Dockerfile's path in it.
        contents: the files as they were packed.
    """

    archive: IO[bytes]
    dockerfile_name: str
    contents: Contents


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """One build.

    Attributes:
        context: what it is made from.
        labels: the image's labels; they win over the Dockerfile's.
        cache_namespace: builds with different ones never share ``RUN --mount=type=cache`` folders.
        keeps_steps_private: whether they share no finished steps either.  BuildKit takes a step's result from any
            build with the same instruction on the same files, and does not count what lay in a cache folder.
        from_scratch: whether cached steps are run again.
        knows_triggers: whether the context was chosen with the base images' ``ONBUILD`` instructions in mind.
    """

    context: PackedContext
    labels: Mapping[str, str] = field(hash=False)
    cache_namespace: str
    keeps_steps_private: bool = False
    from_scratch: bool = False
    knows_triggers: bool = True


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image on this host.

    Attributes:
        id: content id, ``sha256:…``.
        labels: every label.
        tags: every reference, ``repository:tag``.
        size_bytes: as the engine reports it.
        triggers: its ``ONBUILD`` instructions.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()
    size_bytes: int = 0
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What builds may take.

    Attributes:
        concurrent: how many run at once; the rest wait in order.
        seconds: how long one may take, waiting excluded.
        free_bytes: how much room must be left for images when one starts.
    """

    concurrent: int = 2
    seconds: float = 3600.0
    free_bytes: int = 10 * 2**30


@dataclass(frozen=True, slots=True)
class Source:
    """A project whose image is wanted.

    Attributes:
        account: whose rights its files are read with.
        user: JupyterHub's name of the owner.
        project: the exact project name.
        repository: what the image is called, such as ``"ds01-alice/thesis"``.
        default_image: what a project without a Dockerfile uses.
    """

    account: Account
    user: str
    project: str
    repository: str
    default_image: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image that a project can be launched from.

    Attributes:
        id: content id, ``sha256:…``.
        reference: the name it was found under.
        recipe: digest of what it was built from; empty for the site's default image.
        built: whether it was built just now.
    """

    id: str
    reference: str
    recipe: str
    built: bool


class Outcome(StrEnum):
    """How a build ended."""

    BUILDING = "building"
    BUILT = "built"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The hub ended while it ran; said by whoever finds the record."""


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One build in a project's history.

    Attributes:
        id: unique within the project, sorts by time.
        user: JupyterHub's name of the owner.
        project: the exact project name.
        recipe: digest of what was built.
        started_at: epoch seconds.
        ended_at: epoch seconds; 0 while it runs.
        outcome: how it ended.
        reason: the refusal's text when it failed.
        image_id: what was built, else empty.
        image_bytes: its size.
    """

    id: str
    user: str
    project: str
    recipe: str
    started_at: float
    ended_at: float = 0.0
    outcome: Outcome = Outcome.BUILDING
    reason: str = ""
    image_id: str = ""
    image_bytes: int = 0
