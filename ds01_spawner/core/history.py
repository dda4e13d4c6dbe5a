"""The samples that are kept of one server: the recent past in detail, the far one merged, never more than a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from ds01_spawner.core.activity import DeviceSample, Sample

T = TypeVar("T", int, float)

KEPT_SAMPLES = 120


def append(samples: Sequence[Sample], sample: Sample, kept: int = KEPT_SAMPLES) -> tuple[Sample, ...]:
    """Return a history with one sample more, never longer than ``kept``.

    When it is full, its older half is merged in pairs: less detail for the far past, and memory that stays flat.
    """
    if len(samples) >= kept:
        half = kept // 2
        older = [merge(samples[n], samples[n + 1]) for n in range(0, half - half % 2, 2)]
        samples = (*older, *samples[half - half % 2 :])
    return (*samples, sample)


def merge(first: Sample, second: Sample) -> Sample:
    """Return one sample for two that follow each other; it never shows less use, or more idleness, than they did.

    What is known of only one of them can still show use, but no longer idleness: the step is then infinitely long.
    """
    step_seconds = max(first.step_seconds, second.step_seconds, second.since - first.at)
    return Sample(
        since=first.since,
        at=second.at,
        step_seconds=step_seconds if _knows(first) == _knows(second) else math.inf,
        cpu_cores=_largest(first.cpu_cores, second.cpu_cores),
        network_bytes_per_second=_largest(first.network_bytes_per_second, second.network_bytes_per_second),
        devices=_merge_devices(first.devices, second.devices),
        kernels_busy=_largest(first.kernels_busy, second.kernels_busy),
        kernels_moved=_either(first.kernels_moved, second.kernels_moved),
        typed=_either(first.typed, second.typed),
        problem=second.problem or first.problem,
    )


def _merge_devices(
    first: tuple[DeviceSample, ...] | None, second: tuple[DeviceSample, ...] | None
) -> tuple[DeviceSample, ...] | None:
    if first is None or second is None:
        return first if second is None else second
    return tuple(
        DeviceSample(
            uuid=after.uuid,
            mig=after.mig,
            utilisation_percent=_largest(before.utilisation_percent, after.utilisation_percent),
            memory_bytes=_largest(before.memory_bytes, after.memory_bytes),
            processes=_largest(before.processes, after.processes),
            changed=_either(before.changed, after.changed),
        )
        for before, after in zip(first, second, strict=True)
    )


def _knows(sample: Sample) -> tuple[bool, ...]:
    values = [sample.cpu_cores, sample.network_bytes_per_second, sample.devices, sample.kernels_busy]
    values += [sample.kernels_moved, sample.typed]
    for device in sample.devices or ():
        values += [device.utilisation_percent, device.memory_bytes, device.processes, device.changed]
    return tuple(value is not None for value in values)


def _largest(first: T | None, second: T | None) -> T | None:
    if first is None or second is None:
        return first if second is None else second
    return max(first, second)


def _either(first: bool | None, second: bool | None) -> bool | None:  # noqa: FBT001 - three-valued
    if first is None or second is None:
        return first if second is None else second
    return first or second
