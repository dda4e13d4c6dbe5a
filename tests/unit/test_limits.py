"""Who may have what: merging, exemptions, and the check of a request."""

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ds01_spawner.core.limits import (
    Exemption,
    Group,
    Held,
    Limits,
    Policy,
    check,
    gpu_equivalents_left,
    gpu_equivalents_of,
    resolve,
    show,
)
from ds01_spawner.core.model import Device, Holder, Request
from ds01_spawner.errors import LimitReached

NOW = 1_800_000_000.0
KEYS = [field.name for field in fields(Limits) if field.name not in {"group", "exemptions"}]

changes = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 3))
names = st.sampled_from(["ada", "bob", "Ada", "zoë"])
groups = st.lists(
    st.builds(
        Group,
        name=st.sampled_from(["student", "researcher", "admin"]),
        changes=changes,
        members=st.frozensets(names),
        linux_groups=st.frozensets(st.sampled_from(["staff", "lab"])),
    ),
    max_size=3,
    unique_by=lambda group: group.name,
).map(tuple)


@given(
    policy=st.builds(
        Policy, groups=groups, default_group=st.sampled_from(["", "student"]), users=st.dictionaries(names, changes)
    ),
    user=names,
    hub_groups=st.sets(st.sampled_from(["student", "admin", "elsewhere"])),
    linux_groups=st.sets(st.sampled_from(["staff", "other"])),
)
def test_merged_key_by_key(policy: Policy, user: str, hub_groups: set[str], linux_groups: set[str]) -> None:
    """Each value is the user's own if the user has one, else the group's, else the default; every key by itself."""
    limits = resolve(policy, user, hub_groups, NOW, linux_groups)
    mine = ""
    for group in policy.groups:
        listed = user.casefold() in {member.casefold() for member in group.members}
        if listed or group.name in hub_groups or group.linux_groups & linux_groups:
            mine = group.name  # the last one counts
    if not mine and policy.default_group in {group.name for group in policy.groups}:
        mine = policy.default_group
    assert limits.group == mine
    of_group: Any = next((group.changes for group in policy.groups if group.name == mine), {})
    of_user = next((own for who, own in policy.users.items() if who.casefold() == user.casefold()), {})
    for key in KEYS:
        layers = [layer[key] for layer in (of_user, of_group) if key in layer]
        assert getattr(limits, key) == (layers[0] if layers else getattr(policy.defaults, key)), key


def test_an_override_of_one_key_keeps_the_groups_others() -> None:
    """A researcher with only the idle time lifted stays a researcher; the earlier system fell back to the defaults."""
    researcher = Group("researcher", {"max_gpu_equivalents": Fraction(4), "memory_bytes": 64}, frozenset({"ada"}))
    policy = Policy(groups=(researcher,), users={"ada": {"idle_seconds": None}})
    limits = resolve(policy, "ada", (), NOW)
    assert (limits.idle_seconds, limits.max_gpu_equivalents, limits.memory_bytes) == (None, 4, 64)


@pytest.mark.parametrize(
    ("now", "idle", "runtime"), [(NOW - 1, None, 86400), (NOW, 1800, 86400), (NOW + 1e9, 1800, 86400)]
)
def test_an_exemption_ends(now: float, idle: float | None, runtime: float) -> None:
    """It lifts what it names, for its user, until its end and not from then on."""
    policy = Policy(exemptions=(Exemption("Ada", idle=True, runtime=False, reason="thesis", until=NOW),))
    limits = resolve(policy, "ada", (), now)
    assert (limits.idle_seconds, limits.max_runtime_seconds) == (idle, runtime)
    assert bool(limits.exemptions) == (idle is None)
    assert resolve(policy, "bob", (), NOW - 1).idle_seconds == 1800


def test_an_exemption_says_what_it_is() -> None:
    """Its text has what, until when, and why."""
    one = Exemption("ada", idle=True, runtime=True, reason="thesis", until=NOW)
    assert str(one) == "exempt from the idle and maximum run time until 2027-01-15 08:00 UTC: thesis"
    assert str(replace(one, idle=False, until=None)) == "exempt from the maximum run time: thesis"


GOLDEN = {
    # kind: (GPU-equivalents, as shown)
    "gpu": (Fraction(1), "1"),
    "1g.5gb": (Fraction(1, 7), "1/7"),
    "1g.10gb+me": (Fraction(1, 7), "1/7"),
    "2g.10gb": (Fraction(2, 7), "2/7"),
    "3g.71gb": (Fraction(3, 7), "3/7"),
    "1c.3g.40gb": (Fraction(1, 7), "1/7"),
    "4g.20gb": (Fraction(4, 7), "4/7"),
    "7g.80gb": (Fraction(1), "1"),
    "": (Fraction(1, 7), "1/7"),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_gpu_equivalents(kind: str) -> None:
    """One device of each kind counts its compute slices of seven; any kind counts the least it can."""
    assert (gpu_equivalents_of(kind), show(gpu_equivalents_of(kind))) == GOLDEN[kind]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(10, 7), "1 3/7"),
        (Fraction(3, 2), "1.5"),
        (Fraction(14, 7), "2"),
        (Fraction(1, 3), "0.3333"),
    ],
)
def test_amounts_as_people_write_them(amount: Fraction, text: str) -> None:
    """Sevenths stay sevenths, the rest is decimal."""
    assert show(amount) == text


