"""Nobody sees or touches another person's things, no request is forged, and what people write stays text."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

import pytest

from ds01_spawner.core.project import image_repository

from .conftest import PROJECTS, Site, Visitor, docker

pytestmark = [pytest.mark.engine, pytest.mark.browser]


@pytest.fixture
def victim(site: Site) -> str:
    """Somebody with a project, an image, a tag and a build."""
    site.project("victim", "secret", dockerfile="FROM ds01/debian:13\nRUN echo the-secret-line\n")
    person = site.person("victim")
    if not docker("images", "--quiet", f"{image_repository('victim', 'secret')}:kept"):
        person.launch("secret", gpus="0")
        person.retire("secret")
        docker("tag", f"{image_repository('victim', 'secret')}:latest", f"{image_repository('victim', 'secret')}:kept")
    return "victim"


def build_of(site: Site, user: str, project: str) -> str:
    """Return the id of a project's last build."""
    records = sorted((site.hub.folder / "builds" / image_repository(user, project)).glob("*.json"))
    return records[-1].stem


def test_anothers_project_build_log_and_tags_cannot_be_reached(
    site: Site, visit: Callable[..., Visitor], victim: str
) -> None:
    """By name, by path, by build id and by tag: the answer is a refusal that tells nothing."""
    mallory = visit("mallory")
    site.project("mallory", "mine")
    build = build_of(site, victim, "secret")
    for path in (
        "p/secret",
        f"p/secret/builds/{build}",
        f"p/mine/builds/{build}",
        "p/..%2Fvictim%2Fworkspace%2Fsecret",
        "p/%2Fetc",
        "p/secret?part=builds",
        "p/mine/builds/..%2F..%2Fds01-victim%2Fsecret",
    ):
        answer = mallory.page.request.get(f"{site.hub.url}{PROJECTS}{path}")
        assert answer.status in {400, 403, 404}, path
        assert "the-secret-line" not in answer.text()
        assert build not in answer.text()
    assert "kept" not in mallory.page.request.get(f"{site.hub.url}{PROJECTS}p/mine?part=tags").text()
    own = mallory.visit(f"{PROJECTS}p/mine")
    xsrf = own.evaluate("document.body.dataset.xsrf")
    for tag in ("kept", f"../../{image_repository(victim, 'secret')}:kept", "x:y", "", "latest"):
        form = {"_xsrf": xsrf, "act": "delete", "tag": tag}
        assert mallory.page.request.post(f"{site.hub.url}{PROJECTS}p/mine/tags", form=form).status >= 400
    assert docker("images", "--quiet", f"{image_repository(victim, 'secret')}:kept")


def test_another_persons_server_cannot_be_retired(site: Site, visit: Callable[..., Visitor], victim: str) -> None:
    """A forged name only ever means the sender's own project."""
    site.person(victim).launch("secret", gpus="0")
    try:
        mallory = visit("mallory")
        xsrf = mallory.visit().evaluate("document.body.dataset.xsrf")
        for project in ("secret", "../victim/secret", "victim/secret"):
            mallory.page.request.post(
                f"{site.hub.url}{PROJECTS}retire", form={"_xsrf": xsrf, "project": project, "confirmed": "yes"}
            )
        assert site.container(victim, "secret") == "running"
    finally:
        site.person(victim).retire("secret")


@pytest.mark.parametrize(
    "path",
    ["retire", "new", "p/forged/dockerfile", "p/forged/packages", "p/forged/build", "p/forged/cancel", "p/forged/tags"],
)
def test_every_change_needs_the_forms_own_token(site: Site, visit: Callable[..., Visitor], path: str) -> None:
    """A request that another site could make is refused, and nothing happens."""
    folder = site.project("forge", "forged", dockerfile="FROM ds01/debian:13\n")
    forge = visit("forge")
    form = {
        "project": "forged",
        "name": "made",
        "text": "FROM evil",
        "digest": "",
        "pip": "evil",
        "act": "keep",
        "tag": "x",
    }
    for token in ({}, {"_xsrf": "forged"}):
        answer = forge.page.request.post(f"{site.hub.url}{PROJECTS}{path}", form={**form, **token}, max_redirects=0)
        assert answer.status == 403, answer.text()
    assert (folder / "Dockerfile").read_text() == "FROM ds01/debian:13\n"
    assert not (folder.parent / "made").exists()


