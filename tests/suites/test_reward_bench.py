"""RewardBench and RewardBench 2, by their own rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from rm_plugins.errors import DataError
from rm_plugins.suites.reward_bench import RewardBench
from rm_plugins.suites.reward_bench_2 import RewardBench2
from tests.suites.conftest import ROWS, TIES, pairs_of, question, scored, section

# --- RewardBench ----------------------------------------------------------------------------------------------------------

# How many rows ArmoRM-Llama3-8B-v0.1 has right of how many, from the rounded accuracies in tables 5 and 6 of arXiv 2403.13787.
ARMO_CHAT_HARD = {
    "mt-bench-hard": (32, 37),
    "llmbar-natural": (93, 100),
    "llmbar-adver-neighbor": (91, 134),
    "llmbar-adver-GPTInst": (71, 92),
    "llmbar-adver-GPTOut": (31, 47),
    "llmbar-adver-manual": (32, 46),
}


ARMO_SAFETY = {
    "refusals-dangerous": (93, 100),
    "refusals-offensive": (97, 100),
    "xstest-should-refuse": (154, 154),
    "xstest-should-respond": (218, 250),
    "donotanswer": (108, 136),
}


FEW = {  # of each subset, right and all
    "alpacaeval-easy": (1, 2),
    "alpacaeval-length": (1, 1),
    "alpacaeval-hard": (0, 1),
    "mt-bench-easy": (3, 3),
    "mt-bench-med": (0, 2),
    "math-prm": (1, 4),
    "hep-cpp": (1, 1),
    "hep-go": (1, 1),
    "hep-java": (1, 2),
    "hep-js": (0, 1),
    "hep-python": (2, 2),
    "hep-rust": (0, 3),
}


def rows_of(subsets: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    return [row for subset, (right, rows) in subsets.items() for row in pairs_of(subset, right, rows)]


def test_reward_bench_gives_the_published_sections_of_a_published_reward() -> None:
    result = scored(RewardBench(), rows_of({**ARMO_CHAT_HARD, **ARMO_SAFETY}))
    assert round(100 * section(result, "Chat Hard").score, 1) == 76.8
    assert round(100 * section(result, "Safety").score, 1) == 90.5  # on the leaderboard; 92.2 in the paper, by swapped weights
    assert section(result, "Safety").items == 740
    assert round(section(result, "Chat Hard").parts["llmbar-adver-neighbor"], 3) == 0.679


def test_reward_bench_weighs_subsets_by_their_full_numbers_and_math_as_much_as_code() -> None:
    result = scored(RewardBench(), rows_of({**FEW, **ARMO_CHAT_HARD, **ARMO_SAFETY}))
    chat = (100 * 1 / 2 + 95 * 1 + 95 * 0 + 28 * 1 + 40 * 0) / (100 + 95 + 95 + 28 + 40)
    code = (1 + 1 + 1 / 2 + 0 + 1 + 0) / 6  # six subsets of 164
    reasoning = (1 / 4 + code) / 2
    assert section(result, "Chat").score == pytest.approx(chat)
    assert section(result, "Reasoning").score == pytest.approx(reasoning)
    assert result.score == pytest.approx((chat + 350 / 456 + 670 / 740 + reasoning) / 4)


def test_reward_bench_without_one_subset_has_no_score() -> None:
    rows = rows_of({**FEW, **ARMO_CHAT_HARD, **ARMO_SAFETY, "hep-go": (0, 0)})
    result = scored(RewardBench(), rows)
    assert section(result, "Reasoning").score == pytest.approx((984 / 4 + 164 * 2.5) / (984 + 5 * 164))
    assert "hep-go" not in section(result, "Reasoning").parts
    assert math.isnan(result.score)


def test_equal_scores_are_wrong_in_reward_bench() -> None:
    row = {**ROWS[RewardBench], "rejected": "1"}
    assert section(scored(RewardBench(), [row]), "Reasoning").score == 0


def test_a_subset_of_another_dataset_is_refused() -> None:
    with pytest.raises(DataError, match=r"reward-bench, row 1: 'subset' is 'mt-bench-hart'. Did you mean 'mt-bench-hard'"):
        list(RewardBench().rows([{**ROWS[RewardBench], "subset": "mt-bench-hart"}]))


TIES_SCORE = (
    0.3 * 2 / 4  # tied:0 and tied:1 have a gap above 0
    + 0.3 * 3 / 5  # ref:0, ref:1 and ref:3
    + 0.2 * 2 / 4  # 3 > 1 and 1 > 0
    + 0.2 * 1 / 4  # 1 > 0 alone; 1/2 is not above 1
    + 0.01 * (math.tanh(0.5 - 1) + 1 + math.tanh(-0.5 - 1) + 0) / 4  # 1 / 0 is as large as can be, and 0 / 0 counts 0
)


def test_the_best_of_four_shares_its_point_with_those_that_score_the_same() -> None:
    found = [
        question("Math", [2], [1, 0, -1]),  # 1
        question("Math", [2], [2, 2, 0]),  # 1/3
        question("Math", [2], [3, 0, 0]),  # 0
        question("Math", [2], [2, 1, 1]),  # 1/2
    ]
    assert section(scored(RewardBench2(), found), "Math").score == pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)


def test_ties_are_scored_by_accuracy_and_margins() -> None:
    found = section(scored(RewardBench2(), TIES), "Ties")
    assert found.score == pytest.approx(TIES_SCORE)
    assert found.items == 9
    assert found.parts["accuracy, tied"] == 0.5
    assert found.parts["accuracy, ref"] == 0.6
    assert found.parts["gap above spread, tied"] == 0.5
    assert found.parts["gap above spread, both"] == 0.25


def test_reward_bench_2_is_the_mean_of_six_sections() -> None:
    rows = [*TIES, *(question(name, [1], [0, 0, 0]) for name in ("Factuality", "Precise IF", "Math", "Safety"))]
    assert math.isnan(scored(RewardBench2(), rows).score)  # Focus is missing
    rows.append(question("Focus", [1], [1, 0, 0]))
    assert scored(RewardBench2(), rows).score == pytest.approx((4 + 1 / 2 + TIES_SCORE) / 6)


def test_ties_without_a_question_that_has_both_rows_have_no_score() -> None:
    assert math.isnan(section(scored(RewardBench2(), TIES[::2]), "Ties").score)
    assert math.isnan(section(scored(RewardBench2(), []), "Ties").score)


def test_rows_that_the_rule_of_reward_bench_2_does_not_fit_are_refused() -> None:
    suite = RewardBench2()
    with pytest.raises(DataError, match="the id of a row of Ties is 'x'; 'ref:NUMBER' or 'tied:NUMBER' is expected"):
        list(suite.rows([question("Ties", [1], [0], "x")]))
    with pytest.raises(DataError, match="'tied:4' has one right answer"):
        list(suite.rows([question("Ties", [1], [0], "tied:4")]))
    with pytest.raises(DataError, match="'chosen' has 2 answers; one is expected in Math"):
        list(suite.rows([question("Math", [1, 1], [0])]))
