"""What limits and the devices of the host allow a request, as seen during one decision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from ds01_spawner.core import limits as limits_
from ds01_spawner.core.ledger import Ledger
from ds01_spawner.core.limits import Held, Limits
from ds01_spawner.core.model import Device, Holder, Request
from ds01_spawner.core.queue import describe_devices, describe_request
from ds01_spawner.errors import DeviceRefused, InvalidOptions

LimitsOf = Callable[[str, Collection[str]], Limits]


class Rules:
    """Answers for one decision; what it has worked out once it does not work out again.

    Args:
        ledger: the leases and the inventory.
        limits: a user's limits by login name and groups; ``None`` when the site has none.
        groups: the groups of each user who has asked for something.
    """

    def __init__(self, ledger: Ledger, limits: LimitsOf | None, groups: Mapping[str, tuple[str, ...]]) -> None:
        self._ledger = ledger
        self._limits = limits
        self._groups = groups
        self._limits_of: dict[str, Limits | None] = {}
        self._sizes: dict[tuple[str, int, bool], dict[str, list[Device]]] = {}

    def limits_of(self, user: str) -> Limits | None:
        """Return a user's limits, ``None`` when the site has none."""
        if user not in self._limits_of:
            found = self._limits(user, self._groups.get(user, ())) if self._limits else None
            self._limits_of[user] = found
        return self._limits_of[user]

    def kinds(self, request: Request, limits: Limits | None) -> Sequence[str]:
        """Return the kinds of device that a request may be served with, smallest first; none if limits allow none."""
        if request.kind:
            return (request.kind,)
        left = None
        if limits:
            left = limits_.gpu_equivalents_left(limits, request, self._ledger.holding(request.holder.user))
        sizes = self._sizes_of_enough(request, limits)
        return [kind for each, _, kind in sizes if left is None or request.count * each <= left]

    def check(self, request: Request, limits: Limits | None, holding: Sequence[Held]) -> None:
        """Refuse what the limits do not allow.

        Raises:
            LimitReached: says which limit, and the numbers.
        """
        if limits is None:
            return
        if request.count and not request.kind:
            # Any kind will do: if the smallest of which there is enough is too much, then everything is.
            sizes = self._sizes_of_enough(request, limits)
            request = replace(request, kind=sizes[0][2]) if sizes else request
        limits_.check(limits, request, holding)

    def refuse_second(self, holder: Holder) -> None:
        """Refuse a server that has a lease already.

        Raises:
            DeviceRefused: it has one.
        """
        lease = self._ledger.lease_of(holder)
        if lease:
            raise DeviceRefused(
                f"This project still runs in container {lease.container_id[:12] or '(starting)'}. Retire it first."
            )

    def refuse_impossible(self, request: Request, limits: Limits | None) -> None:
        """Refuse what this host does not have.

        Raises:
            DeviceRefused: says what it has.
        """
        fitting = self._fitting(request, limits)
        if max((len(devices) for devices in fitting.values()), default=0) < request.count:
            existing = self._ledger.inventory.existing.values()
            raise DeviceRefused(
                f"You asked for {describe_request(request)}, and this host has {describe_devices(existing)}."
                " Ask for what there is, or launch on the CPU."
            )

    def _sizes_of_enough(self, request: Request, limits: Limits | None) -> list[tuple[Fraction, int, str]]:
        """Return GPU-equivalents, memory and kind of what there is enough of, smallest first."""
        return sorted(
            (devices[0].gpu_equivalents, devices[0].memory_bytes, kind)
            for kind, devices in self._fitting(request, limits).items()
            if len(devices) >= request.count
        )

    def _fitting(self, request: Request, limits: Limits | None) -> dict[str, list[Device]]:
        """Return the devices of the host that fit a request and may go to its user, by kind."""
        key = (request.kind, request.min_memory_bytes, limits is None or limits.allow_full_gpu)
        if key not in self._sizes:
            fitting: dict[str, list[Device]] = {}
            for device in self._ledger.inventory.existing.values():
                if fits(request, device) and (limits is None or limits.grants(device)):
                    fitting.setdefault(device.kind, []).append(device)
            self._sizes[key] = fitting
        return self._sizes[key]


def fits(request: Request, device: Device) -> bool:
    """Whether a device is of the kind and the size that a request names."""
    return request.kind in {"", device.kind} and device.memory_bytes >= request.min_memory_bytes


def require_sound(request: Request) -> None:
    """Refuse what is no request at all.

    Raises:
        InvalidOptions: a number is none.
    """
    for number in (request.count, request.min_memory_bytes):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidOptions(f"{number!r} is no number of GPUs or bytes. Ask for 0, 1, 2 or more.")
