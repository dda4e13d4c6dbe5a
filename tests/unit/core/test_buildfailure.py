"""What people read when a build failed.  The messages of BuildKit, pip and apt are copied from real builds."""

from __future__ import annotations

import pytest

from ds01_spawner.core.buildfailure import explain

STEP = "[2/3] RUN x"
REGISTRY = 'failed to do request: Head "https://registry.example/v2/": dial tcp: lookup registry.example: no such host'
EXIT_1 = 'process "/bin/sh -c x" did not complete successfully: exit code: 1'


@pytest.mark.parametrize(
    ("step", "error", "log", "output", "says"),
    [
        (
            "[internal] load metadata for docker.io/library/nosuch:1",
            REGISTRY,
            [],
            [
                (
                    "ERROR: failed to solve: nosuch:1: failed to resolve source metadata for "
                    f"docker.io/library/nosuch:1: {REGISTRY}"
                )
            ],
            "FROM names an image that is neither on this server nor could be fetched: nosuch:1.",
        ),
        (
            "[internal] load metadata for docker.io/a/b:2",
            "not found",
            [],
            ["ERROR: failed to solve: a/b:2: failed to resolve source metadata for docker.io/a/b:2: not found"],
            "could be fetched: a/b:2.",
        ),
        (
            "[internal] load metadata for docker.io/a/b:2",
            "x",
            [],
            [
                (
                    "ERROR: failed to solve: a/b: pull access denied, repository does not exist or may require "
                    "authorization: server message: insufficient_scope: authorization failed"
                )
            ],
            "could be fetched: a/b.",
        ),
        (
            "resolve image config for docker-image://docker.io/docker/dockerfile:1",
            REGISTRY,
            [],
            [
                (
                    "ERROR: failed to solve: failed to resolve source metadata for docker.io/docker/dockerfile:1: "
                    f"{REGISTRY}"
                )
            ],
            "Remove that line",
        ),
        (
            "[2/2] COPY nosuch.txt /",
            'failed to calculate checksum of ref a::b: "/nosuch.txt": not found',
            [],
            [
                (
                    "ERROR: failed to solve: failed to compute cache key: failed to calculate checksum of ref a::b: "
                    '"/nosuch.txt": not found'
                )
            ],
            "not in the project's folder, or that .dockerignore leaves out: nosuch.txt.",
        ),
        (
            "",
            "",
            [],
            ["ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)"],
            "Line 2 of the Dockerfile is not understood: unknown instruction: RUNN",
        ),
        ("", "", [], ["ERROR: failed to solve: failed to load LLB: network.host is not allowed"], "Remove that flag"),
        (
            STEP,
            EXIT_1,
            ["ERROR: No matching distribution found for nosuch==1"],
            [],
            "pip found no package nosuch==1",
        ),
        (STEP, EXIT_1, ["error: externally-managed-environment"], [], "python3 -m venv"),
        (STEP, EXIT_1, ["E: Unable to locate package htop"], [], "apt-get update && apt-get install -y htop"),
        (
            STEP,
            EXIT_1,
            [
                "ERROR: Could not open requirements file: [Errno 2] No such file or directory: 'requirements.txt'",
            ],
            [],
            "Add “COPY requirements.txt .”",
        ),
        (STEP, EXIT_1.replace("1", "127"), ["/bin/sh: 1: git: not found"], [], "no command git."),
        (STEP, EXIT_1.replace("1", "127"), ["/bin/bash: line 1: git: command not found"], [], "no command git."),
        (STEP, EXIT_1.replace("1", "137"), ["Killed"], [], "too much memory"),
        (
            STEP,
            EXIT_1,
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            [],
            "disk of this server became full",
        ),
        (
            STEP,
            "",
            [],
            ["ERROR: failed to solve: failed to copy: write /var/lib/x: no space left on device"],
            "disk of this server became full",
        ),
        (STEP, EXIT_1, ["Temporary failure resolving 'deb.example'"], [], "could not reach the internet"),
        (STEP, EXIT_1.replace("1", "42"), ["?"], [], "It ended with exit code 42."),
        (
            STEP,
            'process "x" did not complete successfully: failed to create endpoint y on network bridge: no device',
            [],
            [],
            "The engine could not run it (failed to create endpoint y on network bridge: no device).",
        ),
        ("", "", [], ["something", "ERROR: odd thing."], "It says: odd thing."),
        ("", "", [], [], "It gave no reason or says nothing"),
    ],
)
def test_explanations(step: str, error: str, log: list[str], output: list[str], says: str) -> None:
    """Common causes are recognised, and each ends with something to do."""
    failed = explain(step, error, tuple(log), tuple(output))
    if says.startswith("It gave"):
        says = "gave no reason"
    assert says in str(failed)
    assert str(failed).endswith(".")
    assert failed.step == step
    assert failed.log == tuple(log or output)


def test_hostile_text_does_not_grow() -> None:
    """A Dockerfile cannot make the sentence endless or break its formatting."""
    failed = explain(STEP, "{x}" * 5000, ("No matching distribution found for " + "{a}" * 5000,), ())
    assert len(str(failed)) < 1000
