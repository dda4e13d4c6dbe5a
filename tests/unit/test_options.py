"""What a person chooses for a launch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core import options
from ds01_spawner.core.options import SpawnOptions, from_form, parse
from ds01_spawner.core.project import validate_name
from ds01_spawner.errors import InvalidOptions, ProjectRefused

VALID = SpawnOptions(project="My_Thesis", gpus=2, kind="1g.10gb", min_memory_gib=8, tag="v1")


def _is_project(name: str) -> bool:
    try:
        validate_name(name)
    except ProjectRefused:
        return False
    return True


valid = st.builds(
    SpawnOptions,
    project=st.text(min_size=1, max_size=60).filter(_is_project),
    gpus=st.integers(0, 64),
    kind=st.sampled_from(["", "gpu", "1g.10gb", "7g.40gb", "1g.10gb+me", "1c.3g.20gb"]),
    min_memory_gib=st.integers(0, 4096),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
near_options = st.dictionaries(
    st.sampled_from([*(field.name for field in options.FIELDS), "profile", "x"]), json_values, max_size=6
)


@given(valid)
def test_options_survive_being_stored(chosen: SpawnOptions) -> None:
    """What ``user_options`` holds is read back as the same choice, by way of JSON too."""
    assert parse(chosen.as_dict()) == chosen
    assert parse(json.loads(json.dumps(chosen.as_dict()))) == chosen
    assert parse(parse(chosen.as_dict()).as_dict()).as_dict() == chosen.as_dict()


@given(valid)
def test_the_form_the_api_and_the_command_line_mean_the_same(chosen: SpawnOptions) -> None:
    """A submitted form is the same choice as the JSON object."""
    form = {name: [str(value)] for name, value in chosen.as_dict().items()}
    assert from_form(form) == chosen


@given(json_values | near_options)
def test_any_json_is_either_a_choice_or_a_clear_refusal(raw: Any) -> None:
    """Nothing that somebody posts ends in another exception, and every text can be shown."""
    try:
        chosen = parse(raw)
    except InvalidOptions as refusal:
        text = str(refusal)
        assert text.isprintable()
        assert len(text) < 2500
        return
    assert parse(chosen.as_dict()) == chosen


@given(st.dictionaries(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=3), max_size=5))
def test_any_form_is_either_a_choice_or_a_clear_refusal(form: dict[str, list[str]]) -> None:
    """The same for a form whose fields somebody made up."""
    try:
        from_form(form)
    except InvalidOptions as refusal:
        text = str(refusal)
        assert text.isprintable()


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("gpus", True, "True"),
        ("gpus", 1.0, "1.0"),
        ("gpus", "1", "'1'"),
        ("gpus", -1, "-1"),
        ("gpus", 65, "65"),
        ("gpus", None, "null"),
        ("gpus", [1], "[1]"),
        pytest.param("gpus", 10**5000, "a number of 16610 bits", id="more digits than Python prints"),
        ("kind", "a b", "'a b'"),
        ("kind", "GPU", "'GPU'"),
        ("kind", 5, "5"),
        ("kind", "x" * 33, "xxx"),
        ("kind", "gpu\n", "gpu\\n"),
        ("min_memory_gib", -1, "-1"),
        ("min_memory_gib", 4097, "4097"),
        ("tag", "a/b", "'a/b'"),
        ("tag", "", "''"),
        ("tag", None, "null"),
        ("project", "../x", "'../x'"),
        ("project", ["a"], "['a']"),
        ("project", "a\u202eb", "\\u202e"),
        ("project", "<script>" * 50, "400 characters"),
    ],
)
def test_a_refusal_names_the_field_what_came_and_what_is_accepted(field: str, value: object, shown: str) -> None:
    """The person who typed it can mend it without reading documentation."""
    with pytest.raises(InvalidOptions) as refusal:
        parse({**VALID.as_dict(), field: value})
    text = str(refusal.value)
    assert f"'{field}'" in text
    assert shown in text
    accepted = next(known.accepted for known in options.FIELDS if known.name == field)
    assert accepted in text


@pytest.mark.parametrize("raw", [[], "thesis", 5, True, [["project", "x"]]])
def test_what_is_no_object_is_refused(raw: object) -> None:
    """A list of pairs is not quietly turned into an object."""
    with pytest.raises(InvalidOptions, match="Use an object with 'project'"):
        parse(raw)


@pytest.mark.parametrize("raw", [None, {}, {"gpus": 1}, {"project": None}])
def test_a_project_must_be_chosen(raw: object) -> None:
    """No project is guessed."""
    with pytest.raises(InvalidOptions, match="No project was chosen"):
        parse(raw)


def test_an_option_that_does_not_exist_is_refused() -> None:
    """A typing mistake is not taken for the default."""
    with pytest.raises(InvalidOptions, match="no option 'gpu'"):
        parse({"project": "thesis", "gpu": 4})


def test_the_profile_that_comes_back_is_ignored() -> None:
    """It is a line for the admin's page, made anew each time; nobody can put text there."""
    stored = {**VALID.as_dict(), "profile": "<b>root</b>"}
    assert parse(stored).as_dict()["profile"] == "My_Thesis · 2 x 1g.10gb · at least 8 GiB · image v1"


def test_the_site_decides_what_was_not_chosen() -> None:
    """A person's choice wins over the site's default, and that over ours."""
    assert parse({"project": "thesis"}).gpus == 1
    assert parse({"project": "thesis"}, defaults={"gpus": 0, "kind": "1g.10gb"}).gpus == 0
    assert parse({"project": "thesis", "gpus": 2}, defaults={"gpus": 0}).gpus == 2
    assert parse(None, defaults={"project": "thesis"}).project == "thesis"


