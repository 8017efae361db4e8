"""The page and the pictures of what optimizing against one model and against several does to the true reward."""

from __future__ import annotations

import json
import math
import platform
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rm_plugins.files import write_atomically
from rm_plugins.scores import FloatArray
from tests.benchmarks.charts import save_chart
from tests.benchmarks.overoptimization_runs import FLIP_RATE, KL_WEIGHT, MEMBERS, PROXIES, SINGLE, Sizes
from tests.benchmarks.page import table

__all__ = ["write"]

VERSIONS = ("torch", "transformers", "trl", "rm-plugins")
PICTURES = {"best-of-n": "overoptimization-best-of-n.svg", "grpo": "overoptimization-grpo.svg"}
COLOURS = ("#222222", "#3b6fb6", "#c2571a", "#2a8a5f", "#8a4fa3", "#b8960c")
SMOOTHING_STEPS = 20
DRAWN_STEPS = 5
WORTH_SAYING = 0.1
DIVERGENCE = 0.5
"""In nats per token: at this divergence, policies are compared."""


_INTRO = (
    "Made by `make bench-overoptimization`. A policy that is optimized against a learned reward exploits the errors of this "
    "reward, and the longer it is optimized, the more it exploits them. This page measures whether a combination of reward models "
    "resists longer than one model."
)
_SETUP = (
    "The world is the one of `rm-plugins demo`, with a known true (gold) reward.",
    "Noise: {flipped:.0%} of the labels are flipped, in addition to those where the worse answer won at random.",
    (
        "{members} reward models, the members, train on the same {pairs:,} pairs, each in its own order, from the same initial "
        "weights. They have two layers of 64 units. Their scores are standardized ([`zscore`](transforms.md)) with the statistics "
        "in their [manifests](reference/manifest.md)."
    ),
    (
        "`mean`, `min`, `lcb` and `uwo` combine the members' scores ([aggregates](providers/ensembles.md#aggregates)). WARM is one "
        "model with the [mean of the members' weights](merging.md)."
    ),
    ('"One model" is the mean over the {members} members for the accuracy and the best of n, and the first member for GRPO.'),
    "{seeds} seeds, each with its own world, policy and members.",
)
_BEST_OF_N = (
    "Each of {prompts} held-out prompts has {completions} completions by the untrained policy. The figures are the expected "
    "gold reward of the best of n by each reward, estimated without bias. The KL divergence of the best of n from the untrained "
    "policy is at most log n - (n - 1) / n nats; the chart uses this bound."
)
_GRPO = (
    "{steps} steps from the same policy, with a KL penalty of {weight:g}, which is almost none. The gold reward is "
    "measured on the completions sampled in training, and averaged over the last {smoothing} steps. The divergence from that policy is "
    "TRL's estimate `kl`, in nats per token: the median of the last {smoothing} steps, because single estimates have large "
    "errors."
)
_READING = (
    "In the tables, figures are means over seeds. Below the first row, the difference from one model follows in brackets, with the "
    "standard error of the paired differences. **Bold** marks a difference of more than two standard errors with the same sign for "
    "every seed. With {seeds} seeds this is a weak test, so some bold figures are due to chance. The members share their "
    "initial weights and their pairs, so they share many errors. Members with different data or backbones would disagree "
    "more. The parameters of the aggregates were not tuned."
)


@dataclass(frozen=True, slots=True)
class Seed:
    """What was found with one seed."""

    accuracy: Mapping[str, Any]
    best_of_n: Mapping[str, Mapping[str, Sequence[float]]]
    grpo: Mapping[str, Mapping[str, FloatArray]]

    @classmethod
    def read(cls, folder: Path) -> Seed:
        """Read the files of a finished seed."""

        def found(name: str) -> Any:
            return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

        runs = {proxy: found(f"grpo-{number}") for number, proxy in enumerate(PROXIES)}
        smoothed = {
            proxy: {name: _smoothed(values, np.median if name == "kl" else np.mean) for name, values in run.items()}
            for proxy, run in runs.items()
        }
        return cls(found("accuracy"), found("best-of-n"), smoothed)


