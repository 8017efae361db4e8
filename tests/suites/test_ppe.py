"""PPE, by its own rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rm_plugins.errors import DataError
from rm_plugins.suites import SuiteItem
from rm_plugins.suites.ppe import Ppe
from tests.suites.conftest import ROWS, best_of, scored, section

# --- PPE ------------------------------------------------------------------------------------------------------------------


def test_ppe_measures_pairs_area_and_best_of_k() -> None:
    labels = [True, False, True, False]
    rows = [
        best_of("MATH", [4, 3, 2, 1], labels, [[0, 1], [3, 2], [1, 2]]),  # the last is wrong: 2 is not above 3
        best_of("MATH", [400, 300, 200, 100], labels, [[2, 3]]),  # the same, on a scale of its own
    ]
    result = scored(Ppe(), rows)
    assert section(result, "MATH").score == 3 / 4
    accuracy, area, most, end, error = result.tables[0].values[result.tables[0].rows.index("MATH")]
    assert accuracy == 3 / 4
    assert area == pytest.approx(3 / 4)  # all but the third answer against the second, in and across questions
    assert (most, end) == (1, 1)
    # The best of 1, 2, 3 and 4 is right in 1/2, 4/6, 3/4 and all of the draws, and in 1/2, 5/6, 1 and 1 for a perfect reward.
    assert error == pytest.approx(((1 / 6) ** 2 + (1 / 4) ** 2) / 4)
    assert math.isnan(result.score)


def test_the_best_of_k_curve_falls_where_a_reward_is_exploited() -> None:
    result = scored(Ppe(), [best_of("IFEval", [1, 2, 3, 9], [False, True, True, False], [[0, 1]])])
    _, _, most, end, _ = result.tables[0].values[result.tables[0].rows.index("IFEval")]
    assert (most, end) == (0.5, 0)


def test_answers_that_score_the_same_share_what_they_are_worth() -> None:
    result = scored(Ppe(), [best_of("GPQA", [1, 1], [False, True], [[0, 1]])])
    accuracy, area, most, end, _ = result.tables[0].values[result.tables[0].rows.index("GPQA")]
    assert (accuracy, area, most, end) == (0, 0.5, 0.5, 0.5)


def test_the_score_of_ppe_is_the_mean_accuracy_on_five_sets() -> None:
    names = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
    rows = [best_of(name, [2, 1], [name != "GPQA", name == "GPQA"], [[0, 1]]) for name in names]
    result = scored(Ppe(), rows)
    assert [found.name for found in result.sections] == list(names)
    assert result.score == pytest.approx(4 / 5)
    assert result.tables[0].values[-1][0] == pytest.approx(4 / 5)
    assert result.figures["best of k: end"] == pytest.approx(4 / 5)
    assert math.isnan(scored(Ppe(), rows[:4]).score)


def test_ppe_without_the_compared_pairs_has_no_score() -> None:
    row = ROWS[Ppe]
    item = SuiteItem("q", "MATH", np.array([4.0, 3, 2, 1]), np.array([1.0, 0, 1, 0]))
    assert next(Ppe().rows([row]))["compared"] == [(0, 1), (2, 3), (2, 1)]
    assert math.isnan(section(Ppe().result([item]), "MATH").score)


def test_a_question_of_ppe_may_have_no_sampled_pair() -> None:
    rows = [ROWS[Ppe], best_of("MATH", [1, 2], [True, True], [])]
    found = section(scored(Ppe(), rows), "MATH")
    assert found.score == pytest.approx(2 / 3)
    assert found.items == 2


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"category": "law"}, "MMLU-Pro"),
        ({"problem": "1 + 1"}, "MATH"),
        ({"Record ID": "r"}, "GPQA"),
        ({"test_list": ["assert f()"]}, "MBPP-Plus"),
        ({"instruction_id_list": ["a"]}, "IFEval"),
    ],
)
def test_a_set_of_ppe_is_known_by_a_column_of_its_own(own: dict[str, Any], name: str) -> None:
    row = {**ROWS[Ppe], **own}
    del row["dataset"]
    assert next(Ppe().rows([row]))["section"] == name


def test_rows_of_ppe_that_are_unclear_are_refused() -> None:
    row = {**ROWS[Ppe], "dataset": None}
    with pytest.raises(
        DataError,
        match=r"ppe, row 1: its columns fit no set, .*Add a column 'dataset' with one of lmarena-ai/PPE-MMLU",
    ):
        list(Ppe().rows([row]))
    with pytest.raises(DataError, match="its columns fit MATH and IFEval"):
        list(Ppe().rows([{**row, "problem": "", "instruction_id_list": []}]))
    for pair in ([0, 2], [0, 9], [0, -1], [0], 7):
        with pytest.raises(DataError, match="positions of a right and a wrong answer are expected"):
            list(Ppe().rows([{**ROWS[Ppe], "sampled_conflict_pairs": [pair]}]))
    with pytest.raises(DataError, match="'scores' has 5 values, and there is no text 'response_5'"):
        list(Ppe().rows([{**ROWS[Ppe], "scores": [True, False, True, False, True]}]))
