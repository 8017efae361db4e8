"""The curve of ``rank --curve``: made of scored prompts, printed, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.jobs.ranking import ScoredPrompt
from rm_plugins.reports.best_of_n_page import BestOfNCurve, best_of_n_page, best_of_n_table, proxy_curve_svg
from rm_plugins.scores import FloatArray
from rm_plugins.statistics.best_of_n import best_of_n, best_of_n_counts, best_of_n_kl
from rm_plugins.statistics.intervals import Estimate, mean_estimate, paired_test

__all__ = ["best_of_n_curve", "check_curve_file", "curve_text", "print_curve"]

_ENDINGS = (".html", ".json", ".svg")


def best_of_n_curve(
    prompts: Sequence[ScoredPrompt], n: int | None, *, proxy: str, gold: str = "", source: str = "", policy: str = ""
) -> BestOfNCurve:
    """What the best of 1, 2, 4 and so on up to `n` completions is worth.

    Args:
        prompts: Scored prompts, with gold rewards if `gold` names any.
        n: The largest number; by default the one that most prompts have.
        proxy: What the reward is called that chooses.
        gold: What the other one is called; empty where there is none.
        source: Where the prompts are from.
        policy: What wrote the completions.

    Raises:
        DataError: No prompt has so many completions with all scores.
    """
    scores = [_complete_scores(found, bool(gold)) for found in prompts]
    sizes = Counter(len(found) for found in scores if len(found))
    most = n or max(sizes, key=lambda size: (sizes[size], size), default=1)
    used = [found for found in scores if len(found) >= most]
    if not used:
        needed = "with a score and a gold score" if gold else "with a score"
        if not sizes:
            raise DataError(f"There is no completion {needed}.")
        raise DataError(
            f"No prompt has {most} completions {needed}; the most that one has is {max(sizes)}. Ask for fewer with --n."
        )
    counts = best_of_n_counts(most)
    by_proxy = np.stack([best_of_n(found[:, 0], found[:, 0], counts) for found in used])
    curve = BestOfNCurve(
        proxy=proxy,
        gold=gold,
        source=source,
        policy=policy,
        prompts=len(used),
        left_out=len(scores) - len(used),
        n=tuple(counts),
        kl=tuple(best_of_n_kl(count) for count in counts),
        proxy_mean=_means(by_proxy),
    )
    if not gold:
        return curve
    by_gold = np.stack([best_of_n(found[:, 0], found[:, 1], counts) for found in used])
    best = np.mean([best_of_n(found[:, 1], found[:, 1], counts) for found in used], axis=0)
    fall, p_value = _fall(by_gold)
    return replace(curve, gold_mean=_means(by_gold), gold_best=tuple(best.tolist()), fall=fall, fall_p_value=p_value)


def _fall(by_gold: FloatArray) -> tuple[Estimate, float]:
    """By how much gold, [P, C], falls from its highest mean to the last one, and how likely a fall as deep is by chance.

    The same prompts are compared with themselves. That the highest of several means is looked at counts: the p-value is that of
    one of as many tests (Bonferroni).
    """
    peak = int(np.argmax(by_gold.mean(axis=0)))
    found = paired_test(by_gold[:, -1], by_gold[:, peak], range(len(by_gold)))
    return found.difference, min(1.0, found.p_value * max(1, by_gold.shape[1] - 1))


def check_curve_file(name: str | None) -> Path | None:
    """The file that a curve goes to, before anything is done for it.

    Raises:
        UsageError: Its ending is not known.
        MissingDependencyError: matplotlib is needed and absent.
    """
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in _ENDINGS:
        raise click.UsageError(f"--curve writes {', '.join(_ENDINGS)}; {name!r} ends in none of these.")
    if path.suffix != ".json" and find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "The curve as a drawing needs matplotlib: pip install 'rm-plugins[report]', or write it as .json."
        )
    return path


def curve_text(curve: BestOfNCurve, ending: str) -> str:
    """The curve as the page, the drawing or the data that a file's ending says."""
    return {".html": best_of_n_page, ".json": BestOfNCurve.to_json, ".svg": _svg_file}[ending](curve)


def print_curve(curve: BestOfNCurve) -> None:
    """Print the table on standard output."""
    heads, rows = best_of_n_table(curve)
    printed = Table(box=None, pad_edge=False)
    for head in heads:
        printed.add_column(head, justify="right")
    for row in rows:
        printed.add_row(*map(_plain, row))
    Console(highlight=False, width=100).print(printed)
    left_out = f"; {curve.left_out:,} have fewer and are left out" if curve.left_out else ""
    click.echo(f"{curve.prompts:,} prompts with {curve.n[-1]:,} scored completions or more{left_out}.")
    if curve.warning:
        click.echo(curve.warning)


def _plain(cell: str) -> str:
    return cell.replace("[", r"\[")  # which rich would take for markup


def _svg_file(curve: BestOfNCurve) -> str:
    """The drawing as a file of its own, with a size and the colour that a page would give it."""
    drawn = proxy_curve_svg(curve)
    return drawn.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="768" color="#64748b"', 1) + "\n"


def _complete_scores(found: ScoredPrompt, with_gold: bool) -> FloatArray:
    """The scores and gold scores of the completions that have both, [N, 2]; the former twice where gold is not asked for."""
    gold = found.gold if with_gold else found.scores
    both = [pair for pair in zip(found.scores, gold, strict=True) if None not in pair]
    return np.array(both, dtype=np.float64).reshape(-1, 2)


def _means(values: FloatArray) -> tuple[Estimate, ...]:
    """The mean of each column of [P, C], with the interval of the P prompts."""
    return tuple(mean_estimate(column, range(len(column))) for column in values.T)
