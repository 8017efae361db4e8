"""The charts of an evaluation, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rm_plugins.evaluation.results import Distribution, LengthScatter
from rm_plugins.reports.charts import INK, LINES, chart_text, draw_band, drawing, fit_values, svg
from rm_plugins.reports.numbers import MINUS, count
from rm_plugins.reports.reward_styles import RewardStyle
from rm_plugins.statistics.best_of_n import BestOfN
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.statistics.metrics import CalibrationBin

_FARTHEST = 1e300
"""Beyond, matplotlib does not find ticks."""
_SAME_ZERO = 0.01
"""Dashed lines nearer than this would cover each other."""
_LEAST_SPAN = 0.2


@dataclass(frozen=True, slots=True)
class DotRow:
    """A row of `dots_svg`.

    Args:
        name: What it is about.
        dots: One per reward; None where it has none.
        mark: The value that the dots are compared with; NaN if there is none.
    """

    name: str
    dots: Sequence[Estimate | None]
    mark: float = math.nan


def dots_svg(
    rows: Sequence[DotRow],
    styles: Sequence[RewardStyle],
    *,
    label: str,
    axis_label: str,
    zeros: Sequence[float],
    in_points: bool = False,
) -> str:
    """Dots with their intervals, a row for each part of the data and a dot for each reward.

    Args:
        rows: From top to bottom.
        styles: Of the rewards.
        label: What the chart shows.
        axis_label: What the dots are.
        zeros: Where the dots of each reward say nothing, such as 0.5 for an accuracy: one dashed line, or where these places differ
            one of each reward in its colour.
        in_points: Whether the dots are differences of shares, else they are shares.
    """
    height = 0.14 * len(styles) + 0.14  # of a row
    with drawing(height=0.55 + height * len(rows)) as (figure, axes):
        lines = (
            [(zeros[0], INK)]
            if np.ptp(zeros) < _SAME_ZERO
            else [(x, style.colour) for x, style in zip(zeros, styles, strict=True)]
        )
        for x, colour in lines:
            axes.axvline(x, color=colour, linewidth=0.8, alpha=0.5 if colour == INK else 1, linestyle=(0, (3, 3)))
        for place in range(0, len(rows), 2):
            axes.axhspan(place - 0.5, place + 0.5, color=INK, alpha=0.05, linewidth=0)
        marks = [(place, row.mark) for place, row in enumerate(rows) if math.isfinite(row.mark)]
        axes.vlines([x for _, x in marks], [y - 0.42 for y, _ in marks], [y + 0.42 for y, _ in marks], color=INK, linewidth=2)
        for turn, style in enumerate(styles):
            offset = (turn - (len(styles) - 1) / 2) * 0.14 / height
            dots = [(place + offset, row.dots[turn]) for place, row in enumerate(rows)]
            known = [(y, dot) for y, dot in dots if dot is not None and math.isfinite(dot.value)]
            sure = [(y, dot.low, dot.high) for y, dot in known if math.isfinite(dot.low) and math.isfinite(dot.high)]
            y, low, high = zip(*sure, strict=True) if sure else ((), (), ())
            axes.hlines(y, low, high, color=style.colour, linewidth=1.8, alpha=0.6)
            values, places = [dot.value for _, dot in known], [y for y, _ in known]
            axes.plot(values, places, style.marker, color=style.colour, markersize=5.5, markeredgewidth=0)
        axes.set_yticks(range(len(rows)), [chart_text(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        _ticks(axes.xaxis, _points if in_points else _percent, 6)
        axes.margins(x=0.06)
        _widen(axes)
        axes.set_xlabel(axis_label)
        return svg(figure, label)


def distribution_svg(histogram: Distribution, style: RewardStyle) -> str:
    """The histogram of the better samples as an area, that of the worse ones as a line."""
    with drawing() as (figure, axes):
        axes.stairs(histogram.chosen, histogram.edges, fill=True, color=style.colour, alpha=0.55, label="better answers")
        axes.stairs(histogram.rejected, histogram.edges, color=INK, linewidth=1.3, label="worse answers")
        _ticks(axes.xaxis, None, 6)
        _ticks(axes.yaxis, count, 5)
        axes.set_xlabel("reward")
        axes.set_ylabel("pairs")
        axes.margins(x=0.01)
        figure.legend(loc="outside upper right", ncols=2, frameon=False, borderaxespad=0.1)
        return svg(figure, "Histograms of the rewards of better and of worse answers")


def calibration_svg(bins: Sequence[CalibrationBin], style: RewardStyle) -> str:
    """How often win probabilities come true, the diagonal, and how many pairs each bin has as a bar at the bottom."""
    most = max(part.pairs for part in bins)
    with drawing(height=3.4) as (figure, axes):
        for part in bins:
            axes.bar(part.low, 0.2 * part.pairs / most, part.high - part.low, align="edge", color=INK, alpha=0.16, linewidth=0)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.6, linestyle=(0, (3, 3)))
        predicted, observed = [part.predicted for part in bins], [part.observed for part in bins]
        axes.plot(
            predicted, observed, color=style.colour, marker=style.marker, markersize=5.5, markeredgewidth=0, linewidth=1.6
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="win probability", ylabel="comes true")
        _ticks(axes.xaxis, _percent, 5)
        _ticks(axes.yaxis, _percent, 5)
        return svg(figure, "Calibration: how often predicted win probabilities come true")


def scatter_svg(scatter: LengthScatter, style: RewardStyle) -> str:
    """Rewards against lengths, and the curve of what a length gets."""
    with drawing() as (figure, axes):
        axes.plot(scatter.lengths, scatter.rewards, "o", color=style.colour, markersize=2.8, markeredgewidth=0, alpha=0.45)
        axes.plot(scatter.curve_lengths, scatter.curve, color=INK, linewidth=2)
        fit_values(axes, [*scatter.rewards, *scatter.curve])
        _ticks(axes.xaxis, count, 5)
        _ticks(axes.yaxis, None, 5)
        axes.set_xlabel("length in characters")
        axes.set_ylabel("reward")
        return svg(figure, "Reward against length, with the curve that length alone predicts")


def best_of_n_svg(curves: Sequence[tuple[BestOfN, RewardStyle]]) -> str:
    """What the best of n is worth, n spaced by the square root of the divergence; dashed, the best that there is."""
    with drawing(height=3.0) as (figure, axes):
        for ceiling in dict.fromkeys((curve.kl, curve.best) for curve, _ in curves):
            axes.plot(np.sqrt(ceiling[0]), ceiling[1], color=INK, linewidth=1.2, alpha=0.7, linestyle=(0, (4, 3)))
        for place, (curve, style) in enumerate(curves):
            x = np.sqrt(curve.kl)
            low, high = ([getattr(mean, side) for mean in curve.mean] for side in ("low", "high"))
            draw_band(axes, x.tolist(), low, high, colour=style.colour, place=place)
            values = [mean.value for mean in curve.mean]
            line = LINES[place % len(LINES)]
            axes.plot(
                x,
                values,
                color=style.colour,
                linestyle=line,
                marker=style.marker,
                markersize=5.5,
                markeredgewidth=0,
                linewidth=1.8,
            )
        fit_values(axes, [value for curve, _ in curves for mean in curve.mean for value in (mean.value, mean.low, mean.high)])
        places = {n: math.sqrt(kl) for curve, _ in curves for n, kl in zip(curve.n, curve.kl, strict=True)}
        axes.set_xticks(list(places.values()), list(map(count, places)))
        _ticks(axes.yaxis, None, 6)
        axes.set_xlabel("n, spaced by the square root of the KL divergence")
        axes.set_ylabel("gold reward")
        return svg(figure, "Gold reward of the best of n completions")


def _widen(axes: Any) -> None:
    """Show at least 20 percentage points of an axis of shares: dots that are all in one place would be on an axis of nothing."""
    low, high = axes.get_xlim()
    if (missing := _LEAST_SPAN - (high - low)) > 0:
        axes.set_xlim(low - missing / 2, high + missing / 2)


def can_be_drawn(*columns: Sequence[float]) -> bool:
    """Whether a chart can have axes for these values: not where they are among the largest floats."""
    return all(abs(value) <= _FARTHEST for column in columns for value in column)


def _ticks(axis: Any, form: Callable[[float], str] | None, most: int) -> None:
    """At most `most` round ticks, so that labels do not touch on a phone; whole numbers for counts."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=form is count))
    if form is not None:
        axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _points(value: float) -> str:
    return f"{round(100 * value, 6):+g}".replace("-", MINUS) if value else "0"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if abs(100 * value - round(100 * value)) < 1e-6 else f"{100 * value:.1f}%"
