"""Charts as SVG inside a page, with the page's colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from rm_plugins.errors import MissingDependencyError
from rm_plugins.reports.page import shortened, visible

COLOURS = ("#3b82c4", "#d97706", "#0d9668", "#9333ea", "#dc2626", "#64748b", "#bc7599", "#858500")
"""Each has a contrast of 3 or more on the light and the dark page. Colour-blind readers can tell the first four apart."""

INK = "#010203"
"""Stands for the page's own text colour."""

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "||||", "----", "++++")
"""Patterns of bands, so that two of them differ without colour, in grey print too."""

LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)))
"""Line styles of curves, for the same reason."""

SAME = 1e-6
"""Values that differ by less than this share of their size are one value: their difference is rounding."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rm-plugins",
    "font.size": 10,
    "text.parse_math": False,  # a $ in a name is a dollar
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,  # a tick shows its whole value
    "hatch.linewidth": 0.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK),
}


@contextmanager
def drawing(width: float = 4.2, height: float = 2.6) -> Iterator[tuple[Any, Any]]:
    """A figure of matplotlib and its axes, in the style of all charts.

    Args:
        width: In inches, at which the font has 10 points; a wider chart cannot be read on a phone.
        height: Likewise.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("The page of the report needs matplotlib: pip install 'rm-plugins[report]'.") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.15)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_alpha(0.4)
        yield figure, axes


def fit_values(axes: Any, values: Iterable[float]) -> None:
    """Set the y axis around values that differ only by rounding, on which matplotlib would zoom in.

    Args:
        axes: Of matplotlib.
        values: All values on the axis. NaN is ignored.
    """
    if around := around_one_value(values):
        axes.set_ylim(*around)


def around_one_value(values: Iterable[float]) -> tuple[float, float] | None:
    """The ends of an axis for values that differ only by rounding; None if they differ by more, or if there are none.

    >>> around_one_value([0.7, 0.7 + 1e-14]), around_one_value([0.7, 0.8])
    ((0.2, 1.2), None)
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    size = max(abs(low), abs(high))
    if high - low > SAME * size:
        return None
    room = max(0.5, 0.1 * size)
    return round(low - room, 12), round(high + room, 12)


def draw_band(axes: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], *, colour: str, place: int) -> None:
    """Draw an interval along a curve, with a pattern and an edge: two bands differ without their colours.

    Args:
        axes: Of matplotlib.
        x: Where.
        low: The lower ends.
        high: The upper ends.
        colour: Of the curve.
        place: The number of the band in the chart, which decides on its pattern.
    """
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    hatch = HATCHES[place % len(HATCHES)] or None
    axes.fill_between(x, low, high, facecolor="none", edgecolor=colour, hatch=hatch, alpha=0.5, linewidth=0.6)


def svg(figure: Any, label: str = "") -> str:
    """The ``<svg>`` element of a figure, without a size, so that it takes the width that it is given.

    Its style is the page's, and its ids are unique within it; `rm_plugins.reports.page.page` makes them so within the page.

    Args:
        figure: What was drawn.
        label: A description for screen readers; empty if the page has one next to it.
    """
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has it, or shows a box
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)  # it would style the page
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"| version="1.1"', "", drawn, count=5)
    drawn = re.sub(r"<[^>]+>", _smaller, drawn)
    said = f' role="img" aria-label="{escape(label)}"' if label else ""
    return drawn.replace("<svg", f"<svg{said}", 1).replace("\n", " ").strip()


def chart_text(text: str) -> str:
    """A name for a chart: one line, cut in the middle if it is long."""
    return shortened(visible(" ".join(text.split())).encode("utf-8", "replace").decode(), 20)


def _smaller(tag: re.Match[str]) -> str:
    """A tag without the ids that nothing refers to, and with two decimals: a point is 1/72 of an inch."""
    text = re.sub(r'^<g id="[^"]*"', "<g", tag[0])
    text = re.sub(r"(\.\d\d)\d+", r"\1", text)
    return text.replace("xlink:href", "href")
