"""Which GPUs a container was given, by the engine's own record of it."""

from __future__ import annotations

from typing import Any

import pytest

from ds01_spawner.adapters.gpuclaims import device_claims


def inspected(**host: Any) -> dict[str, Any]:
    """Return what the engine says of a container with this host configuration."""
    return {"HostConfig": host, "Config": {}}


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("nvidia.com/gpu=GPU-1", "GPU-1"),
        ("nvidia.com/gpu=all", "all"),
        ("runtime.nvidia.com/gpu=all", "all"),
        ("management.nvidia.com/gpu=all", "all"),
        ("nvidia.com/mig=0:1", "0:1"),
        ("example.com/device=0", "0"),
    ],
)
def test_a_device_given_by_cdi_is_claimed_under_whatever_name(name: str, claim: str) -> None:
    """The names of NVIDIA's other specifications reach the same GPUs as ours."""
    assert device_claims(inspected(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": [name]}])) == (claim,)


def test_a_cdi_device_that_is_no_gpu_claims_none() -> None:
    """A network card is nobody's GPU."""
    given = [{"Driver": "cdi", "DeviceIDs": ["example.com/net=eth0"]}]
    assert device_claims(inspected(DeviceRequests=given)) == ()
