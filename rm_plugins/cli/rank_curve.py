"""The curve of ``rank --curve``: made of scored prompts, printed, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table

from rm_plugins.cli.printed import Console, echo
from rm_plugins.errors import DataError
from rm_plugins.jobs.ranking import ScoredPrompt
from rm_plugins.labels import counted
from rm_plugins.reports.best_of_n_page import BestOfNCurve, best_of_n_page, best_of_n_table, proxy_curve_svg
from rm_plugins.scores import FloatArray
from rm_plugins.statistics import best_of_n as statistics
from rm_plugins.statistics.intervals import Estimate, paired_test


def best_of_n_curve(
    prompts: Sequence[ScoredPrompt], n: int | None, *, proxy: str, gold: str = "", source: str = "", policy: str = ""
) -> BestOfNCurve:
    """The mean rewards of the best of 1, 2, 4, ... up to `n` completions.

    Args:
        prompts: Scored prompts, with gold rewards if `gold` names any.
        n: The largest number; by default the one that most prompts have.
        proxy: The name of the reward that chooses.
        gold: The name of the other reward; empty if there is none.
        source: The file of the prompts.
        policy: The model that wrote the completions.

    Raises:
        DataError: No prompt has so many completions with all scores.
    """
    scores = [_complete_scores(prompt, bool(gold)) for prompt in prompts]
    sizes = Counter(len(pairs) for pairs in scores if len(pairs))
    most = n or max(sizes, key=lambda size: (sizes[size], size), default=1)
    used = [(pairs[:, 0], pairs[:, 1]) for pairs in scores if len(pairs) >= most]
    if not used:
        needed = "with a score and a gold score" if gold else "with a score"
        if not sizes:
            raise DataError(f"There is no completion {needed}.")
        raise DataError(
            f"No prompt has {most} completions {needed}; the most that one has is {max(sizes)}. Ask for fewer with --n."
        )
    by_proxy, _ = statistics.best_of_n_curve([(chooses, chooses) for chooses, _ in used], most, range(len(used)))
    curve = BestOfNCurve(
        proxy=proxy,
        gold=gold,
        source=source,
        policy=policy,
        prompts=len(used),
        left_out=len(scores) - len(used),
        n=by_proxy.n,
        kl=by_proxy.kl,
        proxy_mean=by_proxy.mean,
    )
    if not gold:
        return curve
    by_gold, by_prompt = statistics.best_of_n_curve(used, most, range(len(used)))
    fall, p_value = _fall(by_prompt)
    return replace(curve, gold_mean=by_gold.mean, gold_best=by_gold.best, fall=fall, fall_p_value=p_value)


def _fall(by_gold: FloatArray) -> tuple[Estimate, float]:
    """By how much gold, [P, C], falls from its highest mean to the last one, with the p-value of a paired test over prompts.

    The p-value is corrected for choosing the highest of several means (Bonferroni).
    """
    peak = int(np.argmax(by_gold.mean(axis=0)))
    test = paired_test(by_gold[:, -1], by_gold[:, peak], range(len(by_gold)))
    return test.difference, min(1.0, test.p_value * max(1, by_gold.shape[1] - 1))


def curve_text(curve: BestOfNCurve, ending: str) -> str:
    """The curve as the page, the drawing or the data that a file's ending says."""
    return {".html": best_of_n_page, ".json": BestOfNCurve.to_json, ".svg": _svg_file}[ending](curve)


def print_curve(curve: BestOfNCurve, *, to_stderr: bool = False) -> None:
    """Print the table, on standard output unless the rows go there."""
    heads, rows = best_of_n_table(curve)
    printed = Table(box=None, pad_edge=False)
    for head in heads:
        printed.add_column("\n".join(_plain(head).rsplit(" ", 1)), justify="right", no_wrap=True)
    for row in rows:
        printed.add_row(*map(_plain, row))
    Console(highlight=False, stderr=to_stderr).print(printed)
    left_out = f"; {curve.left_out:,} have fewer and are left out" if curve.left_out else ""
    echo(
        f"{counted(curve.prompts, 'prompt')} with at least {counted(curve.n[-1], 'scored completion')}{left_out}.",
        err=to_stderr,
    )
    if curve.warning:
        echo(curve.warning, err=to_stderr)


def _plain(cell: str) -> str:
    return cell.replace("[", r"\[")  # which rich would take for markup


def _svg_file(curve: BestOfNCurve) -> str:
    """The drawing as a file of its own, with a size and the colour that a page would give it."""
    drawn = proxy_curve_svg(curve)
    return drawn.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="768" color="#64748b"', 1) + "\n"


def _complete_scores(prompt: ScoredPrompt, with_gold: bool) -> FloatArray:
    """The scores and gold scores of the completions that have both, [N, 2]; the scores twice if gold scores are not wanted."""
    gold = prompt.gold if with_gold else prompt.scores
    both = [pair for pair in zip(prompt.scores, gold, strict=True) if None not in pair]
    return np.array(both, dtype=np.float64).reshape(-1, 2)
