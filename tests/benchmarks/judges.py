"""How well a small judge learns a rule from the reward `verdict`, from the shell, by weight of the agreement of both orders; three minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rm_plugins.files import write_atomically
from tests.benchmarks.page import table, with_section
from tests.trained_judges.training import STEPS, WEIGHTS, train_judge

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "train-a-judge.md"
HEADING = "Measured on a small model"
SEEDS = (0, 1, 2)
AGREEMENTS = (0.0, WEIGHTS["agreement"])
SHOWN = ("order 0", "order 1", "both orders")


def main() -> None:
    """Train, print and write the section."""
    rows = []
    for agreement in AGREEMENTS:
        weights = {**WEIGHTS, "agreement": agreement}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                stages = train_judge(Path(folder), seed=seed, weights=weights)
            if agreement == AGREEMENTS[0]:
                rows.append((f"after step 2, seed {seed}", stages["form"]))
            rows.append((f"`agreement: {agreement:g}`, seed {seed}", stages["reward"]))
            print(*rows[-1], flush=True)
    rows.sort(key=lambda row: not row[0].startswith("after"))
    cells = [(name, *(f"{figures[shown]:.2f}" for shown in SHOWN)) for name, figures in rows]
    text = (
        "A random model of two layers learns a rule: of two answers of four words, the one with the word *blue* is better. Step 2 only teaches it "
        f"the form, on 200 pairs with random verdicts. {STEPS} steps of GRPO on 1,200 other pairs, with `right: 1`, `format: 0.2` and a weight "
        "of `agreement`, teach it the rule. The figures are shares of right answers to the questions of held-out prompts.\n\n"
        f"{table(('judge', 'right in order 0', 'right in order 1', 'pairs right in both orders'), cells)}\n\n"
        "Random verdicts are right in a quarter of the pairs in both orders. `python -m tests.benchmarks.judges` writes this section."
    )
    write_atomically(PAGE, with_section(PAGE.read_text(encoding="utf-8"), HEADING, text))


if __name__ == "__main__":
    main()
