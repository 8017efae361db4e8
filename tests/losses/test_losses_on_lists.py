"""Losses on all the answers to a prompt: values by hand, ties, and answers that are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses import RewardBatch
from tests.losses.conftest import batch, gradient, loss_of

REWARDS = [[0.5], [2.0], [-1.0], [0.3], [1.1], [4.0]]
GROUPS = [0, 0, 0, 1, 1, 2]


def lists(ranks: Sequence[float], **columns: Any) -> RewardBatch:
    """Groups of three, two and one answers."""
    return batch(REWARDS, groups=GROUPS, ranks=ranks, **columns)


def log_softmax(values: Sequence[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, values)))
    return [value - total for value in values]


def value(name: str, found: RewardBatch, **arguments: Any) -> float:
    return loss_of({"name": name, **arguments})(found).item()


def cost(delta: float) -> float:
    return math.log1p(math.exp(-delta))


class TestKWise:
    def test_a_prompt_counts_once(self) -> None:
        found = batch(REWARDS[:5], [(1, 0), (1, 2), (0, 2), (4, 3)], groups=GROUPS[:5])
        first = (cost(1.5) + cost(3) + cost(1.5)) / 3
        assert value("k-wise", found) == pytest.approx((first + cost(0.8)) / 2)

    def test_a_group_without_pairs_counts_too(self) -> None:
        found = batch(REWARDS, [(4, 3)], groups=GROUPS)
        assert value("k-wise", found) == pytest.approx(cost(0.8) / 3)

    def test_a_group_has_its_first_rows_weight(self) -> None:
        found = batch(REWARDS[:5], [(1, 0), (4, 3)], groups=GROUPS[:5], weights=[2.0, 9.0, 9.0, 3.0, 9.0])
        assert value("k-wise", found) == pytest.approx((2 * cost(1.5) + 3 * cost(0.8)) / 2)

    def test_on_disjoint_pairs_it_is_bradley_terry(self) -> None:
        found = batch(REWARDS, [(0, 1), (3, 2), (4, 5)], groups=[0, 0, 1, 1, 2, 2])
        assert value("k-wise", found) == pytest.approx(value("bradley-terry", found))


class TestPlackettLuce:
    def test_by_hand(self) -> None:
        # In order of rank: 2.0, -1.0, 0.5; then 0.3, 1.1; then 4.0 alone.
        first = -log_softmax([2.0, -1.0, 0.5])[0] - log_softmax([-1.0, 0.5])[0]
        second = -log_softmax([0.3, 1.1])[0]
        assert value("plackett-luce", lists([2, 0, 1, 0, 1, 0])) == pytest.approx((first + second + 0) / 3)

    def test_it_is_the_probability_of_the_whole_order(self) -> None:
        orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
        found = [math.exp(-value("plackett-luce", batch(REWARDS[:3], ranks=ranks))) for ranks in orders]
        assert math.fsum(found) == pytest.approx(1)

    def test_equal_ranks_are_in_the_order_of_rows(self) -> None:
        assert value("plackett-luce", lists([1, 0, 1, 0, 0, 0])) == value("plackett-luce", lists([1, 0, 2, 0, 1, 0]))

    def test_the_first_places_alone(self) -> None:
        first = -log_softmax([2.0, -1.0, 0.5])[0]
        second = -log_softmax([0.3, 1.1])[0]
        assert value("plackett-luce", lists([2, 0, 1, 0, 1, 0]), top_k=1) == pytest.approx((first + second) / 3)
        found = lists([1, 0, 1, 0, 1, 0])
        assert value("plackett-luce", found, top_k=1) == pytest.approx(value("info-nce", found))

    def test_answers_without_a_rank_are_left_out(self) -> None:
        found = lists([math.nan, 0, 1, math.nan, math.nan, 0])
        assert value("plackett-luce", found) == pytest.approx(-log_softmax([2.0, -1.0])[0] / 3)
        _, slope = gradient(loss_of({"name": "plackett-luce"}), found)
        assert slope[[0, 3, 4, 5], 0].tolist() == [0, 0, 0, 0]

    def test_a_group_has_its_first_rows_weight_whichever_is_best(self) -> None:
        found = lists([2, 0, 1, 1, 0, 0], weights=[2.0, 9.0, 9.0, 3.0, 9.0, 9.0])
        first = -log_softmax([2.0, -1.0, 0.5])[0] - log_softmax([-1.0, 0.5])[0]
        second = -log_softmax([1.1, 0.3])[0]
        assert value("plackett-luce", found) == pytest.approx((2 * first + 3 * second) / 3)


class TestListNet:
    def test_ranks_by_hand(self) -> None:
        def group(ranks: Sequence[float], rewards: Sequence[float]) -> float:
            weights = [math.exp(-rank / 0.5) for rank in ranks]
            return -math.fsum(w / math.fsum(weights) * log for w, log in zip(weights, log_softmax(rewards), strict=True))

        expected = group([2, 0, 1], [0.5, 2.0, -1.0]) + group([0, 1], [0.3, 1.1])
        assert value("listnet", lists([2, 0, 1, 0, 1, 0]), temperature=0.5) == pytest.approx(expected / 3)

    def test_labels_in_place_of_ranks(self) -> None:
        found = lists([2, 0, 1, 0, 1, 0])
        labels = torch.tensor([[-2.0], [0.0], [-1.0], [0.0], [-1.0], [0.0]], dtype=torch.float64)
        by_labels = value("listnet", replace(found, ranks=None, labels=labels), target="labels")
        assert by_labels == pytest.approx(value("listnet", found))

    def test_labels_that_are_missing_are_left_out(self) -> None:
        labels = [[math.nan], [1.0], [0.0], [math.nan], [math.nan], [3.0]]
        found = batch(REWARDS, groups=GROUPS, labels=labels)
        share = math.e / (math.e + 1)
        logs = log_softmax([2.0, -1.0])
        expected = -(share * logs[0] + (1 - share) * logs[1])
        assert value("listnet", found, target="labels") == pytest.approx(expected / 3)
        _, slope = gradient(loss_of({"name": "listnet", "target": "labels"}), found)
        assert slope.isfinite().all()
        assert slope[[0, 3, 4, 5], 0].tolist() == [0, 0, 0, 0]

    def test_it_is_least_where_both_softmaxes_are_the_same(self) -> None:
        ranks = [2.0, 0.0, 1.0]
        _, slope = gradient(loss_of({"name": "listnet"}), batch([[5 - rank] for rank in ranks], ranks=ranks))
        assert slope[:, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-12)

    def test_what_it_needs_is_what_it_is_told_to_take(self) -> None:
        assert loss_of({"name": "listnet"}).needs == {"ranks"}
        by_labels = loss_of({"name": "listnet", "target": "labels"})
        assert by_labels.needs == {"labels"}
        assert loss_of({"name": "listnet"}).heads(["helpful", "correct"]).names == ("reward",)
        with pytest.raises(SpecError, match="exactly one attribute, and the data has helpful, correct"):
            by_labels.heads(["helpful", "correct"])
        with pytest.raises(DataError, match="exactly one label per row"):
            by_labels(lists([2, 0, 1, 0, 1, 0]))


class TestInfoNce:
    def test_by_hand(self) -> None:
        expected = -log_softmax([0.5 / 0.1, 2.0 / 0.1, -1.0 / 0.1])[1] - log_softmax([0.3 / 0.1, 1.1 / 0.1])[0]
        assert value("info-nce", lists([1, 0, 1, 0, 1, 0]), temperature=0.1) == pytest.approx(expected / 3)

    def test_of_several_best_the_mean_is_taken(self) -> None:
        logs = log_softmax([0.5, 2.0, -1.0])
        assert value("info-nce", batch(REWARDS[:3], ranks=[0, 0, 1])) == pytest.approx(-(logs[0] + logs[1]) / 2)

    def test_a_group_without_a_best_answer_costs_nothing(self) -> None:
        found = lists([1, 1, 1, 0, 1, math.nan])
        assert value("info-nce", found) == pytest.approx(-log_softmax([0.3, 1.1])[0] / 3)

    def test_answers_without_a_rank_are_left_out(self) -> None:
        found = batch(REWARDS[:3], ranks=[1, 0, math.nan])
        assert value("info-nce", found) == pytest.approx(-log_softmax([2.0, 0.5])[0])


@pytest.mark.parametrize("name", ["plackett-luce", "listnet", "info-nce"])
def test_ranks_are_needed(name: str) -> None:
    assert loss_of({"name": name}).needs == {"ranks"}
    with pytest.raises(DataError, match=f"'{name}' needs ranks"):
        value(name, batch(REWARDS, groups=GROUPS))