def request(count: int = 1, kind: str = "gpu", server: str = "new") -> Request:
    """Return a request of ada's."""
    return Request(Holder("ada", server), count, kind)


def test_seven_sevenths_are_one() -> None:
    """Seven instances fit exactly into one GPU-equivalent, and an eighth does not; floats would miss one of the two."""
    limits = Limits(max_gpu_equivalents=Fraction(1), max_gpu_slots_per_container=None, max_containers_per_user=None)
    holding: list[Held] = []
    for number in range(7):
        check(limits, request(1, "1g.5gb"), holding)
        holding.append(Held(f"s{number}", Fraction(1, 7)))
    with pytest.raises(LimitReached):
        check(limits, request(1, "1g.5gb"), holding)


REFUSALS = [
    (
        Limits(max_containers_per_user=2),
        request(0),
        [Held("cv"), Held("thesis", Fraction(1))],
        "max_containers_per_user",
        "2 projects of yours are running, and 2 may run at once. Retire cv or thesis first.",
    ),
    (
        Limits(max_containers_per_user=1),
        request(0),
        [Held("")],
        "max_containers_per_user",
        "1 project of yours is running, and 1 may run at once. Retire the default server first.",
    ),
    (
        Limits(max_containers_per_user=0),
        request(0),
        [],
        "max_containers_per_user",
        "Your limits allow no server at all. Ask an administrator.",
    ),
    (
        Limits(allow_full_gpu=False),
        request(1),
        [],
        "allow_full_gpu",
        "Your limits allow MIG instances, not whole GPUs. Choose a MIG instance, or ask an administrator.",
    ),
    (
        Limits(max_gpu_slots_per_container=2),
        request(3),
        [],
        "max_gpu_slots_per_container",
        "You asked for 3 devices in one project, and 2 may be used there. Ask for 2, or ask an administrator.",
    ),
    (
        Limits(max_gpu_slots_per_container=0),
        request(1),
        [],
        "max_gpu_slots_per_container",
        (
            "You asked for 1 device in one project, and 0 may be used there."
            " Launch it on the CPU, or ask an administrator."
        ),
    ),
    (
        Limits(max_gpu_equivalents=Fraction(2)),
        request(1),
        [Held("cv", Fraction(10, 7)), Held("notes"), Held("thesis", Fraction(3, 7))],
        "max_gpu_equivalents",
        (
            "You hold 1 6/7 of 2 GPU-equivalents (cv: 1 3/7, thesis: 3/7) and asked for 1 more."
            " Retire cv or thesis first, or launch this project on the CPU."
        ),
    ),
    (
        Limits(max_gpu_equivalents=Fraction(1), max_gpu_slots_per_container=4),
        request(2),
        [Held("cv", Fraction(1))],
        "max_gpu_equivalents",
        "You hold 1 of 1 GPU-equivalents (cv: 1) and asked for 2 more. Ask for at most 1, or ask an administrator.",
    ),
    (
        Limits(max_gpu_equivalents=Fraction(2, 7)),
        request(1, "3g.20gb"),
        [],
        "max_gpu_equivalents",
        (
            "You asked for 3/7 GPU-equivalents, and you may hold 2/7."
            " Ask for less, launch this project on the CPU, or ask an administrator."
        ),
    ),
]


@pytest.mark.parametrize(("limits", "asked", "holding", "limit", "text"), REFUSALS)
def test_refusals(limits: Limits, asked: Request, holding: list[Held], limit: str, text: str) -> None:
    """Each refusal names its limit, has the numbers, and says what to retire or do."""
    limits = replace(limits, max_containers_per_user=limits.max_containers_per_user if "cont" in limit else None)
    with pytest.raises(LimitReached) as caught:
        check(limits, asked, holding)
    assert caught.value.limit == limit
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("limits", "asked", "holding"),
    [
        (Limits(), request(1), []),
        (Limits(allow_full_gpu=False, max_gpu_equivalents=Fraction(0)), request(0), []),
        (Limits(allow_full_gpu=False), request(1, "1g.5gb"), []),
        (Limits(), request(1, server="cv"), [Held("cv", Fraction(1)), Held("a"), Held("b")]),
        (Limits(max_gpu_equivalents=None, max_gpu_slots_per_container=None), request(64), [Held("cv", Fraction(64))]),
        (Limits(max_gpu_equivalents=Fraction(1, 2), max_gpu_slots_per_container=3), request(3, ""), []),
    ],
    ids=["first GPU", "CPU needs no GPU limit", "MIG only", "its own server is replaced", "unlimited", "any kind"],
)
def test_allowed(limits: Limits, asked: Request, holding: list[Held]) -> None:
    """What is within the limits is not refused."""
    check(limits, asked, holding)


