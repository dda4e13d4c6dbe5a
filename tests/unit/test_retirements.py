"""What people are told of servers that were retired for them, and the picture of their signals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ds01_spawner.adapters.portalnotes import Dismissed, LostPackages
from ds01_spawner.core import packages, picture, wording
from ds01_spawner.core.activity import Counting, Thresholds, Use
from ds01_spawner.core.idleness import Clock, Reason, Retire
from ds01_spawner.core.idlerules import Rule, Rules
from ds01_spawner.core.retirements import SHOWN_SECONDS, Retirement, choose, decode

SVG = "{http://www.w3.org/2000/svg}"
SAMPLES = [
    {"ago": 120, "use": "active", "gpu": 80.0, "cpu": 0.4},
    {"ago": 60, "use": "unknown"},
    {"ago": 0, "use": "idle", "cpu": 0.001},
]
ENTRY: dict[str, Any] = {
    "user": "ada",
    "server": "thesis",
    "project": "<b>Thesis</b>",
    "at": 1000.0,
    "when": "Monday 23 November, 14:35",
    "text": "It was retired.",
    "why": ["Nothing has used it for 30 minutes."],
    "samples": SAMPLES,
}


def told(**changes: Any) -> Retirement:
    """Return a retirement of ada's thesis."""
    found = decode(ENTRY | changes)
    assert found is not None
    return found


def test_a_retirement_is_shown_until_it_is_of_no_use() -> None:
    """Not when the project runs again, not when it was dismissed, not after a week; the newest comes first."""
    old, new = told(), told(server="other", at=2000.0)

    def shown(now: float = 3000.0, active: tuple[str, ...] = (), dismissed: tuple[Retirement, ...] = ()) -> list[str]:
        found = choose((old, new), active=active, dismissed=dismissed.__contains__, now=now)
        return [one.server for one in found]

    assert shown() == ["other", "thesis"]
    assert shown(active=("thesis",)) == ["other"]
    assert shown(dismissed=(new,)) == ["thesis"]
    assert shown(now=1000.0 + SHOWN_SECONDS) == ["other"]


@pytest.mark.parametrize(
    "damage",
    [
        {"at": "noon"}, {"why": None}, {"samples": "many"}, {"samples": [{}]}, {"samples": 5},
        {"samples": [{"ago": 1, "use": ["idle"]}]}, {"samples": [{"ago": float("inf"), "use": "idle"}]},
    ],
)  # fmt: skip
def test_an_entry_that_is_none_is_passed_over(damage: dict[str, Any]) -> None:
    """One damaged entry, such as a file of an older version, takes nobody's page away."""
    assert decode(ENTRY | damage) is None
    assert decode({key: value for key, value in ENTRY.items() if key != "when"}) is None
    assert told(samples=[]).picture == ""


def test_the_picture_has_a_bar_for_each_sample_and_says_so_in_words() -> None:
    """Height follows the busier of GPU and processor; the unknown is hollow; the title is the text alternative."""
    root = ET.fromstring(picture.draw(SAMPLES))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "The last 3 minutes in 3 samples: 1 in use, 1 idle, 1 not known."
    bars = root.findall(f"{SVG}rect")[:3]
    assert [float(bar.get("height", "")) for bar in bars] == [38.4, 3.8, 3.8]
    assert [bar.get("fill") == "none" for bar in bars] == [False, True, False]
    words = [text.text for text in root.findall(f"{SVG}text")]
    assert words == ["3 minutes before", "the end", "in use", "idle", "not known"]
    assert {text.get("fill") for text in root.findall(f"{SVG}text")} == {"currentColor"}


def test_nothing_from_outside_gets_into_the_picture() -> None:
    """A file that somebody changed gives bars or nothing, never markup."""
    hostile = '"/><script>alert(1)</script>'
    drawn = picture.draw([{"ago": 1, "use": hostile, "gpu": 5}, {"ago": 0, "use": "idle"}])
    assert "script" not in drawn
    assert decode(ENTRY | {"samples": [{"ago": 0, "use": "idle", "gpu": hostile}]}) is None


