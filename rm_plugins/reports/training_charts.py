"""Curves over the steps of a training, as SVG inside a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rm_plugins.reports.charts import COLOURS, LINES, drawing, fit_values, svg
from rm_plugins.scores import FloatArray
from rm_plugins.training.journal_summary import Curve


def curves_svg(curves: Mapping[str, Curve], *, spread: Curve | None = None, marks: Sequence[int] = ()) -> str:
    """Draw curves: each step's value, faint if there is only one curve, and a running mean.

    Args:
        curves: What to draw, by the name in the legend.
        spread: Half the width of a band around the first curve.
        marks: Steps to mark with a vertical line.

    Returns:
        An ``<svg>`` element without size, which takes the width that it is given.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with drawing(height=2.8) as (figure, axis):
        from matplotlib.ticker import MaxNLocator

        for place, ((name, curve), colour) in enumerate(zip(curves.items(), _cycled(len(curves)), strict=True)):
            mean = _running_mean(curve.values)
            if spread is not None and place == 0 and list(spread.steps) == list(curve.steps):
                width = _running_mean(spread.values)
                axis.fill_between(curve.steps, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)
            if len(curves) == 1:
                axis.plot(curve.steps, curve.values, color=colour, alpha=0.35, linewidth=0.8)
            marker = "o" if len(curve.steps) == 1 else None
            style = LINES[place % len(LINES)]
            axis.plot(
                curve.steps, mean, marker=marker, color=colour, linestyle=style, linewidth=1.4 if place else 2, label=name
            )
        for step in marks:
            axis.axvline(step, color=COLOURS[4], linewidth=1, linestyle=(0, (2, 2)))
        fit_values(axis, [value for curve in curves.values() for value in curve.values.tolist()])
        steps = {int(step) for curve in curves.values() for step in curve.steps}
        if len(steps) == 1:
            axis.set_xlim(min(steps) - 1, max(steps) + 1)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel("step")
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return svg(figure)


def _cycled(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _running_mean(values: FloatArray) -> FloatArray:
    """The mean of the last steps at each step: of one in 25 of all."""
    length = max(1, len(values) // 25)
    known = ~np.isnan(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known).astype(np.float64)
    for totals in (sums, counts):
        totals[length:] -= totals[:-length].copy()
    means: FloatArray = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return means
