"""Charts as SVG that stands in a page and takes its colours from there."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rm_plugins.errors import MissingDependencyError

__all__ = ["COLOURS", "drawing", "svg"]

COLOURS = ("#3b82c4", "#d97706", "#0d9668", "#c026d3", "#dc2626", "#64748b", "#8b5cf6", "#a3a300")
"""Told apart on white and on black."""

_TEXT = "#010203"  # in whose place the page's own colour of text is put
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rm-plugins",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _TEXT),
}


@contextmanager
def drawing(width: float = 5.2, height: float = 2.5) -> Iterator[tuple[Any, Any]]:
    """A figure of matplotlib and its axes, in the style of all charts.

    Args:
        width: In inches, at which the font has 10 points.
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
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_alpha(0.4)
        yield figure, axes


def svg(figure: Any) -> str:
    """The ``<svg>`` element of a figure, without a size, so that it takes the width that it is given."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_TEXT, "currentColor")
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
