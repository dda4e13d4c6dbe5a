"""A real browser, on a real hub: chromium as Debian packages it, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from ds01_spawner.adapters.nvml import simulated_uuid
from ds01_spawner.core.project import server_name
from tests.integration.conftest import Site, docker, pytest_runtest_makereport, running_site

__all__ = ["Site", "docker", "pytest_runtest_makereport"]

CONFIG = Path(__file__).with_name("hub_config.py")
AXE = Path(__file__).parents[2] / ".venv/lib/axe/node_modules/axe-core/axe.min.js"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_MILLISECONDS = 20_000
LAUNCH_MILLISECONDS = 120_000
PROJECTS = "/services/projects/"
PEOPLE = frozenset(
    [
        "ada", "eve", "lea", "mona", "nils", "otto", "pia", "quentin", "rita",
        "sven", "tina", "uma", "vera", "will", "xena", "yara", "zoe", "abel",
        "bea", "carl", "dana", "erik", "fred", "gus", "hana", "ines", "jo",
        "kim", "victim", "mallory", "forge", "gets", "linda", "huge", "cspia", "axel-light",
        "axel-dark", "ben", "cleo", "dora", "hugo", "wanda", "finn", "kai", "emil", "eli",
    ]
)  # fmt: skip
"""Everybody in the browser tests and the screenshots."""


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """One running hub with limits that can be reached."""
    forget_images()
    with running_site(CONFIG) as shared:
        yield shared
    forget_images()


def forget_images() -> None:
    """Remove what an earlier run built for the tests' people, so that every build here is one."""
    wanted = ("--filter", "label=ds01.managed=true", "--format", "{{.Repository}}:{{.Tag}}")
    built = [
        name for name in docker("images", *wanted).split() if name.split("/")[0] in {f"ds01-{who}" for who in PEOPLE}
    ]
    if built:
        subprocess.run(["docker", "image", "rm", *built], capture_output=True, check=False)


def chromium() -> str:
    """Return the browser's path, or fail with what to install."""
    found = os.environ.get("DS01_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.fail("there is no chromium here; run dev/browser.sh")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each person gets a context of their own in it."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield started
        started.close()


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

    def launch(self, project: str, device: str = "CPU only") -> Page:
        """Launch a project through its form and return when JupyterLab is there."""
        self.visit(f"/hub/spawn/{self.user}/{server_name(project)}")
        self.page.get_by_label(device).check()
        self.page.get_by_role("button", name="Launch").click()
        self.page.wait_for_url(f"**/user/{self.user}/{server_name(project)}/lab**", timeout=LAUNCH_MILLISECONDS)
        return self.page

    def inside(self, project: str, command: str) -> None:
        """Run a shell command in a running project, as a terminal of theirs would."""
        container = self.site.container(self.user, project, "{{.ID}}")
        uid = str(self.site.account(self.user).uid)
        docker("exec", "--user", uid, "--env", f"HOME=/home/{self.user}", container, "sh", "-c", command)

    def install(self, project: str, package: str) -> None:
        """Install a Python package by hand."""
        self.inside(project, f"python3 -m pip install --quiet --user {package}")

    def retire_all(self) -> None:
        """Retire everything of theirs, without questions."""
        person = self.site.person(self.user)
        for server in list(person.servers()):
            person.api("DELETE", f"/users/{self.user}/servers/{server}")
        wait_for(lambda: not person.servers())


def run_cell(page: Page, code: str) -> None:
    """Open a notebook in JupyterLab, run one cell in it, and return once it computes."""
    page.get_by_role("button", name="Python 3").or_(page.get_by_text("Python 3").first).first.click(timeout=60_000)
    page.get_by_text("| Idle").first.wait_for(timeout=60_000)  # a cell that is run before is never run
    page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    page.get_by_text("[*]:").first.wait_for(timeout=60_000)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once something is true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.2)


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Visitor]]:
    """Let people come, each with a browser of their own, and leave at the end."""
    contexts: list[BrowserContext] = []

    def come(user: str, *, log_in: bool = True, **options: object) -> Visitor:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(PAGE_MILLISECONDS)
        contexts.append(context)
        visitor = Visitor(site, user, context.new_page())
        return visitor.log_in() if log_in else visitor

    yield come
    for context in contexts:
        context.close()


@pytest.fixture
def devices_taken(site: Site) -> Iterator[None]:
    """Every device of the host is somebody else's for the test's duration."""
    with taken(site):
        yield


@contextmanager
def taken(site: Site, *numbers: int) -> Iterator[None]:
    """Hold simulated devices of a site, all or those named, with a container that is not the hub's."""
    uuids = ",".join(simulated_uuid(site.name, number) for number in numbers or range(4))
    holder = docker("run", "--detach", "--label", f"ds01.gpu.uuids={uuids}", "ds01/debian:13", "sleep", "600")
    try:
        yield
    finally:
        docker("rm", "--force", holder)


@pytest.fixture(scope="session")
def base_image() -> Iterator[str]:
    """An image that projects can start from: it has pip and the label that offers it."""
    image = "ds01/tests-python:latest"
    recipe = 'FROM ds01/python:13\nLABEL ds01.base.name="tests-python" ds01.base.description="Python for the tests"\n'
    subprocess.run(["docker", "buildx", "build", "--load", "-q", "-t", image, "-"], input=recipe, text=True, check=True)
    yield image
    subprocess.run(["docker", "image", "rm", image], capture_output=True, check=False)
