"""The reference page of the limits file is what the schema says."""

import importlib.util
from pathlib import Path

import yaml

from ds01_spawner.adapters.limitsfile import LimitsFile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "limits.md"


def test_the_page_is_the_schema() -> None:
    """Whoever changes a key or its description prints the page anew."""
    spec = importlib.util.spec_from_file_location("limits_reference", ROOT / "dev" / "limits_reference.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert PAGE.read_text() == script.page(), "run: python dev/limits_reference.py > docs/reference/limits.md"


def test_the_example_is_a_limits_file(tmp_path: Path) -> None:
    """The example of the page can be used as it is."""
    example = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "limits.yaml"
    path.write_text(example)
    file = LimitsFile(path)
    assert file.notes == ()
    assert (
        file.limits("ada").max_gpu_equivalents == yaml.safe_load(example)["groups"]["researcher"]["max_gpu_equivalents"]
    )
