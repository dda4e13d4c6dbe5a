"""The GPU board: what admins read about each device, who waits, and the limits file."""

from __future__ import annotations

from typing import Any

from ds01_spawner.core.allocation import Snapshot
from ds01_spawner.core.model import DeviceState, DeviceStatus, Holder, Request
from ds01_spawner.core.tickets import Ticket
from ds01_spawner.services.portal.base import PAGES
from ds01_spawner.services.portal.board import Look
from ds01_spawner.services.portal.devices import describe
from ds01_spawner.testing.devices import gpus, mig

ADA = Holder("ada", "thesis")


def seen(**changes: Any) -> Look:
    """Return a look at a leased GPU, one with a desktop on it, and a free instance."""
    leased, desktop = gpus(2)
    (instance,) = mig(2, ["1g.5gb"])
    why = "In use by process 812 of gdm outside every container."
    snapshot = Snapshot(
        at=1000.0,
        devices=(
            DeviceStatus(leased, DeviceState.LEASED, ADA),
            DeviceStatus(desktop, DeviceState.OCCUPIED, owner="gdm", reason=why),
            DeviceStatus(instance, DeviceState.FREE),
        ),
        leases=(),
        queue=(),
        holding={},
        gpu_hours={},
        notices=("Container x is a second one for server 'y' of bob: remove it.",),
        problem="",
    )
    clocks = {ADA: {"text": "Nothing has used it for 25 minutes.", "stop_at": 1300.0}}
    queue = (Ticket(Request(Holder("bob", "nets"), 2, "gpu"), since=400.0, sequence=1),)
    return Look(1000.0, snapshot=snapshot, queue=queue, clocks=clocks, **changes)


def page(look: Look, **limits_file: Any) -> str:
    """Return what is on the board, without the lines' indents."""
    html = PAGES.get_template("portal/board.html").render(**describe(look), limits_file=limits_file)
    return " ".join(html.split())


def test_every_device_is_there_with_whose_it_is_and_why() -> None:
    """A leased one with its idle clock, an occupied one with its owner, and a free one."""
    leased, occupied, free = describe(seen())["devices"]
    assert (leased.state, leased.whose) == ("leased", "ada / thesis")
    assert leased.clock == "Nothing has used it for 25 minutes."
    assert (occupied.state, occupied.whose) == ("occupied", "gdm")
    assert occupied.why == "In use by process 812 of gdm outside every container."
    assert (free.state, free.whose, free.why, free.kind[:6]) == ("free", "", "", "1g.5gb")


def test_who_waits_is_there() -> None:
    """With what is waited for, and for how long already."""
    assert "<bdi>bob / nets</bdi>: 2 GPUs, for 10 minutes" in page(seen())
    assert "Nobody waits" in page(Look(1000.0))


def test_an_edit_of_the_limits_file_that_cannot_be_used_is_shown() -> None:
    """With file, line and sentence, and that the limits of before are in force; and notes on a file that can be."""
    problem = "The limits file cannot be used.\nlimits.yaml:3: defaults.max_cpus must be a number, not 'many'"
    shown = page(seen(), problem=problem, notes=("limits.yaml:7: max_tasks has no effect",))
    assert "limits.yaml:3: defaults.max_cpus must be a number, not &#39;many&#39;" in shown
    assert "The limits of before stay in force" in shown
    assert "limits.yaml:7: max_tasks has no effect" in shown
    assert "stay in force" not in page(seen(), problem="", notes=())
    assert "stay in force" not in page(seen())


def test_what_cannot_be_seen_and_what_does_not_fit_together_is_said() -> None:
    """Problems of the look and notices of the ledger stand above the table; without a look there is no device."""
    assert "Container x is a second one" in page(seen())
    assert "Docker Engine does not answer." in page(Look(1000.0, problems=("Docker Engine does not answer.",)))
    assert "No GPU can be seen." in page(Look(1000.0))


def test_names_are_text() -> None:
    """Whatever an owner is called, nothing of it runs in an admin's browser."""
    bob = Ticket(Request(Holder("<script>alert(1)</script>", "x"), 1, "gpu"), since=400.0, sequence=1)
    assert "<script" not in page(Look(1000.0, queue=(bob,)), problem="<script>", notes=("<script>",))
