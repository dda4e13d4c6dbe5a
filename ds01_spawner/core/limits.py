"""What a user may have: limits, how they are merged, and the check of a request against them.

``None`` is "no limit" wherever a limit may be absent.  GPU-equivalents are exact fractions: three sevenths and four
sevenths of a GPU are one GPU, not 0.9999999.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from ds01_spawner.core.activity import Counting
from ds01_spawner.core.model import Device, Request
from ds01_spawner.errors import LimitReached

SLICES_PER_GPU = 7
_MIG_PROFILE = re.compile(r"(?:(?P<compute>\d+)c\.)?(?P<gpu>\d+)g\.\d+gb(?:\+.*)?")


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that is limited for one user, resolved.

    The defaults are those of the DS01 system's ``defaults`` section.

    Attributes:
        max_gpu_equivalents: GPUs the user may hold in all servers together; a MIG instance counts slices/7.
        max_gpu_slots_per_container: devices, whole or MIG, in one server.
        allow_full_gpu: whether whole GPUs are granted, or MIG instances only.
        max_cpus: processors per server.
        memory_bytes: memory per server; swap is not added to it.
        shm_size_bytes: size of ``/dev/shm`` per server.
        pids_limit: processes and threads per server.
        max_containers_per_user: servers running at once.
        idle_seconds: a server is retired after this long without activity.
        max_runtime_seconds: a server is retired after this long, active or not.
        grace_seconds: a server younger than this is not idle.
        sigterm_grace_seconds: how long processes have to end when the hub retires their server.
        keepalive_seconds: how long a ``.keep-alive`` file counts.
        gpu_idle_percent: GPU utilisation below this is idle.
        cpu_idle_percent: processor use below this is idle; 100 is one processor.
        network_idle_bytes_per_minute: traffic below this, in and out together, is idle.
        high_demand_threshold: share of the devices held from which on the idle time is shortened, 0 to 1.
        high_demand_idle_reduction: what the idle time is multiplied with then, above 0 and at most 1.
        counting: what counts as use of a server that holds a device.
        priority: 1 to 100; who waits with a higher one goes first.
        group: the group whose values apply, for show.
        exemptions: those in force.
    """

    max_gpu_equivalents: Fraction | None = Fraction(1)
    max_gpu_slots_per_container: int | None = 1
    allow_full_gpu: bool = True
    max_cpus: float = 32
    memory_bytes: int = 32 * 1024**3
    shm_size_bytes: int = 16 * 1024**3
    pids_limit: int = 4096
    max_containers_per_user: int | None = 3
    idle_seconds: float | None = 1800
    max_runtime_seconds: float | None = 24 * 3600
    grace_seconds: float = 1800
    sigterm_grace_seconds: float = 60
    keepalive_seconds: float = 24 * 3600
    gpu_idle_percent: float = 5
    cpu_idle_percent: float = 2
    network_idle_bytes_per_minute: float = 1024**2
    high_demand_threshold: float = 0.8
    high_demand_idle_reduction: float = 0.5
    counting: Counting = Counting.WORK
    priority: int = 10
    group: str = ""
    exemptions: tuple[Exemption, ...] = ()

    def grants(self, device: Device) -> bool:
        """Whether a device of this kind may be given to the user at all."""
        return self.allow_full_gpu or bool(device.mig_profile)


