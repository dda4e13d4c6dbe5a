"""Turns what BuildKit said about a failed build into a sentence with a next step."""

from __future__ import annotations

import re

from ds01_spawner.errors import BuildFailed

_IMAGE = r"(?:docker\.io/)?(?:library/)?(?P<what>[^\s\"']+?)"

# The first that matches wins: from certain to likely.  Looked for in BuildKit's error first, in the output after.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"no space left on device",
        (
            "The disk of this server became full. Ask an administrator to free space; the image that you had before "
            "still works."
        ),
    ),
    (
        (
            r"docker/dockerfile(?:-upstream)?[:@]\S* *: (?:failed|not found|pull access|unexpected)"
            r"|resolve image config for docker-image://\S*docker/dockerfile"
        ),
        (
            "The first line asks for a builder from the internet (# syntax=…), which could not be fetched. Remove that "
            "line: the builder of this server understands RUN --mount, here-documents and several stages."
        ),
    ),
    (
        (
            rf"failed to resolve source metadata for {_IMAGE}: |(?:^|\s){_IMAGE.replace('what', 'what2')}: "
            r"(?:not found|pull access denied)"
        ),
        (
            "FROM names an image that is neither on this server nor could be fetched: {what}. Check its spelling, or "
            "choose one of the images that the project form offers."
        ),
    ),
    (
        r"failed to (?:compute cache key|calculate checksum).*\"/?(?P<what>[^\"]*)\": not found",
        (
            "COPY or ADD names a file that is not in the project's folder, or that .dockerignore leaves out: {what}. "
            "Create it, or correct the line."
        ),
    ),
    (
        r"network\.host is not allowed|security\.insecure is not allowed|granting entitlement",
        (
            "RUN asks for rights that a build here does not have (--network=host or --security=insecure). "
            "Remove that flag."
        ),
    ),
    (
        r"dockerfile parse error on line (?P<what>\d+): (?P<detail>.*)",
        "Line {what} of the Dockerfile is not understood: {detail}.",
    ),
    (
        r"did not complete successfully: (?!exit code)(?P<what>.+)",
        (
            "The engine could not run it ({what}). The Dockerfile is not the cause: build again, and if it stays so, "
            "tell an administrator."
        ),
    ),
    (
        r"exit code: 137",
        (
            "The step was killed, most likely because it used too much memory. Let it do less at once, "
            "for example with fewer parallel jobs."
        ),
    ),
)

_OUTPUT_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device",
        (
            "The disk of this server became full. Ask an administrator to free space; the image that you had before "
            "still works."
        ),
    ),
    (
        r"No matching distribution found for (?P<what>\S+)",
        (
            "pip found no package {what} that fits. Check the spelling and the version, and whether it exists for the "
            "Python of this image."
        ),
    ),
    (
        r"error: externally-managed-environment",
        (
            "This image's Python belongs to its system and does not let pip change it. Make a virtual environment "
            "(RUN python3 -m venv /opt/env, then /opt/env/bin/pip install …), or add --break-system-packages."
        ),
    ),
    (
        r"E: Unable to locate package (?P<what>\S+)",
        (
            "apt found no package {what}. Write “RUN apt-get update && apt-get install -y {what}” in one line, "
            "and check the spelling."
        ),
    ),
    (
        r"E: Package '(?P<what>[^']+)' has no installation candidate",
        (
            "apt cannot install {what}. Write “RUN apt-get update && apt-get install -y {what}” in one line, "
            "and check the spelling."
        ),
    ),
    (
        (
            r"\[Errno 2\] No such file or directory: '(?P<what>[^']*requirements[^']*)'"
            r"|Could not open requirements file:.*'(?P<what2>[^']+)'"
        ),
        "pip looked for {what} inside the image. Add “COPY {what} .” above that line.",
    ),
    (
        r"(?:/bin/)?(?:ba)?sh: (?:\d+: |line \d+: )?(?P<what>\S+?): (?:command )?not found",
        "The image has no command {what}. Install it in an earlier step, or start from an image that has it.",
    ),
    (
        r"Temporary failure (?:in name resolution|resolving)|Could not resolve host|NewConnectionError",
        "The step could not reach the internet. Try again; if it persists, tell an administrator.",
    ),
)


def explain(step: str, error: str, log: tuple[str, ...], output: tuple[str, ...]) -> BuildFailed:
    """Return the refusal for a failed build.

    Args:
        step: the failing step as BuildKit names it; empty when none had begun.
        error: the step's error.
        log: the step's last lines.
        output: what the builder printed at the end, outside the event stream.
    """
    said = "\n".join((*output, f"{step}: {error}" if error else ""))
    cause = _first_match(_CAUSES, said) or _first_match(_OUTPUT_CAUSES, "\n".join(log))
    if not cause:
        code = re.search(r"exit code: (\d+)", error)
        ended = f"ended with exit code {code[1]}" if code else _last_error(error, output)
        cause = f"It {ended}. Correct that line of the Dockerfile and build again."
    where = f"The image could not be built: {step} failed." if step else "The image could not be built."
    return BuildFailed(f"{where} {cause}", step=step, log=log or output)


def _first_match(causes: tuple[tuple[str, str], ...], text: str) -> str:
    for pattern, sentence in causes:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            found = match.groupdict()
            what = found.get("what") or found.get("what2") or ""
            return sentence.format(what=what[:120], detail=(found.get("detail") or "")[:200])
    return ""


def _last_error(error: str, output: tuple[str, ...]) -> str:
    stated = [line.removeprefix("ERROR: ") for line in output if line.startswith("ERROR: ")]
    text = error or (stated[-1] if stated else "gave no reason")
    return f"says: {text[:300].rstrip('.')}"
