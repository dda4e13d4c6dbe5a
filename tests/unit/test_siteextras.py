"""What a site adds to every container never replaces what a launch decides."""

from __future__ import annotations

from typing import Any

import pytest

from ds01_spawner.adapters.siteextras import add_to_create, add_to_host
from ds01_spawner.errors import SiteMisconfigured

CREATE: dict[str, Any] = {
    "image": "sha256:1",
    "name": "thesis._.alice",
    "user": "1:1",
    "entrypoint": ["python3"],
    "command": [],
    "host_config": {},
    "hostname": "thesis",
    "labels": {"ds01.user": "alice"},
    "environment": {"JUPYTERHUB_API_TOKEN": "secret"},
}
HOST: dict[str, Any] = {"mounts": ["workspace"], "device_requests": ["GPU-1"], "network_mode": "ds01", "init": True}


@pytest.mark.parametrize("key", ["image", "name", "user", "entrypoint", "command", "host_config"])
def test_what_the_create_call_decides_is_refused_with_trait_and_key(key: str) -> None:
    """An administrator reads which line to take out."""
    with pytest.raises(SiteMisconfigured, match=rf"extra_create_kwargs may not hold {key}:"):
        add_to_create(CREATE, {key: "other"})


@pytest.mark.parametrize("key", ["device_requests", "network_mode", "privileged", "runtime"])
def test_what_keeps_a_device_exclusive_is_refused(key: str) -> None:
    """Each of them could show a server a GPU that it does not hold, or let others reach it."""
    with pytest.raises(SiteMisconfigured, match=rf"extra_host_config may not hold {key}:"):
        add_to_host(HOST, {key: True})


def test_labels_and_environment_come_beside_ours_and_ours_win() -> None:
    """A label that was replaced would free a device that is held."""
    made = add_to_create(
        CREATE,
        {
            "labels": {"ds01.user": "eve", "room": "1"},
            "environment": {"JUPYTERHUB_API_TOKEN": "", "A": "1"},
            "tty": True,
        },
    )
    assert made["labels"] == {"ds01.user": "alice", "room": "1"}
    assert made["environment"] == {"JUPYTERHUB_API_TOKEN": "secret", "A": "1"}
    assert made["tty"]
    assert {**made, "labels": 0, "environment": 0, "tty": 0} == {**CREATE, "labels": 0, "environment": 0, "tty": 0}


def test_mounts_come_beside_the_workspace() -> None:
    """A site's mount never takes the place of the project's folder."""
    made = add_to_host(HOST, {"mounts": ["data"], "shm_size": 1, "init": False})
    assert made == {**HOST, "mounts": ["workspace", "data"], "shm_size": 1, "init": False}


def test_nothing_added_changes_nothing() -> None:
    """Most sites add nothing."""
    assert add_to_create(CREATE, {}) == CREATE
    assert add_to_host(HOST, {}) == HOST
