"""Losses on ratings and labels: values by hand, missing labels, and the outputs that attributes become."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses import RewardBatch
from tests.losses.conftest import batch, gradient, loss_of

NAN = math.nan
RATINGS = {"name": "mean-variance", "data": "ratings"}
FAR = 1e4


def value(name: str, found: RewardBatch, **arguments: Any) -> float:
    return loss_of({"name": name, **arguments})(found).item()


def cost(logit: float) -> float:
    """-log sigmoid."""
    return math.log1p(math.exp(-logit))


class TestRegression:
    found = batch([[3.0, 1.0], [0.5, -1.0]], labels=[[1.0, NAN], [0.0, 2.0]])

    def test_squares_by_hand(self) -> None:
        assert value("regression", self.found) == pytest.approx((4 + 0.25 + 9) / 3)

    def test_huber_by_hand(self) -> None:
        expected = 1.5 * (2 - 0.75) + 0.125 + 1.5 * (3 - 0.75)
        assert value("regression", self.found, kind="huber", delta=1.5) == pytest.approx(expected / 3)

    def test_a_missing_label_has_no_gradient(self) -> None:
        _, slope = gradient(loss_of({"name": "regression"}), self.found)
        assert slope.tolist() == [[pytest.approx(4 / 3), 0], [pytest.approx(1 / 3), pytest.approx(-2)]]

    def test_rows_have_weights(self) -> None:
        weighted = replace(self.found, weights=torch.tensor([0.5, 3.0]))
        assert value("regression", weighted) == pytest.approx((0.5 * 4 + 3 * 0.25 + 3 * 9) / 3)

    def test_attributes_become_outputs(self) -> None:
        assert loss_of({"name": "regression"}).heads(["helpful", "correct"]).names == ("helpful", "correct")
        assert loss_of({"name": "regression"}).heads(["helpful", "correct"]).weights == (0.5, 0.5)
        weighted = loss_of({"name": "regression", "weights": {"correct": 1, "helpful": -0.25}})
        assert weighted.heads(["helpful", "correct"]).weights == (-0.25, 1.0)

    @pytest.mark.parametrize("weights", [{}, {"helpful": 1.0}, {"helpful": 1.0, "correct": 1.0, "brief": 1.0}])
    def test_weights_are_of_the_attributes(self, weights: dict[str, float]) -> None:
        with pytest.raises(SpecError, match="the attributes of the data are helpful, correct"):
            loss_of({"name": "regression", "weights": weights}).heads(["helpful", "correct"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_far_out(self, dtype: torch.dtype) -> None:
        found = batch([[FAR]], labels=[[1.0]], dtype=dtype)
        assert value("regression", found) == pytest.approx((FAR - 1) ** 2, rel=1e-6)
        cost_, slope = gradient(loss_of({"name": "regression", "kind": "huber"}), found)
        assert cost_.item() == pytest.approx(FAR - 1.5)
        assert slope.item() == 1


class TestQuantile:
    def test_by_hand(self) -> None:
        found = batch([[1.0, 2.5, 3.0], [0.0, 0.0, 0.0]], labels=[[2.0], [NAN]])
        # y - r is 1, -0.5 and -1, at the levels 0.25, 0.5 and 0.75.
        assert value("quantile", found, quantiles=3) == pytest.approx((0.25 * 1 + 0.5 * 0.5 + 0.25 * 1) / 3)

    def test_its_minimum_is_the_quantile(self) -> None:
        ratings = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
        loss = loss_of({"name": "quantile", "quantiles": 3})
        costs = {
            guess: loss(batch(torch.full((5, 3), guess), labels=ratings)).item()
            - loss(batch(torch.full((5, 3), 3.0), labels=ratings)).item()
            for guess in (2.5, 3.0, 3.5)
        }
        assert min(costs, key=costs.__getitem__) == 3.0

    def test_its_outputs_are_named_after_their_levels(self) -> None:
        heads = loss_of({"name": "quantile", "quantiles": 4}).heads(["score"])
        assert heads.names == ("q0.2", "q0.4", "q0.6", "q0.8")
        assert heads.weights == (0.25,) * 4
        assert len(loss_of({"name": "quantile"}).heads(["score"])) == 19
        assert len(set(loss_of({"name": "quantile", "quantiles": 999}).heads(["score"]).names)) == 999

    def test_there_are_as_many_outputs(self) -> None:
        with pytest.raises(DataError, match="needs 19 outputs, one for each quantile, not 3"):
            value("quantile", batch([[1.0, 2.0, 3.0]], labels=[[2.0]]))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_far_out(self, dtype: torch.dtype) -> None:
        cost_, slope = gradient(
            loss_of({"name": "quantile", "quantiles": 3}), batch([[FAR, 0.0, -FAR]], labels=[[0.0]], dtype=dtype)
        )
        assert cost_.item() == pytest.approx(2 * 0.75 * FAR / 3)
        assert slope[0, [0, 2]].tolist() == pytest.approx([0.25, -0.25])


class TestMeanVariance:
    def test_by_hand(self) -> None:
        found = batch([[3.0, math.log(0.5)], [0.0, 0.0]], labels=[[2.0], [NAN]])
        variance = 0.25 + 0.1**2
        expected = (math.log(variance) + 1 / variance) / 2
        assert value("mean-variance", found, data="ratings", min_std=0.1) == pytest.approx(expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("log_std", [-FAR, 0.0, FAR])
    def test_far_out(self, log_std: float, dtype: torch.dtype) -> None:
        found = batch([[FAR, log_std]], labels=[[0.0]], dtype=dtype)
        cost_, slope = gradient(loss_of(RATINGS), found)
        expected = {-FAR: math.log(1e-3) + FAR**2 / 2e-6, 0.0: FAR**2 / 2, FAR: FAR}[log_std]
        expected_slope = {-FAR: FAR / 1e-6, 0.0: FAR, FAR: 0.0}[log_std]
        assert cost_.item() == pytest.approx(expected, rel=1e-5)
        assert slope[0, 0].item() == pytest.approx(expected_slope, rel=1e-5)
        assert slope.isfinite().all()

    def test_what_it_needs(self) -> None:
        on_pairs, on_ratings = loss_of({"name": "mean-variance"}), loss_of(RATINGS)
        assert on_pairs.needs == {"pairs"}
        assert on_pairs.mean_over == "pairs"
        assert on_ratings.needs == {"labels"}
        assert on_ratings.mean_over == "labels"
        assert on_ratings.heads(["score"]).weights == (1, 0)


class TestBinary:
    def test_by_hand(self) -> None:
        found = batch([[2.0, 0.5], [-1.0, 3.0]], labels=[[1.0, 0.0], [NAN, 1.0]])
        assert value("binary", found) == pytest.approx((cost(2) + cost(-0.5) + cost(3)) / 3)

    def test_a_label_may_be_a_probability(self) -> None:
        assert value("binary", batch([[2.0]], labels=[[0.3]])) == pytest.approx(0.3 * cost(2) + 0.7 * cost(-2))

    @pytest.mark.parametrize("name", ["binary", "bco"])
    def test_ratings_are_refused(self, name: str) -> None:
        for label, shown in ((4.0, "4"), (-1.0, "-1")):
            with pytest.raises(
                DataError, match=f"'{name}' needs labels from 0 to 1, not {shown}; for ratings there is 'regression'"
            ):
                value(name, batch([[2.0], [0.0]], labels=[[1.0], [label]]))

    def test_attributes_become_outputs(self) -> None:
        heads = loss_of({"name": "binary"}).heads(["safe", "correct"])
        assert (heads.names, heads.weights) == (("safe", "correct"), (0.5, 0.5))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("name", ["binary", "bco"])
    def test_far_out(self, name: str, dtype: torch.dtype) -> None:
        loss = loss_of({"name": name})
        loss.load_state({"mean": 0.0, "count": 10**15})
        for reward, label, expected, expected_slope in ((FAR, 1.0, 0, 0), (FAR, 0.0, FAR, 1), (-FAR, 1.0, FAR, -1)):
            cost_, slope = gradient(loss, batch([[reward]], labels=[[label]], dtype=dtype))
            assert cost_.item() == pytest.approx(expected)
            assert slope.item() == expected_slope


class TestBco:
    found = batch([[2.0], [0.5], [9.0]], labels=[[1.0], [0.0], [NAN]])

    def training(self, *rewards: float) -> RewardBatch:
        return batch(torch.tensor(rewards).reshape(-1, 1).requires_grad_(), labels=torch.ones(len(rewards), 1))

    def test_by_hand(self) -> None:
        loss = loss_of({"name": "bco"})
        cost_, slope = gradient(loss, self.found)
        # The running mean is that of the two labelled rows.
        assert cost_.item() == pytest.approx((cost(2 - 1.25) + cost(1.25 - 0.5)) / 2)
        assert slope[2].item() == 0
        assert loss.state() == {"mean": 1.25, "count": 2}

    def test_the_mean_runs_over_batches(self) -> None:
        loss = loss_of({"name": "bco"})
        loss(self.training(1.0, 2.0))
        loss(self.training(6.0))
        assert loss.state() == {"mean": pytest.approx(3), "count": 3}
        loss(self.training())
        assert loss.state() == {"mean": pytest.approx(3), "count": 3}

    def test_evaluation_leaves_it_alone(self) -> None:
        loss = loss_of({"name": "bco"})
        assert loss(self.found).item() == pytest.approx((cost(2) + cost(-0.5)) / 2)
        assert loss.state() == {"mean": 0, "count": 0}

    def test_it_goes_through_json(self) -> None:
        loss, other = loss_of({"name": "bco"}), loss_of({"name": "bco"})
        loss(self.training(1.0, 2.0))
        other.load_state(json.loads(json.dumps(loss.state())))
        loss(self.training(6.0))
        other(self.training(6.0))
        assert other.state() == loss.state()


@pytest.mark.parametrize("name", ["regression", "binary", "bco", "quantile"])
class TestEveryLossOnLabels:
    def test_what_it_needs(self, name: str) -> None:
        loss = loss_of({"name": name})
        assert loss.needs == {"labels"}
        assert loss.mean_over == "labels"

    def test_labels_are_needed(self, name: str) -> None:
        with pytest.raises(SpecError, match=f"'{name}' needs labels"):
            loss_of({"name": name}).heads([])
        outputs = 19 if name == "quantile" else 1
        with pytest.raises(DataError, match=f"'{name}' needs labels"):
            value(name, batch([[1.0] * outputs]))

    def test_outputs_and_labels_are_as_many(self, name: str) -> None:
        outputs = 19 if name == "quantile" else 3
        with pytest.raises(DataError, match=f"labels on 2 attributes for a model with {outputs} outputs"):
            value(name, batch([[1.0] * outputs], labels=[[1.0, 0.0]]))


@pytest.mark.parametrize("spec", [{"name": "bco"}, {"name": "quantile"}, RATINGS], ids=lambda spec: spec["name"])
def test_some_take_one_attribute_alone(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="exactly one attribute, and the data has helpful, correct: keep one"):
        loss_of(spec).heads(["helpful", "correct"])
    with pytest.raises(SpecError, match="exactly one attribute, and the data has none"):
        loss_of(spec).heads([])
