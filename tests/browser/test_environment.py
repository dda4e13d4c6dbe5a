"""New projects and their environments: from a name to a notebook with a package of one's own."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from ds01_spawner.core.project import image_repository

from .conftest import PROJECTS, Site, Visitor, docker

pytestmark = [pytest.mark.engine, pytest.mark.browser]


def edit(page: Page, text: str) -> None:
    """Replace what the editor holds."""
    editor = page.get_by_role("textbox", name="Dockerfile")
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(text)


def test_from_login_to_a_notebook_with_ones_own_package(
    site: Site, visit: Callable[..., Visitor], base_image: str
) -> None:
    """Somebody who never saw Docker makes a project, adds a package, launches, and imports it."""
    dana = visit("dana")
    page = dana.page
    page.get_by_role("link", name="Create the first project").click()
    page.get_by_label("Name", exact=True).fill("first steps")
    page.get_by_label("Something else").check()
    page.get_by_label("Python for the tests").check()
    page.get_by_role("button", name="Create project").click()
    expect(page.get_by_text("was created")).to_be_visible()
    page.get_by_role("link", name="first steps", exact=True).click()
    page.get_by_label("Python packages").fill("iniconfig")
    page.get_by_role("button", name="Add and build").click()
    expect(page.get_by_text("Added iniconfig")).to_be_visible()
    expect(page.locator("#live").get_by_text("built", exact=True)).to_be_visible(timeout=120_000)
    folder = site.account("dana").home / "workspace/first steps"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".dockerignore", ".gitignore", "Dockerfile", "README.md", "pyproject.toml",
    ]  # fmt: skip
    assert {path.stat().st_uid for path in [folder, *folder.iterdir()]} == {site.account("dana").uid}
    dana.launch("first steps")
    container = site.container("dana", "first steps", "{{.ID}}")
    assert docker("exec", container, "python3", "-c", "import iniconfig; print('imported')") == "imported"
    dana.retire_all()


def test_a_form_with_mistakes_keeps_the_input_and_marks_them(
    site: Site, visit: Callable[..., Visitor], base_image: str
) -> None:
    """Nothing is created, every field keeps its text, and each mistake is told where it is."""
    erik = visit("erik")
    page = erik.visit(f"{PROJECTS}new")
    page.get_by_label("Name", exact=True).fill(".hidden")
    page.get_by_label("Description").fill("kept <b>")
    page.get_by_label("Further Python packages").fill("good; bad")
    page.get_by_label("Repository to clone").fill("file:///etc")
    page.get_by_role("button", name="Create project").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was created")
    expect(page.get_by_text("a name that begins with a dot")).to_be_visible()
    expect(page.get_by_text("'good;' is no Python package")).to_be_visible()
    expect(page.get_by_text("Use a public HTTPS address")).to_be_visible()
    expect(page.get_by_label("Description")).to_have_value("kept <b>")
    assert not list((site.account("erik").home / "workspace").iterdir())


def test_nothing_that_exists_is_overwritten(site: Site, visit: Callable[..., Visitor], base_image: str) -> None:
    """A name that is taken is refused; the folder behind it is as it was."""
    folder = site.project("fred", "taken", dockerfile="FROM mine\n")
    fred = visit("fred")
    page = fred.visit(f"{PROJECTS}new")
    page.get_by_label("Name", exact=True).fill("taken")
    page.get_by_role("button", name="Create project").click()
    expect(page.get_by_role("alert")).to_contain_text("already something called")
    assert [path.name for path in folder.iterdir()] == ["Dockerfile"]
    assert (folder / "Dockerfile").read_text() == "FROM mine\n"


def test_the_editor_saves_builds_and_shows_the_log(site: Site, visit: Callable[..., Visitor]) -> None:
    """What is typed is saved as it is, built, and its log is shown with control sequences and HTML made harmless."""
    folder = site.project("gus", "edited", dockerfile="FROM ds01/debian:13\n")
    gus = visit("gus")
    page = gus.visit(f"{PROJECTS}p/edited")
    # A step that was ever built here prints nothing: it comes from BuildKit's cache.
    fresh = secrets.token_hex(4)
    text = f"FROM ds01/debian:13\nRUN : {fresh}; printf '\\033[31mred\\033[0m <script>alert(1)</script>\\n'\n"
    edit(page, text)
    page.get_by_role("button", name="Save and build").click()
    expect(page.get_by_text("The Dockerfile was saved.")).to_be_visible()
    expect(page.locator("#live").get_by_text("built", exact=True)).to_be_visible(timeout=60_000)
    assert (folder / "Dockerfile").read_text() == text
    page.get_by_role("link", name=re.compile("Log of the build")).first.click()
    log = page.get_by_label("The whole log")
    expect(log).to_contain_text("red <script>alert(1)</script>")
    assert "\x1b" not in (log.text_content() or "")
    assert page.locator("main script").count() == 0


def test_a_package_is_added_below_another_user(site: Site, visit: Callable[..., Visitor], base_image: str) -> None:
    """A Dockerfile that ends as nobody gets its package installed as root, and ends as nobody."""
    site.project("emil", "modest", dockerfile=f"FROM {base_image}\nUSER nobody\n")
    emil = visit("emil")
    emil.visit(f"{PROJECTS}p/modest")
    emil.page.get_by_label("Python packages").fill("iniconfig")
    emil.page.get_by_role("button", name="Add and build").click()
    expect(emil.page.locator("#live").get_by_text("built", exact=True)).to_be_visible(timeout=120_000)
    image = f"{image_repository('emil', 'modest')}:latest"
    assert (
        docker("run", "--rm", image, "python3", "-c", "import iniconfig, getpass; print(getpass.getuser())") == "nobody"
    )


def test_a_save_on_top_of_another_change_is_refused_and_keeps_the_text(
    site: Site, visit: Callable[..., Visitor]
) -> None:
    """Two windows cannot overwrite each other without noticing."""
    folder = site.project("hana", "shared", dockerfile="FROM ds01/debian:13\n")
    hana = visit("hana")
    page = hana.visit(f"{PROJECTS}p/shared")
    expect(page.get_by_role("textbox", name="Dockerfile")).to_be_visible()
    (folder / "Dockerfile").write_text("FROM ds01/debian:13\n# from elsewhere\n")
    edit(page, "FROM ds01/debian:13\n# mine\n")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("changed elsewhere")
    expect(page.get_by_role("textbox", name="Dockerfile")).to_contain_text("# mine")
    assert "from elsewhere" in (folder / "Dockerfile").read_text()


def test_a_build_can_be_cancelled(site: Site, visit: Callable[..., Visitor]) -> None:
    """One press ends it, the history says so, and the image before it stays."""
    site.project(
        "ines", "long", dockerfile="FROM ds01/debian:13\nRUN for i in $(seq 90); do echo tick-$i; sleep 1; done\n"
    )
    ines = visit("ines")
    page = ines.visit(f"{PROJECTS}p/long")
    page.get_by_role("button", name="Build now").click()
    expect(page.get_by_label("The build's last lines")).to_contain_text("tick-2", timeout=60_000)
    expect(page.get_by_text(re.compile(r"step 2 of \d"))).to_be_visible()
    page.get_by_role("button", name="Cancel the build").click()
    expect(page.locator("#live").get_by_text("cancelled", exact=True)).to_be_visible(timeout=30_000)
    expect(page.get_by_role("button", name="Build now")).to_be_visible()


def test_a_launch_joins_a_build_of_the_page(site: Site, visit: Callable[..., Visitor]) -> None:
    """The portal's build and the launch's are one: the launch waits for it and uses its image."""
    # Another step each time: one that the engine still has from an earlier run would take no time.
    recipe = f"FROM ds01/debian:13\nRUN for i in 1 2 3 4 5 6 7 8; do sleep 1; done; echo {secrets.token_hex(4)}\n"
    site.project("jo", "joined", dockerfile=recipe)
    jo = visit("jo")
    page = jo.visit(f"{PROJECTS}p/joined")
    page.get_by_role("button", name="Build now").click()
    expect(page.get_by_text(re.compile(r"step 2 of \d"))).to_be_visible(timeout=60_000)
    jo.launch("joined")
    page = jo.visit(f"{PROJECTS}p/joined")
    expect(page.get_by_role("table").first.get_by_role("row")).to_have_count(2)  # the head and one build
    jo.retire_all()


def test_tags_are_kept_launched_from_and_deleted(site: Site, visit: Callable[..., Visitor]) -> None:
    """A tag keeps today's image whatever the Dockerfile becomes; it can be launched and deleted."""
    site.project("kim", "frozen", dockerfile="FROM ds01/debian:13\nRUN echo old > /era\n")
    kim = visit("kim")
    page = kim.visit(f"{PROJECTS}p/frozen")
    page.get_by_role("button", name="Build now").click()
    page.get_by_label("Keep the present image as").fill("experiment-42", timeout=60_000)
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("is kept as “experiment-42”")).to_be_visible()
    edit(page, "FROM ds01/debian:13\nRUN echo new > /era\n")
    page.get_by_role("button", name="Save and build").click()
    expect(page.locator("#live").get_by_text("built", exact=True)).to_have_count(2, timeout=60_000)
    page.get_by_role("link", name="Launch from experiment-42").click()
    expect(page.get_by_label("Image tag")).to_have_value("experiment-42")
    page.get_by_label("CPU only").check()
    page.get_by_role("button", name="Launch").click()
    page.wait_for_url("**/lab**", timeout=120_000)
    assert docker("exec", site.container("kim", "frozen", "{{.ID}}"), "cat", "/era") == "old"
    kim.retire_all()
    page = kim.visit(f"{PROJECTS}p/frozen")
    page.get_by_role("button", name="Delete tag experiment-42").click()
    expect(page.get_by_text("“experiment-42” was deleted.")).to_be_visible()
    assert docker("images", "--quiet", "ds01-kim/frozen:experiment-42") == ""
    assert docker("images", "--quiet", "ds01-kim/frozen:latest")
