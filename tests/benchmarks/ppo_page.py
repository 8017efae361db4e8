"""The sections of the page on PPO that say what was measured."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.charts import save_chart
from tests.benchmarks.overoptimization_runs import FLIP_RATE
from tests.benchmarks.page import machine, table
from tests.benchmarks.ppo_runs import CONTENDERS, GRPO, GRPO_KL_WEIGHT, OLDER, OURS, PPO_KL_WEIGHT, LearningSizes
from tests.benchmarks.ppo_runs import REAL as REAL_SIZES
from tests.benchmarks.ppo_speed import SHAPES

__all__ = ["LEARNING", "REAL", "SPEED", "TITLES", "sections"]

LEARNING, REAL, SPEED = "Measured learning", "Measured on a real model", "Measured speed and memory"
"""The headings of the sections."""
_NEWEST = "TRL " + ".".join(version("trl").split(".")[:2])
TITLES: Mapping[str, str] = {OLDER: "PPO with TRL 1.12", OURS: f"PPO with {_NEWEST}", GRPO: f"GRPO with {_NEWEST}"}
COLOURS: Mapping[str, str] = {OLDER: "#8a4fa3", OURS: "#3b6fb6", GRPO: "#c2571a"}
PICTURES: Mapping[str, str] = {"kl": "ppo-gold-kl.svg", "seconds": "ppo-gold-seconds.svg"}
MODULE = "tests.benchmarks.ppo"

_LEARNING = (
    "The world is the one of [over-optimization](overoptimization.md), with a known true (gold) reward: policies and reward models of two "
    "layers of 64 units, and {flipped:.0%} of the preference labels flipped. Every trainer starts from the same policy, is trained "
    "against the same reward model (as a z-score), and has the same budget: {sizes} (rollouts x completions x the most tokens of a "
    "completion, and PPO's epochs; GRPO makes one step per rollout, with 8 completions per prompt). Learning rates are constant: {rates}. "
    "The KL weight is {ppo:g} in PPO (its default) and {grpo:g} in GRPO (that of the demonstration). All else is each trainer's default. "
    "Policies are evaluated alike: one completion at temperature 1 for each of {prompts} held-out prompts. KL is the exact divergence "
    "from the start at the sampled tokens, in nats per token. Seconds are CPU seconds of one thread, without evaluations."
)
_SEEDS = "Mean ± standard deviation over {seeds} seeds, each with its own world, policy and reward model."
_RATES = (
    "The learning rates were tried in another world, one run each. The highest gold reward of an evaluation there:\n\n{tried}"
)
_REAL = (
    "SmolLM2-135M-Instruct continues film reviews; the reward is a MiniLM classifier of their polarity that was trained on other reviews "
    "of the same data. {sizes} (rollouts x completions x the most tokens of a completion, and PPO's epochs). The learning rate is {rates}. "
    "{seeds} The reward is the mean over one completion for each of {prompts} held-out prompts, with a standard error of about {error:.2f} "
    "in a run."
)
_SPEED = (
    "The rollouts are the same in both: prompts are stretches of LLMBar's text, and completions end at lengths that are drawn evenly "
    "between the shortest and the longest. The reward costs nothing. One minibatch per epoch, float32, no gradient checkpointing, a value "
    "model of the policy's size, one thread. Each run has a process of its own, and the trainers take turns. Seconds are CPU seconds, and "
    "the first rollout of a run does not count. Memory is the peak of the process, with Python and its libraries."
)


def sections(results: Sequence[Mapping[str, Any]], output: Path) -> dict[str, str]:
    """The text of each section that has results, by heading; the pictures are written beside the page.

    Args:
        results: Finished runs.
        output: The page's file.
    """
    found: dict[str, str] = {}
    makers: Mapping[str, Callable[[list[Mapping[str, Any]]], str]] = {
        LEARNING: lambda runs: _learning(runs, results, output),
        REAL: _real,
        SPEED: _speed,
    }
    for (heading, make), kind in zip(makers.items(), ("learning", "real", "speed"), strict=True):
        runs = _of_newest([line for line in results if line["run"][0] == kind])
        if runs:
            found[heading] = make(runs)
    return found


def _of_newest(lines: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The learning runs with the sizes of the last one; runs of other sizes cannot be compared with them."""
    if not lines or lines[0]["run"][0] == "speed":
        return lines
    return [line for line in lines if line["run"][1] == lines[-1]["run"][1]]


# --- Learning -------------------------------------------------------------------------------------------------------------


