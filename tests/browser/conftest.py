"""A real browser, on a real hub: chromium as Debian packages it, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.integration.conftest import Site, make_site, pytest_runtest_makereport, site

__all__ = ["make_site", "pytest_runtest_makereport", "site"]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_MILLISECONDS = 20_000
PROJECTS = "/services/projects/"


def chromium() -> str:
    """Return the browser's path, or fail with what to install."""
    found = os.environ.get("DS01_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.fail("there is no chromium here; install it: apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each person gets a context of their own in it."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield running
        running.close()


@dataclass
class Visitor:
    """A person at a browser.

    Attributes:
        site: where.
        user: login name.
        page: what they look at.
    """

    site: Site
    user: str
    page: Page

    @property
    def context(self) -> BrowserContext:
        """Their browser, with its cookies."""
        return self.page.context

    def log_in(self) -> Visitor:
        """Log in as everybody does; the page after it is the one people begin with."""
        self.page.goto(f"{self.site.hub.url}/hub/login")
        self.page.get_by_label("Username").fill(self.user)
        self.page.get_by_label("Password").fill(self.site.password)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_load_state()
        return self

    def visit(self, path: str = PROJECTS) -> Page:
        """Open one of the site's pages."""
        self.page.goto(f"{self.site.hub.url}{path}")
        return self.page


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Visitor]]:
    """Let people come, each with a browser of their own, and leave at the end."""
    contexts: list[BrowserContext] = []

    def come(user: str, **options: object) -> Visitor:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(PAGE_MILLISECONDS)
        contexts.append(context)
        return Visitor(site, user, context.new_page()).log_in()

    yield come
    for context in contexts:
        context.close()


@pytest.fixture
def screenshots() -> Path | None:
    """Where to leave pictures for a look, when that is asked for."""
    where = os.environ.get("DS01_SCREENSHOTS")
    return Path(where) if where else None