def test_a_sites_impossible_default_is_refused() -> None:
    """A default passes the same checks as a choice."""
    with pytest.raises(InvalidOptions, match="'gpus' is 99"):
        parse({"project": "thesis"}, defaults={"gpus": 99})


def test_a_field_left_blank_in_the_form_is_not_chosen() -> None:
    """Blank numbers and tags take the default; a blank kind means any, even where the site prefers one."""
    form = {"project": ["thesis"], "gpus": [" "], "min_memory_gib": [""], "tag": [""], "kind": [""], "_xsrf": ["2|x"]}
    chosen = from_form(form, defaults={"gpus": 3, "kind": "1g.10gb"})
    assert chosen == SpawnOptions("thesis", 3, "", 0, "latest")


@pytest.mark.parametrize("number", ["1e3", "٣", "0x1", "1_0", "-1", "1.0", "9999999999", "one"])
def test_a_form_takes_plain_numbers_only(number: str) -> None:
    """What Python would read as a number and a person would not is refused."""
    with pytest.raises(InvalidOptions, match="'gpus' is"):
        from_form({"project": ["thesis"], "gpus": [number]})


@pytest.mark.parametrize("values", [[], ["1", "2"]])
def test_a_form_field_is_given_once(values: list[str]) -> None:
    """Of two values none is picked."""
    with pytest.raises(InvalidOptions, match="'gpus' was given"):
        from_form({"project": ["thesis"], "gpus": values})


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        ({"gpus": 0}, "thesis · CPU only"),
        ({"gpus": 0, "kind": "1g.10gb", "min_memory_gib": 9}, "thesis · CPU only"),
        ({"gpus": 1}, "thesis · 1 GPU"),
        ({"gpus": 2, "kind": "gpu"}, "thesis · 2 GPUs"),
        ({"gpus": 1, "kind": "1g.10gb"}, "thesis · 1 x 1g.10gb"),
        ({"gpus": 1, "min_memory_gib": 40, "tag": "v1"}, "thesis · 1 GPU · at least 40 GiB · image v1"),
    ],
)
def test_the_profile_says_what_was_chosen(change: dict[str, Any], profile: str) -> None:
    """JupyterHub's admin page shows it for every server."""
    assert dataclasses.replace(SpawnOptions("thesis", 1, "", 0, "latest"), **change).profile == profile


def test_every_option_is_described() -> None:
    """Form and reference are made from the declarations, so each option has one, in the same order."""
    declared = [field.name for field in options.FIELDS]
    assert [*declared, "site"] == [field.name for field in dataclasses.fields(SpawnOptions)]
    for field in options.FIELDS:
        assert field.label
        assert field.help.endswith(".")


COURSE = options.site_fields({"course": {"label": "Course", "choices": ["none", "ml"]}})


def test_a_sites_own_field_is_an_option_like_any_other() -> None:
    """Form, API and what is stored mean the same; its first choice is the default, unless the site says another."""
    for chosen in (
        from_form({"project": ["x"], "course": ["ml"]}, added=COURSE),
        parse({"project": "x", "course": "ml"}, added=COURSE),
        parse({"project": "x"}, defaults={"course": "ml"}, added=COURSE),
        parse(parse({"project": "x", "course": "ml"}, added=COURSE).as_dict(), added=COURSE),
    ):
        assert chosen.site == {"course": "ml"}
        assert chosen.as_dict()["course"] == "ml"
    assert parse({"project": "x"}, added=COURSE).site == {"course": "none"}


@pytest.mark.parametrize("value", ["other", "", None, 1, ["ml"], {"ml": 1}, "ML"])
def test_a_sites_own_field_takes_its_choices_only(value: object) -> None:
    """The refusal names them."""
    with pytest.raises(InvalidOptions, match=r"'course' is .*\. Use one of 'none', 'ml'\."):
        parse({"project": "x", "course": value}, added=COURSE)


def test_a_field_that_the_site_has_not_is_unknown() -> None:
    """Nothing reaches the site's hooks that it did not declare."""
    with pytest.raises(InvalidOptions, match="no option 'course'"):
        parse({"project": "x", "course": "ml"})
    with pytest.raises(InvalidOptions, match=r"no option 'room'\. Use .*'tag', 'course'\."):
        parse({"project": "x", "room": "1"}, added=COURSE)


@pytest.mark.parametrize(
    ("described", "wrong"),
    [
        ({"gpus": {"label": "x", "choices": ["a"]}}, "name of a field"),
        ({"device": {"label": "x", "choices": ["a"]}}, "name of a field"),
        ({"profile": {"label": "x", "choices": ["a"]}}, "name of a field"),
        ({"_xsrf": {"label": "x", "choices": ["a"]}}, "name of a field"),
        ({"a b": {"label": "x", "choices": ["a"]}}, "name of a field"),
        ({"a": ["b"]}, "label and choices"),
        ({"a": {"label": "x", "choices": ["b"], "color": "red"}}, "nothing else"),
        ({"a": {"label": "", "choices": ["b"]}}, "label"),
        ({"a": {"label": "x", "choices": []}}, "choices"),
        ({"a": {"label": "x", "choices": "abc"}}, "choices"),
        ({"a": {"label": "x", "choices": [1]}}, "choices"),
    ],
)
def test_a_mistake_in_a_sites_own_field_is_named(described: dict[str, Any], wrong: str) -> None:
    """No name of ours or of JupyterHub's, a label, and texts to choose from."""
    with pytest.raises(ValueError, match=wrong):
        options.site_fields(described)
