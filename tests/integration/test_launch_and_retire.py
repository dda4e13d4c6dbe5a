"""The main job on a real engine: launch, work, retire."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from ds01_spawner.core.project import server_name
from ds01_spawner.testing.person import LaunchFailed

from .conftest import Site, docker

pytestmark = pytest.mark.engine


def run_code(site: Site, user: str, project: str, code: str) -> str:
    """Run code in the container as its user and return what it printed."""
    container = site.container(user, project, "{{.ID}}")
    uid = site.account(user).uid
    return docker("exec", "--user", str(uid), container, "sh", "-c", code)


def test_a_project_is_launched_used_and_retired(site: Site) -> None:
    """Container and lease come and go, the folder and its files stay, and they belong to the user."""
    folder = site.project("alice", "My_Thesis", dockerfile="FROM ds01/debian:13\n")
    alice = site.person("alice")
    free = alice.free_devices()
    events = alice.launch("My_Thesis")
    assert events[-1]["ready"]
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
    content = {"type": "file", "format": "text", "content": "kept\n"}
    alice.notebook("My_Thesis", "PUT", "api/contents/note.txt", json=content).raise_for_status()
    assert alice.free_devices() != free
    (server,) = alice.servers().values()
    assert server["user_options"]["profile"] == "My_Thesis · 1 GPU"
    alice.retire("My_Thesis")
    assert site.container("alice", "My_Thesis") == ""
    assert alice.free_devices() == free
    assert (folder / "note.txt").read_text() == "kept\n"
    assert (folder / "note.txt").stat().st_uid == site.account("alice").uid


def test_the_container_is_what_the_design_promises(site: Site) -> None:
    """Name, prompt, user, limits, privileges, mounts and devices, as the kernel sees them."""
    site.project("carol", "2024-run", dockerfile='FROM ds01/debian:13\nUSER root\nWORKDIR /tmp\nENTRYPOINT ["false"]\n')
    carol = site.person("carol")
    carol.launch("2024-run")
    try:
        assert run_code(site, "carol", "2024-run", "whoami; hostname; pwd").split() == [
            "carol",
            "2024-run",
            "/workspace",
        ]
        status = run_code(site, "carol", "2024-run", "cat /proc/1/status")
        assert re.search(r"NoNewPrivs:\s+1", status)
        assert re.search(r"CapEff:\s+0+\n", status)
        assert run_code(site, "carol", "2024-run", "ls /var/run/docker.sock 2>&1 || true").endswith(
            "No such file or directory"
        )
        assert run_code(site, "carol", "2024-run", "touch /opt/ds01/x 2>&1 || true").endswith("Read-only file system")
        uuid = site.container("carol", "2024-run", '{{.Label "ds01.gpu.uuids"}}')
        assert run_code(site, "carol", "2024-run", "tr '\\0' '\\n' </proc/1/environ | grep NVIDIA_VIS") == (
            f"NVIDIA_VISIBLE_DEVICES={uuid}"
        )
    finally:
        carol.retire("2024-run")


def test_a_name_with_a_domain_works_everywhere(site: Site) -> None:
    """Accounts of a directory service are called like this; every address of theirs has an ``@``."""
    site.project("first.last@uni.example", "Thesis")
    person = site.person("first.last@uni.example")
    person.launch("Thesis")
    content = {"type": "file", "format": "text", "content": "kept\n"}
    person.notebook("Thesis", "PUT", "api/contents/note.txt", json=content).raise_for_status()
    assert run_code(site, "first.last@uni.example", "Thesis", "whoami") == "first.last@uni.example"
    assert "Thesis" in person.page("/services/projects/").text
    person.retire("Thesis")
    assert site.container("first.last@uni.example", "Thesis") == ""


def test_a_site_adds_to_every_container_but_never_to_who_holds_it(site: Site) -> None:
    """Shared folders, environment, labels and limits of the site's own come beside ours, and ours win."""
    (site.hub.folder / "shared" / "corpus.txt").write_text("shared\n")
    site.project("gil", "shared")
    gil = site.person("gil")
    gil.launch("shared", gpus="0")
    try:
        assert run_code(site, "gil", "shared", "cat /data/corpus.txt") == "shared"
        assert "Read-only" in run_code(site, "gil", "shared", "touch /data/x 2>&1 || true")
        assert run_code(site, "gil", "shared", "ulimit -n") == "2048"
        assert (
            run_code(site, "gil", "shared", "tr '\\0' '\\n' </proc/1/environ | grep SITE_NAME") == "SITE_NAME=the lab"
        )
        assert site.container("gil", "shared", '{{.Label "org.lab.room"}} {{.Label "ds01.managed"}}') == "gil true"
    finally:
        gil.retire("shared")