def _learning(runs: list[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], output: Path) -> str:
    by_contender = _by_contender(runs)
    seeds = {len(lines) for lines in by_contender.values()}
    reached = min(min(_highest(line["points"]) for line in lines) for lines in by_contender.values())
    level = int(reached * 20) / 20  # the highest multiple of 0.05 that all runs reach
    rows = []
    for name, lines in by_contender.items():
        curves = [line["points"] for line in lines]
        rows.append(
            [
                TITLES[name],
                _spread([points[0]["gold"] for points in curves], 3),
                _spread([points[-1]["gold"] for points in curves], 3),
                _spread([_highest(points) for points in curves], 3),
                _spread([points[-1]["kl"] for points in curves], 3),
                _spread([_at(points, level, "kl") for points in curves], 3),
                _spread([_at(points, level, "seconds") for points in curves], 0),
                _spread([points[-1]["seconds"] for points in curves], 0),
                f"{statistics.fmean(points[-1]['tokens'] for points in curves):,.0f}",
            ]
        )
    head = ["", "gold at the start", "at the end", "highest", "KL at the end", f"KL at gold {level:.2f}"]
    head += [f"seconds to gold {level:.2f}", "seconds in all", "tokens generated"]
    for axis, picture in PICTURES.items():
        _draw(output.with_name(picture), by_contender, axis)
    parts = [
        f"Made by `make bench-ppo` (`python -m {MODULE} --only learning`): {machine()} PPO with TRL 1.12 runs with trl 1.12.0.",
        _LEARNING.format(
            flipped=FLIP_RATE,
            sizes=runs[0]["run"][1],
            rates=_rates(by_contender),
            ppo=PPO_KL_WEIGHT,
            grpo=GRPO_KL_WEIGHT,
            prompts=LearningSizes().prompts,
        ),
        _tried(results, runs[0]["run"][1]),
        _seeds_said(seeds, _SEEDS),
    ]
    return "\n\n".join(
        [
            *(_paragraph(part) for part in parts if part),
            table(head, rows),
            f"![Gold reward over the divergence]({PICTURES['kl']})",
            f"![Gold reward over CPU seconds]({PICTURES['seconds']})",
        ]
    )


def _tried(results: Sequence[Mapping[str, Any]], sizes: str) -> str:
    tried = [line for line in results if line["run"][0] == "rates" and line["run"][1] == sizes]
    texts = [
        f"- {TITLES[name]}: "
        + ", ".join(f"{_highest(line['points']):.3f} at {line['run'][3]:g}" for line in sorted(lines, key=_rate))
        for name, lines in _by_contender(tried).items()
    ]
    return _RATES.format(tried="\n".join(texts)) if texts else ""


def _rate(line: Mapping[str, Any]) -> float:
    return float(line["run"][3])


def _highest(points: Sequence[Mapping[str, float]]) -> float:
    return max(point["gold"] for point in points)


def _at(points: Sequence[Mapping[str, float]], level: float, name: str) -> float:
    """A figure where the gold reward first reached a level, on the line between two evaluations."""
    for before, after in pairwise(points):
        if before["gold"] < level <= after["gold"]:
            share = (level - before["gold"]) / (after["gold"] - before["gold"])
            return before[name] + share * (after[name] - before[name])
    return points[0][name]  # it was there from the start


def _draw(path: Path, by_contender: Mapping[str, Sequence[Mapping[str, Any]]], axis: str) -> None:
    labels = {"kl": "square root of the divergence from the start, in nats per token", "seconds": "CPU seconds"}

    def draw(axes: Any) -> None:
        for name, lines in by_contender.items():
            curves = [
                ([(point[axis] ** 0.5 if axis == "kl" else point[axis]) for point in line["points"]], _gold(line))
                for line in lines
            ]
            for across, up in curves:
                axes.plot(across, up, color=COLOURS[name], alpha=0.25, linewidth=0.8)
            mean = [np.mean(values, axis=0) for values in zip(*curves, strict=True)]
            axes.plot(*mean, color=COLOURS[name], linewidth=2, marker="o", markersize=3, label=TITLES[name])
        axes.set_xlabel(labels[axis])
        axes.set_ylabel("gold reward")

    save_chart(path, draw)


def _gold(line: Mapping[str, Any]) -> list[float]:
    return [point["gold"] for point in line["points"]]


# --- A real model ---------------------------------------------------------------------------------------------------------


