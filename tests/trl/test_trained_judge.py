"""A judge is trained from the shell with the reward `verdict`, and is then a reward itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import rm_plugins as rm
from tests.made_once import made_once
from tests.trained_judges.training import train_judge
from tests.trained_judges.world import TEMPLATE, preferences
from tests.trl.conftest import newest_trl


@newest_trl
def test_a_judge_learns_a_rule_from_the_shell(tmp_path_factory: pytest.TempPathFactory, record_property: object) -> None:
    stages: dict[str, dict[str, float]] = {}
    folder = made_once(tmp_path_factory, "trained-judge", lambda folder: stages.update(train_judge(folder)))
    record_property("measured", f"a trained judge on held-out pairs: {stages}")  # type: ignore[operator]
    assert stages["form"]["no verdict"] == 0
    assert stages["form"]["both orders"] < 0.3
    assert stages["reward"]["both orders"] > 0.9
    assert min(stages["reward"]["order 0"], stages["reward"]["order 1"]) > 0.9
    assert accuracy(folder / "judge-sft") < 0.3
    assert accuracy(folder / "trained-judge") > 0.9


def accuracy(judge: Path) -> float:
    """The share of new pairs whose better answer has a higher reward, with the judge as a comparer in both orders."""
    comparer = {"name": "judge", "judge": {"name": "transformers", "model": str(judge)}, "template": TEMPLATE, "tie": False}
    rewards = rm.load({"provider": "comparison", "comparer": comparer, "on_error": "abstain"})
    rows = list(preferences(64, seed=99))
    samples = [rm.Sample(row["prompt"], row[name]) for row in rows for name in ("chosen", "rejected")]
    values = rewards.score(samples).values.reshape(-1, 2)
    return float((values[:, 0] > values[:, 1]).mean())