amounts = st.fractions(min_value=0, max_value=4, max_denominator=7)
requests = st.builds(request, st.integers(0, 5), st.sampled_from(list(GOLDEN)), st.sampled_from(["a", "b", "new"]))
holdings = st.lists(st.builds(Held, st.sampled_from(["a", "b", "c", "d"]), amounts), unique_by=lambda held: held.server)
some_limits = st.builds(
    Limits,
    max_gpu_equivalents=st.none() | amounts,
    max_gpu_slots_per_container=st.none() | st.integers(0, 4),
    allow_full_gpu=st.booleans(),
    max_containers_per_user=st.none() | st.integers(0, 4),
)


def refusal_of(limits: Limits, asked: Request, holding: list[Held]) -> LimitReached | None:
    """Return the refusal of a request, or nothing when it passes."""
    try:
        check(limits, asked, holding)
    except LimitReached as refusal:
        return refusal
    return None


@given(limits=some_limits, asked=requests, holding=holdings)
@example(limits=Limits(max_gpu_equivalents=Fraction(1)), asked=request(1), holding=[])
def test_what_passes_stays_within_every_limit(limits: Limits, asked: Request, holding: list[Held]) -> None:
    """After a request that passes, the sums over all servers are within the limits."""
    assume(refusal_of(limits, asked, holding) is None)
    others = [held for held in holding if held.server != asked.holder.server]
    if limits.max_containers_per_user is not None:
        assert len(others) + 1 <= limits.max_containers_per_user
    if asked.count:
        assert limits.allow_full_gpu or asked.kind != "gpu"
        assert limits.max_gpu_slots_per_container is None or asked.count <= limits.max_gpu_slots_per_container
        if limits.max_gpu_equivalents is not None:
            total = sum((held.gpu_equivalents for held in others), asked.count * gpu_equivalents_of(asked.kind))
            assert total <= limits.max_gpu_equivalents


@given(limits=some_limits, asked=requests, holding=holdings)
def test_what_is_refused_is_over_a_limit(limits: Limits, asked: Request, holding: list[Held]) -> None:
    """A refusal's numbers show why: what is held and asked for is more than what is allowed."""
    refusal = refusal_of(limits, asked, holding)
    assume(refusal is not None)
    assert refusal is not None
    assert refusal.held is not None
    assert refusal.asked is not None
    assert refusal.allowed is not None
    assert refusal.held + refusal.asked > refusal.allowed
    assert refusal.limit in str(Limits.__doc__)
    assert str(refusal).endswith(".")


@given(limits=some_limits, asked=requests, holding=holdings, more=holdings)
def test_holding_more_never_helps(limits: Limits, asked: Request, holding: list[Held], more: list[Held]) -> None:
    """A request that is refused stays refused when the user holds more besides."""
    assume(refusal_of(limits, asked, holding) is not None)
    held = {held.server for held in holding}
    more_held = holding + [h for h in more if h.server not in held]
    assert refusal_of(limits, asked, more_held) is not None


@given(limits=some_limits, asked=requests, holding=holdings)
def test_what_is_left(limits: Limits, asked: Request, holding: list[Held]) -> None:
    """What is left is never negative, never more than the limit, and does not count the server itself."""
    left = gpu_equivalents_left(limits, asked, holding)
    others = [held for held in holding if held.server != asked.holder.server]
    assert left == gpu_equivalents_left(limits, asked, others)
    if limits.max_gpu_equivalents is None:
        assert left is None
    else:
        assert left is not None
        assert 0 <= left <= limits.max_gpu_equivalents


def test_a_replaced_servers_devices_are_free_for_itself() -> None:
    """A server that is launched again may have what it had."""
    limits = Limits(max_gpu_equivalents=Fraction(2))
    holding = [Held("cv", Fraction(1)), Held("thesis", Fraction(1))]
    assert gpu_equivalents_left(limits, request(1, server="cv"), holding) == 1
    assert gpu_equivalents_left(limits, request(1, server="new"), holding) == 0


def test_whole_gpus_are_not_granted_to_those_who_may_not() -> None:
    """Whoever places a request for any kind asks which devices may be granted."""
    whole = Device("GPU-1", "A100", 1)
    cut = Device("MIG-1", "A100", 1, mig_profile="1g.5gb", mig_slices=1)
    assert [Limits(allow_full_gpu=False).grants(device) for device in (whole, cut)] == [False, True]
    assert [Limits().grants(device) for device in (whole, cut)] == [True, True]
