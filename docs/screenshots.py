"""Writes the pictures of the docs, light and dark, from a real hub in a real browser: ``make screenshots``.

It is also the tutorial, tried: somebody without a project makes one, adds a package, launches, and imports it.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

from ds01_spawner.core.project import server_name  # noqa: E402
from tests.browser.conftest import (  # noqa: E402
    CONFIG,
    FLAGS,
    LAUNCH_MILLISECONDS,
    PROJECTS,
    Visitor,
    chromium,
    docker,
    forget_images,
    run_cell,
    taken,
)
from tests.integration.conftest import Site, running_site  # noqa: E402

CULL_CONFIG = CONFIG.with_name("cull_config.py")
PICTURES = ROOT / "docs/pictures"
SIZE = {"width": 1100, "height": 760}
PROJECT = "first-steps"


class Camera:
    """Takes a picture of a page in light and in dark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, page: Page, name: str, *, full: bool = False) -> None:
        """Write ``<name>-light.png`` and ``<name>-dark.png``."""
        for scheme in ("light", "dark"):
            page.evaluate("scheme => document.documentElement.setAttribute('data-bs-theme', scheme)", scheme)
            page.wait_for_timeout(200)
            page.screenshot(path=self.folder / f"{name}-{scheme}.png", full_page=full)
        print(f"screenshots: {name}", flush=True)


def main() -> None:
    """Take every picture."""
    subprocess.run([ROOT / "images/build.sh", "python"], env={**os.environ, "BASE": "ds01/python:13"}, check=True)
    forget_images()
    camera = Camera(PICTURES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        with running_site(CONFIG) as site:
            tutorial(site, browser, camera)
            waiting(site, browser, camera)
            failing(site, browser, camera)
            asking(site, browser, camera)
            many(site, browser, camera)
        with running_site(CULL_CONFIG) as site:
            retiring(site, browser, camera)
        browser.close()


@contextmanager
def visitor(site: Site, browser: Browser, user: str, **options: object) -> Iterator[Visitor]:
    """Somebody at a browser."""
    context = browser.new_context(viewport=SIZE, **options)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    yield Visitor(site, user, context.new_page()).log_in()
    context.close()


def tutorial(site: Site, browser: Browser, camera: Camera) -> None:
    """From login to a notebook with a package of one's own."""
    with visitor(site, browser, "ada") as ada:
        page = ada.page
        camera.take(page, "empty")
        page.get_by_role("link", name="Create the first project").click()
        page.get_by_label("Name", exact=True).fill(PROJECT)
        page.get_by_label("Something else").check()
        page.get_by_label("Plain Python").check()
        camera.take(page, "new-project", full=True)
        page.get_by_role("button", name="Create project").click()
        expect(page.get_by_text("was created")).to_be_visible()
        camera.take(page, "created")
        page.get_by_role("link", name=PROJECT, exact=True).click()
        page.get_by_label("Python packages").fill("cowsay")
        page.get_by_role("button", name="Add and build").click()
        log, built = page.get_by_label("The build's last lines"), page.locator("#live").get_by_text("built", exact=True)
        expect(log.or_(built).first).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "building", full=True)
        expect(page.locator("#live").get_by_text("built", exact=True)).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        page.get_by_label("Keep the present image as").fill("experiment-42")
        camera.take(page, "environment", full=True)
        page.get_by_role("button", name="Keep").click()
        expect(page.get_by_text("is kept as")).to_be_visible()
        page.get_by_role("link", name="Launch", exact=True).click()
        camera.take(page, "form")
        page.get_by_label("CPU only").check()
        page.get_by_role("button", name="Launch").click()
        page.wait_for_url("**/lab**", timeout=LAUNCH_MILLISECONDS)
        page.get_by_role("button", name="Python 3").or_(page.get_by_text("Python 3").first).first.click(timeout=60_000)
        cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
        cell.click()
        page.keyboard.insert_text('import cowsay\ncowsay.cow("It is there")')
        page.keyboard.press("Shift+Enter")
        expect(page.get_by_text("| It is there |").first).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        if page.get_by_role("button", name="Hide notification").count():
            page.get_by_role("button", name="Hide notification").first.click()
        page.screenshot(path=PICTURES / "notebook.png")
        print("screenshots: notebook", flush=True)
        ada.visit()
        expect(page.get_by_text("running", exact=True)).to_be_visible()
        camera.take(page, "running")
        page.get_by_role("button", name=f"Retire {PROJECT}").click()
        expect(page.get_by_text("was retired")).to_be_visible()
        camera.take(page, "retired")


