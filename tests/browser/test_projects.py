"""My projects, as people see them: what is there, what it does, launching and retiring."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from ds01_spawner.core.project import server_name
from ds01_spawner.testing.person import LaunchFailed

from .conftest import PROJECTS, Site, Visitor, docker, run_cell, wait_for

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
    expect(ada.page.get_by_text("0 of 4 in use")).to_be_visible()
    assert "not-hers" not in ada.page.content()


def test_a_person_without_projects_is_told_how_to_begin(visit: Callable[..., Visitor]) -> None:
    """An empty page explains what a project is and leads to making one."""
    newcomer = visit("newcomer")
    newcomer.page.get_by_role("link", name="Create the first project").click()
    expect(newcomer.page.get_by_role("heading", name="New project")).to_be_visible()


def test_launch_open_and_retire_from_the_page(site: Site, visit: Callable[..., Visitor]) -> None:
    """A launch runs through its progress page into JupyterLab; the row follows; one click retires; files stay."""
    folder = site.project("lea", "My_Work", dockerfile="FROM ds01/debian:13\n", notes="kept\n")
    lea = visit("lea")
    watching = lea.context.new_page()
    watching.goto(f"{site.hub.url}{PROJECTS}")
    row = watching.get_by_role("listitem").filter(has_text="My_Work")
    expect(row).to_contain_text("not running")
    lea.page.get_by_role("link", name="Launch My_Work").click()
    lea.page.get_by_label("CPU only").check()
    lea.page.get_by_role("button", name="Launch").click()
    lea.page.wait_for_url("**/lab**", timeout=120_000)
    # Without a reload: the other window saw it happen.
    expect(row.locator("[class*=badge]").first).to_have_text("running", timeout=15_000)
    expect(row).to_contain_text("up to date", timeout=15_000)
    expect(row.get_by_role("link", name="Open My_Work")).to_have_attribute("href", re.compile(r"/user/lea/"))
    row.get_by_role("button", name="Retire My_Work").click()
    expect(watching.get_by_text("was retired")).to_be_visible()
    assert site.container("lea", "My_Work") == ""
    assert (folder / "notes").read_text() == "kept\n"


def test_retire_asks_once_when_something_would_be_lost(site: Site, visit: Callable[..., Visitor]) -> None:
    """Busy notebooks and files elsewhere are counted, with their place; hand-installed packages become a hint."""
    site.project("mona", "busy", dockerfile="FROM ds01/python:13\n")
    mona = visit("mona")
    run_cell(mona.launch("busy"), "import time; time.sleep(600)")
    mona.inside("busy", "mkdir ~/results; touch ~/results/a ~/results/b")
    mona.install("busy", "iniconfig")
    mona.visit()
    mona.page.get_by_role("button", name="Retire busy").click()
    expect(mona.page.get_by_role("heading", name="Retire busy?")).to_be_visible()
    expect(mona.page.get_by_text("1 notebook is computing")).to_be_visible()
    expect(mona.page.get_by_text("2 files outside")).to_be_visible()
    expect(mona.page.get_by_text("2 in /home/mona/results")).to_be_visible()
    expect(mona.page.get_by_text(re.compile(r"1 Python package installed by hand"))).to_be_visible()
    mona.page.get_by_role("link", name="Keep it running").click()
    assert site.container("mona", "busy")
    mona.page.get_by_role("button", name="Retire busy").click()
    mona.page.get_by_role("button", name="Retire anyway").click()
    expect(mona.page.get_by_text("was retired")).to_be_visible()
    assert site.container("mona", "busy") == ""
    mona.visit(f"{PROJECTS}p/busy")
    expect(mona.page.get_by_text(re.compile(r"RUN python3 -m pip install --no-cache-dir iniconfig=="))).to_be_visible()
    mona.page.get_by_role("button", name="Add them").click()
    expect(mona.page.get_by_text(re.compile("Added iniconfig=="))).to_be_visible()
    assert "iniconfig==" in (site.account("mona").home / "workspace/busy/Dockerfile").read_text()


def test_the_hubs_own_pages_retire_with_one_click(site: Site, visit: Callable[..., Visitor]) -> None:
    """From Home and from the spawn form: one click, no question where nothing would be lost, and back asks nothing."""
    site.project("nils", "plain")
    nils = visit("nils")
    for where in ("/hub/home", "/hub/spawn"):
        nils.launch("plain")
        nils.visit(where)
        nils.page.get_by_role("link", name="Retire plain").click()
        expect(nils.page.get_by_text("was retired")).to_be_visible()
        assert site.container("nils", "plain") == ""
    # A link that comes from anywhere else only asks, however often it is followed.
    nils.launch("plain")
    for _ in range(2):
        nils.visit(f"{PROJECTS}retire?project=plain")
        expect(nils.page.get_by_text("nothing else was found that would be lost")).to_be_visible()
    assert site.container("nils", "plain")
    nils.page.get_by_role("link", name="Keep it running").click()
    nils.retire_all()


def test_the_hubs_own_pages_ask_the_same_question(site: Site, visit: Callable[..., Visitor]) -> None:
    """A notebook that really computes and a package installed by hand: Home and the spawn form ask, with how many."""
    site.project("hugo", "deep", dockerfile="FROM ds01/python:13\n")
    hugo = visit("hugo")
    page = hugo.launch("deep")
    run_cell(page, "import time; time.sleep(600)")
    hugo.install("deep", "iniconfig")
    for where in ("/hub/home", "/hub/spawn"):
        hugo.visit(where)
        page.get_by_role("link", name="Retire deep").click()
        expect(page.get_by_role("heading", name="Retire deep?")).to_be_visible()
        expect(page.get_by_text("1 notebook is computing")).to_be_visible()
        expect(page.get_by_text(re.compile("1 Python package installed by hand"))).to_be_visible()
        assert site.container("hugo", "deep")
    page.get_by_role("button", name="Retire anyway").click()
    expect(page.get_by_text("was retired")).to_be_visible()
    assert site.container("hugo", "deep") == ""
    hugo.visit(f"{PROJECTS}p/deep")
    expect(page.get_by_text(re.compile(r"pip install --no-cache-dir iniconfig=="))).to_be_visible()


def test_home_retires_without_javascript(site: Site, visit: Callable[..., Visitor]) -> None:
    """The link leads to the question, and the question is a plain form."""
    site.project("ines", "plain")
    site.person("ines").launch("plain", gpus="0")
    ines = visit("ines", java_script_enabled=False)
    ines.visit("/hub/home")
    ines.page.get_by_role("link", name="Retire plain").click()
    ines.page.get_by_role("button", name="Retire", exact=True).click()
    expect(ines.page.get_by_text("was retired")).to_be_visible()
    assert site.container("ines", "plain") == ""


def test_home_retires_while_the_portal_is_away(site: Site, visit: Callable[..., Visitor]) -> None:
    """Nobody can see then what would be lost: the hub's page says so, asks, and the hub retires."""
    site.project("jo", "plain")
    jo = visit("jo")
    jo.launch("plain")
    jo.visit("/hub/home")
    jo.page.route(f"**{PROJECTS}health", lambda route: route.fulfill(status=503))
    asked: list[str] = []
    jo.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    jo.page.get_by_role("link", name="Retire plain").click()
    expect(jo.page.get_by_text("It was retired.")).to_be_visible()
    assert "does not answer" in asked[0]
    assert site.container("jo", "plain") == ""