def write(output: Path, folders: Sequence[Path], sizes: Sizes) -> None:
    """Write the page, and the pictures beside it.

    Args:
        output: The page's file.
        folders: A folder for each seed.
        sizes: What was computed.
    """
    seeds = [Seed.read(folder) for folder in folders]
    counts = [int(n) for n in seeds[0].best_of_n[SINGLE]["n"]]
    _draw_best_of_n(output.with_name(PICTURES["best-of-n"]), seeds)
    _draw_grpo(output.with_name(PICTURES["grpo"]), seeds)
    shown = [count for count in counts if count in (1, 4, 16, 64)] + counts[-1:]
    parts = [
        "# Over-optimization",
        _paragraph(_INTRO),
        _items(text.format(flipped=FLIP_RATE, members=MEMBERS, pairs=sizes.pairs, seeds=len(seeds)) for text in _SETUP),
        _paragraph(_READING.format(seeds=len(seeds))),
        _versions(),
        "## Accuracy",
        _paragraph(
            "The share of about 1,000 held-out pairs with true labels in which the better answer has the higher reward."
        ),
        _compared(seeds, {"accuracy": lambda seed, proxy: _accuracy(seed, proxy)}),
        "## Best of n",
        _paragraph(_BEST_OF_N.format(completions=sizes.completions, prompts=sizes.prompts)),
        f"![Gold reward of the best of n]({PICTURES['best-of-n']})",
        _compared(
            seeds,
            {f"n = {n}": _best_of(counts.index(n)) for n in shown},
        ),
        "## GRPO",
        _paragraph(_GRPO.format(steps=sizes.steps, weight=KL_WEIGHT, smoothing=SMOOTHING_STEPS)),
        f"![Gold reward over GRPO's divergence]({PICTURES['grpo']})",
        _compared(
            seeds,
            {
                f"at {DIVERGENCE:g} nats": _at_divergence,
                "highest": lambda seed, proxy: float(seed.grpo[proxy]["gold"].max()),
                "at the end": lambda seed, proxy: float(seed.grpo[proxy]["gold"][-1]),
                "lost since the highest": lambda seed, proxy: float(
                    seed.grpo[proxy]["gold"].max() - seed.grpo[proxy]["gold"][-1]
                ),
                "divergence at the end": lambda seed, proxy: float(seed.grpo[proxy]["kl"][-1]),
            },
        ),
        "## Conclusions",
        *_verdicts(seeds, counts),
    ]
    write_atomically(output, "\n\n".join(parts) + "\n")


Figure = Callable[[Seed, str], float]


def _compared(seeds: Sequence[Seed], columns: Mapping[str, Figure]) -> str:
    rows = []
    for proxy in PROXIES:
        cells = [proxy]
        for figure in columns.values():
            mean = statistics.fmean(figure(seed, proxy) for seed in seeds)
            if math.isnan(mean):
                cells.append("not reached")
                continue
            if proxy == SINGLE:
                cells.append(f"{mean:.3f}")
                continue
            difference, error, clear = _difference(seeds, figure, proxy)
            text = f"{mean:.3f} ({difference:+.3f} ± {error:.3f})"
            cells.append(f"**{text}**" if clear else text)
        rows.append(cells)
    return table(["", *columns], rows)


