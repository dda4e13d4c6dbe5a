"""What the portal's pages answer to a browser: nothing that came with a request ever runs in somebody's page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from ds01_spawner.services.portal.base import Page, Person
from ds01_spawner.services.portal.environment import ProjectPage
from ds01_spawner.services.portal.pages import ProjectsPage

SCRIPT = "<script src=/user/m/p/x></script>"

Ask = Callable[..., Awaitable[HTTPResponse]]


async def find_ada(page: Page) -> None:
    """Take everybody for Ada."""
    page.person = Person("ada", frozenset(), is_admin=False, token="t")


@pytest.fixture
async def ask(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    """Send the pages a request of Ada's."""
    monkeypatch.setattr(Page, "prepare", find_ada)
    parts: Any = SimpleNamespace(prefix="/s/", hub_prefix="/hub/", static_url=lambda path: f"/s/static/{path}")
    socket, port = bind_unused_port()
    pages = [("/s/", ProjectsPage, {"parts": parts}), ("/s/p/([^/]+)", ProjectPage, {"parts": parts})]
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