def test_a_launch_that_failed_is_seen_until_the_next(site: Site, visit: Callable[..., Visitor]) -> None:
    """Refused or crashed: the row says so and why, whatever page the person was on; a launch or a retire ends that."""
    for name in ("one", "two", "three"):
        site.project("kai", name)
    person = site.person("kai")
    for name in ("one", "two"):
        person.launch(name, gpus="0")
    with pytest.raises(LaunchFailed, match="2 may run at once"):
        person.launch("three", gpus="0")
    kai = visit("kai")
    rows = {name: kai.page.locator(f"[data-project={name}]") for name in ("one", "two", "three")}
    expect(rows["three"].locator(".badge").first).to_have_text("failed")
    expect(rows["three"]).to_contain_text("2 may run at once")
    # Without a reload, as soon as the hub has noticed:
    docker("kill", site.container("kai", "one", "{{.ID}}"))
    expect(rows["one"].locator(".badge").first).to_have_text("failed", timeout=60_000)
    expect(rows["one"]).to_contain_text("exit code 137")
    kai.launch("three")
    person.retire("three")
    person.retire("two")
    kai.visit()
    for name in ("two", "three"):
        expect(rows[name].locator(".badge").first).to_have_text("not running")
    expect(rows["one"].locator(".badge").first).to_have_text("failed")


