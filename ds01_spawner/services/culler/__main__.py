"""Runs the culler as a service of the hub, or shows what it sees.

python -m ds01_spawner.services.culler                          run; the hub starts it like this
python -m ds01_spawner.services.culler --dry-run                what it would do now, and why
python -m ds01_spawner.services.culler --explain USER PROJECT   the clock of one server
"""

# ruff: noqa: T201 - what it prints is what was asked for
from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ds01_spawner.adapters.cullerfiles import CullerFiles
from ds01_spawner.adapters.lifeline import end_with_parent
from ds01_spawner.core.wording import duration
from ds01_spawner.errors import DS01Error
from ds01_spawner.services.culler.serve import assembled, serve
from ds01_spawner.services.culler.settings import VARIABLE, Settings, SettingsRefused

_LATE_PASSES = 3

OK, FAILED, MISUSED, NOT_FOUND = 0, 1, 2, 4


def main(argv: list[str] | None = None) -> int:
    """Run it and return the exit code: 0 well, 1 not, 2 wrong arguments or settings, 4 no such server."""
    parser = argparse.ArgumentParser(
        prog="ds01-culler",
        description="Retires idle and over-age servers, after warning their users. The hub starts it as a service.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show what the running culler will do next, and why")
    what.add_argument("--explain", nargs=2, metavar=("USER", "PROJECT"), help="show the clock of one server")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/lib/ds01/culler"),
        help="where the running culler keeps its files (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.dry_run:
        return _show_all(CullerFiles(arguments.folder))
    if arguments.explain:
        return _show_one(CullerFiles(arguments.folder), *arguments.explain)
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


def _show_all(files: CullerFiles) -> int:
    status = files.status()
    if status is None:
        print("The culler has not made a pass yet, or keeps its files elsewhere (--folder).", file=sys.stderr)
        return FAILED
    print(_freshness(status))
    demand = status["demand"]
    print(f"Devices held: {_or_unknown(demand['held'])} of {_or_unknown(demand['devices'])}, waiting: ", end="")
    print(_or_unknown(demand["waiting"]))
    for server in sorted(status["servers"], key=lambda each: (each.get("stop_at") or float("inf"), each["user"])):
        print(f"{server['decision']:<7}{server['user']}/{server['project']}: {server['text']}{_stop(server)}")
        if server["problem"]:
            print(f"       {server['problem']}")
    for server in status["not_watched"]:
        print(f"skip   {server['user']}/{server['server']}: {server['why']}")
    return OK if _is_fresh(status) else FAILED


def _show_one(files: CullerFiles, user: str, project: str) -> int:
    status = files.status()
    servers = status["servers"] if status else ()
    found = next((s for s in servers if s["user"] == user and project in (s["project"], s["server"])), None)
    if status is None or found is None:
        print(f"The culler watches no server of {user} called {project!r}.", file=sys.stderr)
        ended = next((e for e in reversed(files.retired(user)) if project in (e["project"], e["server"])), None)
        if ended is not None:
            print(f"It ended on {_date(ended['at'])}. {ended['text']}")
        return NOT_FOUND
    print(_freshness(status))
    print(f"{user}/{found['project']}: {found['text']}{_stop(found)}")
    for label, key in (("idle", "idle_seconds"), ("idle limit", "idle_limit_seconds"), ("age", "age_seconds")):
        print(f"  {label:<12}{_duration(found.get(key))}")
    print(f"  {'run limit':<12}{_duration(found['run_limit_seconds'])}")
    if found["devices"]:
        print(f"  {'GPU idle':<12}{_duration(found.get('device_idle_seconds'))}  counting: {found.get('counting')}")
    if found["keep_alive_until"]:
        print(f"  {'keep-alive':<12}until {_date(found['keep_alive_until'])}")
    if warned := found.get("warned"):
        print(f"  {'warned':<12}end at {_date(warned['stop_at'])}, by {', '.join(warned['channels'])}")
    for text in (*found["exemptions"], found["problem"]):
        if text:
            print(f"  {text}")
    print("  ago        use      GPU %   cores   bytes/s  busy")
    for sample in found["samples"]:
        print(
            f"  {_duration(sample['ago']):<11}{sample['use']:<9}{_cell(sample, 'gpu'):>5}   {_cell(sample, 'cpu'):>5}"
            f"  {_cell(sample, 'net'):>8}  {_cell(sample, 'busy'):>4}"
        )
    return OK


def _is_fresh(status: dict[str, Any]) -> bool:
    return bool(time.time() - status["at"] <= _LATE_PASSES * status["pass_seconds"])


def _freshness(status: dict[str, Any]) -> str:
    ago = duration(max(0.0, time.time() - status["at"]))
    late = "" if _is_fresh(status) else " It is late: is the service running?"
    problem = f" {status['problem']}" if status["problem"] else ""
    return f"Last pass {ago} ago, {status['watched']} servers, {status['broken']} broken.{late}{problem}"


def _stop(server: dict[str, Any]) -> str:
    return "" if server.get("stop_at") is None else f" If nothing changes it ends at {_date(server['stop_at'])}."


def _date(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC).astimezone():%Y-%m-%d %H:%M}"


def _duration(seconds: float | None) -> str:
    return "none" if seconds is None else duration(seconds)


def _cell(sample: dict[str, Any], key: str) -> str:
    value = sample.get(key)
    return "" if value is None else f"{value:g}"


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The interpreter would wait for threads that hang in somebody's home, and the hub for the interpreter.
    os._exit(code)
