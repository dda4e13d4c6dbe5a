"""The reference of launch options says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ds01_spawner.core import options, scaffold
from ds01_spawner.narration import STAGES
from ds01_spawner.services.portal import creation

PAGE = (Path(__file__).parents[2] / "docs/reference/launch-options.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """Return a table's rows by their first cell."""
    table = PAGE.split(heading, 1)[1].split("\n\n## ")[0].split("\n\n# ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in cells}


def test_every_option_is_described_with_its_default_and_bounds() -> None:
    """The names, the sentences, the defaults and the numbers are the code's own."""
    described = rows("# Launch options")
    assert list(described) == [field.name for field in options.FIELDS]
    for field in options.FIELDS:
        _, _, meaning, accepted, default = described[field.name]
        assert meaning.replace("`", "").replace("'", "") == field.help.replace("'", "")
        if field.bounds:
            assert accepted == f"a whole number from {field.bounds[0]} to {field.bounds[1]}"
        if field.default is None:
            assert "must be given" in default
        else:
            assert default == (f"`{field.default}`" if field.default != "" else "nothing")


def test_every_field_of_a_new_project_is_described() -> None:
    """The form's fields and the kinds are the code's own."""
    described = rows("# Fields of a new project")
    asked = set(re.findall(r'get_body_argument\("(\w+)"', inspect.getsource(creation.NewProjectPage.post)))
    assert set(described) == asked
    assert re.findall(r"`(\w+)`", described["kind"][2]) == list(scaffold.KINDS)


def test_the_stages_of_a_launch_are_named() -> None:
    """A program that follows a launch finds every stage."""
    assert [name for _, name in STAGES] == re.findall(r"`(build|prepare|wait|start)`", PAGE)
