"""The best-of-n curve of ``rm-plugins rank --curve``: as a drawing, as a page and as data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from rm_plugins.evaluation.results import SIGNIFICANT, as_json
from rm_plugins.labels import counted
from rm_plugins.reports.charts import COLOURS, draw_band, drawing, fit_values, svg
from rm_plugins.reports.page import page, table
from rm_plugins.statistics.intervals import Estimate


@dataclass(frozen=True, slots=True)
class BestOfNCurve:
    """The mean rewards of the best of n completions, where one reward, the proxy, chooses the best.

    Args:
        proxy: The reward that chooses.
        gold: The reward that judges the chosen ones: another spec or a column; empty for none.
        source: The file or dataset.
        policy: The model that generated the completions; empty if they were in the source.
        prompts: The number of prompts with at least the largest n of scored completions.
        left_out: The number of prompts with fewer, which are left out for every n.
        n: Numbers of completions, ascending.
        kl: An upper bound on the divergence of best-of-n from the policy, in nats: log n - (n - 1) / n.
        proxy_mean: The proxy's own mean, with its interval over prompts.
        gold_mean: The gold mean, likewise; empty without gold.
        gold_best: The gold mean if gold itself chose; empty without gold.
        fall: The highest gold mean minus the last one, with its interval; None without gold.
        fall_p_value: The probability of such a fall by chance; 1 without gold.
    """

    proxy: str
    gold: str
    source: str
    policy: str
    prompts: int
    left_out: int
    n: tuple[int, ...]
    kl: tuple[float, ...]
    proxy_mean: tuple[Estimate, ...]
    gold_mean: tuple[Estimate, ...] = ()
    gold_best: tuple[float, ...] = ()
    fall: Estimate | None = None
    fall_p_value: float = 1.0

    def to_json(self) -> str:
        """Everything as JSON, with null for values that could not be computed."""
        content = {"format": "rm-plugins best-of-n", "version": 1, **as_json(asdict(self))}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def title(self) -> str:
        """The title of the page and of the drawing."""
        judged = f", judged by {self.gold}" if self.gold else ""
        return f"Best of n by {self.proxy}{judged}"

    @property
    def warning(self) -> str:
        """The warning if gold falls significantly while the proxy rises; empty if it does not."""
        if self.fall is None or self.fall_p_value >= SIGNIFICANT:
            return ""
        peak = max(range(len(self.n)), key=lambda place: self.gold_mean[place].value)
        top, last = self.gold_mean[peak], self.gold_mean[-1]
        return (
            f"Gold is highest at n = {self.n[peak]:,} ({top.value:.4g}) and falls to {last.value:.4g} at n = {self.n[-1]:,}, a fall of "
            f"{self.fall:.4g}, while the proxy rises: choosing among more completions exploits the proxy."
        )


def best_of_n_table(curve: BestOfNCurve) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headings and rows of the curve's table."""
    heads = ("n", "KL bound (nats)", "proxy mean [95%]")
    rows: list[tuple[str, ...]] = [
        (f"{n:,}", f"{kl:.3f}", f"{estimate:.4g}") for n, kl, estimate in zip(curve.n, curve.kl, curve.proxy_mean, strict=True)
    ]
    if not curve.gold_mean:
        return heads, rows
    gold = zip(rows, curve.gold_mean, curve.gold_best, strict=True)
    return (*heads, "gold mean [95%]", "best possible gold"), [(*row, f"{mean:.4g}", f"{best:.4g}") for row, mean, best in gold]


def proxy_curve_svg(curve: BestOfNCurve) -> str:
    """The curve: gold, its best possible value and the proxy, each reward on its own axis; n is spaced by the square root of the KL bound.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    places = [math.sqrt(kl) for kl in curve.kl]
    with drawing(height=3.2) as (figure, axes):
        axes.set_xticks(places, [f"{n:,}" for n in curve.n])
        axes.set_xlabel("n, spaced by the square root of the KL bound")
        if curve.gold_mean:
            _line(axes, places, curve.gold_mean, 0, "gold")
            axes.plot(places, curve.gold_best, color=COLOURS[5], linestyle=":", label="best possible gold")
            fit_values(axes, [*_ends(curve.gold_mean), *curve.gold_best])
            _label(axes, "gold", COLOURS[0])
            beside = axes.twinx()
            beside.spines[["top"]].set_visible(False)
        else:
            beside = axes
        _line(beside, places, curve.proxy_mean, 1, "proxy")
        fit_values(beside, _ends(curve.proxy_mean))
        _label(beside, "proxy", COLOURS[1])
        lines = [line for part in dict.fromkeys((axes, beside)) for line in part.get_lines()]
        handles = [line for line in lines if not line.get_label().startswith("_")]
        figure.legend(handles=handles, frameon=False, loc="outside upper left", ncols=3, labelcolor="linecolor", fontsize=9)
        return svg(figure, curve.title)


def best_of_n_page(curve: BestOfNCurve) -> str:
    """The whole page, in a single file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    what = f"{counted(curve.prompts, 'prompt')} with at least {counted(curve.n[-1], 'scored completion')}"
    left_out = f"; {curve.left_out:,} with fewer are left out" if curve.left_out else ""
    written = f", generated by {curve.policy}" if curve.policy else ""
    warning = f'<div class="warning">{escape(curve.warning)}</div>' if curve.warning else ""
    body = f"""<p>{escape(f"{curve.source}: {what}{written}{left_out}.")}</p>
{warning}
<figure>{proxy_curve_svg(curve)}</figure>
{table("Numbers", *best_of_n_table(curve))}
<p>The proxy chooses the best of n completions; the means are over all subsets of n completions of a prompt. Bands and brackets are 95%
intervals over prompts. The KL bound is an upper bound on the divergence of best-of-n from the policy.</p>"""
    return page(curve.title, body)


def _label(axes: Any, name: str, colour: str) -> None:
    """Give an axis the colour of its line, so that it is clear which axis belongs to which line."""
    axes.set_ylabel(name, color=colour)
    axes.tick_params(axis="y", colors=colour)


def _line(axes: Any, places: Sequence[float], means: Sequence[Estimate], place: int, label: str) -> None:
    colour, style, marker = COLOURS[place], ("-", "--")[place], ("o", "s")[place]
    axes.plot(places, [mean.value for mean in means], style, color=colour, label=label, marker=marker, markersize=4)
    draw_band(axes, places, [mean.low for mean in means], [mean.high for mean in means], colour=colour, place=place)


def _ends(means: Sequence[Estimate]) -> list[float]:
    return [end for mean in means for end in (mean.value, mean.low, mean.high)]
