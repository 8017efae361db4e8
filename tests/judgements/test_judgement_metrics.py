"""Metrics of rewards: values by hand, against plain loops, against scipy and scikit-learn, and numbers far out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rm_plugins.errors import DataError
from rm_plugins.evaluation import (
    head_metrics,
    judgement_metrics,
)
from rm_plugins.models.heads import Heads
from tests.judgements.metric_loops import NAN, ece_in_a_loop, pearson_in_a_loop, rows, sigmoid


def whole(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


# Four pairs: the winners' rewards are 2, 1, 1, 0 and the losers' 0, 3, 1, -1.
REWARDS = rows(2, 0, 1, 3, 1, 1, 0, -1)


PAIRS = whole([(0, 1), (2, 3), (4, 5), (6, 7)])


LENGTHS = whole([5, 3, 4, 9, 6, 6, 2, 7])


DELTA = (2.0, -2.0, 0.0, 1.0)


class TestJudgementMetrics:
    def test_by_hand(self) -> None:
        found = judgement_metrics(REWARDS, PAIRS, LENGTHS)
        assert found == pytest.approx(
            {
                "accuracy": 0.5,
                "ties": 0.25,
                "margin": 0.25,
                "mean_reward": 7 / 8,
                "std_reward": math.sqrt(17 / 8 - (7 / 8) ** 2),
                "min_reward": -1,
                "max_reward": 3,
                "ece": ece_in_a_loop(DELTA, 20),
                "brier": sum((1 - sigmoid(d)) ** 2 for d in DELTA) / 4,
                "length_correlation": pearson_in_a_loop(list(REWARDS), LENGTHS.tolist()),
                "accuracy_longer": 1,
                "accuracy_shorter": 0.5,  # the second is wrong, the fourth right; the third's answers are equally long
                "length_preference": 2 / 3,  # the first's and the second's longer answers
            },
            abs=1e-12,
        )
        assert all(type(value) is float for value in found.values())

    def test_a_row_may_be_in_several_pairs(self) -> None:
        found = judgement_metrics(rows(3, 2, 1), whole([(0, 1), (0, 2), (2, 1)]), whole([1, 1, 1]))
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["margin"] == pytest.approx(2 / 3)
        assert found["mean_reward"] == 2

    def test_a_pair_belongs_to_its_winners_section(self) -> None:
        sections = ["chat", "code", "code", "chat", "maths", "maths", "chat", "code"]
        found = judgement_metrics(REWARDS, PAIRS, LENGTHS, sections=sections)
        named = {name: value for name, value in found.items() if name.startswith("accuracy/")}
        assert named == {"accuracy/chat": 1, "accuracy/code": 0, "accuracy/maths": 0}

    def test_a_section_without_pairs_is_left_out(self) -> None:
        found = judgement_metrics(rows(1, 0, 5), whole([(0, 1)]), whole([1, 2, 3]), sections=["a", "b", "c"])
        assert [name for name in found if "/" in name] == ["accuracy/a"]

    def test_labels_by_hand_where_some_are_missing(self) -> None:
        labels = np.array([[1, NAN], [2, 0], [NAN, 0], [4, 1], [3, 1]])
        found = judgement_metrics(
            rows(1, 2, 9, 3, 4), whole([]), whole([1, 1, 1, 1, 1]), labels=labels, attributes=["helpful", "safe"]
        )
        assert {name: value for name, value in found.items() if "/" in name} == pytest.approx(
            {
                "correlation/helpful": 0.8,
                "spearman/helpful": 0.8,
                "correlation/safe": pearson_in_a_loop([2, 9, 3, 4], [0, 0, 1, 1]),
                "spearman/safe": pearson_in_a_loop([1, 4, 2, 3], [0, 0, 1, 1]),
                "auc/safe": 0.5,
            },
            abs=1e-12,
        )

    @pytest.mark.parametrize("column", [[3.0, 3.0, 3.0], [1.0, 1.0, 1.0], [NAN, NAN, NAN], [NAN, 1.0, NAN]])
    def test_labels_of_which_nothing_can_be_computed(self, column: list[float]) -> None:
        labels = np.array(column)[:, None]
        found = judgement_metrics(rows(1, 2, 3), whole([]), whole([1, 2, 3]), labels=labels, attributes=["helpful"])
        assert [name for name in found if "/" in name] == []

    def test_labels_that_are_ratings_have_no_auc(self) -> None:
        labels = np.array([[0.0], [1.0], [0.5]])
        found = judgement_metrics(rows(1, 2, 3), whole([]), whole([1, 2, 3]), labels=labels, attributes=["helpful"])
        assert "auc/helpful" not in found
        assert "spearman/helpful" in found

    def test_without_pairs(self) -> None:
        found = judgement_metrics(rows(1, 2, 3), whole([]), whole([1, 2, 4]))
        assert set(found) == {"mean_reward", "std_reward", "min_reward", "max_reward", "length_correlation"}
        assert judgement_metrics(rows(1, 2, 3), np.empty((0, 2), dtype=np.int64), whole([1, 2, 4])) == found

    def test_of_one_row_and_of_none(self) -> None:
        found = judgement_metrics(rows(2), whole([]), whole([7]))
        assert found == {"mean_reward": 2, "std_reward": 0, "min_reward": 2, "max_reward": 2}
        assert judgement_metrics(rows(), whole([]), whole([]), sections=[], labels=np.empty((0, 0))) == {}

    def test_the_preferred_length_is_the_rewards_not_the_winners(self) -> None:
        # The winners are longer, shorter and shorter; the reward prefers the shorter, the longer, and neither.
        found = judgement_metrics(rows(0, 1, 0, 1, 2, 2), whole([(0, 1), (2, 3), (4, 5)]), whole([9, 1, 1, 9, 1, 9]))
        assert found["length_preference"] == pytest.approx(1 / 3)
        assert (found["accuracy_longer"], found["accuracy_shorter"]) == (0, 0)

    def test_equal_lengths_say_nothing_of_length(self) -> None:
        found = judgement_metrics(REWARDS, PAIRS, whole([5] * 8))
        assert not [name for name in found if "length" in name or "longer" in name or "shorter" in name]

    def test_a_constant_reward(self) -> None:
        found = judgement_metrics(np.full(8, 0.1), PAIRS, LENGTHS, labels=REWARDS[:, None], attributes=["helpful"])
        assert (found["accuracy"], found["ties"], found["length_preference"], found["ece"]) == (0, 1, 0, 0)
        assert found["std_reward"] == pytest.approx(0, abs=1e-12)
        assert not [name for name in found if "correlation" in name or "spearman" in name]

    def test_large_rewards_do_not_overflow(self) -> None:
        found = judgement_metrics(1e38 * REWARDS, PAIRS, LENGTHS)
        assert found["ece"] == pytest.approx(0.25)  # of four pairs, certain of three and wrong about one of these
        assert found["length_correlation"] == pytest.approx(judgement_metrics(REWARDS, PAIRS, LENGTHS)["length_correlation"])

    @pytest.mark.parametrize("broken", [NAN, math.inf, -math.inf])
    def test_a_reward_that_is_not_finite_never_becomes_a_number(self, broken: float) -> None:
        rewards = REWARDS.copy()
        rewards[0] = broken
        labels = np.array([[1.0], [0.0]] * 4)
        found = judgement_metrics(rewards, PAIRS, LENGTHS, sections=["a", "a"] + ["b"] * 6, labels=labels, attributes=["good"])
        numbers = {name for name, value in found.items() if not math.isnan(value)}
        assert numbers == {"accuracy_shorter", "accuracy/b"}  # whose pairs are without it
        assert {"accuracy", "ties", "margin", "ece", "brier", "mean_reward", "max_reward", "accuracy/a"} <= set(found)
        assert not {"length_correlation", "correlation/good", "spearman/good", "auc/good"} & set(found)

    def test_lengths_may_be_unsigned(self) -> None:
        assert judgement_metrics(REWARDS, PAIRS, LENGTHS.astype(np.uint32)) == judgement_metrics(REWARDS, PAIRS, LENGTHS)

    def test_the_inputs_stay_as_they_were(self) -> None:
        rewards = rows(math.inf, 0)
        judgement_metrics(rewards, whole([(0, 1)]), whole([1, 2]))
        assert rewards.tolist() == [math.inf, 0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rewards": rows(1, 2)}, r"rewards have the shape \(2,\).*must be \(8,\)"),
            ({"rewards": REWARDS[:, None]}, r"rewards have the shape \(8, 1\)"),
            ({"pairs": whole([(0, 1, 2)])}, r"pairs have the shape \(1, 3\).*must be \(1, 2\)"),
            ({"pairs": whole([0, 1])}, r"pairs have the shape \(2,\)"),
            ({"pairs": whole([(0, 8)])}, "pairs name the rows 0 to 8; there are the rows 0 to 7"),
            ({"pairs": whole([(0, -1)])}, "pairs name the rows -1 to 0"),
            ({"sections": ["chat"]}, r"sections have the shape \(1,\)"),
            ({"labels": np.ones((8, 2)), "attributes": ["helpful"]}, r"labels have the shape \(8, 2\).*must be \(8, 1\)"),
            ({"labels": np.ones((7, 1)), "attributes": ["helpful"]}, r"labels have the shape \(7, 1\)"),
        ],
    )
    def test_shapes_that_do_not_fit(self, change: dict[str, Any], message: str) -> None:
        inputs: dict[str, Any] = {"rewards": REWARDS, "pairs": PAIRS, "lengths": LENGTHS, **change}
        with pytest.raises(DataError, match=message):
            judgement_metrics(**inputs)

    def test_a_hundred_thousand_pairs_are_quick(self) -> None:
        numbers = np.random.default_rng(0)
        size = 200_000
        inputs = (numbers.normal(size=size), np.arange(size).reshape(-1, 2), numbers.integers(1, 1000, size))
        labels = numbers.integers(0, 2, (size, 2)).astype(float)
        sections = [f"section {number // 10_000}" for number in range(size)]
        start = time.process_time()
        found = judgement_metrics(*inputs, sections=sections, labels=labels, attributes=["helpful", "safe"])
        assert time.process_time() - start < 5  # it takes about a fifth of a second
        assert len(found) == 13 + 20 + 6


class TestHeadMetrics:
    def test_one_output_has_the_metrics_of_its_reward(self) -> None:
        labels = np.array([[1.0], [0.0]] * 4)
        known: dict[str, Any] = {"sections": list("aabbccdd"), "labels": labels, "attributes": ["reward"]}
        found = head_metrics(REWARDS[:, None], Heads(), PAIRS, LENGTHS, **known)
        assert found == judgement_metrics(REWARDS, PAIRS, LENGTHS, **known)

    def test_one_output_may_have_a_weight(self) -> None:
        found = head_metrics(REWARDS[:, None], Heads(weights=(-2.0,)), PAIRS, LENGTHS)
        assert found == judgement_metrics(-2 * REWARDS, PAIRS, LENGTHS)

    def test_several_outputs_are_told_apart(self) -> None:
        heads = Heads(("helpful", "length"), (1.0, 0.0))
        outputs = np.column_stack([REWARDS, LENGTHS])
        labels = np.array([[NAN, 3], [1, 4], [2, 5], [3, 6], [2, 3], [2, 7], [1, 8], [0, 1]])
        found = head_metrics(outputs, heads, PAIRS, LENGTHS, labels=labels, attributes=["helpful", "safe"])
        deployed = judgement_metrics(REWARDS, PAIRS, LENGTHS, labels=labels, attributes=["helpful", "safe"])
        assert {name: found[name] for name in deployed} == deployed
        assert {name: value for name, value in found.items() if name not in deployed} == pytest.approx(
            {
                **{f"helpful/{name}": deployed[name] for name in ("accuracy", "margin", "mean_reward", "std_reward")},
                "helpful/length_correlation": deployed["length_correlation"],
                "helpful/correlation": pearson_in_a_loop(REWARDS[1:].tolist(), labels[1:, 0].tolist()),
                "length/accuracy": 0.25,
                "length/margin": (2 - 5 + 0 - 5) / 4,
                "length/mean_reward": 42 / 8,
                "length/std_reward": math.sqrt(256 / 8 - (42 / 8) ** 2),
                "length/length_correlation": 1,
            },
            abs=1e-12,
        )

    def test_members_by_hand(self) -> None:
        # Members' rewards: 1 2 / 0 4 / 3 3 / 3 3, so their deltas are 1 -2 (they differ) and 0 0 (both see a tie).
        outputs = np.array([[1.0, 2.0], [0.0, 4.0], [3.0, 3.0], [3.0, 3.0]])
        found = head_metrics(outputs, Heads(members=2), whole([(0, 1), (2, 3)]), whole([1, 2, 3, 4]))
        assert found["member_std"] == pytest.approx((0.5 + 2) / 4)
        assert found["member_agreement"] == 0.5
        assert (found["mean_reward"], found["margin"]) == (19 / 8, -0.25)
        assert (found["member/0/accuracy"], found["member/1/accuracy"]) == (0.5, 0)
        assert (found["member/0/margin"], found["member/1/margin"]) == (0.5, -1)

    @pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
    def test_a_tie_of_one_member_is_no_agreement(self, pair: tuple[int, int]) -> None:
        found = head_metrics(np.array([[1.0, 2.0], [0.0, 2.0]]), Heads(members=2), whole([pair]), whole([1, 2]))
        assert found["member_agreement"] == 0

    def test_members_with_several_outputs_each(self) -> None:
        # Members' rewards are the differences of their outputs: 2 - 1, 5 - 1 and 0 - 0, 1 - 2.
        heads = Heads(("gain", "cost"), (1.0, -1.0), members=2)
        outputs = np.array([[2.0, 1.0, 5.0, 1.0], [0.0, 0.0, 1.0, 2.0]])
        labels = np.array([[4.0], [2.0]])
        found = head_metrics(outputs, heads, whole([(0, 1)]), whole([1, 2]), labels=labels, attributes=["cost"])
        assert found["mean_reward"] == (2.5 - 0.5) / 2
        assert found["member_std"] == (1.5 + 0.5) / 2
        assert found["member_agreement"] == 1
        assert found["member/0/gain/margin"] == 2
        assert found["member/1/cost/margin"] == -1
        assert {name: value for name, value in found.items() if name.endswith("/correlation")} == pytest.approx(
            {"member/0/cost/correlation": 1, "member/1/cost/correlation": -1}
        )

    def test_without_pairs_and_without_rows(self) -> None:
        found = head_metrics(np.array([[1.0, 2.0]]), Heads(members=2), whole([]), whole([3]))
        assert found["member_std"] == 0.5
        assert "member_agreement" not in found
        assert "member/0/accuracy" not in found
        assert head_metrics(np.empty((0, 2)), Heads(members=2), whole([]), whole([])) == {}

    def test_outputs_that_are_not_finite_never_become_a_number(self) -> None:
        outputs = np.array([[math.inf, 1.0], [0.0, 0.0]])
        found = head_metrics(outputs, Heads(members=2), whole([(0, 1)]), whole([1, 2]))
        assert math.isnan(found["accuracy"]) and math.isnan(found["member/0/accuracy"])
        assert math.isnan(found["member_std"]) and math.isnan(found["member_agreement"])
        assert found["member/1/accuracy"] == 1

    def test_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(DataError, match=r"outputs have the shape \(8, 1\).*must be \(8, 2\)"):
            head_metrics(REWARDS[:, None], Heads(members=2), PAIRS, LENGTHS)
        with pytest.raises(DataError, match=r"outputs have the shape \(8,\)"):
            head_metrics(REWARDS, Heads(), PAIRS, LENGTHS)
