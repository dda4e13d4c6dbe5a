"""What the kernel of this machine shows of a real container, in whatever version of control groups it has."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from ds01_spawner.adapters.containerprocess import ContainerProcess

pytestmark = pytest.mark.engine

IMAGE = "ds01/debian:13"
BURN = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)"


def docker(*arguments: str) -> str:
    """Run a docker command and return its output."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def container() -> Iterator[str]:
    """Return a container with a terminal that uses half a second of processor time and then sleeps."""
    if os.geteuid() != 0:
        pytest.skip("another's process is read by root")
    identity = docker("run", "--detach", "--tty", "--cap-drop=ALL", "--user=4711:4711", IMAGE, "python3", "-c", BURN)
    yield identity
    docker("rm", "--force", identity)


def opened(container: str) -> ContainerProcess:
    """Return its main process."""
    return ContainerProcess(json.loads(docker("inspect", container))[0]["State"]["Pid"], container)


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_counters_are_the_containers(container: str) -> None:
    """Its processor time grows by what it used and stays, its network and age are its own."""
    with opened(container) as process:
        until(lambda: process.cpu_seconds() >= 0.5)
        assert process.cpu_seconds() < 5
        assert 0 <= process.network_bytes() < 100_000
        assert 0 < process.age_seconds() < 60


def test_a_warning_arrives_in_the_terminal_and_is_no_typing(container: str) -> None:
    """The text is on its screen; what is written from outside does not look like somebody typing."""
    with opened(container) as process:
        before = process.terminals()
        assert len(before) == 1
        assert process.write_to_terminals("retired at 14:35\nsave your work") == 1
        until(lambda: docker("logs", container).split() == ["retired", "at", "14:35", "save", "your", "work"])
        assert process.terminals() == before


def test_a_process_that_ended_is_an_error(container: str) -> None:
    """A descriptor of a process that is gone shows nothing, also when its number is used again."""
    with opened(container) as process:
        docker("kill", container)
        with pytest.raises(OSError):  # noqa: PT011 - the kernel's own word
            process.age_seconds()
