"""The limits file: what it means, what is refused and how, and what happens when it changes."""

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds01_spawner.adapters import limitsold
from ds01_spawner.adapters.limitsfile import HostGroups, LimitsFile, linux_groups_of, read_contents
from ds01_spawner.adapters.limitsschema import Policies, Values
from ds01_spawner.adapters.yamllines import MAX_BYTES, YamlRefused, parse
from ds01_spawner.core.activity import Counting
from ds01_spawner.core.idlerules import rules_of
from ds01_spawner.core.limits import Limits, resolve
from ds01_spawner.errors import LimitsFileInvalid

DATA = Path(__file__).parent / "data"
GIB = 1024**3
HOUR = 3600
NOW = 1_780_000_000.0  # 2026-05-28

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the limits file, as an editor does that replaces it; its date is long ago."""
    counter = iter(range(1000))

    def write_file(content: str | bytes) -> Path:
        number = next(counter)
        new = tmp_path / f"new{number}"
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(new, (NOW - 10_000 + number, NOW - 10_000 + number))
        return new.rename(tmp_path / "limits.yaml")

    return write_file


class Events:
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict[str, Any]]] = []

    def record(self, kind: str, /, *, user: str = "", **details: Any) -> None:
        """Keep an event."""
        self.kept.append((kind, details))


@pytest.mark.parametrize(
    ("idle", "policies"),
    [
        ("0.016667", {"high_demand_idle_reduction": 0.1, "high_demand_threshold": 0, "grace_period_m": 0}),
        ("8760", {"high_demand_idle_reduction": 1, "high_demand_threshold": 1, "grace_period_m": 1440}),
        ("null", {"gpu_idle_threshold": 0, "cpu_idle_threshold": 0, "network_idle_threshold": 0}),
        ("0.5", {"gpu_idle_threshold": 100, "cpu_idle_threshold": 100_000, "network_idle_threshold": 10**15}),
    ],
)
def test_the_culler_takes_whatever_the_file_may_say(idle: str, policies: dict[str, float], write: Write) -> None:
    """The ends of every range make rules that can be judged by; what those would refuse is refused with its line."""
    lines = "".join(f"  {key}: {value}\n" for key, value in policies.items())
    limits = LimitsFile(write(f"defaults:\n  idle_timeout_h: {idle}\npolicies:\n{lines}")).limits("ada")
    rules = rules_of(limits, lead_seconds=(900.0, 300.0), notice_seconds=300.0, gap_seconds=300.0)
    assert rules.demand_factor == policies.get("high_demand_idle_reduction", 0.5)


GOLDEN = {
    # user, groups: equivalents, slots, cpus, GiB, shm, pids, servers, run h, idle h, cpu %, group
    ("anybody", ()): (2, 2, 32, 32, 16, 4096, 3, 24, 0.5, 2, "student"),
    ("anybody", ("researcher",)): (4, 3, 48, 64, 32, 4096, 5, 48, 1, 3, "researcher"),
    ("anybody", ("faculty", "student")): (4, 4, 64, 128, 64, 4096, 5, 72, 2, 3, "faculty"),
    ("anybody", ("admin",)): (None, None, 64, 128, 64, 4096, 10, 24, 1, 2, "admin"),
    ("bob", ()): (4, 3, 48, 64, 32, 4096, 5, 48, None, 3, "researcher"),
    ("204214", ()): (4, 3, 48, 64, 32, 4096, 5, 48, 1, 3, "researcher"),
    ("First.Last@example.org", ()): (4, 3, 48, 64, 32, 4096, 5, 48, 1, 3, "researcher"),
    ("0123", ()): (Fraction(3, 7), 2, 32, 32, 16, 4096, 3, 24, 0.5, 2, "student"),
    ("carol", ()): (2, 2, 32, 32, 16, 4096, 3, None, None, 2, "student"),
    ("dean", ()): (4, 4, 64, 128, 64, 4096, 5, 72, 2, 3, "faculty"),
}


@pytest.mark.parametrize(("user", "groups"), GOLDEN)
def test_the_table_of_limits(user: str, groups: tuple[str, ...]) -> None:
    """Every value of every group comes out as the table says, with overrides and exemptions on top."""
    file = LimitsFile(
        DATA / "limits.yaml",
        clock=lambda: NOW,
        linux_groups=lambda who: frozenset({"professors"} if who == "dean" else ()),
    )
    limits = file.limits(user, frozenset(groups))

    def in_hours(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / HOUR

    assert (
        limits.max_gpu_equivalents,
        limits.max_gpu_slots_per_container,
        limits.max_cpus,
        limits.memory_bytes / GIB,
        limits.shm_size_bytes / GIB,
        limits.pids_limit,
        limits.max_containers_per_user,
        in_hours(limits.max_runtime_seconds),
        in_hours(limits.idle_seconds),
        limits.cpu_idle_percent,
        limits.group,
    ) == GOLDEN[(user, groups)]
    assert file.notes == ()


POLICIES = {
    "gpu_idle_threshold": ("7", "gpu_idle_percent", 7),
    "cpu_idle_threshold": ("50", "cpu_idle_percent", 50),
    "network_idle_threshold": ("4096", "network_idle_bytes_per_minute", 4096),
    "grace_period_m": ("10", "grace_seconds", 600),
    "keepalive_max_duration_h": ("2", "keepalive_seconds", 7200),
    "sigterm_grace_s": ("5", "sigterm_grace_seconds", 5),
    "high_demand_threshold": ("0.5", "high_demand_threshold", 0.5),
    "high_demand_idle_reduction": ("0.25", "high_demand_idle_reduction", 0.25),
    "counting": ("gpu", "counting", Counting.GPU),
}


@pytest.mark.parametrize(
    "where", ["policies:\n  ", "groups:\n  g:\n    policies:\n      ", "user_overrides:\n  ada:\n    policies:\n      "]
)
@pytest.mark.parametrize("key", POLICIES)
def test_policies_anywhere(key: str, where: str, write: Write) -> None:
    """Each policy may stand at the top, in a group and for a user, and comes out in the unit of its name."""
    written, attribute, meant = POLICIES[key]
    limits = LimitsFile(write(f"{where}{key}: {written}\n")).limits("ada", frozenset({"g"}))
    assert getattr(limits, attribute) == meant


def test_the_defaults_of_the_file_are_those_of_the_code() -> None:
    """A file with nothing but a group gives the documented defaults, which the example spells out."""
    defaults = read_contents(DATA / "limits.yaml").policy.defaults
    assert defaults == Limits()


def test_an_exemption_holds_to_the_end_of_its_day() -> None:
    """A day without a time includes that day, in UTC, and not the next."""
    policy = read_contents(DATA / "limits.yaml").policy
    midnight = 1_782_864_000.0  # 2026-07-01T00:00Z
    assert resolve(policy, "carol", (), midnight - 1).idle_seconds is None
    assert resolve(policy, "carol", (), midnight).idle_seconds == 0.5 * HOUR


def test_the_old_file_loads_and_every_old_key_is_told() -> None:
    """DS01's file means what it meant, and each key that is renamed or does nothing is named with its line."""
    contents = read_contents(DATA / "limits-of-ds01.yaml")
    student, researcher, admin = (
        resolve(contents.policy, "zoe", groups, NOW) for groups in ((), ("researcher",), ("admin",))
    )
    assert (student.max_gpu_equivalents, student.max_gpu_slots_per_container) == (3, 3)
    assert (student.allow_full_gpu, student.idle_seconds, student.max_runtime_seconds) == (True, 1800, 24 * HOUR)
    assert (researcher.max_gpu_equivalents, researcher.memory_bytes) == (6, 64 * GIB)
    assert (researcher.max_runtime_seconds, researcher.idle_seconds) == (48 * HOUR, HOUR)
    assert (admin.max_gpu_equivalents, admin.max_containers_per_user) == (None, 10)
    assert (student.grace_seconds, student.keepalive_seconds, student.sigterm_grace_seconds) == (1800, 24 * HOUR, 60)

    text = (DATA / "limits-of-ds01.yaml").read_text().splitlines()
    noted = {int(note.split(":")[1]) for note in contents.notes}
    old = limitsold.RENAMED | limitsold.DURATIONS | limitsold.NO_EFFECT | limitsold.NO_EFFECT_SECTIONS
    inside = {"container_types", "monitoring", "bare_metal_access", "access_control"}
    section = ""
    for number, line in enumerate(text, 1):
        key = line.split(":")[0].strip()
        section = key if line[:1].isalpha() else section
        told = key in {*old, "aggregate"} and (section not in inside or key == section)
        assert told == (number in noted), line


