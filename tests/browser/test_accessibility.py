"""axe-core finds nothing serious on any page, in light and in dark."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from .conftest import AXE, PROJECTS, Site, Visitor, run_cell

pytestmark = [pytest.mark.engine, pytest.mark.browser]


def check(page: Page, where: str) -> None:
    """Fail with what axe-core calls serious or critical."""
    if not AXE.exists():
        pytest.fail("axe-core is not here; run dev/browser.sh")
    page.emulate_media(reduced_motion="reduce")  # colours are judged at rest, not on their way from light to dark
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{where}: {one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes'][:3]]}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert not serious, "\n".join(serious)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_fault(site: Site, visit: Callable[..., Visitor], base_image: str, scheme: str) -> None:
    """My projects, new project with mistakes, environment with a failed build and tags, form, progress, home, error."""
    user = f"axel-{scheme}"
    site.project(user, "built", dockerfile="FROM ds01/debian:13\n")
    site.project(user, "broken", dockerfile="FROM ds01/debian:13\nRUN echo why; exit 3\n")
    site.project(user, "slow", dockerfile=f"FROM ds01/debian:13\nRUN sleep 40; echo {secrets.token_hex(4)}\n")
    axel = visit(user, color_scheme=scheme)
    page = axel.page
    check(page, "my projects")
    axel.visit(f"{PROJECTS}new")
    page.get_by_label("Name", exact=True).fill(".")
    page.get_by_role("button", name="Create project").click()
    check(page, "new project with mistakes")
    for name in ("built", "broken"):
        axel.visit(f"{PROJECTS}p/{name}")
        page.get_by_role("button", name="Build now").click()
        outcome = "built" if name == "built" else "failed"
        expect(page.locator("#live").get_by_text(outcome, exact=True).first).to_be_visible(timeout=60_000)
        expect(page.get_by_role("button", name="Build now")).to_be_visible(timeout=60_000)
        check(page, f"environment, {name}")
    page.get_by_role("link", name="Log of the build").first.click()
    check(page, "log")
    axel.visit(f"{PROJECTS}p/nothing")
    check(page, "error")
    axel.visit("/hub/spawn")
    check(page, "form, all projects")
    axel.visit(f"/hub/spawn/{user}/slow")
    check(page, "form")
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("status")).to_contain_text("step 2 of ", timeout=60_000)
    check(page, "progress")
    axel.visit("/hub/home")
    check(page, "home")
    axel.visit(f"/hub/spawn-pending/{user}/slow")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_url(f"**/hub/spawn/{user}/slow")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_question_before_a_retire_has_no_serious_fault(
    site: Site, visit: Callable[..., Visitor], scheme: str
) -> None:
    """With a busy notebook, files outside the folder and a package; and when nothing would be lost."""
    user = f"axel-{scheme}"
    site.project(user, "ask", dockerfile="FROM ds01/python:13\n")
    axel = visit(user, color_scheme=scheme)
    page = axel.launch("ask")
    axel.visit(f"{PROJECTS}retire?project=ask")
    check(page, "question, nothing to lose")
    axel.visit(f"/user/{user}/ask/lab")
    run_cell(page, "import time; time.sleep(600)")
    axel.inside("ask", "mkdir ~/results; touch ~/results/a")
    axel.install("ask", "iniconfig")
    axel.visit("/hub/home")
    check(page, "home with something to retire")
    page.get_by_role("link", name="Retire ask").click()
    expect(page.get_by_text("1 notebook is computing")).to_be_visible()
    check(page, "question")
    page.get_by_role("button", name="Retire anyway").click()
    expect(page.get_by_text("was retired")).to_be_visible()
