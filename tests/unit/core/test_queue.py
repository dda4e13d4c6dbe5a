"""The order of the queue, what people are told, faded use, and places kept in a file."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds01_spawner.core import tickets
from ds01_spawner.core.limits import Limits
from ds01_spawner.core.model import Holder, Request
from ds01_spawner.core.queue import (
    Entry,
    Waiting,
    describe_devices,
    describe_request,
    order,
    show_duration,
    why_not_yet,
)
from ds01_spawner.core.shares import DecayedUse
from ds01_spawner.core.tickets import Ticket
from ds01_spawner.testing.devices import GIB, dgx_a100_partly_mig, gpus

HOUR = 3600.0
DAY = 24 * HOUR


def entry(user: str, sequence: int, *, since: float = 0.0, priority: int = 10) -> Entry:
    """Return a request in the queue."""
    return Entry(Request(Holder(user, "p"), 1), Limits(priority=priority), since, sequence)


def names(entries: list[Entry], hours: dict[str, float] | None = None, now: float = 0.0) -> list[str]:
    """Return the users, next one first."""
    return [found.request.holder.user for found in order(entries, DecayedUse(DAY, hours), now, 4 * HOUR)]


class TestOrder:
    def test_equals_are_served_as_they_came(self) -> None:
        """Among people who have used nothing, age decides."""
        assert names([entry("b", 2), entry("a", 1), entry("c", 3)]) == ["a", "b", "c"]

    def test_who_used_less_goes_first(self) -> None:
        """GPU-hours decide before age."""
        assert names([entry("a", 1), entry("b", 2)], {"a": 5.0, "b": 1.0}) == ["b", "a"]

    def test_minutes_do_not_count(self) -> None:
        """Use is compared in whole hours, so that who came first is not passed for a few minutes."""
        assert names([entry("a", 1), entry("b", 2)], {"a": 1.9, "b": 1.0}) == ["a", "b"]

    def test_priority_goes_before_use(self) -> None:
        """What the limits file says counts most."""
        assert names([entry("a", 1), entry("b", 2, priority=50)], {"b": 100.0}) == ["b", "a"]

    def test_the_example_in_the_docs(self) -> None:
        """Ada, Bob and Eve of the page on who gets the next GPU come in the order that it says."""
        now = 10 * HOUR
        waiting = [
            entry("ada", 1, since=now - 3 * HOUR),
            entry("bob", 2, since=now - 2 * HOUR),
            entry("eve", 3, since=now),
        ]
        used = {"ada": 12.9, "bob": 12.1, "eve": 3.0}
        assert names(waiting, used, now) == ["eve", "ada", "bob"]
        assert names(waiting, used, now + HOUR + 1) == ["ada", "eve", "bob"]

    def test_patience_ends(self) -> None:
        """After four hours only who asked earlier is ahead, whatever the priority and the use."""
        entries = [entry("a", 1), entry("b", 2, since=1.0), entry("c", 3, since=4 * HOUR, priority=99)]
        hours = {"a": 500.0}
        assert names(entries, hours, 4 * HOUR) == ["c", "b", "a"]
        assert names(entries, hours, 4 * HOUR + 0.5) == ["a", "c", "b"]
        assert names(entries, hours, 5 * HOUR) == ["a", "b", "c"]

    def test_without_limits_everybody_has_the_same_priority(self) -> None:
        """A site without a limits file has a queue all the same."""
        assert names(
            [Entry(Request(Holder("b", "p"), 1), sequence=2), Entry(Request(Holder("a", "p"), 1), sequence=1)]
        ) == [
            "a",
            "b",
        ]

    @given(
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.integers(0, 30_000), st.integers(1, 3)), min_size=1, max_size=20
        ),
        st.dictionaries(st.sampled_from("abcd"), st.floats(0, 100)),
    )
    def test_nobody_goes_before_who_ran_out_of_patience_earlier(
        self, asked: list[tuple[str, int, int]], hours: dict[str, float]
    ) -> None:
        """Whoever has waited too long has only earlier ones ahead: the bound on every wait."""
        asked.sort(key=lambda item: item[1])
        entries = [entry(user, n, since=float(at), priority=p) for n, (user, at, p) in enumerate(asked)]
        now = float(asked[-1][1])
        line = order(entries, DecayedUse(DAY, hours), now, 4 * HOUR)
        assert sorted(line, key=lambda e: e.sequence) == entries
        for place, one in enumerate(line):
            if now - one.since > 4 * HOUR:
                assert all(other.sequence < one.sequence for other in line[:place])


class TestTelling:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ((1, "gpu", 0), "1 GPU"),
            ((2, "gpu", 40 * GIB), "2 GPUs with at least 40 GiB each"),
            ((1, "1g.10gb", 0), "1 instance 1g.10gb"),
            ((2, "1g.10gb", 0), "2 instances 1g.10gb"),
            ((1, "", 12 * GIB), "1 device with at least 12 GiB"),
        ],
    )
    def test_what_is_asked_for_is_said_in_words(self, asked: tuple[int, str, int], said: str) -> None:
        """A request reads as people say it."""
        assert describe_request(Request(Holder("a", "p"), *asked)) == said

    def test_what_exists_is_said_in_words(self) -> None:
        """Per kind and size."""
        assert describe_devices(gpus(4)) == "4 GPUs (40 GiB)"
        assert describe_devices(()) == "no GPU"
        assert describe_devices(dgx_a100_partly_mig()).startswith("3 1g.10gb instances (10 GiB), 2 2g.20gb")

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "0 min"),
            (59, "1 min"),
            (3540, "59 min"),
            (3600, "1 h"),
            (9000, "2 h 30 min"),
            (47 * 3600, "47 h"),
            (48 * 3600, "2 days"),
        ],
    )
    def test_durations_are_rounded_as_people_do(self, seconds: float, said: str) -> None:
        """Nobody waits for 9,000 seconds."""
        assert show_duration(seconds) == said

    def test_a_time_that_has_passed_is_now(self) -> None:
        """A holder who overstays gives no negative duration."""
        said = Waiting(Request(Holder("a", "p"), 1, "gpu"), 1, 1, "Why.", (50.0, 90.0), at=100.0)
        assert "in about 0 min" in said.sentence

    def test_why_it_is_not_there_yet(self) -> None:
        """In use, or free and kept for somebody."""
        assert why_not_yet(["leased", "leased", "unhealthy"], 0) == (
            "None of the 3 that fit is free (2 leased, 1 unhealthy)."
        )
        assert why_not_yet(["free", "leased"], 1) == "1 of the 2 that fit is free and kept for those before you."
        assert why_not_yet(["free", "leased"], 0) == (
            "1 of the 2 that fit is free and kept for you until there are enough."
        )


class TestUse:
    def test_an_hour_is_an_hour(self) -> None:
        """Two GPUs for half an hour are one GPU-hour."""
        use = DecayedUse(DAY)
        use.advance(1800.0, {"ada": 2.0})
        assert use.hours("ada") == pytest.approx(1.0)

    def test_use_is_halved_with_every_half_life(self) -> None:
        """What was used a day ago counts half."""
        use = DecayedUse(DAY, {"ada": 8.0})
        for hour in range(1, 25):
            use.advance(hour * HOUR, {})
        assert use.hours("ada") == pytest.approx(4.0)

    @given(st.lists(st.integers(-(10**9), 10**9), max_size=20))
    def test_a_clock_that_jumps_invents_nothing(self, steps: list[int]) -> None:
        """Whatever the clock does, a step charges an hour at most, and never less than nothing."""
        use, now, before = DecayedUse(DAY), 0.0, 0.0
        for step in steps:
            now += step
            use.advance(now, {"ada": 1.0})
            assert 0.0 <= use.hours("ada") <= before + 1.0
            before = use.hours("ada")

    def test_old_use_is_forgotten(self) -> None:
        """The list of users does not grow for ever."""
        use = DecayedUse(60.0, {f"user{n}": 1.0 for n in range(100)})
        use.advance(3600.0, {})
        assert use.all() == {}


TEXT = st.text(max_size=20)
TICKETS = st.builds(
    Ticket,
    st.builds(Request, st.builds(Holder, TEXT, TEXT), st.integers(0), TEXT, st.integers(0)),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0),
)


class TestTickets:
    @given(st.lists(TICKETS, max_size=5), st.dictionaries(TEXT, st.floats(0, 1e6)))
    def test_what_is_written_is_read(self, held: list[Ticket], hours: dict[str, float]) -> None:
        """Places survive word for word, use to the second digit."""
        read = tickets.decode(tickets.encode(5.0, held, hours))
        assert (read.at, read.tickets) == (5.0, tuple(held))
        assert read.hours == {user: pytest.approx(spent, abs=1e-3) for user, spent in hours.items()}

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            '"x"',
            "[" * 100_000,
            '{"version": 2, "at": 0, "tickets": [], "hours": {}}',
            '{"version": 1, "at": NaN, "tickets": [], "hours": {}}',
            '{"version": 1, "at": 1e999, "tickets": [], "hours": {}}',
            '{"version": 1, "at": 0, "tickets": [{}], "hours": {}}',
            '{"version": 1, "at": 0, "tickets": 5, "hours": {}}',
            '{"version": 1, "at": 0, "tickets": [], "hours": []}',
            '{"version": 1, "at": 0, "tickets": [], "hours": {"a": "b"}}',
            '{"version": 1, "at": true, "tickets": [], "hours": {}}',
            (
                '{"version": 1, "at": 0, "hours": {}, "tickets": [{"user": "a", "server": "p", "count": 1.5,'
                ' "kind": "", "min_memory_bytes": 0, "since": 0, "sequence": 0}]}'
            ),
            '{"version": 1, "at": ' + "9" * 400 + ', "tickets": [], "hours": {}}',
        ],
    )
    def test_what_is_no_such_file_is_refused(self, text: str) -> None:
        """Nothing but a ValueError comes out of a damaged file."""
        with pytest.raises(ValueError):  # noqa: PT011  whatever the text
            tickets.decode(text)

    @given(st.text())
    def test_no_text_is_trusted(self, text: str) -> None:
        """Any text is either a file of ours or refused."""
        try:
            read = tickets.decode(text)
        except ValueError:
            return
        assert math.isfinite(read.at)
