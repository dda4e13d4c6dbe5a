"""My projects, as people see them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from .conftest import Site, Visitor

pytestmark = [pytest.mark.engine, pytest.mark.browser]


def test_login_leads_to_my_projects(site: Site, visit: Callable[..., Visitor]) -> None:
    """After login a person sees their own projects, their states, devices and limits, and nobody else's."""
    site.project("ada", "thesis", dockerfile="FROM ds01/debian:13\n")
    site.project("ada", "Müller 2024")
    site.project("eve", "not-hers")
    ada = visit("ada")
    expect(ada.page.get_by_role("heading", name="My projects")).to_be_visible()
    expect(ada.page.get_by_role("link", name="thesis", exact=True)).to_be_visible()
    expect(ada.page.get_by_role("link", name="Müller 2024", exact=True)).to_be_visible()
    expect(ada.page.get_by_text(re.compile(r"\d of 4 whole GPUs free"))).to_be_visible()
    assert "not-hers" not in ada.page.content()
