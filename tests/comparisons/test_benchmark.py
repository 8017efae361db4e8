"""The benchmark of comparisons: it resumes, and its tables are those of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import comparisons
from tests.benchmarks.comparisons_grpo import POINTWISE, REWARDS
from tests.benchmarks.comparisons_real import DATA_SETS, DataSet, Group, load
from tests.benchmarks.comparisons_simulated import JUDGES, settings, tau


def test_a_simulation_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "SIZES", (4,))
    results = tmp_path / "results.jsonl"
    comparisons.simulate(results, 1, 1)
    lines = results.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(JUDGES) * len(settings(4)) * 2
    results.write_text("\n".join(lines[:-3]) + "\n", encoding="utf-8")
    assert comparisons.simulated_section(results, 1, 1) == "", "there is no table with gaps"
    comparisons.simulate(results, 1, 1)
    assert results.read_text(encoding="utf-8").splitlines() == lines
    shown = comparisons.simulated_section(results, 1, 1)
    assert shown.count("| `knock-out` | ") == 2
    exact = next(
        json.loads(line)["figures"] for line in lines if json.loads(line)["run"][1:4] == ["exact", "`all-pairs`", "missing"]
    )
    assert exact["tau"] == 1.0


def test_tau_counts_ties_and_missing_scores_as_nothing() -> None:
    true = np.array([3.0, 2.0, 1.0])
    assert tau(np.array([3.0, 2.0, 1.0]), true) == 1
    assert tau(np.array([1.0, 2.0, 3.0]), true) == -1
    assert tau(np.array([1.0, 1.0, 0.0]), true) == pytest.approx(2 / 3)
    assert tau(np.array([1.0, np.nan, 0.0]), true) == pytest.approx(1 / 3)
    assert tau(np.full(3, np.nan), true) == 0


@pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: str(data.file))
def test_held_out_groups_have_other_prompts(data: DataSet, data_folder: Path) -> None:
    train, held_out = load(data, data_folder)
    assert len(train) == data.train
    assert len(held_out) == data.groups
    trained_on = {pair["prompt"][0]["content"] for pair in train}
    for group in held_out:
        assert isinstance(group, Group)
        assert group.samples[0].prompt not in trained_on
        assert 2 <= len(group.samples) <= data.answers
        assert group.judged


def test_the_table_of_real_data(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert comparisons.real_section(results) == ""
    data = DATA_SETS[0]
    figures = [
        {"setting": "one answer at a time", "calls": 12.0, "agreement": 0.75, "pairs": 100, "missing": 0},
        {"setting": "`swiss`", "calls": 40.0, "agreement": 0.8, "pairs": 98, "missing": 2, "position": 0.55, "cyclic": 0.01},
    ]
    run = ["real", data.file, data.train, data.groups, data.answers]
    results.write_text(json.dumps({"run": run, "figures": figures}) + "\n", encoding="utf-8")
    shown = comparisons.real_section(results)
    assert "| one answer at a time | 12 | 0.750 ± 0.043 | 100 | 0 |  |" in shown
    assert "| `swiss` | 40 | 0.800 ± 0.040 | 98 | 2 | 55% |" in shown


def test_the_table_of_grpo(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    lines: list[dict[str, Any]] = []
    for pairs in (10, 2_000):
        lines += [{"run": ["accuracy", seed, pairs], "figures": {POINTWISE: 0.75, "comparison": 0.8}} for seed in range(2)]
        for number, name in enumerate(REWARDS):
            for seed in range(2):
                figures = {"start": 0.4, "end": 0.5 + number / 10 + seed / 5, "kl": 1.0, "abstained": 0.0, "seconds": 9.0}
                lines.append({"run": ["grpo", name, seed, pairs, 3], "figures": figures})
    results.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]), encoding="utf-8")
    assert comparisons.grpo_section(results, 2, [10, 2_000], 3) == "", "there is no table with gaps"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shown = comparisons.grpo_section(results, 2, [10, 2_000], 3)
    assert f"| 10 | {POINTWISE} | 0.750 ± 0.000 | 0.400 ± 0.000 | 0.600 ± 0.100 |  | 1.00 |" in shown
    assert f"| 2,000 | {POINTWISE} |" in shown
    assert f"|  | {REWARDS[1]} | 0.800 ± 0.000 | 0.400 ± 0.000 | 0.700 ± 0.100 | +0.100 ± 0.000 | 1.00 |" in shown