def test_a_get_changes_nothing(site: Site, visit: Callable[..., Visitor]) -> None:
    """A link cannot build, save or delete; what a link to a retire does is tested with its question."""
    site.project("gets", "still", dockerfile="FROM ds01/debian:13\n")
    gets = visit("gets")
    for path in ("p/still/build", "p/still/tags?act=delete&tag=x", "p/still/dockerfile?text=x"):
        assert gets.page.request.get(f"{site.hub.url}{PROJECTS}{path}").status == 405
    assert not (site.hub.folder / "builds" / image_repository("gets", "still")).exists()


def test_a_link_in_the_home_is_never_followed(site: Site, visit: Callable[..., Visitor]) -> None:
    """A project or a Dockerfile that is a link to somebody else's file is neither shown nor written."""
    target = site.hub.folder / "root-owned"
    target.write_text("FROM root\n")
    workspace = site.project("linda", "honest").parent
    (workspace / "honest" / "Dockerfile").symlink_to(target)
    (workspace / "away").symlink_to(site.account("linda").home.parent)
    linda = visit("linda")
    page = linda.visit()
    assert "away" not in page.content()
    answer = page.request.get(f"{site.hub.url}{PROJECTS}p/honest")
    assert answer.status == 400
    assert "FROM root" not in answer.text()
    assert page.request.get(f"{site.hub.url}{PROJECTS}p/away").status == 400
    xsrf = page.evaluate("document.body.dataset.xsrf")
    page.request.post(
        f"{site.hub.url}{PROJECTS}p/honest/dockerfile", form={"_xsrf": xsrf, "text": "FROM evil\n", "digest": ""}
    )
    assert target.read_text() == "FROM root\n"


def test_a_log_of_one_huge_line_is_cut_and_shown(site: Site, visit: Callable[..., Visitor]) -> None:
    """Ten megabytes without a line end neither fill the page nor hide the rest."""
    # A step that was ever built here prints nothing: it comes from BuildKit's cache.
    fresh = secrets.token_hex(4)
    recipe = f"FROM ds01/debian:13\nRUN : {fresh}; head -c 10000000 /dev/zero | tr '\\0' 'x'; echo; echo after-it\n"
    site.project("huge", "log", dockerfile=recipe)
    huge = visit("huge")
    page = huge.visit(f"{PROJECTS}p/log")
    page.get_by_role("button", name="Build now").click()
    page.locator("#live").get_by_text("built", exact=True).wait_for(timeout=60_000)
    page.get_by_role("link", name="Log of the build").first.click()
    text = page.get_by_label("The whole log").text_content() or ""
    assert "more characters" in text
    assert "after-it" in text
    assert len(text) < 10_000


def test_an_error_repeats_a_name_as_text(site: Site, visit: Callable[..., Visitor]) -> None:
    """A link to a project that is called like a script runs nothing, on a page or as part of one."""
    person = visit("tagger")
    hostile = f"{PROJECTS}p/%3Cscript%20src%3D%2Fuser%2Fm%2Fp%2Fx%3E%3C%2Fscript%3E"
    for path in (hostile, f"{hostile}?part=builds"):
        asked: list[str] = []
        page = person.visit(path)
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.reload(wait_until="networkidle")
        assert not [url for url in asked if "/user/m/" in url]
        assert page.get_by_text("<script").is_visible()
    answer = person.page.request.get(f"{site.hub.url}{hostile}?part=builds")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_the_pages_allow_no_foreign_script(site: Site, visit: Callable[..., Visitor]) -> None:
    """Every page of the portal allows only the scripts that it names, no framing, and no guessing of types."""
    site.project("cspia", "p")
    person = visit("cspia")
    for path in ("", "new", "p/p", "p/nothing"):
        headers = person.page.request.get(f"{site.hub.url}{PROJECTS}{path}").headers
        policy = headers["content-security-policy"]
        assert re.search(r"script-src 'nonce-[\w-]+';", policy)
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
