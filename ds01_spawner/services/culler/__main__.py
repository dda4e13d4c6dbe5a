"""Runs the culler as a service of the hub, or shows what it sees.

python -m ds01_spawner.services.culler                          run; the hub starts it like this
python -m ds01_spawner.services.culler --dry-run                what it would do now, and why
python -m ds01_spawner.services.culler --explain USER PROJECT   the clock of one server, or how it was retired
"""

# ruff: noqa: T201 - what it prints is what was asked for
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ds01_spawner.adapters.cullerfiles import STATUS, CullerFiles
from ds01_spawner.adapters.hosttime import time_of_day
from ds01_spawner.adapters.lifeline import end_with_parent
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.culler import show
from ds01_spawner.services.culler.serve import assembled, serve
from ds01_spawner.services.culler.settings import VARIABLE, Settings, SettingsRefused

OK, FAILED, MISUSED, NOT_FOUND = 0, 1, 2, 4


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 well, 1 not, 2 wrong arguments or settings, 4 no such server runs."""
    parser = argparse.ArgumentParser(
        prog="ds01-culler",
        description="Retires idle and over-age servers, after warning their users. The hub starts it as a service.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="list every server: what the running culler would do now, when it would end, and why; changes nothing",
    )
    what.add_argument(
        "--explain",
        nargs=2,
        metavar=("USER", "PROJECT"),
        help="show the idle clock, limits, warnings and latest samples of one server, or how it was retired",
    )
    parser.add_argument("--json", action="store_true", help="print the same as one JSON value")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/lib/ds01/culler"),
        help="where the running culler keeps its files: culler in the hub's state folder (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.dry_run or arguments.explain:
        return _show(CullerFiles(arguments.folder), arguments)
    if arguments.json:
        parser.error("--json goes with --dry-run or --explain")
    return _serve()


def _serve() -> int:
    logging.basicConfig(level=logging.INFO, format="[%(levelname)1.1s %(asctime)s %(name)s] %(message)s")
    try:
        settings = Settings.from_json(os.environ[VARIABLE])
        url, token = os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"]
    except KeyError as error:
        print(f"{error} is not set. The hub starts this service; see --help for what you can ask it.", file=sys.stderr)
        return MISUSED
    except SettingsRefused as error:
        print(error, file=sys.stderr)
        return MISUSED
    end_with_parent()
    try:
        asyncio.run(_until_told(settings, url, token))
    except DS01Error as error:
        print(error, file=sys.stderr)
        return FAILED
    return OK


async def _until_told(settings: Settings, url: str, token: str) -> None:
    async with assembled(settings, url, token) as (culler, meter):
        work = asyncio.create_task(serve(culler, meter, pass_seconds=settings.pass_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work


def _show(files: CullerFiles, arguments: argparse.Namespace) -> int:
    status = files.status()
    if status is None:
        print(_why_nothing(arguments.folder), file=sys.stderr)
        return FAILED
    now = time.time()
    clock = partial(time_of_day, now=now)
    value: Any = status
    lines, code = show.show_all(status, now, clock), OK if show.is_fresh(status, now) else FAILED
    if arguments.explain:
        user, project = arguments.explain
        found = _named(status["servers"], user, project)
        ended = _named(files.retired(), user, project)
        value, code = found or ended, OK if found else NOT_FOUND
        if found is not None:
            lines = show.show_one(status, found, now, clock)
        elif ended is not None:
            lines = show.show_ended(ended)
        else:
            print(f"The culler watches no server of {user} called {project!r}. See --dry-run.", file=sys.stderr)
            return code
    try:
        print(json.dumps(value, indent=2) if arguments.json else "\n".join(lines), flush=True)
    except BrokenPipeError:
        # Such as `| head`.  What is still to be flushed at the end must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _named(entries: Sequence[Mapping[str, Any]], user: str, project: str) -> Mapping[str, Any] | None:
    mine = (entry for entry in reversed(entries) if entry["user"] == user)
    return next((entry for entry in mine if project in (entry["project"], entry["server"])), None)


def _why_nothing(folder: Path) -> str:
    try:
        with (folder / STATUS).open("rb"):
            return f"{folder / STATUS} is damaged. The running culler writes it anew at its next look."
    except PermissionError:
        return f"{folder} may be read by the hub's user alone. Run it with sudo."
    except OSError:
        return f"There is no look of a culler in {folder}. Name the hub's own with --folder <state folder>/culler."


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The interpreter would wait for threads that hang in somebody's home, and the hub for the interpreter.
    os._exit(code)