def test_pip_install_works_inside_and_is_gone_after_retire(site: Site) -> None:
    """Containers are temporary: what was installed by hand goes with them."""
    site.project("dora", "pip", dockerfile="FROM ds01/python:13\n")
    dora = site.person("dora")
    dora.launch("pip", gpus="0")
    run_code(site, "dora", "pip", "python3 -m pip install --quiet --user iniconfig && python3 -c 'import iniconfig'")
    dora.retire("pip")
    dora.launch("pip", gpus="0")
    assert "No module" in run_code(site, "dora", "pip", "python3 -c 'import iniconfig' 2>&1 || true")
    dora.retire("pip")


def test_a_sites_own_field_reaches_its_hooks(site: Site) -> None:
    """Chosen on the form, given by the API or left alone, it is in the environment that the site makes of it."""
    site.project("hal", "field")
    hal = site.person("hal")
    assert '<option value="ml-1"' in hal.page("/hub/spawn").text
    hal.launch("field", gpus="0", course="ml-1")
    assert run_code(site, "hal", "field", "tr '\\0' '\\n' </proc/1/environ | grep COURSE") == "COURSE=ml-1"
    hal.retire("field")
    for given, found in (({"course": "ml-1"}, "ml-1"), ({}, "none")):
        asked = {"user_options": {"project": "field", "gpus": 0, **given}}
        assert hal.api("POST", hal.server_path("field"), json=asked).ok
        list(hal.progress("field"))
        assert run_code(site, "hal", "field", "tr '\\0' '\\n' </proc/1/environ | grep COURSE") == f"COURSE={found}"
        hal.retire("field")
    for given in ({"course": "other"}, {"room": "1"}):
        answer = hal.api("POST", hal.server_path("field"), json={"user_options": {"project": "field", **given}})
        assert answer.status_code == 400
        assert "course" in answer.json()["message"]


def test_a_device_is_never_given_twice_when_many_launch_at_once(site: Site) -> None:
    """Six people, four devices: four run with one each, two wait and run when others retire."""
    people = [f"racer-{number}" for number in range(6)]
    for user in people:
        site.project(user, "race")
        site.person(user)
    with ThreadPoolExecutor(len(people)) as pool:
        launches = {pool.submit(site.person(user).launch, "race"): user for user in people}
        running: list[str] = []
        for launch in as_completed(launches, timeout=180):
            launch.result()
            running.append(launches[launch])
            holding = [site.container(user, "race", '{{.Label "ds01.gpu.uuids"}}') for user in people]
            held = [uuid for uuid in holding if uuid]
            assert len(held) == len(set(held)), holding
            if len(running) >= 2:
                site.person(running.pop(0)).retire("race")
    for user in running:
        site.person(user).retire("race")


def test_a_project_runs_only_as_its_own_server(site: Site) -> None:
    """Two servers cannot run one folder: another server name is refused, with the address that works."""
    site.project("erin", "only")
    erin = site.person("erin")
    answer = erin.api("POST", "/users/erin/servers/another", json={"user_options": {"project": "only", "gpus": 0}})
    assert answer.status_code == 400
    assert "/hub/spawn/erin/only" in answer.json()["message"]
    assert site.container("erin", "only") == ""


def test_a_link_with_options_shows_the_form_and_starts_nothing(site: Site) -> None:
    """A bare GET never starts a server, whatever it carries."""
    site.project("frank", "linked")
    frank = site.person("frank")
    page = frank.page(f"/hub/spawn/frank/{server_name('linked')}?opt-project=linked&opt-gpus=0")
    assert page.ok
    assert 'value="linked"' in page.text
    assert frank.servers() == {}


def test_a_failed_build_is_told_with_its_step_and_log_and_keeps_the_last_image(site: Site) -> None:
    """The page shows what failed; the previous image stays."""
    folder = site.project("gina", "fails", dockerfile="FROM ds01/debian:13\n")
    gina = site.person("gina")
    gina.launch("fails", gpus="0")
    gina.retire("fails")
    image = docker("image", "inspect", "--format", "{{.Id}}", "ds01-gina/fails:latest")
    (folder / "Dockerfile").write_text("FROM ds01/debian:13\nRUN echo about to fail && exit 7\n")
    with pytest.raises(LaunchFailed, match="about to fail"):
        gina.launch("fails", gpus="0")
    assert docker("image", "inspect", "--format", "{{.Id}}", "ds01-gina/fails:latest") == image
    assert site.container("gina", "fails") == ""
