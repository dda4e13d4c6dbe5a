from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core.imagefacts import (
    KERNEL_PACKAGES,
    MOST_ANSWER_BYTES,
    PROBE_MARKER,
    SERVER_PACKAGES,
    SUPPORTED,
    TRIAL_MARKER,
    ImageFacts,
    ImageSettings,
    ServerPlan,
    TrialResult,
    choose_plan,
    parse_probe,
    parse_trial,
    read_facts,
    refuse_facts,
    refuse_no_answer,
    refuse_no_python,
    refuse_settings,
)
from ds01_spawner.errors import ImageRefused

DEBIAN = ImageFacts(
    version=(3, 13, 5),
    executable="/usr/bin/python3",
    implementation="cpython",
    bits=64,
    free_threaded=False,
    glibc="2.41",
    virtual=False,
    packages={},
    extensions=False,
)
WORKED = TrialResult(kernel_image_first=True, kernel_error="", server_image_first=True, server_error="")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def answer(marker: str, value: Any) -> bytes:
    """Return a line of output."""
    return (marker + json.dumps(value)).encode()


# -- answers of hostile images ------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_any_bytes_are_facts_or_an_error(output: bytes) -> None:
    """Whatever an image prints, reading it gives facts or a ValueError, never anything else."""
    for prefix in (b"", PROBE_MARKER.encode(), b"x\n" + PROBE_MARKER.encode()):
        with suppress(ValueError):
            parse_probe(prefix + output)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["schema", *asdict(DEBIAN)], json_values)))
def test_any_answer_leads_to_a_known_version_or_a_refusal(fields: dict[str, Any]) -> None:
    """Whatever an image claims, what passes names a supported version and an absolute, printable path."""
    claim = {"schema": 1, **asdict(DEBIAN), **fields}
    try:
        facts = parse_probe(answer(PROBE_MARKER, claim))
        refuse_facts(facts)
    except (ValueError, ImageRefused):
        return
    assert facts.minor in SUPPORTED
    assert facts.executable.startswith("/")
    assert facts.executable.isprintable()
    assert facts.packages.keys() <= KERNEL_PACKAGES | SERVER_PACKAGES


@given(json_values)
def test_any_trial_answer_is_a_result_or_an_error(value: Any) -> None:
    """A hostile trial's texts are short and printable, and only a plain ``true`` counts as yes."""
    try:
        result = parse_trial(answer(TRIAL_MARKER, {"schema": 1, "kernel_error": value, "kernel_image_first": value}))
    except ValueError:
        return
    assert len(result.kernel_error) <= 300
    assert result.kernel_error.isprintable()
    assert result.kernel_image_first is (value is True)


@pytest.mark.parametrize(
    ("field", "value"), [("free_threaded", "no"), ("free_threaded", None), ("bits", "64"), ("glibc", 2.41)]
)
def test_a_claim_of_the_wrong_kind_counts_as_the_worse_one(field: str, value: object) -> None:
    """What is not said plainly is not believed: better a refusal than packages that may not fit."""
    with pytest.raises(ImageRefused):
        refuse_facts(parse_probe(answer(PROBE_MARKER, {"schema": 1, **asdict(DEBIAN), field: value})))


def test_the_last_answer_counts() -> None:
    """What the image's own start-up code prints before the probe does not replace the probe's answer."""
    forged = answer(PROBE_MARKER, {"schema": 1, **asdict(replace(DEBIAN, version=(3, 9, 0)))})
    output = b"welcome\n" + forged + b"\n" + answer(PROBE_MARKER, {"schema": 1, **asdict(DEBIAN)}) + b"\n"
    assert parse_probe(output) == DEBIAN


def test_too_much_output_is_no_answer() -> None:
    """An answer in more output than anyone needs is not even looked for."""
    output = b" " * MOST_ANSWER_BYTES + b"\n" + answer(PROBE_MARKER, {"schema": 1, **asdict(DEBIAN)})
    with pytest.raises(ValueError, match="more than"):
        parse_probe(output)


def test_deep_nesting_is_no_answer() -> None:
    """JSON nested deeper than the parser goes is an error like any other."""
    with pytest.raises(ValueError, match="nested"):
        parse_probe(PROBE_MARKER.encode() + b"[" * 100_000)


def test_facts_survive_being_kept() -> None:
    """Facts written to a file as JSON are read back the same."""
    facts = replace(DEBIAN, packages={"tornado": "6.1"}, extensions=True, virtual=True)
    assert read_facts(json.loads(json.dumps(asdict(facts)))) == facts