def _real(runs: list[Mapping[str, Any]]) -> str:
    by_contender = _by_contender(runs)
    rows = []
    for name, lines in by_contender.items():
        first, last = ([line["points"][place] for line in lines] for place in (0, -1))
        rows.append(
            [
                TITLES[name],
                _spread([point["proxy"] for point in first], 2),
                _spread([point["proxy"] for point in last], 2),
                _spread([point["kl"] for point in last], 3),
                _spread([point["seconds"] for point in last], 0),
                _spread([point["tokens"] / point["seconds"] for point in last], 1),
            ]
        )
    head = (
        "",
        "reward at the start",
        "at the end",
        "KL at the end, in nats per token",
        "CPU seconds",
        "completion tokens per second",
    )
    said = [
        f"Made by `python -m {MODULE} --only real`: {machine()} PPO with TRL 1.12 runs with trl 1.12.0.",
        _REAL.format(
            sizes=runs[0]["run"][1],
            rates=_rates(by_contender),
            seeds=_seeds_said({len(lines) for lines in by_contender.values()}, "Mean ± standard deviation over {seeds} seeds."),
            prompts=REAL_SIZES.prompts,
            error=_reward_error(runs),
        ),
    ]
    return "\n\n".join([*map(_paragraph, said), table(head, rows)])


def _seeds_said(seeds: set[int], several: str) -> str:
    """What the page says of the numbers of seeds that the contenders have."""
    numbers = " or ".join(map(str, sorted(seeds)))
    return several.format(seeds=numbers) if seeds != {1} else "One seed, so small differences mean nothing."


def _reward_error(runs: Iterable[Mapping[str, Any]]) -> float:
    return statistics.fmean(line["points"][-1]["proxy_error"] for line in runs)


# --- Speed ----------------------------------------------------------------------------------------------------------------


def _speed(runs: list[Mapping[str, Any]]) -> str:
    parts = [f"Made by `python -m {MODULE} --only speed`: {machine()} PPO with TRL 1.12 runs with trl 1.12.0.", _SPEED]
    known = {shape.title: shape for shape in SHAPES}
    rows = []
    for shape in dict.fromkeys(str(line["run"][1]) for line in runs):
        by_contender = _by_contender(line for line in runs if line["run"][1] == shape)
        if set(by_contender) != {OLDER, OURS}:
            continue
        figures = {name: _step(found) for name, found in by_contender.items()}
        for name, (seconds, generation, speed, peak) in figures.items():
            older = figures[OLDER]
            rows.append(
                [
                    known[shape].description if shape in known else shape,
                    TITLES[name],
                    f"{seconds:.2f}",
                    f"{generation:.2f}",
                    f"{speed:,.1f}",
                    f"{speed / older[2]:.2f}x",
                    f"{peak / 2**20:,.0f}",
                    f"{peak / older[3]:.2f}",
                ]
            )
    titles = [
        "step",
        "",
        "seconds per rollout",
        "of these, generating",
        "completion tokens per second",
        "speed relative to TRL 1.12",
    ]
    titles += ["peak memory in MiB", "relative to TRL 1.12"]
    return "\n\n".join([*map(_paragraph, parts), table(titles, rows)]) if rows else ""


def _step(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float, float, float]:
    """Medians over the updates of all rounds: seconds, seconds of generation, completion tokens per second; and the median peak."""
    seconds, generation, tokens = (
        [value for line in lines for value in line[name]] for name in ("seconds", "generation", "tokens")
    )
    speeds = [count / second for count, second in zip(tokens, seconds, strict=True)]
    peak = statistics.median(line["peak"] for line in lines)
    return statistics.median(seconds), statistics.median(generation), statistics.median(speeds), peak


# --- Texts ----------------------------------------------------------------------------------------------------------------


def _by_contender(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    lines = list(runs)
    found = {name: [line for line in lines if line["run"][2] == name] for name in CONTENDERS}
    return {name: of_one for name, of_one in found.items() if of_one}


def _rates(by_contender: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rates = {name: f"{_rate(lines[-1]):g}" for name, lines in by_contender.items()}
    if len(set(rates.values())) == 1:
        return next(iter(rates.values()))
    return ", ".join(f"{rate} for {TITLES[name]}" for name, rate in rates.items())


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else mean


def _paragraph(text: str) -> str:
    lines = text.split("\n")  # those of lists stay
    return "\n".join(textwrap.fill(line, 138, break_long_words=False, break_on_hyphens=False) for line in lines)
