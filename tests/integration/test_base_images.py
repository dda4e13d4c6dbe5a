"""The base images that projects start from: those for the processor are built and verified, each inside itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "images"
LARGE = pytest.mark.skipif("DS01_ALL_IMAGES" not in os.environ, reason="minutes of download; set DS01_ALL_IMAGES=1")
FOLDERS = sorted(folder.name for folder in IMAGES.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", FOLDERS)
def test_every_base_has_its_three_files(name: str) -> None:
    """A Dockerfile, one line of description, and a verify script that Python can read."""
    folder = IMAGES / name
    assert (folder / "Dockerfile").read_text().startswith("# ")
    (line,) = (folder / "description").read_text().splitlines()
    assert 10 < len(line) < 80
    compile((folder / "verify").read_text(), "verify", "exec")


@pytest.mark.engine
@pytest.mark.timeout(900)  # the framework's wheels are hundreds of megabytes
@pytest.mark.parametrize("name", ["python", "jax-cpu", pytest.param("tensorflow-cpu", marks=LARGE)])
def test_a_base_for_the_processor_builds_and_verifies(name: str) -> None:
    """Built from the local Debian base, the image passes its own verify script as an ordinary user."""
    base = {"BASE": "ds01/python:13"} if name == "python" else {}
    built = subprocess.run(
        [IMAGES / "build.sh", name], env={**os.environ, **base}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "verified: " in built.stdout
    labels = subprocess.run(
        ["docker", "image", "inspect", "--format", '{{index .Config.Labels "ds01.base.name"}}', f"ds01/{name}:latest"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert labels.stdout.strip() == name
