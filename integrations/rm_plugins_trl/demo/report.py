"""The picture and the summary of the demonstration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rm_plugins.errors import MissingDependencyError
from rm_plugins.evaluation import PairMetrics
from rm_plugins.files import replacing
from rm_plugins.scores import FloatArray

SMOOTHING_STEPS = 10
TITLES = {
    "gold": "Gold reward: the true one, used for measuring only",
    "learned": "Learned reward: that of the reward model, which the policy is trained against",
}
COLOURS = {"gold": "#b8860b", "learned": "#2a6f97"}


@dataclass(frozen=True, slots=True)
class Measure:
    """A policy on held-out prompts.

    Args:
        completions: One for each prompt, [N].
        learned: The reward model's scores, float64 [N].
        gold: The true rewards, float64 [N]; None if they are unknown.
    """

    completions: list[str]
    learned: FloatArray
    gold: FloatArray | None

    def mean(self, name: str) -> tuple[float, float]:
        """Mean and standard error of ``learned`` or ``gold``."""
        values = getattr(self, name)
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0

    def figures(self) -> dict[str, float]:
        """Means and standard errors, by name."""
        figures: dict[str, float] = {"prompts": len(self.completions)}
        for name in ("learned", "gold") if self.gold is not None else ("learned",):
            figures[name], figures[f"{name}_standard_error"] = self.mean(name)
        return figures


def draw_curves(curves: Sequence[Mapping[str, float]], before: Measure, after: Measure, path: Path) -> None:
    """Draw the mean rewards at each step of GRPO, and those of the policy before and after on held-out prompts, as a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("The picture needs matplotlib: pip install 'rm-plugins[demo]'.") from error
    names = [name for name in TITLES if name == "learned" or before.gold is not None]
    figure = Figure(figsize=(8.5, 3.2 * len(names) + 0.6), layout="constrained")
    steps = np.array([point["step"] for point in curves])
    for axis, name in zip(np.atleast_1d(figure.subplots(len(names), sharex=True)), names, strict=True):
        values = np.array([point[name] for point in curves])
        colour = COLOURS[name]
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1, label="each step's completions")
        axis.plot(steps, _smoothed(values), color=colour, linewidth=2.2, label=f"mean of {SMOOTHING_STEPS} steps")
        for measure, step, label in ((before, 0, "before"), (after, steps[-1], "after")):
            mean, deviation = measure.mean(name)
            axis.errorbar(step, mean, 2 * deviation, fmt="o", color="black", capsize=4, zorder=3)
            side: dict[str, Any] = {"xytext": (12, 20), "ha": "left"} if step == 0 else {"xytext": (-12, -28), "ha": "right"}
            axis.annotate(f"{label}: {mean:.2f}", (step, mean), textcoords="offset points", **side)
        axis.set_title(TITLES[name], loc="left", fontsize=11)
        axis.set_ylabel("reward")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower right", frameon=False, fontsize=9)
    figure.supxlabel(f"GRPO step; points: {len(before.completions)} held-out prompts, two standard errors", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)


def _smoothed(values: FloatArray) -> FloatArray:
    """The moving average over the last steps, at each step."""
    return np.array([values[max(0, end - SMOOTHING_STEPS) : end].mean() for end in range(1, len(values) + 1)])


def summary(folder: Path, name: str, prompts: Sequence[Any], before: Measure, after: Measure, held_out: PairMetrics) -> str:
    """The summary, in Markdown; `name` is the name of the reward in the folder's ``rm_plugins.yaml``."""
    rows = []
    for key, title in (("gold", "gold (true) reward"), ("learned", "learned reward")):
        if getattr(before, key) is not None:
            cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in (before.mean(key), after.mean(key))]
            rows.append(f"| {title} | {cells[0]} | {cells[1]} |")
    table = "\n".join(rows)
    examples = "\n".join(
        f"- {_shown(prompt)}\n  - before: {first.strip() or '(nothing)'}\n  - after: {second.strip() or '(nothing)'}"
        for prompt, first, second in list(zip(prompts, before.completions, after.completions, strict=False))[:3]
    )
    return f"""# A reward, from preferences to a policy

| on {len(before.completions)} held-out prompts | before GRPO | after |
|---|---|---|
{table}

Means and standard errors. The reward model on held-out pairs, whose labels are noisy too: {held_out}.

Completions of the policy:

{examples}

Written to `{folder}`:

- `data/`: the preference pairs and prompts, for training and held out
- `reward-model/`: the reward, with `reward_manifest.json`; its name in `rm_plugins.yaml` is `{name}`
- `policy-before/` (if it was created here) and `policy-after/`
- `completions.jsonl`: completions of the policy before and after, for the commands below
- `curves.png`, `curves.json`: the rewards at every step

Use the reward:

    cd {folder}
    rm-plugins verify reward-model
    rm-plugins evaluate {name} data/held_out_pairs.jsonl
    rm-plugins rank {name} completions.jsonl --best 1

Next, on a real model:

    rm-plugins train --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen2.5-Reward
    echo "helpful: ./Qwen2.5-Reward" >> rm_plugins.yaml
    trl grpo --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name trl-lib/ultrafeedback-prompt \\
        --output_dir grpo --reward_funcs rm_plugins_trl.rewards.helpful --bf16 false  # on a GPU, leave out --bf16 false
"""


def _shown(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt[-1]["content"], ensure_ascii=False)
    return str(text).strip()
