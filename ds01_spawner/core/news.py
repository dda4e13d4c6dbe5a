"""What is worth telling an admin about two looks that follow each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ds01_spawner.core.model import DeviceState, DeviceStatus, Observation
from ds01_spawner.core.sight import Change


def changes_between(
    before: Mapping[str, DeviceStatus], after: Mapping[str, DeviceStatus], claimed: Collection[str]
) -> Iterator[Change]:
    """Yield what happened to devices between two looks that could read everything.

    Args:
        before: every device by the earlier look.
        after: every device by the later one.
        claimed: devices that a container without a lease claims, by the later one.
    """
    for uuid, now in after.items():
        then = before.get(uuid)
        name = now.device.index or uuid
        if now.state is DeviceState.OCCUPIED and (then is None or then.reason != now.reason):
            by = "occupied-by-container" if uuid in claimed else "occupied-by-process"
            yield Change(by, f"Device {name}: {now.reason}", devices=(uuid,))
        was = then.device.health if then else None
        if now.exists and was not in {None, now.device.health}:
            yield Change(
                "health", f"Device {name} is {now.device.health}. {now.device.reason}".rstrip(), devices=(uuid,)
            )


def changes_of_sight(before: Observation, after: Observation) -> Iterator[Change]:
    """Yield that something cannot be read any more, for another reason, or can be read again."""
    if before.problem != after.problem:
        yield Change("sight", after.problem or "Everything can be read again.")