@pytest.mark.parametrize("path", ["python3", "", "/usr/bin/py\nthon", "/a\0b", 7, None, "../../x", "/" + "a" * 2000])
def test_a_strange_path_is_no_answer(path: object) -> None:
    """The interpreter must have an absolute path of printable characters."""
    with pytest.raises(ValueError, match="path"):
        parse_probe(answer(PROBE_MARKER, {"schema": 1, **asdict(DEBIAN), "executable": path}))


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": (3, 8, 10)}, r"Python 3\.8\.10.*3\.9 or newer.*base image"),
        ({"version": (2, 7, 18)}, r"Python 2\.7\.18.*3\.9 or newer"),
        ({"version": (3, 15, 0)}, r"Python 3\.15\.0, which is newer.*Use Python 3\.14"),
        ({"version": (4, 0, 0)}, "newer"),
        ({"implementation": "pypy"}, "has pypy as its.*Install CPython"),
        ({"free_threaded": True}, "free-threaded.*Install CPython"),
        ({"bits": 32}, "32-bit.*Install CPython"),
        ({"glibc": ""}, "Alpine.*Use a Debian or Ubuntu based image"),
        ({"glibc": "2.17"}, r"glibc 2\.17.*2\.28.*Use a base image of 2019"),
    ],
)
def test_an_unusable_python_is_refused_with_a_next_step(changes: dict[str, Any], expected: str) -> None:
    """Every Python that no package set fits is refused with what it is and what to change."""
    with pytest.raises(ImageRefused, match=expected):
        refuse_facts(replace(DEBIAN, **changes))


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_supported_version_passes(version: str) -> None:
    """Each supported version of CPython on glibc 2.28 is accepted."""
    major, minor = (int(part) for part in version.split("."))
    refuse_facts(replace(DEBIAN, version=(major, minor, 0), glibc="2.28"))


@pytest.mark.parametrize(
    ("architecture", "environment", "expected"),
    [
        ("arm64", {}, "built for arm64.*processor is amd64.*--platform=linux/amd64"),
        ("", {}, "unknown processor"),
        ("amd64", {"LD_PRELOAD": "/usr/lib/libtcmalloc.so"}, "sets LD_PRELOAD.*Remove `ENV LD_PRELOAD`"),
        ("amd64", {"PYTHONHOME": "/opt/py"}, "sets PYTHONHOME.*Remove `ENV PYTHONHOME`"),
    ],
)
def test_settings_that_break_a_server_are_refused(
    architecture: str, environment: dict[str, str], expected: str
) -> None:
    """What can be seen without running the image is refused before anything of it runs."""
    with pytest.raises(ImageRefused, match=expected):
        refuse_settings(ImageSettings(architecture, environment), "x86_64")


@pytest.mark.parametrize(
    "volume",
    ["/workspace", "/workspace/", "/workspace/results", "//workspace/a/b", "/data/../workspace", "/opt/ds01/server"],
)
def test_a_volume_over_a_folder_that_stays_is_refused(volume: str) -> None:
    """The engine would put an anonymous volume over the project's folder and remove it on retire, work included."""
    with pytest.raises(ImageRefused, match=r"declares /(workspace|opt/ds01).* as a volume.*Remove that `VOLUME`"):
        refuse_settings(ImageSettings("amd64", {}, ("/data", volume)), "x86_64")


def test_harmless_settings_pass() -> None:
    """PYTHONPATH, and variables that are set to nothing, are the image's own business."""
    environment = {"PYTHONPATH": "/app", "LD_PRELOAD": "", "PYTHONHOME": "", "PATH": "/usr/bin"}
    refuse_settings(ImageSettings("amd64", environment, ("/data", "/workspaces", "/opt", "/home/alice")), "x86_64")
    refuse_settings(ImageSettings("arm64", {}), "aarch64")


def test_a_silent_image_is_told_what_is_wrong() -> None:
    """No Python, a hanging one and a broken one are three different sentences, each with a next step."""
    assert "apt-get install -y python3" in str(refuse_no_python())
    assert "within 20 seconds" in str(refuse_no_answer(b"", seconds=20))
    broken = str(refuse_no_answer(b"\x1b[31mImportError:\n no module encodings\x00", seconds=None))
    assert "no module encodings" in broken
    assert broken.isprintable()


# -- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "extensions", "trial", "plan", "notices"),
    [
        ({}, False, None, ServerPlan.RUNTIME, []),
        ({"tornado": "6.4"}, False, WORKED, ServerPlan.RUNTIME, []),
        ({}, True, None, ServerPlan.RUNTIME_FIRST, []),
        ({"jupyter-server": "2.14"}, False, WORKED, ServerPlan.RUNTIME_FIRST, []),
        ({"jupyterlab": "4.2", "jupyter-server": "2.14"}, True, WORKED, ServerPlan.IMAGE_FIRST, []),
        (
            {"jupyterlab": "3.0", "jupyter-server": "1.2"},
            True,
            replace(WORKED, server_image_first=False, server_error="jupyterlab 3.0 is older than 4"),
            ServerPlan.RUNTIME_FIRST,
            ["own JupyterLab 3.0 cannot be used.*older than 4.*upgrade jupyterlab"],
        ),
        (
            {"tornado": "4.5"},
            False,
            replace(WORKED, kernel_image_first=False, kernel_error="AttributeError: x"),
            ServerPlan.RUNTIME,
            ["AttributeError: x.*a few come first: tornado.*upgrade ipykernel"],
        ),
    ],
)
def test_the_plan_follows_from_what_worked(
    packages: dict[str, str],
    extensions: bool,  # noqa: FBT001
    trial: TrialResult | None,
    plan: ServerPlan,
    notices: list[str],
) -> None:
    """The image's own JupyterLab is used where it works, and a user hears where their packages were not."""
    import re

    facts = replace(DEBIAN, packages=packages, extensions=extensions)
    assert facts.needs_trial == (trial is not None)
    chosen, said = choose_plan(facts, trial)
    assert chosen == plan
    assert len(said) == len(notices)
    for sentence, expected in zip(said, notices, strict=True):
        assert re.search(expected, sentence)