def test_two_people_see_their_own_at_the_same_time(site: Site, visit: Callable[..., Visitor]) -> None:
    """Two browsers, one project name: each launch and each page is its own person's."""
    for user in ("otto", "pia"):
        site.project(user, "same")
    otto, pia = visit("otto"), visit("pia")
    otto.launch("same")
    pia.visit()
    expect(pia.page.get_by_role("listitem").filter(has_text="same")).to_contain_text("not running")
    otto.visit()
    expect(otto.page.get_by_role("listitem").filter(has_text="same").locator(".badge").first).to_have_text("running")
    assert site.container("pia", "same") == ""
    otto.retire_all()


def test_fifty_projects_and_hard_names(site: Site, visit: Callable[..., Visitor]) -> None:
    """Many projects, names in other scripts, and names that look like HTML are all there, and fit a phone's screen."""
    names = [f"project-{number:02}" for number in range(47)]
    names += ["x" * 120, "مشروع البحث", "<script>alert(1)"]
    for name in names:
        site.project("quentin", name)
    quentin = visit("quentin", viewport={"width": 390, "height": 800})
    expect(quentin.page.get_by_role("list", name="My projects").get_by_role("listitem")).to_have_count(50)
    expect(quentin.page.get_by_role("link", name="مشروع البحث", exact=True)).to_be_visible()
    assert quentin.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not quentin.page.evaluate("document.querySelectorAll('li script').length")
    quentin.page.get_by_role("link", name=names[-1], exact=True).click()
    expect(quentin.page.get_by_role("heading", name=names[-1])).to_be_visible()


def test_an_ended_session_leads_through_the_login(site: Site, visit: Callable[..., Visitor]) -> None:
    """Without cookies the page asks for a login; a form sent then changes nothing and says so."""
    site.project("rita", "still")
    rita = visit("rita")
    rita.launch("still")
    rita.visit()
    rita.context.clear_cookies()
    rita.page.get_by_role("button", name="Retire still").click()
    expect(rita.page.get_by_text(re.compile("login has ended|too old"))).to_be_visible()
    assert site.container("rita", "still")
    rita.visit()
    expect(rita.page.get_by_label("Username")).to_be_visible()
    rita.retire_all()


def test_a_double_click_and_the_back_button_do_nothing_twice(site: Site, visit: Callable[..., Visitor]) -> None:
    """Pressing Launch twice launches once; going back after that shows the running project."""
    site.project("sven", "twice")
    sven = visit("sven")
    sven.visit(f"/hub/spawn/sven/{server_name('twice')}")
    sven.page.get_by_label("CPU only").check()
    sven.page.get_by_role("button", name="Launch").dblclick()
    sven.page.wait_for_url("**/lab**", timeout=120_000)
    names = docker("ps", "--filter", f"label=ds01.hub={site.name}", "--format", "{{.Names}}").splitlines()
    assert names.count("twice._.sven") == 1
    # The form of a running project is the project.
    sven.visit(f"/hub/spawn/sven/{server_name('twice')}")
    expect(sven.page).to_have_url(re.compile(r"/user/sven/twice/lab"))
    sven.retire_all()


def test_without_the_portal_the_spawn_form_still_works(site: Site, visit: Callable[..., Visitor]) -> None:
    """Its process is killed: the hub, its form and what runs go on, and the portal comes back by itself."""
    site.project("tina", "alone")
    tina = visit("tina")
    assert site.hub.process is not None
    os.kill(portal_of(site.hub.process.pid), signal.SIGKILL)
    tina.visit("/hub/spawn")
    expect(tina.page.get_by_role("button", name="Launch alone")).to_be_visible()
    wait_for(lambda: tina.page.request.get(f"{site.hub.url}{PROJECTS}health").ok)
    tina.visit()
    expect(tina.page.get_by_role("heading", name="My projects")).to_be_visible()


def portal_of(hub: int) -> int:
    """Return the process id of a hub's portal."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines()[1:]:
        pid, parent, command = line.split(None, 2)
        if int(parent) == hub and "ds01_spawner.services.portal" in command:
            return int(pid)
    raise AssertionError("the hub has no portal")
