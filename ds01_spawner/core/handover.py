"""Clean handover: a device goes to its next holder only when a look shows nothing left of the last one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ds01_spawner.core.model import DeviceState, DeviceStatus, Holder, Observation
from ds01_spawner.core.sight import Change, Departure


class Handover:
    """Devices that are not known to be clean, and how an unused device looks.

    Args:
        report_after_seconds: how long a device may be set aside before that is reported.

    Attributes:
        departures: devices that are not known to be clean, by UUID.
        baseline_bytes: per device the least memory that was in use while it was clean.
    """

    def __init__(self, report_after_seconds: float) -> None:
        self.departures: dict[str, Departure] = {}
        self.baseline_bytes: dict[str, int] = {}
        self._report_after_seconds = report_after_seconds

    def leave(self, holder: Holder, devices: Collection[str], now: float, looks: int) -> None:
        """Note that a holder left devices; only a look that begins from now on can show that they are clean.

        Args:
            holder: who held them.
            devices: UUIDs.
            now: the time.
            looks: how many looks have begun.
        """
        for uuid in devices:
            self.departures[uuid] = Departure(holder, now, looks)

    def settle(
        self, statuses: Mapping[str, DeviceStatus], existing: Collection[str], seen: Observation, look: int
    ) -> list[Change]:
        """Take in what a whole look said.

        Args:
            statuses: every device by that look.
            existing: UUIDs of the devices that it lists.
            seen: the look.
            look: its number.
        """
        for uuid in self.departures.keys() - existing:
            del self.departures[uuid]
        for uuid in self.baseline_bytes.keys() - existing:
            del self.baseline_bytes[uuid]
        changes: list[Change] = []
        for uuid, status in statuses.items():
            if status.state is DeviceState.FREE:
                used = seen.memory_used_bytes[uuid]
                self.baseline_bytes[uuid] = min(used, self.baseline_bytes.get(uuid, used))
                departure = self.departures.pop(uuid, None)
                if departure and departure.reported:
                    changes.append(Change("returned", "It is clean again.", departure.holder, (uuid,)))
            elif status.state is DeviceState.SET_ASIDE:
                departure = self.departures.setdefault(uuid, Departure(None, seen.at, look - 1))
                if not departure.reported and seen.at - departure.since >= self._report_after_seconds:
                    departure.reported = True
                    changes.append(Change("set-aside", status.reason, departure.holder, (uuid,)))
            elif uuid in self.departures:
                # Something else keeps it from being granted; the wait for it to be clean has not begun.
                self.departures[uuid].since = seen.at
        return changes
