"""The spawn form: what it offers, what it preselects, and what it says cannot work."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from ds01_spawner import form
from ds01_spawner.core import options
from ds01_spawner.core.limits import Held, Limits
from ds01_spawner.core.project import server_name
from ds01_spawner.errors import EngineUnavailable
from ds01_spawner.form import Outlook

FREE = Outlook({"gpu": (1, 2), "1g.10gb": (0, 7)}, {"gpu": (0.0, 0.0), "1g.10gb": (600.0, 7200.0)}, 0.0, Limits(), ())


@dataclass
class Facts:
    """What the form is told."""

    found: tuple[str, ...] = ("thesis", "My Project")
    outlook_now: Outlook = FREE
    kept: tuple[str, ...] = ("v1",)
    problem: Exception | None = None
    retire_path: str = "services/projects/retire"

    async def projects(self, user: str) -> tuple[str, ...]:
        """Return the projects."""
        if self.problem:
            raise self.problem
        return self.found

    async def outlook(self, user: str, groups: frozenset[str]) -> Outlook:
        """Return the outlook."""
        return self.outlook_now

    async def tags(self, user: str, project: str) -> tuple[str, ...]:
        """Return the tags."""
        return self.kept


@dataclass
class Request:
    """A request as the hub's handler has it."""

    arguments: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    _finished: bool = False
    viewer: str = "ada"

    @property
    def current_user(self) -> SimpleNamespace:
        """Who looks at the form."""
        return SimpleNamespace(name=self.viewer)

    @property
    def request(self) -> Request:
        """Itself: only its method is asked for."""
        return self

    def get_argument(self, name: str, default: Any = None) -> Any:
        """Return an argument of the address."""
        return self.arguments.get(name, default)

    def get_body_argument(self, name: str, default: Any = None) -> Any:
        """Return nothing: a body is not read here."""
        return default


def spawner(name: str = "", asked: Request | None = None, **options_: Any) -> Any:
    """Return what the form knows of a spawner."""
    user = SimpleNamespace(
        name="ada", escaped_name="ada", spawners={}, groups=[], server_url=lambda server: f"/user/ada/{server}/"
    )
    return SimpleNamespace(
        name=name,
        user=user,
        hub=SimpleNamespace(base_url="/hub/"),
        handler=asked,
        user_options=options_,
        option_defaults={},
        site_fields=(),
    )


def checked(html: str) -> str:
    """Return the value of the device that is chosen."""
    found = re.search(r'value="([^"]*)"\s+checked', html)
    return found[1] if found else ""


async def test_every_kind_says_how_many_are_free_or_how_long_it_takes() -> None:
    """CPU, any, whole GPUs and slices are offered with their numbers and the expected wait."""
    html = await form.render(spawner(), Facts())
    assert "Whole GPU" in html
    assert "(1 of 2 free)" in html
    assert "0 of 7 free, expected wait 10 min to 2 h" in html
    assert "Any GPU" in html
    assert "CPU only" in html


async def test_what_the_limits_forbid_is_said_before_the_submit() -> None:
    """The sentence names what to retire, at the device that cannot be had; the CPU stays possible."""
    held = (Held("other", Fraction(1)),)
    html = await form.render(spawner(), Facts(outlook_now=Outlook(FREE.free, FREE.starts, 0.0, Limits(), held)))
    assert "Retire other first" in html
    assert html.count("Cannot be launched now") == 1 + 1 + 1  # any, whole, slice; not the CPU


async def test_a_servers_own_form_offers_its_project_and_tags() -> None:
    """One project, its tags, the asked one preselected, one that is gone shown as such."""
    html = await form.render(spawner("thesis", Request({"opt-tag": "v1"})), Facts())
    assert 'name="project" value="thesis"' in html
    assert "My Project" not in html
    assert '<option value="v1" selected>' in html
    html = await form.render(spawner("thesis", Request({"opt-tag": "gone"})), Facts())
    assert "gone (not there)" in html


