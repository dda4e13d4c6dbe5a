"""Names of projects and every name derived from one."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jupyterhub.slugs import is_valid_display_name, is_valid_safe_slug

from ds01_spawner.core import project
from ds01_spawner.errors import InvalidOptions, ProjectRefused

ORDINARY = (
    "thesis",
    "my-thesis",
    "My_Thesis",
    "2024-run",
    "v1.2.final",
    "a" * 60,
    "Übung 3",
    "Müller & Söhne",
    "thesis (copy)",
    "תזה-2024",
    "بحث",
    "می‌خواهم",  # a zero width non-joiner, as Persian writes it
    "論文",
    "🦜 parrots",
    "-rf",
    "$(x)",
    "a:b",
    "a;b|c`d'e\"f",
    "<img src=x onerror=alert(1)>",
    "x" * 255,
    "ü" * 127,
    "thesis ",
    "a--b",
    "COM1",
)
REFUSED = (
    "",
    ".",
    "..",
    ".git",
    "...",
    "a/b",
    "/",
    "../etc",
    "a\0b",
    "a\nb",
    "a\tb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "photo\u202egpj.exe",
    "a\u2066b",
    "\ud800",
    "a\udcffb",
    "x" * 256,
    "ü" * 128,
    " ",
    "\u200b",
    "\u00a0\u200f",
)

names = st.text(min_size=1, max_size=80).filter(lambda name: not _refused(name))
near_names = st.text(alphabet="aA1-_. ü", min_size=1, max_size=34).filter(lambda name: not _refused(name))
users = st.text(min_size=1, max_size=60)
near_users = st.text(alphabet="aA1-_.@t", min_size=1, max_size=14) | st.lists(
    st.sampled_from(["-at-", "@", "__", ".", "_", "-", "a", "t", "at", "._."]), min_size=1, max_size=6
).map("".join)

CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
# The grammar of a reference's path and domain, as Docker's reference package documents it.
PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")


def _refused(name: str) -> bool:
    try:
        project.validate_name(name)
    except ProjectRefused:
        return True
    return False


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_folder_name_is_a_project_exactly_as_it_is(name: str) -> None:
    """Nobody has to rename a folder that a file manager or a shell made."""
    assert project.validate_name(name) == name


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_no_folder_or_hides_something_is_refused(name: str) -> None:
    """The refusal says what a name may be, and can itself be shown and logged."""
    with pytest.raises(ProjectRefused) as refusal:
        project.validate_name(name)
    text = str(refusal.value)
    assert "255 bytes" in text
    assert "Rename the folder" in text
    assert text.isprintable()
    assert len(text) < 500


@given(st.text(max_size=300))
def test_validating_is_repeatable_and_changes_nothing(name: str) -> None:
    """A name either comes back as it is or is refused."""
    assume(not _refused(name))
    assert project.validate_name(project.validate_name(name)) == name
    assert PurePosixPath("~", name).parts == ("~", name)
    name.encode()


@given(names | near_names)
@example("a" * 31)
@example("x-0123456789ab")
@example("a-")
@example("-a")
@example("a--b")
@example("1")
@example("論文")
@example("ẞ")
@example("\N{VULGAR FRACTION ONE HALF}")
@example("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 20)
def test_a_server_name_is_one_that_jupyterhub_accepts(name: str) -> None:
    """JupyterHub 6 answers 400 to anything else."""
    assert is_valid_safe_slug(project.server_name(name))
    assert project.server_name(name) == project.server_name(name)


@pytest.mark.parametrize("name", ["thesis", "my-thesis", "a", "run2", "a" * 30, "a1-b2-c3", "deep-generative"])
def test_a_name_that_jupyterhub_accepts_is_the_servers_name(name: str) -> None:
    """The address of a well-named project is the one its owner would guess."""
    assert project.server_name(name) == name


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("My_Thesis", "my-thesis-"),
        ("2024-run", "p-2024-run-"),
        ("Übung 3", "ubung-3-"),
        ("Łódź", "lodz-"),
        ("Straße", "strasse-"),
        ("論文", "project-"),
        ("a" * 60, "a" * 17 + "-"),
    ],
)
def test_any_other_name_stays_readable_in_the_servers_name(name: str, beginning: str) -> None:
    """People recognise their project in the address bar."""
    assert re.fullmatch(re.escape(beginning) + r"[0-9a-f]{12}", project.server_name(name))


@given(st.lists(names | near_names, min_size=2, max_size=20, unique=True))
@example(["a b", "a-b", "a_b", "A-B", "a--b", "a-b-"])
@example(["ü", "u\u0308", "u"])
def test_two_projects_never_share_a_server_a_container_or_an_image(projects: list[str]) -> None:
    """Whatever reads alike, is cut off or loses its accents still gets a name of its own."""
    for derive in (
        project.server_name,
        lambda name: project.container_name("alice", name),
        lambda name: project.image_repository("alice", name),
    ):
        assert len({derive(name) for name in projects}) == len(projects)


@given(names | near_names)
def test_a_hashed_name_taken_as_a_project_is_another_server(name: str) -> None:
    """A folder that is called like another project's server does not become that server."""
    server = project.server_name(name)
    if server != name:
        assert project.server_name(server) != server
        assert project.container_name("alice", server) != project.container_name("alice", name)
        assert project.image_repository("alice", server) != project.image_repository("alice", name)