def waiting(site: Site, browser: Browser, camera: Camera) -> None:
    """A launch that waits for a device."""
    site.project("ben", "training")
    with taken(site), visitor(site, browser, "ben") as ben:
        page = ben.visit(f"/hub/spawn/ben/{server_name('training')}")
        page.get_by_label("Whole GPU").check()
        camera.take(page, "form-full")
        page.get_by_role("button", name="Launch").click()
        expect(page.get_by_role("status")).to_contain_text("in the queue", timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "waiting")
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_url("**/hub/spawn/**")


def failing(site: Site, browser: Browser, camera: Camera) -> None:
    """A launch whose image does not build."""
    # Other surroundings each time: a step that was built here before would take no time to watch.
    fresh = f"FROM ds01/python:13\nENV PICTURE={secrets.token_hex(4)}\n"
    recipe = fresh + "RUN sleep 8\nRUN python3 -m pip install no-such-package-anywhere-42\n"
    site.project("cleo", "broken", dockerfile=recipe)
    with visitor(site, browser, "cleo") as cleo:
        page = cleo.visit(f"/hub/spawn/cleo/{server_name('broken')}")
        page.get_by_label("CPU only").check()
        page.get_by_role("button", name="Launch").click()
        expect(page.get_by_role("status")).to_contain_text("step 2 of ", timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "launching")
        expect(page.get_by_role("alert")).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "failed", full=True)


def asking(site: Site, browser: Browser, camera: Camera) -> None:
    """A retire that would lose something."""
    site.project("eli", "half-done", dockerfile="FROM ds01/python:13\n")
    with visitor(site, browser, "eli") as eli:
        run_cell(eli.launch("half-done"), "import time; time.sleep(600)")
        eli.inside("half-done", "mkdir ~/results; touch ~/results/a.csv ~/results/b.csv")
        eli.install("half-done", "iniconfig")
        eli.visit("/hub/home").get_by_role("link", name="Retire half-done").click()
        expect(eli.page.get_by_text("1 notebook is computing")).to_be_visible()
        camera.take(eli.page, "question")
        eli.page.get_by_role("button", name="Retire anyway").click()
        eli.page.get_by_role("link", name="half-done", exact=True).first.click()
        expect(eli.page.get_by_text("installed by hand went with its container")).to_be_visible()


def many(site: Site, browser: Browser, camera: Camera) -> None:
    """Several projects, on a wide screen and on a phone."""
    for name in ("climate-model", "Übung 3", "مشروع البحث", "thesis", "vision"):
        site.project("dora", name, dockerfile="FROM ds01/debian:13\n")
    with visitor(site, browser, "dora") as dora:
        dora.launch("vision")
        dora.visit(f"{PROJECTS}")
        expect(dora.page.get_by_text("running", exact=True)).to_be_visible()
        camera.take(dora.page, "projects", full=True)
        dora.visit("/hub/spawn")
        camera.take(dora.page, "spawn-form", full=True)
        dora.visit("/hub/home")
        camera.take(dora.page, "home")
        dora.visit(f"{PROJECTS}")
        dora.page.set_viewport_size({"width": 390, "height": 800})
        camera.take(dora.page, "phone")
        dora.retire_all()


def retiring(site: Site, browser: Browser, camera: Camera) -> None:
    """A project that works for a while, is left alone, warned, and retired."""
    site.project("finn", "training")
    with visitor(site, browser, "finn") as finn:
        finn.launch("training", "Whole GPU").goto("about:blank")
        inside = ("exec", "--detach", site.container("finn", "training", "{{.ID}}"))
        docker(*inside, "timeout", "40", "sh", "-c", "while :; do :; done")
        page = finn.visit()
        expect(page.get_by_text(re.compile(r"In use \(.*cpu"))).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        expect(page.get_by_text("Will be retired at")).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "idle-warned")
        expect(page.get_by_role("region", name="training was retired")).to_be_visible(timeout=LAUNCH_MILLISECONDS)
        camera.take(page, "idle-retired")


if __name__ == "__main__":
    main()