@pytest.mark.parametrize(
    ("last", "chosen"),
    [
        ({}, "any"),
        ({"gpus": 0}, "cpu"),
        ({"gpus": 1, "kind": "1g.10gb"}, "1g.10gb"),
        ({"gpus": 2, "kind": "vanished"}, "cpu"),
    ],
)
async def test_the_last_choice_is_preselected(last: dict[str, Any], chosen: str) -> None:
    """A kind that is no longer there falls back to what always works."""
    assert checked(await form.render(spawner("thesis", **last), Facts())) == chosen


async def test_a_request_of_an_earlier_page_counts_for_nothing() -> None:
    """The hub keeps the handler of the page before; its arguments are not this page's."""
    stale = Request({"opt-gpus": "0"})
    stale._finished = True
    assert checked(await form.render(spawner("thesis", stale), Facts())) == "any"


async def test_a_refused_submit_is_shown_again_with_its_input() -> None:
    """JupyterHub asks the default server for the form then; it shows the server that was meant, once."""
    meant = spawner("thesis")
    form.remember_refused(meant, {"gpus": ["0"], "tag": ["gone"], "project": ["thesis"]})
    default = spawner()
    default.user = meant.user
    html = await form.render(default, Facts())
    assert checked(html) == "cpu"
    assert "gone (not there)" in html
    assert 'name="project" value="thesis"' in html
    assert "My Project" in await form.render(default, Facts())


async def test_names_are_escaped_and_a_fault_is_told() -> None:
    """A folder's name is text, and an engine that is away leaves a page that says so."""
    html = await form.render(spawner(), Facts(found=("<script>alert(1)",)))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    html = await form.render(spawner(), Facts(problem=EngineUnavailable("Docker Engine does not answer.")))
    assert "Docker Engine does not answer." in html
    assert "There is no project yet" not in html


@pytest.mark.parametrize(
    ("fields", "gpus", "kind"),
    [
        ({"device": ["cpu"], "gpus": ["3"]}, 0, ""),
        ({"device": ["any"], "gpus": ["2"]}, 2, ""),
        ({"device": ["gpu"]}, 1, "gpu"),
        ({"device": ["1g.10gb"], "gpus": ["0"]}, 1, "1g.10gb"),
        ({"gpus": ["0"], "kind": [""]}, 0, ""),
    ],
)
def test_one_choice_of_device_becomes_the_apis_options(fields: dict[str, list[str]], gpus: int, kind: str) -> None:
    """The form's radio buttons and the API's two options mean the same."""
    parsed = options.from_form({"project": ["thesis"], **form.to_options(fields)})
    assert (parsed.gpus, parsed.kind) == (gpus, kind)


async def test_a_running_project_is_retired_where_it_can_be_seen_what_would_be_lost() -> None:
    """The link names the project exactly; an admin who has another's form open gets none: it would be their own."""
    for viewer in ("ada", "admin"):
        seen = spawner("", Request(viewer=viewer))
        seen.user.spawners[server_name("My Project")] = SimpleNamespace(ready=True)
        html = await form.render(seen, Facts(found=("My Project",)))
        assert "running" in html
        assert ('href="/services/projects/retire?project=My%20Project"' in html) is (viewer == "ada")


async def test_a_sites_own_fields_are_on_both_forms_with_the_last_choice() -> None:
    """A plain list with its label; what was chosen last, asked for in a link or refused is preselected."""
    fields = options.site_fields({"course": {"label": "Course <b>", "choices": ["none", "m&l", "vision"]}})
    for name, asked, chosen in (
        ("", None, "m&amp;l"),
        ("thesis", None, "m&amp;l"),
        ("thesis", Request({"opt-course": "vision"}), "vision"),
    ):
        seen = spawner(name, asked, course="m&l")
        seen.site_fields = fields
        html = await form.render(seen, Facts())
        assert '<label class="form-label fs-5" for="ds01-site-course">Course &lt;b&gt;</label>' in html
        assert f'<option value="{chosen}" selected>' in html
        assert '<option value="none" >' in html
    seen.handler = Request(method="POST")
    form.remember_refused(seen, {"course": ["none"], "project": ["thesis"]})
    assert '<option value="none" selected>' in await form.render(seen, Facts())
