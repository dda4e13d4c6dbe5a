"""What an admin does while people wait: an edit of the limits file reaches them, and a bad one the GPU board."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds01_spawner.adapters.nvml import simulated_uuid
from ds01_spawner.testing.person import LaunchFailed

from .conftest import Site, docker, running_site
from .test_faults import eventually

pytestmark = pytest.mark.engine


@pytest.fixture
def limits_file(tmp_path: Path) -> Path:
    """A limits file that allows everybody one GPU."""
    path = tmp_path / "limits.yaml"
    path.write_text("defaults:\n  max_gpu_equivalents: 1\n")
    return path


@pytest.fixture
def own_site(limits_file: Path) -> Iterator[Site]:
    """A site with that limits file, all of whose devices are taken by somebody else."""
    with running_site(DS01_TEST_LIMITS=str(limits_file)) as site:
        uuids = ",".join(simulated_uuid(site.name, number) for number in range(4))
        holder = docker("run", "--detach", "--label", f"ds01.gpu.uuids={uuids}", "ds01/debian:13", "sleep", "600")
        try:
            yield site
        finally:
            docker("rm", "--force", holder)


def test_an_edit_of_the_limits_file_is_seen(own_site: Site, limits_file: Path) -> None:
    """A bad edit changes nothing and stands on the admin's page alone; a good one reaches who waits."""
    own_site.project("alice", "training")
    alice, admin = own_site.person("alice"), own_site.person("root-of-the-lab")
    seen: list[str] = []

    def launch() -> None:
        try:
            seen.extend(event["message"] for event in alice.launching("training"))
        except LaunchFailed as failure:
            seen.append(str(failure))

    thread = threading.Thread(target=launch)
    thread.start()
    try:
        # On a new machine the notebook runtime is made first, once.
        eventually(lambda: any("in the queue" in message for message in seen), seconds=240)
        board = "/services/projects/gpus"
        # One look serves all pages for a second and a half, so the first may be from before she waited.
        eventually(lambda: "alice / training" in admin.page(board).text, seconds=10)
        assert admin.page(board).text.count('data-state="occupied"') == 4
        refused = alice.page(board)
        assert (refused.status_code, "Only administrators" in refused.text) == (403, True)
        limits_file.write_text("defaults:\n  max_cpus: many\n")
        eventually(lambda: "limits.yaml:2: defaults.max_cpus" in admin.page(board).text)
        assert thread.is_alive()
        limits_file.write_text("defaults:\n  max_gpu_equivalents: 0\n")
        thread.join(30)
        assert "you may hold 0" in seen[-1]
        assert "limits-problem" not in admin.page(board).text
    finally:
        alice.api("DELETE", alice.server_path("training"))
        thread.join(30)
