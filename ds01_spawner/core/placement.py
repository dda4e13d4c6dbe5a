"""Which device: the smallest that fits, then the policy of the site.

A policy is a name and a sort key; the devices that sort first are taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nsmallest

from ds01_spawner.core.limits import SLICES_PER_GPU
from ds01_spawner.core.model import Device

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a policy may look at besides the device.

    Attributes:
        last: UUIDs of the devices that the user held last.
        neighbours: per UUID of a GPU that is cut into instances, how many of them are in use.
        released: per UUID, a number that grows with each release; devices that nobody had yet are missing.
    """

    last: frozenset[str] = frozenset()
    neighbours: Mapping[str, int] = field(default_factory=dict)
    released: Mapping[str, int] = field(default_factory=dict)


Key = tuple[int, ...]


def packed(device: Device, around: Surroundings) -> Key:
    """Fill a GPU that is in use already before touching another, so that whole GPUs stay whole; then by index."""
    return (-around.neighbours.get(device.parent, 0), *_order(device))


def spread(device: Device, around: Surroundings) -> Key:
    """Take the GPU with the fewest instances in use, of these the device that rested longest; then by index."""
    return (around.neighbours.get(device.parent, 0), around.released.get(device.uuid, -1), *_order(device))


def affinity(device: Device, around: Surroundings) -> Key:
    """Take a device that the user held last, where caches may still be warm; then as ``packed``."""
    return (device.uuid not in around.last, *packed(device, around))


PLACEMENTS: Mapping[str, Callable[[Device, Surroundings], Key]] = {
    "packed": packed,
    "spread": spread,
    "affinity": affinity,
}


def place(policy: str, devices: Sequence[Device], count: int, around: Surroundings) -> tuple[Device, ...]:
    """Return the devices to grant.

    Args:
        policy: a key of ``PLACEMENTS``.
        devices: at least ``count`` that all fit the request.
        count: how many are wanted.
        around: what else the policy looks at.
    """
    if len(devices) == 1:
        return tuple(devices)
    key = PLACEMENTS[policy]
    whole = SLICES_PER_GPU
    found = nsmallest(
        count,
        devices,
        key=lambda device: (device.mig_slices or whole, device.memory_bytes, *key(device, around)),
    )
    return tuple(found)


def _order(device: Device) -> Key:
    return _numbers(device.index)


@lru_cache(maxsize=4096)
def _numbers(index: str) -> Key:
    return tuple(int(number) for number in _NUMBER.findall(index))