def _difference(seeds: Sequence[Seed], figure: Figure, proxy: str) -> tuple[float, float, bool]:
    """The mean paired difference from one model, its standard error, and whether it is clear by the page's rule."""
    differences = [figure(seed, proxy) - figure(seed, SINGLE) for seed in seeds]
    mean = statistics.fmean(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    same_sign = len({difference > 0 for difference in differences}) == 1
    return mean, error, same_sign and abs(mean) > 2 * error


def _best_of(place: int) -> Figure:
    """The gold reward of the best of n, at the place of n among all that were looked at."""
    return lambda seed, proxy: seed.best_of_n[proxy]["gold"][place]


def _at_divergence(seed: Seed, proxy: str) -> float:
    """The gold reward where GRPO's policy first was that far from where it began; NaN if it never was."""
    run = seed.grpo[proxy]
    beyond = np.flatnonzero(run["kl"] >= DIVERGENCE)
    return float(run["gold"][beyond[0]]) if len(beyond) else math.nan


def _accuracy(seed: Seed, proxy: str) -> float:
    return statistics.fmean(seed.accuracy["members"]) if proxy == SINGLE else float(seed.accuracy[proxy])


def _verdicts(seeds: Sequence[Seed], counts: Sequence[int]) -> list[str]:
    """One sentence a reward: where it helps, where it does not."""
    figures: Mapping[str, Figure] = {
        f"best of {counts[-1]}": _best_of(-1),
        "the end of GRPO": lambda seed, proxy: float(seed.grpo[proxy]["gold"][-1]),
    }
    lines = []
    for proxy in PROXIES[1:]:
        said = []
        for place, figure in figures.items():
            difference, error, clear = _difference(seeds, figure, proxy)
            verdict = ("more gold" if difference > 0 else "less gold") if clear else "no clear difference"
            said.append(f"{verdict} at {place} ({difference:+.3f} ± {error:.3f})")
        lines.append(f"- {proxy}: {'; '.join(said)}.")
    return ["Against one model:\n\n" + "\n".join(lines), *_held_out_by_none(seeds)]


def _held_out_by_none(seeds: Sequence[Seed]) -> list[str]:
    """What to say where the policy ends below its best with every reward."""
    lost = [
        statistics.fmean(float(seed.grpo[proxy]["gold"].max() - seed.grpo[proxy]["gold"][-1]) for seed in seeds)
        for proxy in PROXIES
    ]
    if min(lost) < WORTH_SAYING:
        return []
    return [
        _paragraph(
            f"No reward here resists GRPO without a penalty: with each, the gold reward rises, then falls by {min(lost):.2f} to "
            f"{max(lost):.2f}. Several models improve the best of n. A KL penalty and stopping in time remain necessary; "
            "[watching](watching.md) shows when to stop."
        )
    ]


def _smoothed(values: Sequence[float], statistic: Callable[[Sequence[float]], np.floating[Any]]) -> FloatArray:
    """A statistic of the last steps, at each step."""
    return np.array([statistic(values[max(0, end - SMOOTHING_STEPS) : end]) for end in range(1, len(values) + 1)])


def _draw_best_of_n(path: Path, seeds: Sequence[Seed]) -> None:
    def draw(axes: Any) -> None:
        for proxy, colour in zip(PROXIES, COLOURS, strict=True):
            gold = np.mean([seed.best_of_n[proxy]["gold"] for seed in seeds], axis=0)
            axes.plot(np.sqrt(seeds[0].best_of_n[proxy]["kl"]), gold, color=colour, marker="o", markersize=3, label=proxy)
        axes.set_xlabel("square root of the divergence's bound, in nats")
        axes.set_ylabel("gold reward of the best of n")

    save_chart(path, draw)


def _draw_grpo(path: Path, seeds: Sequence[Seed]) -> None:
    def draw(axes: Any) -> None:
        for proxy, colour in zip(PROXIES, COLOURS, strict=True):
            runs = [{name: values[::DRAWN_STEPS] for name, values in seed.grpo[proxy].items()} for seed in seeds]
            for run in runs:
                axes.plot(np.sqrt(np.maximum(run["kl"], 0)), run["gold"], color=colour, alpha=0.25, linewidth=0.8)
            gold, kl = (np.mean([run[name] for run in runs], axis=0) for name in ("gold", "kl"))
            axes.plot(np.sqrt(np.maximum(kl, 0)), gold, color=colour, linewidth=2, label=proxy)
        axes.set_xlabel("square root of the divergence that was measured, in nats per token")
        axes.set_ylabel("gold reward")

    save_chart(path, draw)


def _versions() -> str:
    return f"Python {platform.python_version()}; {', '.join(f'{name} {version(name)}' for name in VERSIONS)}."


def _items(texts: Iterable[str]) -> str:
    return "\n".join(
        textwrap.fill(text, 138, initial_indent="- ", subsequent_indent="  ", break_long_words=False) for text in texts
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 138, break_long_words=False, break_on_hyphens=False)
