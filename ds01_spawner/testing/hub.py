"""A real hub with its real proxy, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

START_SECONDS = 60
STOP_SECONDS = 60


@dataclass
class Hub:
    """A hub that can be started, stopped and killed.  It keeps its database and secrets in the folder that it runs in.

    Attributes:
        config: its configuration file.
        folder: where it runs; its log is ``hub.log`` there.
        url: where its proxy listens; the two ports after it are the proxy's own and the hub's.
        environment: on top of this process's own.
    """

    config: Path
    folder: Path
    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.folder / "hub.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            RuntimeError: it did not; with the end of its log.
        """
        binaries = Path(sys.executable).parent
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [binaries / "jupyterhub", "-f", self.config, *self._addresses()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", **self.environment},
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(requests.RequestException):
                if requests.get(f"{self.url}/hub/api", timeout=2).ok:
                    return
            time.sleep(0.1)
        self.kill()
        tail = "\n".join(self.log.splitlines()[-25:])
        raise RuntimeError(f"the hub did not start within {START_SECONDS} s. The end of its log:\n{tail}")

    def _addresses(self) -> list[str]:
        port = urlsplit(self.url).port
        assert port is not None, "the hub's address names its port"
        return [
            f"--JupyterHub.bind_url={self.url}",
            f"--ConfigurableHTTPProxy.api_url=http://127.0.0.1:{port + 1}",
            f"--JupyterHub.hub_port={port + 2}",
        ]

    def stop(self) -> None:
        """Ask it to end, as an administrator would, and wait for it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            self.kill()

    def kill(self) -> None:
        """End it and its proxy at once, as a crash would."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def end_proxy(self) -> None:
        """End the proxy of a hub that was killed: it is in a session of its own and outlives it."""
        pid_file = self.folder / "jupyterhub-proxy.pid"
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int(pid_file.read_text())
            if b"configurable-http-proxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Run a hub for the block."""
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()
        hub.end_proxy()
