"""The signal history of a server as a small picture (SVG) for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ds01_spawner.core.wording import duration

_WIDTH = 320
_BARS = 48
_LINE = 16
_GAP = 1
_SMALLEST = 0.08
_TEXT = 'font-size="11" font-family="sans-serif" fill="currentColor"'

# Each is told from white and from a dark page by a contrast of 3 or more; the unknown is hollow as well.
_LOOKS = {
    "active": ("in use", 'fill="#198754"'),
    "idle": ("idle", 'fill="#6c757d"'),
    "unknown": ("not known", 'fill="none" stroke="#b8860b"'),
}


def describe(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what the picture shows: ``The last 31 minutes in 24 samples: 2 in use, 22 idle.``."""
    counted = {use: sum(sample["use"] == use for sample in samples) for use in _LOOKS}
    uses = ", ".join(f"{count} {_LOOKS[use][0]}" for use, count in counted.items() if count)
    number = f"{len(samples)} samples" if len(samples) > 1 else "one sample"
    return f"The last {_length(samples)} in {number}: {uses}."


def draw(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG bar chart: one bar per sample, as high as the busier of GPU and processor, coloured by its use.

    Its text takes the colour of the page's.  Nothing in it comes from outside: numbers and fixed words alone.

    Args:
        samples: as ``wording.evidence`` returns them, oldest first; of at least one.
    """
    step = _WIDTH / len(samples)
    bars = []
    for place, sample in enumerate(samples):
        gpu, cpu = float(sample.get("gpu") or 0) / 100, float(sample.get("cpu") or 0)
        tall = max(_SMALLEST, min(1.0, max(gpu, cpu))) * _BARS
        bars.append(_box(place * step + 0.5, _BARS - tall, max(1.0, step - _GAP), tall, str(sample["use"])))
    axis = f'<path d="M0 {_BARS + 0.5}H{_WIDTH}" stroke="currentColor" stroke-opacity="0.5"/>'
    ends = f'<text x="0" y="{_BARS + 12}" {_TEXT}>{escape(_length(samples))} before</text>'
    ends += f'<text x="{_WIDTH}" y="{_BARS + 12}" text-anchor="end" {_TEXT}>the end</text>'
    height = _BARS + 2 * _LINE
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' xmlns="http://www.w3.org/2000/svg"><title>{escape(describe(samples))}</title>'
        f"{''.join(bars)}{axis}{ends}{_legend(samples)}</svg>"
    )


def _legend(samples: Sequence[Mapping[str, Any]]) -> str:
    seen = {sample["use"] for sample in samples}
    parts, left, y = [], 0.5, _BARS + 2 * _LINE - 2
    for use, (words, _) in _LOOKS.items():
        if use in seen:
            parts.append(_box(left, y - 8, 8, 8, use) + f'<text x="{left + 12}" y="{y}" {_TEXT}>{words}</text>')
            left += 24 + 6 * len(words)
    return "".join(parts)


def _box(x: float, y: float, width: float, height: float, use: str) -> str:
    _, look = _LOOKS.get(use, _LOOKS["unknown"])
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {look}/>'


def _length(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return for how long there are samples; each is dated by its end, so the oldest one's own length is reckoned."""
    ends = [float(sample["ago"]) for sample in samples]
    own = (ends[0] - ends[-1]) / (len(ends) - 1) if len(ends) > 1 else 0.0
    return duration(ends[0] + own)
