"""Places in the queue, and shares of use, as the text of a small file: a hub restart loses neither."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ds01_spawner.core.model import Holder, Request

VERSION = 1


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the queue.

    Attributes:
        request: what was asked for.
        since: when.
        sequence: the order of age among tickets.
    """

    request: Request
    since: float
    sequence: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the file says.

    Attributes:
        at: when it was written.
        tickets: places in the queue.
        hours: faded GPU-hours per user.
    """

    at: float = 0.0
    tickets: tuple[Ticket, ...] = ()
    hours: Mapping[str, float] | None = None


def encode(at: float, tickets: Iterable[Ticket], hours: Mapping[str, float]) -> str:
    """Return the text of the file."""
    return json.dumps(
        {
            "version": VERSION,
            "at": at,
            "hours": {user: round(spent, 4) for user, spent in hours.items()},
            "tickets": [
                {
                    "user": ticket.request.holder.user,
                    "server": ticket.request.holder.server,
                    "count": ticket.request.count,
                    "kind": ticket.request.kind,
                    "min_memory_bytes": ticket.request.min_memory_bytes,
                    "since": ticket.since,
                    "sequence": ticket.sequence,
                }
                for ticket in tickets
            ],
        },
        indent=1,
    )


def decode(text: str) -> Remembered:
    """Return what a file says.

    Raises:
        ValueError: it is not such a file; the text says why.
    """
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r} is not {VERSION}")
        return Remembered(
            at=_number(content["at"]),
            tickets=tuple(_ticket(item) for item in content["tickets"]),
            hours={str(user): max(_number(spent), 0.0) for user, spent in content["hours"].items()},
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _ticket(item: Mapping[str, Any]) -> Ticket:
    request = Request(
        holder=Holder(str(item["user"]), str(item["server"])),
        count=_whole(item["count"]),
        kind=str(item["kind"]),
        min_memory_bytes=_whole(item["min_memory_bytes"]),
    )
    return Ticket(request, _number(item["since"]), _whole(item["sequence"]))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")  # noqa: TRY004  the file is wrong, not the program
    return value
