"""What all tests share: how the engine's tests are told apart, and settings of hypothesis."""

from __future__ import annotations

import os
import subprocess
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the browser's tests last: Playwright keeps an event loop in the main thread, in which no other can run."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@cache
def _engine_answers() -> bool:
    asked = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, check=False)
    return asked.returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, rather than skip, an engine test without an engine: `make test` brings one, so its absence is a defect."""
    if item.get_closest_marker("engine") and not _engine_answers():
        pytest.fail("no Docker Engine answers; run `make test`, or `dev/engine.sh up` first")
