"""The values of a limits file: how each is written, what is possible, and the sentence for one that is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", re.IGNORECASE)
_SIZE_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_DURATION_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FRACTION = re.compile(r"\d{1,4}/[1-9]\d{0,3}")
# 0.29 means two sevenths; half a hundredth is what rounding to two digits can take away.
_SEVENTH_TOLERANCE = Fraction(5, 1000)
_USER = re.compile(r"[^\s/:\x00-\x1f\x7f]{1,255}")

_MOST_GPUS = 10_000
_SHOWN_CHARACTERS = 60

Parser = Callable[[Any], Any]


def number(accepted: str, *, least: float, most: float, whole: bool = False) -> Parser:
    """Return a parser for a plain number in a range, whole or not."""

    def parse(value: Any) -> int | float:
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise ValueError(accepted)
        return value

    return parse


def or_none(parse: Parser) -> Parser:
    """Return a parser that takes ``null`` too, for no limit."""

    def parse_or_none(value: Any) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or null for no limit") from error

    return parse_or_none


def times(parse: Parser, factor: int) -> Parser:
    """Return a parser whose number is multiplied, such as hours into seconds."""
    return lambda value: parse(value) * factor


def size(accepted: str, *, least: int) -> Parser:
    """Return a parser for a size with its unit, in bytes."""

    def parse(value: Any) -> int:
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        in_bytes = int(Decimal(found[1]) * _SIZE_UNITS[found[2].lower()]) if found else -1
        if not least <= in_bytes <= 1024**5:
            raise ValueError(accepted)
        return in_bytes

    return parse


def duration_seconds(value: Any) -> float:
    """Return the seconds of an old duration with its unit in the value, such as ``30m`` or ``0.5h``.

    Raises:
        ValueError: it has no unit, or is no duration.
    """
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError("a time with its unit, such as 30m or 0.5h")
    return float(Decimal(found[1]) * _DURATION_SECONDS[found[2]])


def show_value(value: Any) -> str:
    """Return a value as it would stand in the file, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _equivalents(value: Any) -> Fraction:
    accepted = "a number of GPUs from 0 to 10000, such as 2, 0.29 or 2/7"
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        return Fraction(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_GPUS:
        raise ValueError(accepted)
    exact = Fraction(str(value))
    seventh = Fraction(round(exact * 7), 7)
    near = exact.denominator != 1 and abs(exact - seventh) <= _SEVENTH_TOLERANCE
    return seventh if near else exact


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - pydantic reports a ValueError with its place
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not empty")
    return value.strip()


def _user(value: Any) -> str:
    # A name of digits only is a name; as YAML leaves numbers with a leading zero alone here, none is changed by this.
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not _USER.fullmatch(name):
        raise ValueError("a login name")
    return name


def _end(value: Any) -> float | None:
    """Return when an exemption ends: the end of a day, or an instant; ``None`` never."""
    if value is None:
        return None
    accepted = "a day such as 2026-06-30 (its end, in UTC), a time with its zone such as 2026-06-30T12:00:00Z, or null"
    if not isinstance(value, str):
        raise ValueError(accepted)  # noqa: TRY004 - as above
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            day = datetime.combine(date.fromisoformat(value), time(), UTC)
            return (day + timedelta(days=1)).timestamp()
        end = datetime.fromisoformat(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(accepted) from error
    if end.tzinfo is None:
        raise ValueError(accepted)
    return end.timestamp()


def count(accepted: str, *, least: int, most: int) -> Parser:
    """Return a parser for a whole number in a range."""
    return number(accepted, least=least, most=most, whole=True)


def one_of(choices: type[StrEnum]) -> Parser:
    """Return a parser for one of some words."""
    *others, last = choices
    accepted = f"{', '.join(others)} or {last}"

    def parse(value: Any) -> StrEnum:
        try:
            return choices(value)
        except ValueError as error:
            raise ValueError(accepted) from error

    return parse


HOURS = times(
    number("a number of hours, more than a minute and at most a year, such as 0.5 or 24", least=1 / 60, most=8760), 3600
)
Equivalents = Annotated[Any, BeforeValidator(or_none(_equivalents))]
YesOrNo = Annotated[Any, BeforeValidator(_yes_or_no)]
Text = Annotated[str, BeforeValidator(_text)]
User = Annotated[str, BeforeValidator(_user)]
End = Annotated[float | None, BeforeValidator(_end)]
