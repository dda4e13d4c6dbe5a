"""The portal's parts by themselves: one look for all viewers, standings that make nobody wait, safe addresses."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ds01_spawner.adapters import gitclone, hubservers
from ds01_spawner.adapters.buildlock import BuildLocks
from ds01_spawner.core.account import Account
from ds01_spawner.core.build import Source
from ds01_spawner.core.overview import Standing
from ds01_spawner.core.project import Dockerfile
from ds01_spawner.errors import EngineUnavailable, HubUnavailable, InvalidOptions, ProjectRefused
from ds01_spawner.services.portal.board import FRESH_SECONDS, Board
from ds01_spawner.services.portal.settings import Settings, SettingsRefused
from ds01_spawner.services.portal.standings import FILES_SECONDS, Standings

ADA = Account("ada", 2000, 2000, (2000,), Path("/home/ada"))


@dataclass
class Clock:
    """A clock that stands until it is told."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return it."""
        return self.now


@dataclass
class Hub:
    """A hub that counts how often it is asked, and can be away."""

    asked: int = 0
    asked_of: int = 0
    away: bool = False
    running: tuple[str, ...] = ()

    async def active(self) -> dict[str, Any]:
        """Return nothing, slowly."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise HubUnavailable("The hub does not answer.")
        return {"ada": dict.fromkeys(self.running)}

    async def of(self, user: str) -> dict[str, Any]:
        """Return nothing."""
        self.asked_of += 1
        return {}


class NoDevices:
    """An engine that is away."""

    async def snapshot(self, max_age_seconds: float) -> Any:
        """Fail."""
        raise EngineUnavailable("Docker Engine does not answer.")


def board(hub: Hub, clock: Clock, **changes: Any) -> Board:
    """Return a board."""
    given = {"devices": NoDevices(), "queue": lambda: None, "clocks": lambda: None, "retired": list, **changes}
    return Board(hub=hub, clock=clock, **given)


async def test_one_look_serves_all_viewers() -> None:
    """A hundred people who load the page together cost the hub one question, and the next second none."""
    hub, clock = Hub(), Clock()
    shared = board(hub, clock)
    await asyncio.gather(*(shared.look() for _ in range(100)))
    await shared.look()
    assert hub.asked == 1
    clock.now += FRESH_SECONDS
    await shared.look()
    assert hub.asked == 2
    shared.forget("ada")
    await shared.look()
    assert hub.asked == 3


async def test_what_ended_is_looked_up_when_something_ended() -> None:
    """Servers that do not run are asked for rarely, and at once when one of theirs is gone or a page is loaded."""
    hub, clock = Hub(running=("a", "b")), Clock()
    shared = board(hub, clock)
    for running, asked in ((("a", "b"), 1), (("a", "b", "c"), 1), (("a", "c"), 2), (("a", "c"), 2)):
        hub.running = running
        clock.now += FRESH_SECONDS
        await shared.look()
        await shared.stopped("ada")
        assert hub.asked_of == asked
    clock.now += FRESH_SECONDS
    await shared.stopped("ada", FRESH_SECONDS)
    assert hub.asked_of == 3


def test_only_a_failure_is_one() -> None:
    """Of what a spawner keeps, the reason of a failed launch counts, and that of a retire or a clean end does not."""
    model = {"name": "thesis", "ready": False}
    for state, failure in (
        ({"ended": "It ran out of memory.", "failed": True}, "It ran out of memory."),
        ({"ended": "It was retired.", "failed": False}, ""),
        ({"ended": "It was retired."}, ""),
        ({}, ""),
        (None, ""),
    ):
        found = hubservers._servers({"servers": {"thesis": {**model, "state": state}}})
        assert found["thesis"].failure == failure


async def test_what_cannot_be_seen_is_named_and_the_rest_is_shown() -> None:
    """A hub or an engine that is away, a damaged queue file and a culler that stands still break no page."""
    late = {"at": 0.0, "pass_seconds": 60.0, "servers": [{"user": "ada", "server": "x"}]}
    look = await board(Hub(away=True), Clock(), queue=lambda: "no json", clocks=lambda: late).look()
    assert set(look.problems[:2]) == {"The hub does not answer.", "Docker Engine does not answer."}
    assert look.problems[2].startswith("Idle times have not been looked at for 17 minutes")
    assert look.snapshot is None
    assert (look.queue, look.clocks, look.retired) == ((), {}, {})


async def test_retirements_are_told_by_user() -> None:
    """Each viewer finds their own; an entry that cannot be read is passed over."""
    entry = {"user": "ada", "server": "x", "project": "x", "at": 1.0, "when": "then", "why": ["so"], "samples": []}
    entries = [entry, {"user": "ada"}, entry | {"user": "eve"}, entry | {"server": "y"}]
    look = await board(Hub(), Clock(), retired=lambda: entries).look()
    assert {user: [one.server for one in told] for user, told in look.retired.items()} == {
        "ada": ["x", "y"],
        "eve": ["x"],
    }


@dataclass
class Looker:
    """Compares as it is told, and counts."""

    answer: tuple[Standing, bool] = (Standing.CURRENT, False)
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def compare(self, source: Source) -> tuple[Standing, bool]:
        """Answer once the gate is open."""
        self.asked.append(source.project)
        await self.gate.wait()
        return self.answer


def source(name: str) -> Source:
    """Return a project of ada's."""
    return Source(ADA, "ada", name, f"ds01-ada/{name}", "ds01/python:13")


async def ask(standings: Standings, text: bytes = b"FROM x\n", image: str = "sha256:1") -> Standing:
    """Return the standing of one project."""
    files: dict[str, Dockerfile | None] = {"a": Dockerfile(text, "~")}
    return (await standings.of([source("a")], files, {"ds01-ada/a": image}))["a"]


