"""A person at a browser, without the browser: the hub's own pages, forms, cookies and protection against forgery."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import requests

from ds01_spawner.core.project import server_name

PAGE_SECONDS = 30
LAUNCH_SECONDS = 900
RETIRE_SECONDS = 90


class LaunchFailed(AssertionError):
    """The hub did not launch what was asked for; the text is what its page says."""


class Person:
    """One person and their session.

    Args:
        url: where the hub's proxy listens, without a slash at the end.
        user: login name.
    """

    def __init__(self, url: str, user: str) -> None:
        self.url = url
        self.user = user
        self.session = requests.Session()

    @property
    def xsrf(self) -> str:
        """The hub's token for the next form."""
        return next(str(c.value) for c in self.session.cookies if c.name == "_xsrf" and c.path == "/hub/")

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-XSRFToken": self.xsrf, "Referer": f"{self.url}/hub/home"}

    def log_in(self, password: str) -> Person:
        """Log in through the hub's form."""
        self.session.get(f"{self.url}/hub/login", timeout=PAGE_SECONDS).raise_for_status()
        form = {"username": self.user, "password": password, "_xsrf": self.xsrf}
        self.session.post(f"{self.url}/hub/login", data=form, timeout=PAGE_SECONDS).raise_for_status()
        return self

    def page(self, path: str) -> requests.Response:
        """Return one of the hub's pages."""
        return self.session.get(f"{self.url}{path}", timeout=PAGE_SECONDS)

    def api(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Call the hub's REST API with the session's cookies, as its pages do."""
        arguments.setdefault("timeout", RETIRE_SECONDS)
        return self.session.request(method, f"{self.url}/hub/api{path}", headers=self._headers, **arguments)

    def server_path(self, project: str) -> str:
        """Return the API's path of a project's server."""
        return f"/users/{quote(self.user)}/servers/{server_name(project)}"

    def servers(self) -> dict[str, Any]:
        """Return the hub's records of this person's active servers, by server name."""
        return dict(self.api("GET", f"/users/{quote(self.user)}").json()["servers"])

    def submit(self, project: str, **options: str) -> requests.Response:
        """Press a project's Launch button on the spawn form, and return the page that follows."""
        form = {"_xsrf": self.xsrf, "project": project, "gpus": "1", "kind": "", "min_memory_gib": "0", **options}
        target = f"{self.url}/hub/spawn/{quote(self.user)}/{server_name(project)}"
        return self.session.post(target, data=form, timeout=PAGE_SECONDS)

    def progress(self, project: str) -> Iterator[dict[str, Any]]:
        """Yield the progress of a launch as its page shows it."""
        stream = self.session.get(
            f"{self.url}/hub/api{self.server_path(project)}/progress",
            params={"_xsrf": self.xsrf},
            headers=self._headers,
            stream=True,
            timeout=LAUNCH_SECONDS,
        )
        for line in stream.iter_lines():
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))

    def launch(self, project: str, **options: str) -> list[dict[str, Any]]:
        """Launch a project and return its progress once the server is ready.

        Raises:
            LaunchFailed: with what the page says.
        """
        return list(self.launching(project, **options))

    def launching(self, project: str, **options: str) -> Iterator[dict[str, Any]]:
        """Launch a project and yield its progress until the server is ready.

        Raises:
            LaunchFailed: with what the page says.
        """
        self.page("/hub/spawn")
        answer = self.submit(project, **options)
        if not answer.ok:
            raise LaunchFailed(alert_of(answer.text))
        for event in self.progress(project):
            if event.get("failed"):
                raise LaunchFailed(_text(event.get("html_message") or event["message"]))
            yield event
            if event.get("ready"):
                return
        raise LaunchFailed("the progress ended before the server was ready")

    def retire(self, project: str) -> None:
        """Press Stop and return when the hub says that the server is gone."""
        self.api("DELETE", self.server_path(project)).raise_for_status()
        deadline = time.monotonic() + RETIRE_SECONDS
        while server_name(project) in self.servers():
            if time.monotonic() > deadline:
                raise AssertionError(f"the server did not end within {RETIRE_SECONDS} s")
            time.sleep(0.05)

    def notebook(self, project: str, method: str, path: str, **arguments: Any) -> requests.Response:
        """Call the running notebook server's own API, as JupyterLab does."""
        base = f"/user/{quote(self.user, safe='@~')}/{server_name(project)}/"
        if not any(c.name == "_xsrf" and c.path == base for c in self.session.cookies):
            self.page(f"{base}lab").raise_for_status()  # the login round trip of a fresh server
        token = next(str(c.value) for c in self.session.cookies if c.name == "_xsrf" and c.path == base)
        arguments.setdefault("timeout", PAGE_SECONDS)
        return self.session.request(method, f"{self.url}{base}{path}", headers={"X-XSRFToken": token}, **arguments)

    def free_devices(self) -> list[str]:
        """Return what the spawn form says of free devices, such as ``["2 of 2"]``."""
        return re.findall(r"\((\d+ of \d+) free", self.page("/hub/spawn").text)


def alert_of(page: str) -> str:
    """Return the error that a page shows, as text."""
    found = re.search(r"spawn-error-msg[^>]*>(.*?)</(?:div|p)>\s*<form", page, re.DOTALL)
    return _text(found.group(1)) if found else "no reason was shown"


def _text(html: str) -> str:
    return re.sub(r"\s*<[^>]+>\s*", " ", html).strip()
