"""How fast the pages answer, and whether anything holds up the hub's event loop meanwhile.

A real hub and a real engine; a person with 1, 10 and 50 projects asks for each page again and again.  The last line
with ``--json`` is ``{"page_ms": {"projects_50": …}, "hub_loop_ms": {…}}``: medians, and for the hub's event loop the
slowest and the 99th percentile of its answers to a page that computes nothing, asked all the while.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import requests

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ds01_spawner.core.project import image_repository  # noqa: E402
from tests.integration.conftest import Site, docker, running_site  # noqa: E402

CONFIG = ROOT / "tests/browser/hub_config.py"
PROJECTS = (1, 10, 50)
BUILT = 5


def ask(session: requests.Session, url: str, times: int) -> list[float]:
    """Return how many milliseconds each of several requests took."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        session.get(url, timeout=60).raise_for_status()
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)
    return took


class Pulse(threading.Thread):
    """Asks the hub for its health, which computes nothing: a held-up event loop shows as a delay."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.took: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Ask until it is enough."""
        session = requests.Session()
        while not self.ended.is_set():
            began = time.perf_counter()
            session.get(f"{self.url}/hub/health", timeout=60)
            self.took.append((time.perf_counter() - began) * 1000)
            time.sleep(0.005)


def measure(site: Site, times: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median of every page, and how the hub's event loop fared."""
    pages: dict[str, float] = {}
    idle = Pulse(site.hub.url)
    idle.start()
    time.sleep(3)
    idle.ended.set()
    idle.join()
    for count in PROJECTS:
        user = f"with-{count}"
        for number in range(count):
            site.project(user, f"project-{number:02}", dockerfile="FROM ds01/debian:13\nRUN true\n")
        person = site.person(user)
        if count == PROJECTS[-1]:
            for number in range(BUILT):  # some have an image whose recipe must be compared
                person.launch(f"project-{number:02}", gpus="0")
                person.retire(f"project-{number:02}")
        base = f"{site.hub.url}/services/projects/"
        ask(person.session, base, 3)
        time.sleep(3)
        pages[f"projects_{count}"] = round(statistics.median(ask(person.session, base, times)), 1)
    pulse = Pulse(site.hub.url)
    pulse.start()
    ask(person.session, base, times)
    for name, path in (
        ("rows_50", "services/projects/?part=rows"),
        ("environment", "services/projects/p/project-00"),
        ("new", "services/projects/new"),
        ("spawn_form_50", "hub/spawn"),
        ("spawn_form_one", f"hub/spawn/{user}/project-00"),
    ):
        headers = {"X-XSRFToken": xsrf(person.session)}
        person.session.headers.update(headers)
        pages[name] = round(statistics.median(ask(person.session, f"{site.hub.url}/{path}", times)), 1)
    pulse.ended.set()
    pulse.join()
    return pages, {
        "idle_p99": percentile(idle.took, 99),
        "busy_p99": percentile(pulse.took, 99),
        "busy_max": round(max(pulse.took), 1),
        "asked": len(pulse.took),
    }


def xsrf(session: requests.Session) -> str:
    """Return the portal's token."""
    return next(str(c.value) for c in session.cookies if c.name == "_xsrf" and c.path == "/services/projects/")


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile, in milliseconds."""
    return round(sorted(values)[max(0, len(values) * percent // 100 - 1)], 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    parser.add_argument("--times", type=int, default=30, help="how often each page is asked for")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("The hub acts for several people: run this as root.")
    with running_site(CONFIG) as site:
        pages, loop = measure(site, arguments.times)
    images = [image_repository(f"with-{PROJECTS[-1]}", f"project-{number:02}") for number in range(BUILT)]
    docker("image", "rm", *images)
    for name, value in pages.items():
        print(f"{name:16} {value:8.1f} ms")
    print(f"hub's event loop, answers to an empty page: {loop}")
    if arguments.json:
        print(json.dumps({"page_ms": pages, "hub_loop_ms": loop}))


if __name__ == "__main__":
    main()
