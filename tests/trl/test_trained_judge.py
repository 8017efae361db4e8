"""A judge is trained from the shell with the reward `verdict`, and is then a reward itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rm_plugins as rm
from tests.trained_judges.training import train_judge
from tests.trained_judges.world import TEMPLATE, preferences
from tests.trl.conftest import newest_trl


@newest_trl
def test_a_judge_learns_a_rule_from_the_shell(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    stages = train_judge(tmp_path, seed=2, steps=100)
    record_property("measured", f"a trained judge on held-out pairs: {stages}")
    assert stages["form"]["no verdict"] == 0
    assert stages["form"]["both orders"] < 0.3
    assert stages["reward"]["both orders"] > 0.9
    assert min(stages["reward"]["order 0"], stages["reward"]["order 1"]) > 0.9
    assert accuracy(tmp_path / "judge-sft") < 0.3
    assert accuracy(tmp_path / "trained-judge") > 0.9


def accuracy(judge: Path) -> float:
    """The share of new pairs whose better answer has a higher reward, with the judge as a comparer in both orders."""
    comparer = {"name": "judge", "judge": {"name": "transformers", "model": str(judge)}, "template": TEMPLATE, "tie": False}
    rewards = rm.load({"provider": "comparison", "comparer": comparer, "on_error": "abstain"})
    rows = list(preferences(64, seed=99))
    samples = [rm.Sample(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")]
    values = rewards.score(samples).values.reshape(-1, 2)
    return float((values[:, 0] > values[:, 1]).mean())
