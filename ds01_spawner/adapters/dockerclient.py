"""One way to Docker Engine: docker-py in threads of its own, its errors turned into ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from ds01_spawner.errors import EngineUnavailable

T = TypeVar("T")


class DockerClient:
    """A client of the engine, opened when it is first needed.

    Args:
        name: of its threads.
        threads: how many calls run at once.
        options: arguments for ``docker.APIClient``; the environment (``DOCKER_HOST``) decides when empty.
    """

    def __init__(self, name: str, threads: int, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options or {})
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._client: docker.APIClient | None = None
        self._opening = threading.Lock()

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        """Do some work with the client in a thread; a cancel does not stop it.

        Raises:
            NotFound: docker-py's own, for whoever knows what is missing then.
            EngineUnavailable: the engine did not answer, or refused.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.ask, work)

    def ask(self, work: Callable[[docker.APIClient], T]) -> T:
        """Do some work with the client here; raises like ``call``."""
        try:
            return work(self._open())
        except NotFound:
            raise
        except APIError as error:
            raise EngineUnavailable(f"Docker Engine refused: {error.explanation or error}") from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise EngineUnavailable(
                "Docker Engine does not answer. If it is not being restarted right now, tell an administrator."
            ) from error

    def _open(self) -> docker.APIClient:
        with self._opening:  # eight launches at once are to open one client, not eight
            if self._client is None:
                options = self._options or docker.utils.kwargs_from_env()
                self._client = docker.APIClient(**{"version": "auto", **options})
            return self._client

    def close(self) -> None:
        """Let running calls end, take no more, and close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._client is not None:
            self._client.close()