@dataclass(frozen=True, slots=True)
class Exemption:
    """A user is spared one or both ways of being retired, until a date and for a reason.

    Attributes:
        user: login name.
        idle: spared retirement for idleness.
        runtime: spared retirement for age.
        reason: why, for show.
        until: when it ends, seconds since the epoch; ``None`` never.
    """

    user: str
    idle: bool
    runtime: bool
    reason: str
    until: float | None

    def __str__(self) -> str:
        """Say what it is, for the user's page and the admin's."""
        what = " and ".join(word for word, on in (("idle", self.idle), ("maximum run", self.runtime)) if on)
        end = "" if self.until is None else f" until {datetime.fromtimestamp(self.until, UTC):%Y-%m-%d %H:%M} UTC"
        return f"exempt from the {what} time{end}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Group:
    """A group's differences from the defaults, and who is in it by name.

    Attributes:
        name: also the name of the JupyterHub group whose members belong to it.
        changes: values by attribute name of ``Limits``.
        members: login names.
        linux_groups: groups of the host whose members belong to it.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    members: frozenset[str] = frozenset()
    linux_groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole of what an admin decided.

    Attributes:
        defaults: what holds for everybody.
        groups: in the order of the file; of several that a user is in, the last one counts.
        default_group: the group of a user who is in none; empty for the plain defaults.
        users: differences per login name.
        exemptions: all, ended ones included.
    """

    defaults: Limits = field(default_factory=Limits)
    groups: tuple[Group, ...] = ()
    default_group: str = ""
    users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exemptions: tuple[Exemption, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """What one running or starting server of a user takes.

    Attributes:
        server: its name.
        gpu_equivalents: sum over its devices; 0 for a CPU server.
    """

    server: str
    gpu_equivalents: Fraction = Fraction(0)


def resolve(
    policy: Policy, user: str, groups: Collection[str], now: float, linux_groups: Collection[str] = ()
) -> Limits:
    """Return the limits of a user: defaults, changed by the group's values, changed by the user's own.

    A value that a group or a user does not name is inherited, each by itself.

    Args:
        policy: what the admin decided.
        user: login name; case does not matter, as for JupyterHub.
        groups: names of the user's JupyterHub groups; those the policy does not know are passed over.
        now: seconds since the epoch.
        linux_groups: names of the user's groups on the host.
    """
    name = user.casefold()
    group = _group_of(policy, name, groups, linux_groups)
    own = next((changes for who, changes in policy.users.items() if who.casefold() == name), {})
    limits = replace(policy.defaults, **{**(group.changes if group else {}), **own})
    exemptions = tuple(
        exemption
        for exemption in policy.exemptions
        if exemption.user.casefold() == name and (exemption.until is None or now < exemption.until)
    )
    return replace(
        limits,
        group=group.name if group else "",
        exemptions=exemptions,
        idle_seconds=None if any(e.idle for e in exemptions) else limits.idle_seconds,
        max_runtime_seconds=None if any(e.runtime for e in exemptions) else limits.max_runtime_seconds,
    )


def _group_of(policy: Policy, name: str, groups: Collection[str], linux_groups: Collection[str]) -> Group | None:
    mine = [
        group
        for group in policy.groups
        if group.name in groups
        or any(member.casefold() == name for member in group.members)
        or not group.linux_groups.isdisjoint(linux_groups)
    ]
    if mine:
        return mine[-1]
    return next((group for group in policy.groups if group.name == policy.default_group), None)


def gpu_equivalents_of(kind: str) -> Fraction:
    """Return what one device of a kind counts.

    Args:
        kind: ``"gpu"``, or a MIG profile such as ``"2g.20gb"``.  Any other text counts as the smallest instance, the
            least that a device can count.
    """
    if kind == "gpu":
        return Fraction(1)
    profile = _MIG_PROFILE.fullmatch(kind)
    slices = int(profile["compute"] or profile["gpu"]) if profile else 1
    return Fraction(slices, SLICES_PER_GPU)


def gpu_equivalents_left(limits: Limits, request: Request, holding: Iterable[Held]) -> Fraction | None:
    """Return how many GPU-equivalents the request's server may still get, or ``None`` for no limit; never below 0.

    What the same server holds is not counted: it is being replaced.
    """
    if limits.max_gpu_equivalents is None:
        return None
    held = sum((h.gpu_equivalents for h in holding if h.server != request.holder.server), Fraction(0))
    return max(limits.max_gpu_equivalents - held, Fraction(0))


def check(limits: Limits, request: Request, holding: Sequence[Held]) -> None:
    """Refuse a request that the user's limits do not allow.

    A request for any kind of device is only refused here if not even the smallest instances would fit; whoever places
    it keeps to ``gpu_equivalents_left`` and ``Limits.grants``.

    Args:
        limits: the user's.
        request: what is asked for.
        holding: every server of the user that runs or is being started, this one included or not.

    Raises:
        LimitReached: names the limit, the numbers, and what to retire.
    """
    others = [held for held in holding if held.server != request.holder.server]
    _check_servers(limits, others)
    if request.count:
        _check_kind(limits, request)
        _check_slots(limits, request)
        _check_equivalents(limits, request, others)


def _check_servers(limits: Limits, others: Sequence[Held]) -> None:
    most = limits.max_containers_per_user
    if most is None or len(others) < most:
        return
    if not most:
        raise LimitReached(
            "Your limits allow no server at all. Ask an administrator.",
            limit="max_containers_per_user",
            allowed=Fraction(0),
            held=Fraction(len(others)),
            asked=Fraction(1),
        )
    raise LimitReached(
        f"{_count(len(others), 'project')} of yours {'is' if len(others) == 1 else 'are'} running, and {most} may run"
        f" at once. Retire {_names(others)} first.",
        limit="max_containers_per_user",
        allowed=Fraction(most),
        held=Fraction(len(others)),
        asked=Fraction(1),
    )


def _check_kind(limits: Limits, request: Request) -> None:
    if request.kind == "gpu" and not limits.allow_full_gpu:
        raise LimitReached(
            "Your limits allow MIG instances, not whole GPUs. Choose a MIG instance, or ask an administrator.",
            limit="allow_full_gpu",
            allowed=Fraction(0),
            held=Fraction(0),
            asked=Fraction(request.count),
        )


def _check_slots(limits: Limits, request: Request) -> None:
    most = limits.max_gpu_slots_per_container
    if most is None or request.count <= most:
        return
    instead = "Launch it on the CPU" if not most else f"Ask for {most}"
    raise LimitReached(
        f"You asked for {_count(request.count, 'device')} in one project, and {most} may be used there."
        f" {instead}, or ask an administrator.",
        limit="max_gpu_slots_per_container",
        allowed=Fraction(most),
        held=Fraction(0),
        asked=Fraction(request.count),
    )


def _check_equivalents(limits: Limits, request: Request, others: Sequence[Held]) -> None:
    most = limits.max_gpu_equivalents
    left = gpu_equivalents_left(limits, request, others)
    asked = request.count * gpu_equivalents_of(request.kind)
    if most is None or left is None or asked <= left:
        return
    holders = [held for held in others if held.gpu_equivalents]
    held = sum((h.gpu_equivalents for h in holders), Fraction(0))
    if holders:
        takes = ", ".join(f"{h.server}: {show(h.gpu_equivalents)}" for h in holders)
        text = f"You hold {show(held)} of {show(most)} GPU-equivalents ({takes}) and asked for {show(asked)} more."
        step = f"Retire {_names(holders)} first, or launch this project on the CPU."
        if asked > most:
            step = f"Ask for at most {show(most)}, or ask an administrator."
    else:
        text = f"You asked for {show(asked)} GPU-equivalents, and you may hold {show(most)}."
        step = "Ask for less, launch this project on the CPU, or ask an administrator."
    raise LimitReached(f"{text} {step}", limit="max_gpu_equivalents", allowed=most, held=held, asked=asked)


def show(amount: Fraction) -> str:
    """Return GPU-equivalents as people write them: ``2``, ``3/7``, ``1 3/7``, ``1.5``."""
    whole, rest = divmod(amount, 1)
    if not rest:
        return str(whole)
    if rest.denominator == SLICES_PER_GPU:
        return f"{whole} {rest}" if whole else str(rest)
    return f"{float(amount):.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _names(helds: Sequence[Held]) -> str:
    names = [held.server or "the default server" for held in helds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
