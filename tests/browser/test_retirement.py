"""What a person sees of idle retirement: the clock, keep-alive, demand, the warning, the end, and the way back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ds01_spawner.core.project import server_name

from .conftest import PROJECTS, Site, Visitor, docker, running_site, taken
from .test_accessibility import check

# It watches limits of a minute and a half run out.
pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(600)]

CONFIG = Path(__file__).with_name("cull_config.py")
SOON = 30_000
LIMIT = 150_000


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A hub with short limits, in place of the one that the other tests share."""
    with running_site(CONFIG) as short:
        yield short


def picture(page: Page, name: str) -> None:
    """Keep what is seen, in light and in dark, where the developer asked for it."""
    folder = os.environ.get("DS01_TEST_PICTURES")
    for scheme in ("light", "dark") if folder else ():
        page.evaluate("scheme => document.documentElement.setAttribute('data-bs-theme', scheme)", scheme)
        page.wait_for_timeout(300)
        page.screenshot(path=Path(folder or "") / f"{name}-{scheme}.png", full_page=True)


def test_the_idle_clock_runs_out_before_its_users_eyes(site: Site, visit: Callable[..., Visitor]) -> None:
    """Idle since, demand, keep-alive, warning, retirement: one page shows each of them without a reload."""
    folder = site.project("wanda", "left")
    wanda = visit("wanda")
    wanda.launch("left", "Whole GPU").goto("about:blank")  # the tab is closed
    page, hub = wanda.visit(), wanda.context.new_page()
    see_the_clock(site, page)
    see_the_warning(site, page, hub)
    assert "left will be retired at" in (folder / "RETIRING-SOON.txt").read_text()
    see_the_end(page)
    assert not (folder / "RETIRING-SOON.txt").exists()
    see_the_end_on_the_hubs_pages(site, hub)

    card = page.get_by_role("region", name="left was retired")
    card.get_by_role("link", name="Launch again").click()
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    page.wait_for_url("**/lab**", timeout=120_000)
    wanda.visit()
    expect(page.get_by_role("link", name="Open left")).to_be_visible()
    expect(card).to_be_hidden()
    wanda.retire_all()
    wanda.visit()
    expect(card).to_be_hidden()


def see_the_clock(site: Site, page: Page) -> None:
    """Idle since and retired when; halved while devices are scarce; kept by a keep-alive."""
    row = page.get_by_role("listitem").filter(has_text="left")
    expect(row).to_contain_text(re.compile(r"Idle since \d\d:\d\d\."), timeout=SOON)
    expect(row).to_contain_text(re.compile(r"Retired at \d\d:\d\d unless it is used: the idle limit is 90 seconds\."))
    with taken(site, 1, 2, 3):
        expect(row).to_contain_text("limit is 45 seconds while GPUs are scarce, instead of 90 seconds", timeout=SOON)
        picture(page, "demand")
    as_wanda = ("exec", "--user", str(site.account("wanda").uid), site.container("wanda", "left", "{{.ID}}"))
    docker(*as_wanda, "touch", "/workspace/.keep-alive")
    expect(row).to_contain_text(re.compile(r"Kept by its \.keep-alive file until \w+ \d\d:\d\d\."), timeout=SOON)
    expect(row).not_to_contain_text("Will be retired")
    picture(page, "keep-alive")
    docker(*as_wanda, "rm", "/workspace/.keep-alive")


def see_the_warning(site: Site, page: Page, hub: Page) -> None:
    """The announced end, on My projects and on the hub's Home."""
    row = page.get_by_role("listitem").filter(has_text="left")
    expect(row).to_contain_text(re.compile(r"Will be retired at \d\d:\d\d\. Use it and it stays\."), timeout=LIMIT)
    picture(page, "warned")
    hub.goto(f"{site.hub.url}/hub/home")
    expect(hub.get_by_role("row").filter(has_text="left")).to_contain_text("Will be retired at")
    picture(hub, "home-warned")


def see_the_end(page: Page) -> None:
    """The card comes by itself, says everything, and can be read in light, in dark and on a phone."""
    card = page.get_by_role("region", name="left was retired")
    expect(card).to_be_visible(timeout=LIMIT)
    expect(page.get_by_role("listitem").filter(has_text="left")).to_contain_text("not running")
    expect(card).to_contain_text(re.compile(r"\w+ \d\d \w+, \d\d:\d\d\. Nothing has used it for \d+ seconds\."))
    expect(card).to_contain_text("The project's files are safe.")
    expect(card).to_contain_text("Limits in force: idle limit 90 seconds; longest run 24 hours.")
    expect(card).to_contain_text(re.compile("Warnings? .* before: shown on the hub's pages.* written to a file"))
    expect(card.get_by_role("img", name=re.compile(r"The last .* samples: .* idle"))).to_be_visible()
    picture(page, "retired")
    for scheme in ("light", "dark"):
        page.evaluate("scheme => document.documentElement.setAttribute('data-bs-theme', scheme)", scheme)
        page.wait_for_timeout(300)  # colours fade
        check(page, f"retired, {scheme}")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, "retired-phone")


def see_the_end_on_the_hubs_pages(site: Site, hub: Page) -> None:
    """Home, and the page that is there when a link leads to the server that was retired."""
    hub.goto(f"{site.hub.url}/hub/home")
    expect(hub.get_by_role("heading", name="left was retired")).to_be_visible()
    check(hub, "home with a retirement")
    picture(hub, "home-retired")
    hub.goto(f"{site.hub.url}/user/wanda/{server_name('left')}/lab")
    expect(hub.get_by_role("heading", name="left is not running")).to_be_visible()
    expect(hub.get_by_role("img", name=re.compile("samples"))).to_be_visible()
    picture(hub, "not-running")


def test_a_retirement_is_dismissed_for_good(site: Site, visit: Callable[..., Visitor]) -> None:
    """One click takes the card away here and on the hub's page; the hint on lost packages stays in its project."""
    site.project("finn", "quiet")
    finn = visit("finn")
    finn.launch("quiet").goto("about:blank")
    install = ("python3", "-m", "pip", "install", "--quiet", "--user", "iniconfig")
    uid = str(site.account("finn").uid)
    docker("exec", "--user", uid, "--env", "HOME=/home/finn", site.container("finn", "quiet", "{{.ID}}"), *install)
    page = finn.visit()
    card = page.get_by_role("region", name="quiet was retired")
    expect(card).to_be_visible(timeout=LIMIT)
    expect(card).to_contain_text("1 Python package installed by hand went with its container: iniconfig==")
    card.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("heading", name="My projects")).to_be_visible()
    expect(card).to_be_hidden()
    finn.visit("/hub/home")
    expect(page.get_by_text("Nothing of yours is running.")).to_be_visible()
    expect(page.get_by_role("heading", name="quiet was retired")).to_be_hidden()
    finn.visit(PROJECTS)
    expect(card).to_be_hidden()