async def test_a_slow_comparison_is_not_waited_for() -> None:
    """The page says that it is being checked; the next one has the answer."""
    looker, clock = Looker(), Clock()
    standings = Standings(looker, clock)
    assert await ask(standings) is Standing.UNKNOWN
    assert await ask(standings) is Standing.UNKNOWN
    assert looker.asked == ["a"]
    looker.gate.set()
    assert await ask(standings) is Standing.CURRENT


async def test_an_answer_is_kept_as_long_as_it_can_be_true() -> None:
    """Another text or another image is looked at anew; files beside the Dockerfile count for a short time only."""
    looker, clock = Looker(answer=(Standing.CURRENT, True)), Clock()
    looker.gate.set()
    standings = Standings(looker, clock)
    await ask(standings)
    await ask(standings)
    assert len(looker.asked) == 1
    await ask(standings, text=b"FROM y\n")
    await ask(standings, image="sha256:2")
    assert len(looker.asked) == 3
    clock.now += FILES_SECONDS + 1
    looker.answer = (Standing.CHANGED, True)
    assert await ask(standings) is Standing.CHANGED


async def test_what_needs_no_comparison_gets_none() -> None:
    """No Dockerfile, no image, an unreadable Dockerfile."""
    looker = Looker()
    found = await Standings(looker, Clock()).of(
        [source("none"), source("unbuilt"), source("broken")], {"none": None, "unbuilt": Dockerfile(b"", "~")}, {}
    )
    assert found == {"none": Standing.DEFAULT, "unbuilt": Standing.MISSING, "broken": Standing.BROKEN}
    assert looker.asked == []


async def test_two_processes_never_build_one_image_at_once(tmp_path: Path) -> None:
    """The lock of one image is held by one at a time; another image's is free; it is given back by an exception."""
    here, there = BuildLocks(tmp_path / "locks"), BuildLocks(tmp_path / "locks")
    order: list[str] = []

    async def build(locks: BuildLocks, name: str) -> None:
        async with locks.held("ds01-ada/a"):
            order.append(f"{name} begins")
            await asyncio.sleep(0.05)
            order.append(f"{name} ends")

    first = asyncio.create_task(build(here, "first"))
    await asyncio.sleep(0.01)
    async with there.held("ds01-ada/b"):
        pass
    await asyncio.gather(first, build(there, "second"))
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    with pytest.raises(RuntimeError):
        async with here.held("ds01-ada/a"):
            raise RuntimeError
    async with asyncio.timeout(5), there.held("ds01-ada/a"):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/a/b", "file:///etc/passwd", "ext::sh -c id", "git@github.com:a/b", "https://u:p@host/x",
        "https://host/a b", "https://host/$(id)", "--upload-pack=id", "https://host", "",
        "https://host/../x", "https://[::1]/x", "/etc",
    ],
)  # fmt: skip
def test_only_plain_https_addresses_are_cloned(url: str) -> None:
    """No other protocol, no credentials, no options, nothing that a shell or git would read otherwise."""
    with pytest.raises(InvalidOptions, match="HTTPS"):
        gitclone.check_address(url)


def test_usual_addresses_are_accepted() -> None:
    """Those of the well-known sites, with and without .git and a port."""
    for url in ("https://github.com/a/b", "https://gitlab.example.org:8443/g/s/p.git", "https://codeberg.org/~x/y_z/"):
        assert gitclone.check_address(url) == url


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "fd00:ec2::254",
    ],
)
def test_nothing_is_cloned_from_this_host(address: str) -> None:
    """Loopback, link-local and the like are refused, in every way of writing them."""
    assert gitclone._is_forbidden(ipaddress.ip_address(address))


async def test_of_what_git_says_only_the_end_is_kept() -> None:
    """A host that talks without end fills no memory."""
    stream = asyncio.StreamReader()
    for _ in range(64):
        stream.feed_data(b"x" * 65_000 + b"\n")
    stream.feed_data(b"fatal: the end\n")
    stream.feed_eof()
    said = await gitclone._last_words(stream)
    assert len(said) == 64 * 1024
    assert said.endswith(b"fatal: the end\n")


async def test_one_repository_at_a_time_is_cloned_for_each_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is refused with a way out, somebody else's is not, and after the first ended there can be another."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def clone(account: Account, folder: int, url: str) -> None:
        begun.set()
        await gate.wait()
        raise ProjectRefused("There is no host.")

    monkeypatch.setattr(gitclone, "_clone", clone)
    eve = Account("eve", 2001, 2001, (2001,), Path("/home/eve"))
    running = [asyncio.create_task(gitclone.clone(who, 0, "https://example.org/x")) for who in (ADA, eve)]
    await begun.wait()
    with pytest.raises(ProjectRefused, match="Another repository is being cloned for you"):
        async with asyncio.timeout(5):
            await gitclone.clone(ADA, 0, "https://example.org/y")
    gate.set()
    for ended in await asyncio.gather(*running, return_exceptions=True):
        assert str(ended) == "There is no host."
    with pytest.raises(ProjectRefused, match="There is no host"):
        await gitclone.clone(ADA, 0, "https://example.org/y")


def test_settings_survive_the_environment(tmp_path: Path) -> None:
    """What configure hands over is what the portal reads; anything else is refused with a sentence."""
    settings = Settings("hub", tmp_path, "net", "image", people_folder=tmp_path, docker={"base_url": "x"})
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(SettingsRefused, match="DS01_PORTAL"):
        Settings.from_json("[]")