@given(st.lists(st.tuples(users | near_users, names | near_names), min_size=2, max_size=20, unique=True))
@example([("b", "a._.x"), ("x._.b", "a")])
@example([("_.b", "a"), ("b", "a._")])
@example([("x@y", "p"), ("x-at-y", "p"), ("x-at@y", "p"), ("x@at-y", "p"), ("x-at-at-y", "p")])
@example([("a.b", "p"), ("a__b", "p"), ("a_b", "p"), ("A.b", "p")])
def test_two_people_or_projects_never_share_a_container_or_an_image(pairs: list[tuple[str, str]]) -> None:
    """No choice of user and project names reaches another person's container or image."""
    assert len({project.container_name(*pair) for pair in pairs}) == len(pairs)
    assert len({project.image_repository(*pair) for pair in pairs}) == len(pairs)


@given(users | near_users, names | near_names)
def test_container_and_image_names_are_ones_that_docker_accepts(user: str, name: str) -> None:
    """Any user and any project get names within Docker's grammar and length."""
    container = project.container_name(user, name)
    assert CONTAINER.fullmatch(container)
    assert len(container) <= 203
    repository = project.image_repository(user, name)
    owner, _, rest = repository.partition("/")
    assert PATH_PART.fullmatch(owner)
    assert PATH_PART.fullmatch(rest)
    assert len(repository) <= 206
    assert owner.startswith("ds01-")
    assert "." not in owner, "Docker would take it for a registry's address"


def test_the_names_that_people_know_from_ds01_are_kept() -> None:
    """Where a name is valid already, container and image are called as the command-line system calls them."""
    assert project.container_name("alice", "My_Thesis") == "My_Thesis._.alice"
    assert project.container_name("first.last@uni.de", "thesis") == "thesis._.first.last-at-uni.de"
    assert project.image_repository("alice", "thesis") == "ds01-alice/thesis"
    assert project.image_repository("first.last@uni.de", "v1.2") == "ds01-first__last-at-uni__de/v1.2"


@given(st.lists(users | near_users, min_size=2, max_size=20, unique=True))
@example(["..", ".", "/", "a/b", "a-b"])
@example(["alice", "Alice", "alice "])
def test_every_user_gets_a_folder_name_of_their_own(people: list[str]) -> None:
    """It is one visible path component, and no two people share it."""
    folders = {project.folder_name(user) for user in people}
    assert len(folders) == len(people)
    for folder in folders:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", folder)


@given(names | near_names)
@example("2024")
@example("a" * 64)
@example("a" * 62 + " b")
def test_a_hostname_is_a_dns_label(name: str) -> None:
    """It is shown in the prompt and must be accepted by the kernel and by resolvers."""
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", project.hostname(name))


def test_a_hostname_reads_like_the_project() -> None:
    """The prompt says which project it is."""
    assert project.hostname("My_Thesis") == "my-thesis"
    assert project.hostname("2024-run") == "2024-run"


@given(names | near_names)
@example("a  b")
@example(" a ")
@example("می‌خواهم")
def test_a_display_name_is_one_that_jupyterhub_accepts(name: str) -> None:
    """JupyterHub answers 400 to invisible characters and double spaces."""
    assert is_valid_display_name(project.display_name(name))


@settings(max_examples=30)
@given(st.lists(names, min_size=1, max_size=8, unique=True), st.data())
def test_a_servers_project_is_found_among_the_users_projects(projects: list[str], data: st.DataObject) -> None:
    """An address leads back to the exact project, or to none."""
    name = data.draw(st.sampled_from(projects))
    assert project.project_of(project.server_name(name), projects) == name
    assert project.project_of(project.server_name(name), [other for other in projects if other != name]) is None


def test_the_projects_own_dockerfile_comes_first() -> None:
    """``<project>/Dockerfile`` wins over the older place."""
    assert project.dockerfile_candidates("My_Thesis") == (
        PurePosixPath("workspace/My_Thesis/Dockerfile"),
        PurePosixPath("dockerfiles/My_Thesis.Dockerfile"),
    )


@pytest.mark.parametrize("derive", [project.project_path, project.dockerfile_candidates])
@pytest.mark.parametrize("name", ["..", "a/b", "", "a\0"])
def test_no_path_is_made_from_a_refused_name(derive: object, name: str) -> None:
    """A path never leaves the workspace, whoever forgot to validate."""
    with pytest.raises(ProjectRefused):
        derive(name)  # type: ignore[operator]


@pytest.mark.parametrize("tag", ["latest", "v1.2", "_x", "A" * 128, "2024-11-23"])
def test_an_image_tag_is_accepted_as_docker_does(tag: str) -> None:
    """People pin what ``docker tag`` made."""
    assert project.validate_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", ".x", "-x", "a b", "a/b", "a:b", "A" * 129, "ü", "x\n", "latest@sha256"])
def test_what_is_no_image_tag_is_refused(tag: str) -> None:
    """Nothing that Docker would read as another image gets through."""
    with pytest.raises(InvalidOptions, match="1 to 128"):
        project.validate_tag(tag)


@given(st.text(max_size=500))
def test_quoted_text_is_short_and_printable(text: str) -> None:
    """Whatever came can be shown in a message and written to a log."""
    shown = project.quoted(text)
    assert shown.isprintable()
    assert len(shown) <= 60 * 10 + 30
