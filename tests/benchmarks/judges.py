"""How well a small judge learns a rule from the reward `verdict`, from the shell; about a minute for each seed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rm_plugins.files import write_atomically
from tests.benchmarks.page import table, with_section
from tests.trained_judges.training import STEPS, WEIGHTS, train_judge

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "train-a-judge.md"
HEADING = "Measured on a small model"
SEEDS = (0, 1, 2)
SHOWN = ("order 0", "order 1", "both orders")


def main() -> None:
    """Train, print and write the section."""
    rows: list[tuple[str, ...]] = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            stages = train_judge(Path(folder), seed=seed)
        names = {"form": "after step 2", "reward": "after step 3"}
        rows += [(f"{name}, seed {seed}", *(f"{stages[stage][shown]:.2f}" for shown in SHOWN)) for stage, name in names.items()]
        print(stages, flush=True)
    rows.sort(key=lambda row: row[0])
    text = (
        "A random model of two layers learns a rule: of two answers of four words, the one with the word *blue* is better. Step 2 only "
        f"teaches it the form, on 200 pairs with random verdicts. {STEPS} steps of GRPO on 1,200 other pairs, with "
        f"`right: {WEIGHTS['right']:g}`, `format: {WEIGHTS['format']:g}` and `agreement: {WEIGHTS['agreement']:g}`, teach it the rule. "
        "The figures are shares of the questions of held-out prompts.\n\n"
        f"{table(('judge', 'right in order 0', 'right in order 1', 'right in both orders'), rows)}\n\n"
        "In earlier runs with 140 steps, two of six trainings (both of seed 0, with and without `agreement`) still gave random verdicts at "
        "the end, and the other four had learned the rule. Without `agreement`, 200 steps also taught all three seeds the rule, so its "
        "weight made no difference here.\n\n"
        "Random verdicts are right in a quarter of the pairs in both orders. `python -m tests.benchmarks.judges` writes this section."
    )
    write_atomically(PAGE, with_section(PAGE.read_text(encoding="utf-8"), HEADING, text))


if __name__ == "__main__":
    main()
