"""The signal history of a server as a small picture (SVG) for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLOURS = {"active": "#198754", "idle": "#adb5bd", "unknown": "#ffc107"}
_GAP = 1


def draw(samples: Sequence[Mapping[str, Any]], *, width: int = 320, height: int = 48) -> str:
    """Return an SVG bar chart: one bar per sample, as high as the busier of GPU and processor, coloured by its use.

    Args:
        samples: as ``wording.evidence`` returns them, oldest first.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """
    if not samples:
        return ""
    counted = {use: sum(sample["use"] == use for sample in samples) for use in _COLOURS}
    title = ", ".join(f"{count} {use}" for use, count in counted.items() if count)
    step = width / len(samples)
    bars = []
    for place, sample in enumerate(samples):
        gpu, cpu = float(sample.get("gpu") or 0) / 100, float(sample.get("cpu") or 0)
        tall = max(0.08, min(1.0, max(gpu, cpu))) * height
        colour = _COLOURS.get(str(sample["use"]), _COLOURS["unknown"])
        bars.append(
            f'<rect x="{place * step:.1f}" y="{height - tall:.1f}" width="{max(1.0, step - _GAP):.1f}"'
            f' height="{tall:.1f}" fill="{colour}"/>'
        )
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' xmlns="http://www.w3.org/2000/svg"><title>{escape(f"Samples: {title}")}</title>{"".join(bars)}</svg>'
    )
