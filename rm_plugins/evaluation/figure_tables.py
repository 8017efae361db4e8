"""Figures as rows of a table and as columns of a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rm_plugins.evaluation.figures import Figure, figures_of
from rm_plugins.statistics.intervals import Estimate


def figure_rows(rewards: Sequence[Mapping[str, Estimate]]) -> list[tuple[str, ...]]:
    """Each figure that any of the rewards has: its title, and for each reward the value with its interval."""
    names = dict.fromkeys(name for figures in rewards for name in figures)
    known = figures_of(name.partition("/")[2] for name in names if "/" in name)
    rows = []
    for name in names:
        figure = known.get(name, Figure(name, ""))  # a plug-in's has no title
        form = ".1%" if figure.is_share else ".3g"
        estimates = [figures.get(name) for figures in rewards]
        rows.append((figure.title, *("" if estimate is None else f"{estimate:{form}}" for estimate in estimates)))
    return rows


def estimate_columns(index: str, estimates: Mapping[str, Estimate]) -> dict[str, list[object]]:
    """The columns of a data frame with a row for each estimate: its name in the column `index`, ``value``, ``low`` and ``high``."""
    ends = {end: [getattr(estimate, end) for estimate in estimates.values()] for end in ("value", "low", "high")}
    return {index: list(estimates), **ends}
