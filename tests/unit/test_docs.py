"""The reference says what the code says: every argument, trait, label and event is there, and nothing else is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from ds01_spawner.config import configure
from ds01_spawner.core import labels
from ds01_spawner.core.events import KINDS
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


@pytest.mark.parametrize(
    "page", sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")]), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """A relative link names a file that exists."""
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
