"""Runs a short script inside an image whose content nobody vouches for, and returns what it printed.

The container has no network, no capabilities, no writable file system but a small ``/tmp``, no GPU, little memory and
time, and runs as nobody. It is removed whatever happens; one that outlived its hub is removed by a later probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import LogConfig, Mount, Ulimit

from ds01_spawner.adapters.dockerclient import DockerClient
from ds01_spawner.adapters.packages import COMPILE
from ds01_spawner.core import labels
from ds01_spawner.core.imagefacts import MOST_ANSWER_BYTES, ImageSettings
from ds01_spawner.errors import EngineUnavailable, ImageRefused, RuntimeUnavailable

T = TypeVar("T")

NOBODY = "65534:65534"
MEMORY_BYTES = 512 * 2**20
PIDS = 64
THREADS = 4
OLD_SECONDS = 600
COMPILE_TARGET = "/opt/ds01"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a script printed, or that it could not even be started.

    Attributes:
        output: standard output and error, cut.
        exit_code: of the script.
        started: whether the program was found in the image.
        timed_out: whether it used up its time.
    """

    output: bytes
    exit_code: int
    started: bool
    timed_out: bool


class ImageProbe:
    """Looks into images with short-lived containers.

    Args:
        options: arguments for ``docker.APIClient``; the environment (``DOCKER_HOST``) decides when empty.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._docker = DockerClient("imageprobe", THREADS, options)

    async def image_id(self, reference: str) -> str:
        """Return the content id of a local image.

        Raises:
            ImageRefused: there is no such image.
            EngineUnavailable: the engine did not answer.
        """
        return str((await self._call(lambda client: client.inspect_image(reference)))["Id"])

    async def settings(self, image_id: str) -> ImageSettings:
        """Return what the engine knows about an image.

        Raises:
            ImageRefused: the image is gone.
            EngineUnavailable: the engine did not answer.
        """
        found = await self._call(lambda client: client.inspect_image(image_id))
        config = found.get("Config") or {}
        return ImageSettings(
            architecture=str(found.get("Architecture") or ""),
            environment=dict(item.partition("=")[::2] for item in config.get("Env") or ()),
            volumes=tuple(sorted(config.get("Volumes") or ())),
        )

    async def run(
        self, image_id: str, command: Sequence[str], folders: Mapping[Path, str], *, seconds: float
    ) -> Answer:
        """Run a command in an image as nobody, with folders of the host mounted read-only.

        Args:
            image_id: the image.
            command: program and arguments; the program is looked for on the image's PATH.
            folders: host folder to its place in the container.
            seconds: wall time that it is given.

        Raises:
            ImageRefused: the image is gone.
            EngineUnavailable: the engine did not answer.
        """
        mounts = [Mount(target, str(source), type="bind", read_only=True) for source, target in folders.items()]
        return await self._call(lambda client: _run(client, image_id, list(command), mounts, seconds))

    async def compile(
        self, image_id: str, version: str, folder: Path, subfolders: Sequence[str], *, seconds: float
    ) -> None:
        """Compile the sources below a folder's subfolders with the Python of an image that the site trusts.

        Raises:
            RuntimeUnavailable: the image is not there, has another Python, or did not finish in time.
            EngineUnavailable: the engine did not answer.
        """
        mounts = [Mount(COMPILE_TARGET, str(folder), type="bind")]
        folders = [f"{COMPILE_TARGET}/{name}" for name in subfolders]
        command = ["python3", "-I", "-S", "-c", COMPILE, version, COMPILE_TARGET, *folders]
        try:
            # Root without capabilities may write what root owns, and nothing else.
            answer = await self._call(lambda client: _run(client, image_id, command, mounts, seconds, user="0:0"))
        except ImageRefused as error:
            raise RuntimeUnavailable(
                f"The image {image_id}, which the site's configuration names for compiling the notebook runtime for "
                f"Python {version}, is not on this server."
            ) from error
        if answer.exit_code:
            said = answer.output.decode("utf-8", "replace").strip()[-300:]
            raise RuntimeUnavailable(
                f"The image {image_id} could not compile the notebook runtime for Python {version}: "
                f"{'it took too long' if answer.timed_out else said}"
            )

    def close(self) -> None:
        """Let running probes end and take no more."""
        self._docker.close()

    async def _call(self, work: Callable[[docker.APIClient], T]) -> T:
        try:
            return await self._docker.call(work)
        except ImageNotFound as error:
            raise ImageRefused(
                "This project's image was removed meanwhile. Launch again, and it is built anew."
            ) from error
        except NotFound as error:
            raise EngineUnavailable(f"Docker Engine did not let the project's image be examined: {error}") from error


def _run(
    client: docker.APIClient,
    image_id: str,
    command: list[str],
    mounts: list[Mount],
    seconds: float,
    *,
    user: str = NOBODY,
) -> Answer:
    _remove_old(client)
    container = client.create_container(
        image_id,
        command=command[1:],
        entrypoint=command[:1],
        user=user,
        working_dir="/",
        network_disabled=True,
        labels={**labels.BLANK, labels.PROBE: str(int(time.time()))},
        # An engine whose default runtime is NVIDIA's would otherwise give every GPU to an image that asks for it.
        environment={"NVIDIA_VISIBLE_DEVICES": "void", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},  # noqa: S108
        healthcheck={"test": ["NONE"]},
        host_config=client.create_host_config(
            mounts=mounts,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            tmpfs={"/tmp": "size=64m,mode=1777"},  # noqa: S108
            mem_limit=MEMORY_BYTES,
            memswap_limit=MEMORY_BYTES,
            pids_limit=PIDS,
            ulimits=[Ulimit(name="cpu", soft=int(seconds), hard=int(seconds) + 1)],
            log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "1"}),
        ),
    )["Id"]
    try:
        try:
            client.start(container)
        except APIError as error:
            if error.status_code in (400, 404):  # the program is not in the image, or is none for this machine
                return Answer(str(error.explanation or "").encode(), 127, started=False, timed_out=False)
            raise
        started_at = time.monotonic()
        try:
            exit_code = int(client.wait(container, timeout=seconds)["StatusCode"])
            timed_out = False
        except requests.exceptions.RequestException:
            # docker-py reports a wait that ended by its timeout as a broken connection.
            if time.monotonic() - started_at < seconds:
                raise
            exit_code, timed_out = -1, True
        return Answer(_read_logs(client, container), exit_code, started=True, timed_out=timed_out)
    finally:
        _remove(client, container)


def _read_logs(client: docker.APIClient, container: str) -> bytes:
    """Return the beginning of what a container printed; the engine keeps no more than its log's size limit."""
    output: bytes = client.logs(container, stdout=True, stderr=True)
    return output[: MOST_ANSWER_BYTES + 1]


def _remove_old(client: docker.APIClient) -> None:
    for entry in client.containers(all=True, filters={"label": labels.PROBE}):
        made = (entry.get("Labels") or {}).get(labels.PROBE, "")
        if made.isdecimal() and int(made) < time.time() - OLD_SECONDS:
            _remove(client, entry["Id"])


def _remove(client: docker.APIClient, container: str) -> None:
    try:
        client.remove_container(container, force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # its removal is already in progress  # noqa: PLR2004
            raise
