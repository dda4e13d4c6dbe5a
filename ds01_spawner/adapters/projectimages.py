"""Images of people's projects on this host: listing, keeping under tags, and what a container changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from docker.errors import ImageNotFound, NotFound

from ds01_spawner.adapters.dockerclient import DockerClient
from ds01_spawner.adapters.notebook import NotebookAddress
from ds01_spawner.core import labels
from ds01_spawner.errors import EngineUnavailable, ImageRefused

BASE_NAME = "ds01.base.name"
BASE_DESCRIPTION = "ds01.base.description"
_THREADS = 4
_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image.

    Attributes:
        id: content id.
        references: every ``repository:tag``.
        labels: every label.
        size_bytes: as the engine reports it.
        created: epoch seconds.
    """

    id: str
    references: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    size_bytes: int = 0
    created: float = 0.0


class ImageShelf:
    """The engine's images, as a person's pages need them.

    Args:
        options: arguments for ``docker.APIClient``; the environment decides when empty.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._docker = DockerClient("images", _THREADS, options)

    async def of_user(self, user: str) -> tuple[ListedImage, ...]:
        """Return the images that were built for a user's projects."""
        return await self._list({"label": [f"{labels.MANAGED}=true", f"{labels.USER}={user}"]})

    async def bases(self) -> tuple[ListedImage, ...]:
        """Return the images of this host that are offered to start a project from, which their label says."""
        return await self._list({"label": [BASE_NAME]})

    async def _list(self, filters: dict[str, Any]) -> tuple[ListedImage, ...]:
        found = await self._docker.call(lambda client: client.images(filters=filters))
        return tuple(
            ListedImage(
                id=entry["Id"],
                references=tuple(entry.get("RepoTags") or ()),
                labels=dict(entry.get("Labels") or {}),
                size_bytes=int(entry.get("Size") or 0),
                created=float(entry.get("Created") or 0),
            )
            for entry in found
        )

    async def tags(self, repository: str) -> tuple[str, ...]:
        """Return the tags of a project's images, sorted."""
        found = await self._docker.call(lambda client: client.images(repository))
        names = [name for entry in found for name in entry.get("RepoTags") or ()]
        return tuple(sorted(tag for name in names for own, _, tag in [name.rpartition(":")] if own == repository))

    async def exists(self, reference: str) -> bool:
        """Whether an image of this name is on this host."""
        try:
            await self._docker.call(lambda client: client.inspect_image(reference))
        except NotFound:
            return False
        return True

    async def keep(self, repository: str, tag: str) -> None:
        """Let ``repository:tag`` mean what ``repository:latest`` means now.

        Raises:
            ImageRefused: there is no image yet.
            EngineUnavailable: the engine would not.
        """
        try:
            await self._docker.call(lambda client: client.tag(f"{repository}:latest", repository, tag))
        except NotFound as error:
            raise ImageRefused("This project has no image yet. Build it first.") from error

    async def forget(self, repository: str, tag: str) -> None:
        """Take a tag away, and its image with it when nothing else uses or names it.

        Raises:
            ImageRefused: there is no such tag, or a running project uses it.
            EngineUnavailable: the engine would not.
        """
        reference = f"{repository}:{tag}"
        try:
            await self._docker.call(lambda client: client.remove_image(reference, force=False, noprune=False))
        except (NotFound, ImageNotFound) as error:
            raise ImageRefused(f"There is no image kept as “{tag}”.") from error
        except EngineUnavailable as error:
            if getattr(error.__cause__, "status_code", 0) == _CONFLICT:
                raise ImageRefused(f"A running project uses “{tag}”. Retire it first.") from error
            raise

    async def changes(self, container: str) -> tuple[str, ...]:
        """Return the paths that were added or changed inside a container, mounts excluded; none when it is gone."""
        try:
            return await self._docker.call(lambda client: _paths(client.diff(container)))
        except NotFound:
            return ()

    async def address(self, container: str, network: str) -> NotebookAddress | None:
        """Return where a container's notebook server is, ``None`` when it does not run or is not the hub's."""
        try:
            found = await self._docker.call(lambda client: client.inspect_container(container))
        except NotFound:
            return None
        environment = dict(item.partition("=")[::2] for item in found["Config"].get("Env") or ())
        port = urlsplit(environment.get("JUPYTERHUB_SERVICE_URL", "")).port
        host = ((found["NetworkSettings"].get("Networks") or {}).get(network) or {}).get("IPAddress")
        prefix, token = environment.get("JUPYTERHUB_SERVICE_PREFIX", ""), environment.get("JUPYTERHUB_API_TOKEN", "")
        if not (port and host and prefix and token):
            return None
        return NotebookAddress(f"http://{host}:{port}{prefix}", token)

    def close(self) -> None:
        """Take no more calls."""
        self._docker.close()


def _paths(changes: list[dict[str, Any]] | None) -> tuple[str, ...]:
    return tuple(change["Path"] for change in changes or () if change.get("Kind") in {0, 1})
