"""The reference says what the code says: every argument, trait, label and event is there, and nothing else is."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from ds01_spawner import errors
from ds01_spawner.adapters.limitsfile import read_contents
from ds01_spawner.config import configure
from ds01_spawner.core import labels
from ds01_spawner.core.events import KINDS
from ds01_spawner.core.limits import Held, Limits, check
from ds01_spawner.core.model import Holder, Request
from ds01_spawner.spawner import DS01Spawner

DOCS = Path(__file__).parents[2] / "docs"
ROOT = DOCS.parent


def first_column(page: str, heading: str) -> list[str]:
    """Return the code words in the first column of the table under a heading."""
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def test_every_argument_of_configure_is_documented_with_its_default() -> None:
    """The table of configure's arguments is its signature."""
    page = (DOCS / "reference" / "configuration.md").read_text()
    documented = first_column(page, "`ds01_spawner.configure`")
    parameters = {name: p for name, p in inspect.signature(configure).parameters.items() if name != "c"}
    assert documented == list(parameters)


def test_every_trait_of_the_spawner_is_documented() -> None:
    """The table of traits is what the class adds to DockerSpawner, and the one default it changes for admins."""
    page = (DOCS / "reference" / "configuration.md").read_text()
    own = [name for name in DS01Spawner.class_own_traits(config=True) if name in vars(DS01Spawner)]
    assert first_column(page, "Traits of `DS01Spawner`") == [*own, "start_timeout"]


def test_every_label_is_documented() -> None:
    """The two tables of labels are the names in core/labels.py."""
    page = (DOCS / "reference" / "labels.md").read_text()
    documented = {*first_column(page, "On containers"), *first_column(page, "On images")}
    named = {value for value in vars(labels).values() if isinstance(value, str) and value.startswith("ds01.")}
    named -= {labels.PREFIX}
    assert documented == named


def test_every_event_is_documented() -> None:
    """The table of events is the vocabulary of the event log."""
    page = (DOCS / "reference" / "events.md").read_text()
    assert set(first_column(page, "Kinds")) == set(KINDS)


def test_every_event_is_written_by_somebody() -> None:
    """A kind that nothing writes would promise a report that stays empty."""
    code = "".join(path.read_text() for path in (ROOT / "ds01_spawner").rglob("*.py") if path.name != "events.py")
    assert [kind for kind in KINDS if f'"{kind}"' not in code] == []


def test_every_reason_of_a_refusal_is_documented() -> None:
    """The table of reasons is the tree of exceptions, with the status of each, less its three inner nodes."""
    page = (DOCS / "reference" / "refusals.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")]
    documented = {row[1].strip("`"): row[2] for row in rows if row[2].isdigit()}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DS01Error)]
    inner = {errors.DS01Error, errors.Refusal, errors.Fault}
    assert documented == {kind.reason: str(kind.status) for kind in kinds if kind not in inner}


def test_every_limit_that_refuses_a_device_is_documented_with_its_sentence() -> None:
    """Each sentence of the table is the beginning of what the limit of that name says."""
    page = (DOCS / "reference" / "refusals.md").read_text()
    section = page.split("## Limits that refuse a device\n", 1)[1]
    rows = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| `")]
    documented = {row[1].strip("`"): row[2] for row in rows}
    me = Holder("ada", "new")
    most = Limits(
        max_containers_per_user=3,
        max_gpu_slots_per_container=2,
        max_gpu_equivalents=Fraction(2),
    )
    cases = [
        (most, Request(me), [Held("a"), Held("b"), Held("c")]),
        (replace(most, allow_full_gpu=False), Request(me, 1, "gpu"), []),
        (most, Request(me, 3, "gpu"), []),
        (most, Request(me, 1, "gpu"), [Held("thesis", Fraction(2))]),
    ]
    for limits, request, holding in cases:
        with pytest.raises(errors.LimitReached) as refusal:
            check(limits, request, holding)
        assert str(refusal.value).startswith(documented.pop(refusal.value.limit))
    assert not documented


def test_the_examples_of_old_limits_files_are_read_as_shown(tmp_path: Path) -> None:
    """The page on moving from DS01 shows what the loader says of its two files, word for word."""
    page = (DOCS / "how-to" / "move-from-ds01.md").read_text()
    loads, refused = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    notes, problems = re.findall(r"```\n(resource-limits.*?)\n```", page, re.DOTALL)
    path = tmp_path / "resource-limits.yaml"
    path.write_text(loads)
    assert "\n".join(read_contents(path).notes) == notes
    path.write_text(refused)
    with pytest.raises(errors.LimitsFileInvalid) as refusal:
        read_contents(path)
    assert "\n".join(refusal.value.problems) == problems


@pytest.mark.parametrize(
    "page", sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")]), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """A relative link names a file that exists."""
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
