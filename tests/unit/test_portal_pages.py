"""What the portal's pages answer to a browser: nothing that came with a request ever runs in somebody's page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from ds01_spawner.adapters.portalnotes import Dismissed
from ds01_spawner.core.retirements import Retirement
from ds01_spawner.services.portal.base import Page, Person
from ds01_spawner.services.portal.board import Look
from ds01_spawner.services.portal.dismissal import DismissPage
from ds01_spawner.services.portal.environment import ProjectPage
from ds01_spawner.services.portal.pages import ProjectsPage

SCRIPT = "<script src=/user/m/p/x></script>"

AT = 1795464646.1365538


class Retired:
    """A board on which one retirement of Ada's is shown."""

    async def look(self) -> Look:
        """Return it."""
        shown = Retirement("ada", "thesis", "thesis", AT, "then", ("so",), "")
        return Look(at=AT + 1, retired={"ada": (shown,)})


Ask = Callable[..., Awaitable[HTTPResponse]]


def files(folder: Path) -> list[Path]:
    """Return what is in a folder."""
    return list(folder.iterdir())


async def find_ada(page: Page) -> None:
    """Take everybody for Ada."""
    page.person = Person("ada", frozenset(), is_admin=False, token="t")


@pytest.fixture
async def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Ask]:
    """Send the pages a request of Ada's."""
    monkeypatch.setattr(Page, "prepare", find_ada)
    monkeypatch.setattr(Page, "check_xsrf_cookie", lambda page: None)
    parts: Any = SimpleNamespace(
        prefix="/s/",
        hub_prefix="/hub/",
        static_url=lambda path: f"/s/static/{path}",
        board=Retired(),
        dismissed=Dismissed(tmp_path),
    )
    socket, port = bind_unused_port()
    served = {"": ProjectsPage, "p/([^/]+)": ProjectPage, "dismiss": DismissPage}
    pages = [(f"/s/{path}", page, {"parts": parts}) for path, page in served.items()]
    server = HTTPServer(Application(pages, cookie_secret="s", xsrf_cookies=True))
    server.add_socket(socket)

    async def fetch(path: str, **how: Any) -> HTTPResponse:
        address = f"http://127.0.0.1:{port}/s/{path}"
        return await AsyncHTTPClient().fetch(address, raise_error=False, follow_redirects=False, **how)

    yield fetch
    server.stop()
    await server.close_all_connections()


async def test_an_error_never_is_a_page_made_of_what_was_asked_for(ask: Ask) -> None:
    """For a script the sentence is plain text; for a person it is on a page and escaped."""
    part = await ask(f"p/{quote(SCRIPT, safe='')}?part=builds")
    assert part.code == 400
    assert part.headers["Content-Type"] == "text/plain; charset=utf-8"
    page = await ask(f"p/{quote(SCRIPT, safe='')}")
    assert page.code == 400
    assert page.headers["Content-Type"].startswith("text/html")
    assert SCRIPT not in page.body.decode()


async def test_only_the_scripts_that_the_page_names_may_run(ask: Ask) -> None:
    """Not whatever the site serves: people's servers are on it too. Each page has a nonce of its own."""
    first, second = await ask("p/..%2Fx"), await ask("p/..%2Fx")
    allowed = re.search(r"script-src ([^;]*);", first.headers["Content-Security-Policy"])
    assert allowed is not None
    assert re.fullmatch(r"'nonce-[\w-]{20,}'", allowed[1])
    assert allowed[1] not in second.headers["Content-Security-Policy"]
    scripts = re.findall(r"<script[^>]*>", first.body.decode())
    assert scripts
    assert all(f'nonce="{allowed[1][7:-1]}"' in script for script in scripts)


async def test_what_is_no_text_is_refused_with_a_sentence(ask: Ask) -> None:
    """An address whose bytes are no text gets an error like any other, and is no defect of ours."""
    for query in ("part=%ff", "part=builds&part=%ff"):
        answer = await ask(f"?{query}")
        assert answer.code == 400, query
        assert "Invalid unicode" in answer.body.decode()


async def test_only_a_retirement_that_is_shown_can_be_dismissed(ask: Ask, tmp_path: Path) -> None:
    """Other names and moments leave no file behind; the page is answered all the same."""
    invented = (("other", str(AT)), ("thesis", "nan"), ("thesis", "-inf"), ("thesis", "1"), ("../x", str(AT)))
    for project, at in invented:
        answer = await ask("dismiss", method="POST", body=urlencode({"project": project, "at": at}))
        assert answer.code == 303
        assert files(tmp_path) == [], (project, at)
    await ask("dismiss", method="POST", body=urlencode({"project": "thesis", "at": str(AT)}))
    assert len(files(tmp_path)) == 1