def test_every_key_has_a_place() -> None:
    """Each key of the schema sets an attribute of Limits, and old names lead to keys that exist."""
    fields = set(Values.model_fields) | set(Policies.model_fields)
    new = set(limitsold.RENAMED.values()) | {key for key, _ in limitsold.DURATIONS.values()}
    assert new <= fields
    assert not fields & (set(limitsold.RENAMED) | set(limitsold.DURATIONS) | set(limitsold.NO_EFFECT))


REFUSED = {
    "empty": ("", "limits.yaml:1: the file is empty"),
    "comments only": ("# nothing\n", "limits.yaml:1: the file is empty"),
    "a list": ("- 1\n", "limits.yaml:1: the file must start with keys such as defaults: and groups:"),
    "a word": ("limits\n", "limits.yaml:1: the file must start with keys"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00", "limits.yaml:1: a control character"),
    "not text": (b"defaults:\n  memory: \xff\xfe\n", "limits.yaml:2: this is not text (UTF-8)"),
    "too large": ("#" * (MAX_BYTES + 1), "at most 262,144 are read"),
    "cyclic": ("defaults: &a\n  policies: *a\n", "limits.yaml:1: aliases (*name) are not read"),
    "alias": ("defaults: &a {}\ngroups:\n  x: *a\n", "aliases (*name) are not read"),
    "deep": ("[" * 20_000, "nested too deeply"),
    "a tag": ("defaults: !!python/object:os.system {}\n", "limits.yaml:1: tags"),
    "half-written": ("defaults:\n  max_cpus: 3\n  memo", "limits.yaml:3: not YAML"),
    "tab": ("defaults:\n\tmax_cpus: 3\n", "limits.yaml:2: not YAML"),
    "twice": (
        "defaults:\n  max_cpus: 3\n  max_cpus: 4\n",
        "limits.yaml:3: max_cpus is there twice; the first is on line 2",
    ),
    "unknown key": (
        "defaults:\n  max_cpu: 3\n",
        "limits.yaml:2: defaults.max_cpu is not a key of the limits file; did you mean max_cpus?",
    ),
    "unknown section": (
        "deflauts:\n  max_cpus: 3\n",
        "limits.yaml:1: deflauts is not a key of the limits file; did you mean defaults?",
    ),
    "nothing like it": (
        "groups:\n  a:\n    zzz: 1\n",
        "limits.yaml:3: groups.a.zzz is not a key of the limits file; known here: max_gpu_equivalents, ",
    ),
    "policy misspelt": (
        "groups:\n  a:\n    policies:\n      gpu_idle_treshold: 3\n",
        "did you mean gpu_idle_threshold?",
    ),
    "a section's key outside": (
        "groups:\n  a:\n    members: 5\n",
        "limits.yaml:3: groups.a.members must be a list, such as [ada, bob]",
    ),
    "group is a number": ("groups:\n  a: 5\n", "limits.yaml:2: groups.a must hold keys, each on its own line"),
    "groups is a list": ("groups: [a]\n", "limits.yaml:1: groups must hold names, each with keys below it"),
    "memory without a unit": (
        "defaults:\n  memory: 32\n",
        "limits.yaml:2: defaults.memory must be a size of at least 256m with its unit, such as 32g, not 32",
    ),
    "memory of 1m": ("defaults:\n  memory: 1m\n", "must be a size of at least 256m"),
    "memory in words": ("defaults:\n  memory: lots\n", "not lots"),
    "hours with a unit": (
        "defaults:\n  max_runtime_h: 24h\n",
        "more than a minute and at most a year, such as 0.5 or 24, or null for no limit, not 24h",
    ),
    "seconds as hours": ("defaults:\n  idle_timeout_h: 86400\n", "must be a number of hours"),
    "no time at all": ("defaults:\n  idle_timeout_h: 0\n", "must be a number of hours"),
    "a clock time": ("defaults:\n  max_runtime_h: 1:30\n", "not 1:30"),
    "old time without a unit": (
        "defaults:\n  max_runtime: 48\n",
        "defaults.max_runtime must be a time with its unit, such as 30m or 0.5h, not 48; better, write max_runtime_h",
    ),
    "negative": ("defaults:\n  max_gpu_equivalents: -1\n", "not -1"),
    "not a number": ("defaults:\n  max_gpu_equivalents: .nan\n", "must be a number of GPUs"),
    "infinite": ("defaults:\n  max_cpus: .inf\n", "must be a number of processors"),
    "half a server": (
        "defaults:\n  max_containers_per_user: 1.5\n",
        "must be a whole number from 0 to 1000, such as 3, or null for no limit, not 1.5",
    ),
    "no processors": ("defaults:\n  max_cpus: 0\n", "from 0.1 to 4096"),
    "unlimited memory": ("defaults:\n  memory: null\n", "not null"),
    "true as a number": ("defaults:\n  max_cpus: true\n", "not true"),
    "a word as true": ("defaults:\n  allow_full_gpu: maybe\n", "must be true or false, not maybe"),
    "80 percent": (
        "policies:\n  high_demand_threshold: 80\n",
        "limits.yaml:2: policies.high_demand_threshold must be a share from 0 to 1, such as 0.8, not 80",
    ),
    "no idle time at all": (
        "policies:\n  high_demand_idle_reduction: 0\n",
        "limits.yaml:2: policies.high_demand_idle_reduction must be a share from 0.1 to 1, such as 0.5, not 0",
    ),
    "what counts": (
        "groups:\n  a:\n    policies:\n      counting: everything\n",
        "limits.yaml:4: groups.a.policies.counting must be anything, work or gpu, not everything",
    ),
    "octal": ("defaults:\n  pids_limit: 04096\n", "not 04096"),
    "few processes": ("defaults:\n  pids_limit: 3\n", "from 64 to"),
    "priority": ("defaults:\n  priority: 1000\n", "from 1 to 100"),
    "shared memory above memory": (
        "defaults:\n  memory: 8g\n",
        "limits.yaml: defaults: shm_size is larger than memory",
    ),
    "swap": (
        "defaults:\n  memory: 32g\n  memory_swap: 64g\n",
        "limits.yaml:3: defaults.memory_swap differs from memory, but swap is never added; remove memory_swap",
    ),
    "old and new": (
        "defaults:\n  max_gpu_slots: 2\n  max_gpu_equivalents: 2\n",
        "limits.yaml:2: defaults.max_gpu_slots says the same as another key; write max_gpu_equivalents alone",
    ),
    "two old": (
        "defaults:\n  max_gpu_slots: 2\n  max_mig_instances: 2\n",
        "limits.yaml:3: defaults.max_mig_instances says the same",
    ),
    "old with a bad value": (
        "defaults:\n  max_gpu_slots: many\n",
        "limits.yaml:2: defaults.max_gpu_slots must be a number of GPUs",
    ),
    "stricter aggregate": (
        "groups:\n  a:\n    max_gpu_equivalents: 4\n    aggregate:\n      gpu_limit: 2\n",
        "limits.yaml:5: groups.a.aggregate.gpu_limit is stricter than max_gpu_equivalents: 4; write 2 there instead",
    ),
    "aggregate of an unlimited group": (
        "groups:\n  a:\n    max_gpu_equivalents: null\n    aggregate:\n      gpu_limit: 2\n",
        "is stricter",
    ),
    "default group": (
        "default_group: studnt\ngroups:\n  student:\n",
        "there is no group studnt; did you mean student?",
    ),
    "default group of none": (
        "default_group: student\n",
        "there is no group student; add it to groups, or remove default_group",
    ),
    "exemption without end": (
        "exemptions:\n- username: ada\n  exempt_from: [max_runtime_h]\n  reason: x\n",
        "limits.yaml:2: exemptions.0.expires_on must be there",
    ),
    "exemption without reason": (
        "exemptions:\n- username: ada\n  exempt_from: [max_runtime_h]\n  expires_on: null\n  reason: ''\n",
        "limits.yaml:5: exemptions.0.reason must be a text that is not empty",
    ),
    "exemption from nothing": (
        "exemptions:\n- {username: ada, exempt_from: [], expires_on: null, reason: x}\n",
        "limits.yaml:2: exemptions.0.exempt_from must not be empty",
    ),
    "exemption from all": (
        "exemptions:\n- {username: ada, exempt_from: [all], expires_on: null, reason: x}\n",
        "must be idle_timeout_h or max_runtime_h",
    ),
    "no such day": (
        "exemptions:\n- {username: ada, exempt_from: [max_runtime_h], expires_on: 2026-02-30, reason: x}\n",
        "exemptions.0.expires_on must be a day such as 2026-06-30",
    ),
    "a time without zone": (
        "exemptions:\n- {username: ada, exempt_from: [max_runtime_h], expires_on: 2026-02-03T10:00:00, reason: x}\n",
        "a time with its zone",
    ),
    "a user with a space": (
        "groups:\n  a:\n    members: [ada lovelace]\n",
        "limits.yaml:3: groups.a.members.0 must be a login name, not ada lovelace",
    ),
    "a list as user": ("groups:\n  a:\n    members: [[ada]]\n", "must be a login name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_line_and_the_accepted_form(case: str, write: Write) -> None:
    """Each mistake is named by file, line and key, with what would be accepted; the hub does not start with it."""
    content, words = REFUSED[case]
    with pytest.raises(LimitsFileInvalid) as caught:
        LimitsFile(write(content))
    assert words in "\n".join(caught.value.problems)
    assert all(problem.startswith("limits.yaml:") for problem in caught.value.problems)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    """An admin does not have to mend one mistake to be told of the next."""
    with pytest.raises(LimitsFileInvalid) as caught:
        LimitsFile(write("defaults:\n  memory: 3\n  max_cpu: 1\n  max_runtime: 4\nwizard_: x\n"))
    assert [problem.split(":")[1].strip() for problem in caught.value.problems] == ["2", "3", "4", "5"]


@pytest.mark.parametrize("content", ["defaults:\n", "groups:\n  student:\n", "user_overrides:\n  ada:\npolicies:\n"])
def test_sections_whose_keys_are_commented_out(content: str, write: Write) -> None:
    """An empty section is no section."""
    assert LimitsFile(write(content)).limits("ada") == Limits()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2", Fraction(2)),
        ("0.29", Fraction(2, 7)),
        ("0.286", Fraction(2, 7)),
        ("0.14", Fraction(1, 7)),
        ("0.57", Fraction(4, 7)),
        ("1.43", Fraction(10, 7)),
        ("3/7", Fraction(3, 7)),
        ("0.5", Fraction(1, 2)),
        ("2.5", Fraction(5, 2)),
        ("2.0", Fraction(2)),
        ("0", Fraction(0)),
        ("null", None),
    ],
)
def test_gpu_equivalents_are_exact(written: str, meant: Fraction | None, write: Write) -> None:
    """A rounded seventh is that seventh, everything else is what is written."""
    file = LimitsFile(write(f"defaults:\n  max_gpu_equivalents: {written}\n"))
    assert file.limits("ada").max_gpu_equivalents == meant


@pytest.mark.parametrize("written", ["1g", "1G", "1GB", "1GiB", "1024m", "1 g", '"1g"', "1048576k"])
def test_sizes(written: str, write: Write) -> None:
    """Units may be written in the ways that engines and people write them, always as powers of 1024."""
    limits = LimitsFile(write(f"defaults:\n  memory: {written}\n  shm_size: 64m\n")).limits("ada")
    assert limits.memory_bytes == GIB


MEMBERS = "groups:\n  student:\n    max_cpus: 1\n  researcher:\n    max_cpus: 2\n"


def test_members_files_beside_it(write: Write, tmp_path: Path) -> None:
    """Members may stand in groups/<group>.members, with comments; the earlier system's loader once forgot them."""
    file = LimitsFile(write(MEMBERS), clock=lambda: NOW)
    assert file.limits("ada").group == ""
    (tmp_path / "groups").mkdir()
    listed = tmp_path / "groups" / "researcher.members"
    listed.write_text("# people\nada  # since May\n\n0123\nFirst.Last@example.org\n")
    os.utime(listed, (NOW - 99, NOW - 99))
    assert file.limits("ada").group == "researcher"
    assert file.limits("0123").max_cpus == 2
    assert file.limits("first.last@example.org").max_cpus == 2
    assert file.limits("since").group == ""
    listed.unlink()
    assert file.limits("ada").group == ""


def test_overrides_and_exemptions_beside_it(write: Write, tmp_path: Path) -> None:
    """DS01's other two files are read where they lie, and a user who is in two places is refused."""
    overrides, exemptions = tmp_path / "user-overrides.yaml", tmp_path / "lifecycle-exemptions.yaml"
    overrides.write_text("# overrides\nada:\n  max_runtime_h: null\n  max_cpu: 5\n")
    exemptions.write_text("exemptions: # none\n")
    with pytest.raises(LimitsFileInvalid, match=r"user-overrides.yaml:4: user_overrides.ada.max_cpu is not a key"):
        LimitsFile(write(MEMBERS))
    overrides.write_text("ada:\n  max_runtime_h: null\n  max_mig_instances: 4\n")
    exemptions.write_text(
        "exemptions:\n- username: bob\n  category: waiver\n  exempt_from:\n    - idle_timeout_h\n"
        "  reason: training\n  approved_by: root\n  approved_on: 2026-02-14\n  expires_on: null\n"
    )
    file = LimitsFile(write(MEMBERS), clock=lambda: NOW)
    assert file.limits("ada").max_runtime_seconds is None
    assert file.limits("ada").max_gpu_equivalents == 4
    assert file.limits("bob").idle_seconds is None
    assert [note.split(" ")[0] for note in file.notes] == ["user-overrides.yaml:3:"]
    with pytest.raises(LimitsFileInvalid, match="ada has overrides in the limits file too"):
        LimitsFile(write(MEMBERS + "user_overrides:\n  ada:\n    max_cpus: 4\n"))
    overrides.write_text("# nobody\n")
    assert LimitsFile(write(MEMBERS)).limits("ada").max_runtime_seconds == 24 * HOUR


def test_a_user_in_two_groups_is_told(write: Write) -> None:
    """Of two groups the one furthest down counts, and the admin is told."""
    file = LimitsFile(write("groups:\n  a:\n    members: [Ada]\n    max_cpus: 4\n  b:\n    members: [ada]\n"))
    assert file.limits("ada").group == "b"
    assert file.notes == ("limits.yaml: ada is a member of a and b; b counts, being furthest down",)


def test_a_file_that_everybody_may_write(write: Write) -> None:
    """Whoever may write the file could raise their own limits, so it is refused."""
    path = write("defaults:\n")
    path.chmod(0o666)
    with pytest.raises(LimitsFileInvalid, match="chmod o-w"):
        LimitsFile(path)


def test_no_file(tmp_path: Path) -> None:
    """Without a file at the start the hub does not start, and says which file it wants."""
    with pytest.raises(LimitsFileInvalid, match=r"limits.yaml: cannot be read: No such file"):
        LimitsFile(tmp_path / "limits.yaml")


def test_an_edit_takes_effect_without_a_restart(write: Write) -> None:
    """The next question after an edit is answered from the new contents, and one event tells of it."""
    events = Events()
    file = LimitsFile(write("defaults:\n  max_cpus: 1\n"), recorder=events, clock=lambda: NOW)
    assert file.limits("ada").max_cpus == 1
    path = write("defaults:\n  max_cpus: 2\n")
    assert file.limits("ada").max_cpus == 2
    assert file.limits("ada").max_cpus == 2
    assert events.kept == [("config.change", {"file": str(path), "result": "loaded"})]
    assert file.problem == ""


def test_nobody_waits_for_a_changed_file_to_be_read(write: Write) -> None:
    """Where it is read apart, once per change, the limits of before are in force until that is done."""
    begun: list[Callable[[], None]] = []
    file = LimitsFile(write("defaults:\n  max_cpus: 1\n"), clock=lambda: NOW, apart=begun.append)
    write("defaults:\n  max_cpus: 2\n")
    assert [file.limits("ada").max_cpus for _ in range(3)] == [1, 1, 1]
    (read,) = begun
    write("defaults:\n  max_cpus: 30\n")  # again, before the reading began
    read()
    assert file.limits("ada").max_cpus == 30
    begun.pop()()
    assert file.limits("ada").max_cpus == 30


def test_a_bad_edit_keeps_the_last_good_one(write: Write) -> None:
    """The limits of before stay, the problem is shown until it is mended, and both are events."""
    events = Events()
    file = LimitsFile(write("defaults:\n  max_cpus: 1\n"), recorder=events, clock=lambda: NOW)
    write("defaults:\n  max_cpus: many\n")
    assert file.limits("ada").max_cpus == 1
    assert "limits.yaml:2: defaults.max_cpus must be a number of processors" in file.problem
    assert [details["result"] for _, details in events.kept] == ["refused"]
    write("defaults:\n  max_cpus: 1\n")  # back to what was in force: the problem is over, and that is an event too
    assert file.problem == ""
    assert [details["result"] for _, details in events.kept] == ["refused", "loaded"]


def test_a_file_that_vanishes_keeps_the_last_good_one(write: Write) -> None:
    """Removing the file does not lift the limits."""
    file = LimitsFile(write("defaults:\n  max_cpus: 1\n"), clock=lambda: NOW)
    path = write("defaults:\n  max_cpus: 1\n")
    path.unlink()
    assert file.limits("ada").max_cpus == 1
    assert "cannot be read" in file.problem


def test_a_touched_file_is_no_event(write: Write) -> None:
    """Equal contents under a new date change nothing."""
    events = Events()
    file = LimitsFile(write("defaults:\n"), recorder=events, clock=lambda: NOW)
    write("defaults:\n\n")
    assert file.limits("ada") == Limits()
    assert events.kept == []


@pytest.mark.parametrize(
    ("age", "cpus"), [(0.0, 1), (0.9, 1), (1.1, 2), (-5.0, 2)], ids=["now", "just now", "settled", "from the future"]
)
def test_a_file_being_written_is_left_alone_for_a_second(write: Write, age: float, cpus: int) -> None:
    """A change of this very moment may be half a file; a date in the future must not keep a change out for ever."""
    file = LimitsFile(write("defaults:\n  max_cpus: 1\n"), clock=lambda: NOW)
    path = write("defaults:\n  max_cpus: 2\n")
    os.utime(path, (NOW - age, NOW - age))
    assert file.limits("ada").max_cpus == cpus


def test_the_hosts_groups_are_asked_only_if_the_file_names_any(write: Write) -> None:
    """A directory service is not asked at every launch for nothing."""
    asked: list[str] = []

    def groups(user: str) -> frozenset[str]:
        asked.append(user)
        return frozenset({"staff"})

    LimitsFile(write(MEMBERS), linux_groups=groups).limits("ada")
    assert asked == []
    file = LimitsFile(write(MEMBERS + "    linux_groups: [staff]\n"), linux_groups=groups)
    assert file.limits("ada").group == "researcher"
    assert asked == ["ada"]


def test_a_directory_service_is_waited_for_once() -> None:
    """After the first time a user's groups are those of a minute ago, and asked again without anybody waiting."""
    now, asked, begun = [0.0], [], list[Callable[[], None]]()
    present = {"staff"}

    def ask(user: str) -> frozenset[str]:
        asked.append(user)
        return frozenset(present)

    groups = HostGroups(ask, clock=lambda: now[0], apart=begun.append)
    assert [groups("ada"), groups("ada"), groups("bob")] == [{"staff"}] * 3
    assert asked == ["ada", "bob"]
    now[0], present = 60.0, {"guests"}
    assert [groups("ada"), groups("ada")] == [{"staff"}] * 2
    assert (asked, len(begun)) == (["ada", "bob"], 1)
    begun.pop()()
    assert groups("ada") == {"guests"}


def test_groups_of_this_host() -> None:
    """The host's own user is in a group; a user that the host does not know is in none."""
    assert "root" in linux_groups_of("root")
    assert linux_groups_of("no-such-user\x00") == frozenset()
    assert linux_groups_of("no-such-user") == frozenset()


@settings(max_examples=60)
@given(cut=st.integers(0, 1800))
def test_a_file_cut_anywhere_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Any beginning of a good file either means something or is refused with a line; nothing else happens."""
    path = tmp_path_factory.mktemp("cut") / "limits.yaml"
    path.write_bytes((DATA / "limits.yaml").read_bytes()[:cut])
    try:
        LimitsFile(path)
    except LimitsFileInvalid as error:
        problems = error.problems
    else:
        problems = ("none",)
    assert problems


@settings(max_examples=100)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    """Whatever the bytes, reading them gives data or the one error."""
    try:
        line = parse(content).line(("no", "such", 3))
    except YamlRefused as error:
        line = error.line
    assert line >= 1


def test_copying_the_old_folder_is_enough(tmp_path: Path) -> None:
    """The old file with its members files gives everybody the group that they had."""
    shutil.copy(DATA / "limits-of-ds01.yaml", tmp_path / "resource-limits.yaml")
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "researcher.members").write_text("ada\n")
    (tmp_path / "groups" / "archived.members").write_text("eve\n")
    file = LimitsFile(tmp_path / "resource-limits.yaml")
    assert [file.limits(user).group for user in ("ada", "eve")] == ["researcher", "student"]
