"""The spawn form and the page shown while a project starts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from ds01_spawner.core.project import server_name

from .conftest import Site, Visitor, docker, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.browser]


def test_the_form_works_without_javascript_and_with_the_keyboard_alone(
    site: Site, visit: Callable[..., Visitor]
) -> None:
    """Tab, space and Enter launch a project in a browser that runs no scripts."""
    site.project("uma", "plain")
    uma = visit("uma", java_script_enabled=False)
    page = uma.visit(f"/hub/spawn/uma/{server_name('plain')}")
    expect(page.get_by_text("JupyterHub requires JavaScript")).not_to_be_visible()
    page.get_by_label("CPU only").focus()
    page.keyboard.press("Space")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.get_by_role("button", name="Launch").evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("spawn-pending|/user/uma/"))
    wait_for(lambda: site.container("uma", "plain") == "running", 120)
    uma.retire_all()


def test_the_last_choice_is_preselected_and_links_only_preselect(site: Site, visit: Callable[..., Visitor]) -> None:
    """Next time the form shows what was chosen last; a link with options changes the choice and starts nothing."""
    site.project("vera", "again")
    vera = visit("vera")
    vera.launch("again")
    vera.retire_all()
    page = vera.visit(f"/hub/spawn/vera/{server_name('again')}")
    expect(page.get_by_label("CPU only")).to_be_checked()
    page = vera.visit(f"/hub/spawn/vera/{server_name('again')}?opt-gpus=1&opt-kind=gpu&opt-project=again")
    expect(page.get_by_label(re.compile("Whole GPU"))).to_be_checked()
    assert site.person("vera").servers() == {}


def test_a_limit_is_told_before_the_submit_with_what_to_retire(site: Site, visit: Callable[..., Visitor]) -> None:
    """With two of two projects running the form says so, and names them."""
    for name in ("one", "two", "three"):
        site.project("will", name)
    will = visit("will")
    will.launch("one")
    will.launch("two")
    page = will.visit(f"/hub/spawn/will/{server_name('three')}")
    expect(page.get_by_text(re.compile(r"2 may run at once\. Retire one or two first")).first).to_be_visible()
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_text(re.compile(r"Retire (one or two|two or one) first")).first).to_be_visible(timeout=60_000)
    will.visit()
    expect(will.page.get_by_text("2 of 2")).to_be_visible()
    will.retire_all()


def test_a_refused_submit_keeps_the_input_and_says_why(site: Site, visit: Callable[..., Visitor]) -> None:
    """A tag that does not exist is refused on the form, which still holds what was chosen."""
    site.project("xena", "tagged", dockerfile="FROM ds01/debian:13\n")
    xena = visit("xena")
    page = xena.visit(f"/hub/spawn/xena/{server_name('tagged')}?opt-tag=gone")
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("alert")).to_contain_text("no image kept as “gone”", timeout=60_000)
    if "spawn-pending" not in page.url:
        expect(page.get_by_label("CPU only")).to_be_checked()
        expect(page.get_by_label("Image tag")).to_have_value("gone")


def test_a_build_is_told_step_by_step_and_can_be_cancelled(site: Site, visit: Callable[..., Visitor]) -> None:
    """Steps and lines are shown; Cancel stops this named server's launch and nothing of it is left."""
    recipe = "FROM ds01/debian:13\nRUN for i in $(seq 60); do echo line-$i-$$; sleep 1; done\n"
    site.project("yara", "slow", dockerfile=recipe)
    yara = visit("yara")
    page = yara.visit(f"/hub/spawn/yara/{server_name('slow')}")
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"step 2 of \d"), timeout=60_000)
    page.get_by_text("What happened so far").click()
    expect(page.get_by_label("What happened so far")).to_contain_text("line-2-")
    other = yara.context.new_page()
    other.goto(f"{site.hub.url}/services/projects/")
    expect(other.get_by_role("listitem").filter(has_text="slow")).to_contain_text("building")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_url(f"**/hub/spawn/yara/{server_name('slow')}")
    assert site.container("yara", "slow") == ""
    wait_for(lambda: site.person("yara").servers() == {})
    other.goto(f"{site.hub.url}/services/projects/p/slow")
    expect(other.get_by_text("cancelled")).to_be_visible()


def test_a_failed_build_shows_step_log_and_next_step(site: Site, visit: Callable[..., Visitor]) -> None:
    """What failed is on the progress page, its log escaped, and the way back is a link."""
    recipe = "FROM ds01/debian:13\nRUN sleep 3; echo '<b id=evil>bold</b>'; exit 7\n"
    site.project("zoe", "fails", dockerfile=recipe)
    zoe = visit("zoe")
    page = zoe.visit(f"/hub/spawn/zoe/{server_name('fails')}")
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("exit code 7", timeout=60_000)
    expect(failure).to_contain_text("<b id=evil>bold</b>")
    assert page.locator("#evil").count() == 0
    page.get_by_role("link", name="Back to the form").click()
    expect(page.get_by_role("button", name="Launch")).to_be_visible()
    zoe.visit()
    expect(page.get_by_role("listitem").filter(has_text="fails")).to_contain_text("build failed")


def test_waiting_shows_the_place_and_can_become_a_cpu_start(
    site: Site, visit: Callable[..., Visitor], devices_taken: None
) -> None:
    """With every device taken the form says so, the page tells the place, and one press starts on the CPU instead."""
    site.project("abel", "queue")
    abel = visit("abel")
    page = abel.page
    taken = page.get_by_label(re.compile(r"Whole GPU\s+\(0 of 4 free"))
    # What the form says may be five seconds old.
    wait_for(lambda: abel.visit(f"/hub/spawn/abel/{server_name('queue')}") and taken.is_visible())
    page.get_by_label(re.compile("Whole GPU")).check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("status")).to_contain_text(
        re.compile(r"Place 1 of 1 in the queue for 1 GPU"), timeout=90_000
    )
    other = abel.context.new_page()
    other.goto(f"{site.hub.url}/services/projects/")
    expect(other.get_by_role("listitem").filter(has_text="queue").first).to_contain_text("waiting")
    expect(other.get_by_text("1 project is waiting")).to_be_visible()
    page.get_by_role("button", name="Start on CPU now").click()
    page.wait_for_url("**/lab**", timeout=120_000)
    assert site.container("abel", "queue", 'on {{.Label "ds01.gpu.uuids"}}.') == "on ."
    assert site.container("abel", "queue") == "running"
    abel.retire_all()


def test_a_launch_from_a_link_shared_with_somebody_else_is_theirs(site: Site, visit: Callable[..., Visitor]) -> None:
    """One person's spawn page is not another's."""
    site.project("bea", "mine")
    carl = visit("carl")
    answer = carl.page.request.get(f"{site.hub.url}/hub/spawn/bea/mine")
    assert answer.status in {403, 404}
    assert docker("ps", "--all", "--quiet", "--filter", "name=mine._.bea") == ""