@pytest.mark.parametrize(("background", "least"), [("#ffffff", 3.0), ("#212529", 3.0)])
def test_the_picture_is_told_from_a_light_and_a_dark_page(background: str, least: float) -> None:
    """Every colour in it has the contrast that graphics need."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for rect in ET.fromstring(picture.draw(SAMPLES)).iter(f"{SVG}rect"):
        colour = rect.get("stroke") or rect.get("fill") or ""
        light, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, colour


def test_the_limits_and_what_counts_are_told_as_they_were() -> None:
    """Demand, group, no limits, a server without a device, and a group for which only the GPU counts."""
    decision = Retire(Reason.LIMIT, Clock(900, 0, Use.IDLE), 900, in_demand=True, rule=Rule.IDLE)
    rules = Rules(idle_seconds=1800, run_seconds=None, thresholds=Thresholds(gpu_percent=10))
    assert wording.limits_in_force(decision, rules, "student") == (
        "Limits of the group student: idle limit 30 minutes, 15 minutes while GPUs are scarce; no longest run."
    )
    assert "no idle limit" in wording.limits_in_force(decision, Rules(idle_seconds=None), "")
    assert "10 % or more" in wording.what_is_use(rules, has_device=True)
    on_cpu = wording.what_is_use(rules, has_device=False)
    assert "GPU" not in on_cpu
    assert "a cell that runs" in on_cpu
    only = wording.what_is_use(Rules(counting=Counting.GPU), has_device=True)
    assert only == "Only a GPU that does 5 % or more counts as use."


def test_only_warnings_that_arrived_are_told() -> None:
    """One that arrived nowhere is not claimed; the site's own channels are a message to people."""
    assert wording.warnings_before([(300.0, ())]) == ""
    arrived = wording.warnings_before([(900.0, ()), (300.0, ("page", "command", "webhook"))])
    assert arrived == "A warning 5 minutes before: shown on the hub's pages and sent as a message."


def test_a_dismissed_retirement_stays_so_and_a_later_one_is_shown(tmp_path: Path) -> None:
    """What was seen is remembered on disk, by project and moment; a damaged note hides nothing."""
    Dismissed(tmp_path).add("ada", told().project, 1000.0)
    dismissed = Dismissed(tmp_path)
    assert told() in dismissed
    assert told(at=1000.1) not in dismissed
    assert told(user="eve") not in dismissed
    for note in tmp_path.iterdir():
        note.write_text("[")
    assert told() not in dismissed


def test_what_was_dismissed_is_forgotten_when_it_is_too_old_to_be_shown(tmp_path: Path) -> None:
    """The folder does not grow for ever; what is still shown elsewhere stays dismissed."""
    dismissed = Dismissed(tmp_path)
    now = 2 * SHOWN_SECONDS
    for project, at in (("old", now - SHOWN_SECONDS - 1), ("recent", now - SHOWN_SECONDS + 1)):
        dismissed.add("ada", project, at)
        (note,) = tmp_path.glob(f"*{project}*")
        os.utime(note, (at, at))
    dismissed.add("ada", "thesis", now)
    assert told(project="old", at=1.0) not in dismissed
    assert told(project="recent", at=now - SHOWN_SECONDS + 1) in dismissed
    assert told(project="thesis", at=now) in dismissed


def test_lost_packages_are_offered_until_the_dockerfile_has_them(tmp_path: Path) -> None:
    """The hint on the page is what went with the container and is not in its environment."""
    notes = LostPackages(tmp_path)
    assert notes.read("ada", "thesis") == ()
    notes.write("ada", "thesis", ("numpy==2.0", "polars==1.0"))
    lost = notes.read("ada", "thesis")
    assert packages.missing(lost, "FROM x\n") == lost
    added = packages.add("FROM x\n", packages.Packages(pip=("numpy==2.0",)))
    assert packages.missing(lost, added) == ("polars==1.0",)


@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM x\nRUN pip install my_pkg==1.0\n",
        "FROM x\nRUN pip install 'My.Pkg[extra]>=2'\n",
        "FROM x\nRUN pip install numpy \\\n    my-pkg\n",
        "FROM x\nRUN <<E\npip install my-pkg~=1.1\nE\n",
        packages.add("FROM x\n", packages.Packages(("MY_PKG==2.0",))),
    ],
)
def test_a_package_that_the_dockerfile_names_is_not_missing(dockerfile: str) -> None:
    """However it spells the name, whichever version it takes, and wherever it does so."""
    assert packages.missing(("my-pkg==1.0",), dockerfile) == ()


def test_what_a_dockerfile_only_resembles_is_missing() -> None:
    """A comment installs nothing, and a longer name is another package."""
    dockerfile = "FROM pytorch\n# torch comes later\nRUN pip install torch-geometric torchvision==0.20\n"
    assert packages.missing(("torch==2.8.0",), dockerfile) == ("torch==2.8.0",)


def test_no_two_people_share_a_note(tmp_path: Path) -> None:
    """However their names and their projects' are made up."""
    notes = LostPackages(tmp_path)
    notes.write("bob--lab", "x", ("secret==1",))
    assert notes.read("bob--lab", "x") == ("secret==1",)
    assert notes.read("bob", "lab--x") == ()
