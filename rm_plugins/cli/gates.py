"""Limits that an evaluation must keep, for use in CI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click

from rm_plugins.errors import DataError, did_you_mean
from rm_plugins.evaluation.results import Evaluation, RewardResult

__all__ = ["Gate", "failures", "parse_gates"]


class Gate(NamedTuple):
    """A limit of one figure.

    Its name is as in the JSON: ``accuracy``, ``section/NAME``, ``suite``, ``suite/SECTION``; with ``.low`` or ``.high`` the end of its
    interval. The figure must be at least (`is_least`) or at most as high as the limit.
    """

    figure: str
    limit: float
    is_least: bool


def parse_gates(least: Sequence[str], most: Sequence[str]) -> list[Gate]:
    """The gates of ``--fail-under`` and ``--fail-over``.

    Raises:
        click.UsageError: One is not FIGURE=NUMBER.
    """
    gates = []
    for texts, is_least in ((least, True), (most, False)):
        for text in texts:
            figure, equals, number = text.rpartition("=")
            try:
                limit = float(number)
            except ValueError:
                limit = math.nan
            if not (figure and equals) or not math.isfinite(limit):
                raise click.UsageError(f"{text!r} is not FIGURE=NUMBER, such as accuracy=0.8.")
            gates.append(Gate(figure.strip(), limit, is_least))
    return gates


def failures(evaluation: Evaluation, gates: Sequence[Gate]) -> list[str]:
    """What each reward fails, in words; empty where all keep the limits.

    Raises:
        DataError: A reward has no such figure; a limit on nothing must not pass.
    """
    messages = []
    for result in evaluation.rewards:
        figures = _figures(result)
        for gate in gates:
            if gate.figure not in figures:
                raise DataError(
                    f"{result.name} has no figure {gate.figure!r} on this data. {did_you_mean(gate.figure, figures)}"
                )
            value = figures[gate.figure]
            if not (value >= gate.limit if gate.is_least else value <= gate.limit):
                word, bound = ("under", "least") if gate.is_least else ("over", "most")
                messages.append(
                    f"{gate.figure} of {result.name} is {value:.4g}, {word} {gate.limit:g}, the {bound} that was asked for."
                )
    return messages


def _figures(result: RewardResult) -> Mapping[str, float]:
    """Every figure that can have a limit, by name; those that are not known are left out."""
    estimates = {**result.figures, **{f"section/{section.name}": section.accuracy for section in result.sections}}
    figures = {name: estimate.value for name, estimate in estimates.items()}
    figures |= {f"{name}.low": estimate.low for name, estimate in estimates.items()}
    figures |= {f"{name}.high": estimate.high for name, estimate in estimates.items()}
    if result.suite is not None:
        figures["suite"] = result.suite.score
        figures |= {f"suite/{section.name}": section.score for section in result.suite.sections}
        figures |= {f"suite/{name}": value for name, value in result.suite.figures.items()}
    return {name: value for name, value in figures.items() if not math.isnan(value)}
