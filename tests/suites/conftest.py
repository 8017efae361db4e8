"""Scores of suites, made from their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rm_plugins.data.judgements import judgement
from rm_plugins.suites import Suite, SuiteItem, SuiteResult, SuiteSection
from rm_plugins.suites.judge_bench import JudgeBench
from rm_plugins.suites.ppe import Ppe
from rm_plugins.suites.reward_bench import RewardBench
from rm_plugins.suites.reward_bench_2 import RewardBench2
from rm_plugins.suites.rm_bench import RmBench

RawRows = Iterable[Mapping[str, Any]]


def items_of(suite: Suite, raw: RawRows) -> list[SuiteItem]:
    """The rows of a suite, with the reward that each answer names."""
    items = []
    for row in suite.rows(raw):
        found = judgement(row)
        scores = [float(sample.completion[-1]["content"]) for sample in found.samples]  # type: ignore[index]
        labels = [1.0, 0.0] if found.labels is None else [label for (label,) in found.labels]
        items.append(SuiteItem(row["id"], row["section"], np.array(scores), np.array(labels), tuple(row.get("compared", ()))))
    return items


def scored(suite: Suite, raw: RawRows) -> SuiteResult:
    return suite.result(items_of(suite, raw))


def section(result: SuiteResult, name: str) -> SuiteSection:
    return next(found for found in result.sections if found.name == name)


def pairs_of(subset: str, right: int, rows: int) -> Iterator[dict[str, Any]]:
    """Rows of RewardBench, of which the first `right` are right."""
    for number in range(rows):
        answers = {"chosen": "1", "rejected": "0" if number < right else "2"}
        yield {"id": number, "prompt": "Q", "subset": subset, "chosen_model": "a", "rejected_model": "b", **answers}


def question(subset: str, right: Sequence[float], wrong: Sequence[float], name: str = "0") -> dict[str, Any]:
    """A row of RewardBench 2."""
    answers = {"chosen": [str(score) for score in right], "rejected": [str(score) for score in wrong]}
    return {"id": name, "prompt": "Q", "subset": subset, "num_correct": len(right), **answers}


def styles(domain: str, right: Sequence[float], wrong: Sequence[float]) -> dict[str, Any]:
    """A row of RM-Bench."""
    answers = {"chosen": [str(score) for score in right], "rejected": [str(score) for score in wrong]}
    return {"id": "0", "prompt": "Q", "domain": domain, **answers}


def best_of(dataset: str, scores: Sequence[float], labels: Sequence[bool], pairs: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A row of a set of PPE."""
    answers = {f"response_{number}": str(score) for number, score in enumerate(scores, start=1)}
    known = {"question_id": "q1", "model_name": "m", "prompt": "Q", "scores": labels, "sampled_conflict_pairs": pairs}
    return {"dataset": f"lmarena-ai/PPE-{dataset}-Best-of-K", **known, **answers}


JUDGE_BENCH_ROW = {
    "pair_id": "p",
    "source": "mmlu-pro-law",
    "question": "Q",
    "response_A": "1",
    "response_B": "0",
    "label": "A>B",
}


ROWS: dict[type[Suite], dict[str, Any]] = {
    JudgeBench: JUDGE_BENCH_ROW,
    Ppe: best_of("MATH", [4, 3, 2, 1], [True, False, True, False], [[0, 1], [3, 2], [1, 2]]),
    RewardBench: next(pairs_of("math-prm", 1, 1)),
    RewardBench2: question("Factuality", [2], [1, 0, 0]),
    RmBench: styles("chat", [1, 2, 3], [0, 0, 0]),
}


# --- RewardBench 2 --------------------------------------------------------------------------------------------------------

TIES = [
    question("Ties", [5, 4], [1, 0], "tied:0"),  # gap 3, spread 1
    question("Ties", [3], [2.5], "ref:0"),  # gap 1/2
    question("Ties", [2, 2], [1], "tied:1"),  # gap 1, spread 0
    question("Ties", [1], [0], "ref:1"),  # gap 1
    question("Ties", [1, 3], [2], "tied:2"),  # gap -1, spread 2
    question("Ties", [0], [1], "ref:2"),  # gap -1
    question("Ties", [1, 1], [1], "tied:3"),  # gap 0, spread 0
    question("Ties", [2], [0], "ref:3"),  # gap 2
    question("Ties", [1], [2], "ref:9"),  # without a partner, so that it counts for accuracy alone
]
