"""Losses on pairs and ties: values by hand, and what they are where rewards are far apart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses import RewardBatch
from tests.losses.conftest import batch, gradient, loss_of

FAR = 1e4


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cost(value: float) -> float:
    """-log sigmoid."""
    return -math.log(sigmoid(value))


def normal(value: float) -> float:
    """The Gaussian's cumulative distribution."""
    return math.erfc(-value / math.sqrt(2)) / 2


def of_pairs(*rewards: tuple[float, float], **columns: Any) -> RewardBatch:
    """One output; each pair is a winner's and a loser's reward."""
    flat = [[reward] for pair in rewards for reward in pair]
    pairs = [(2 * row, 2 * row + 1) for row in range(len(rewards))]
    return batch(flat, pairs, groups=[row // 2 for row in range(len(flat))], **columns)


def of_ties(*rewards: tuple[float, float], **columns: Any) -> RewardBatch:
    found = of_pairs(*rewards, **columns)
    return replace(found, pairs=found.pairs[:0], ties=found.pairs)


def value(name: str, found: RewardBatch, **arguments: Any) -> float:
    return loss_of({"name": name, **arguments})(found).item()


class TestBradleyTerry:
    def test_by_hand(self) -> None:
        assert value("bradley-terry", of_pairs((2.0, 0.0), (0.0, 1.0))) == pytest.approx((cost(2) + cost(-1)) / 2)

    def test_equal_rewards_cost_the_logarithm_of_two(self) -> None:
        assert value("bradley-terry", of_pairs((3.0, 3.0))) == pytest.approx(math.log(2))

    def test_a_margin_is_taken_off_the_difference(self) -> None:
        found = of_pairs((2.0, 0.0), (1.0, 0.0), margins=[0.5, -1.0])
        assert value("bradley-terry", found) == pytest.approx((cost(1.5) + cost(2)) / 2)

    def test_label_smoothing_costs_a_share_of_the_other_order(self) -> None:
        found = of_pairs((2.0, 0.0), (1.0, 0.0), margins=[0.5, 0.0])
        expected = 0.9 * cost(1.5) + 0.1 * cost(-1.5) + 0.9 * cost(1) + 0.1 * cost(-1)
        assert value("bradley-terry", found, label_smoothing=0.1) == pytest.approx(expected / 2)

    def test_several_outputs_are_averaged(self) -> None:
        found = batch([[2.0, 0.0], [0.0, 1.0]], [(0, 1)], margins=[1.0])
        assert value("bradley-terry", found) == pytest.approx((cost(1) + cost(-2)) / 2)

    def test_a_row_may_be_in_several_pairs(self) -> None:
        _, slope = gradient(loss_of({"name": "bradley-terry"}), batch([[3.0], [1.0], [0.0]], [(0, 1), (0, 2), (1, 2)]))
        expected = [-(sigmoid(-2) + sigmoid(-3)), sigmoid(-2) - sigmoid(-1), sigmoid(-3) + sigmoid(-1)]
        assert slope[:, 0].tolist() == pytest.approx([found / 3 for found in expected])

    def test_a_pair_has_its_winners_weight(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), weights=[0.5, 7.0, 3.0, 7.0])
        assert value("bradley-terry", found) == pytest.approx((0.5 * cost(2) + 3 * cost(-1)) / 2)


class TestVariants:
    def test_robust(self) -> None:
        expected = (0.8 * cost(2) - 0.2 * cost(-2)) / 0.6 + (0.8 * cost(-1) - 0.2 * cost(1)) / 0.6
        assert value("robust", of_pairs((2.0, 0.0), (0.0, 1.0)), epsilon=0.2) == pytest.approx(expected / 2)
        assert value("robust", of_pairs((2.0, 0.0)), epsilon=0.0) == pytest.approx(cost(2))

    def test_robust_is_bradley_terry_on_average_over_flipped_labels(self) -> None:
        right, flipped = (value("robust", of_pairs(pair), epsilon=0.2) for pair in ((2.0, 0.0), (0.0, 2.0)))
        assert 0.8 * right + 0.2 * flipped == pytest.approx(cost(2))

    def test_focal(self) -> None:
        easy = (1 - 2 * (sigmoid(2) - 0.5)) ** 3 * cost(2)
        assert value("focal", of_pairs((2.0, 0.0), (0.0, 1.0)), gamma=3.0) == pytest.approx((easy + cost(-1)) / 2)
        assert value("focal", of_pairs((2.0, 0.0)), gamma=0.0) == pytest.approx(cost(2))

    def test_scaled(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), margins=[3.0, 0.5])
        assert value("scaled", found) == pytest.approx((3 * cost(2) + 0.5 * cost(-1)) / 2)

    def test_hinges(self) -> None:
        found = of_pairs((0.25, 0.0), (0.0, 1.0), (5.0, 0.0))
        assert value("hinge", found) == pytest.approx((0.75 + 2) / 3)
        assert value("squared-hinge", found) == pytest.approx((0.75**2 + 4) / 3)
        assert value("hinge", found, margin=6.0) == pytest.approx((5.75 + 7 + 1) / 3)

    def test_differences_with_a_target(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), margins=[1.5, 1.0])
        assert value("ipo", found, beta=0.25) == pytest.approx((0 + 9) / 2)
        assert value("margin-mse", found) == pytest.approx((0.25 + 4) / 2)

    def test_thurstone(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0))
        expected = -math.log(normal(2 / math.sqrt(2) / 1.5)) - math.log(normal(-1 / math.sqrt(2) / 1.5))
        assert value("thurstone", found, sigma=1.5) == pytest.approx(expected / 2)

    @pytest.mark.parametrize("deviations", [-19.9, -20.1, -30.0])
    def test_thurstone_in_the_tail(self, deviations: float) -> None:
        found = loss_of({"name": "thurstone"})
        for dtype in (torch.float64, torch.float32):
            wrong = of_pairs((math.sqrt(2) * deviations, 0.0), dtype=dtype)
            cost, slope = gradient(found, wrong)
            density = math.exp(-(deviations**2) / 2) / math.sqrt(2 * math.pi)
            assert cost.item() == pytest.approx(-math.log(normal(deviations)), rel=1e-6)
            assert slope[0].item() == pytest.approx(-density / normal(deviations) / math.sqrt(2), rel=1e-5)

    @pytest.mark.parametrize("name", ["scaled", "margin-mse"])
    def test_margins_are_needed(self, name: str) -> None:
        with pytest.raises(DataError, match=f"'{name}' needs the pairs' margins: give the data a column `margin`"):
            value(name, of_pairs((2.0, 0.0)))


class TestTies:
    found = batch([[2.0], [0.0], [0.5], [0.0]], [(0, 1)], ties=[(2, 3)])

    def test_rao_kupper(self) -> None:
        nu = 3.0
        tie = (nu**2 - 1) / ((1 + nu * math.exp(0.5)) * (1 + nu * math.exp(-0.5)))
        win = math.exp(2) / (math.exp(2) + nu)
        assert value("rao-kupper", self.found, nu=nu) == pytest.approx(-(math.log(win) + math.log(tie)) / 2)

    def test_davidson(self) -> None:
        nu = 0.5
        tie = nu * math.exp(0.25) / (math.exp(0.5) + 1 + nu * math.exp(0.25))
        win = math.exp(2) / (math.exp(2) + 1 + nu * math.e)
        assert value("davidson", self.found, nu=nu) == pytest.approx(-(math.log(win) + math.log(tie)) / 2)

    @pytest.mark.parametrize(("name", "nu"), [("rao-kupper", 3.0), ("rao-kupper", 1.0), ("davidson", 0.7), ("davidson", 0.0)])
    def test_the_outcomes_are_all_there_is(self, name: str, nu: float) -> None:
        wins = [math.exp(-value(name, of_pairs(pair), nu=nu)) for pair in ((1.3, 0.0), (0.0, 1.3))]
        tie = math.exp(-value(name, of_ties((1.3, 0.0)), nu=nu)) if nu not in (0, 1) else 0
        assert sum(wins) + tie == pytest.approx(1)

    def test_both_take_either_order_of_a_tie(self) -> None:
        for name in ("rao-kupper", "davidson"):
            assert value(name, of_ties((1.3, 0.0))) == pytest.approx(value(name, of_ties((0.0, 1.3))))

    @pytest.mark.parametrize(("name", "none"), [("rao-kupper", 1.0), ("davidson", 0.0)])
    def test_without_ties_it_is_bradley_terry(self, name: str, none: float) -> None:
        loss = loss_of({"name": name, "nu": none})
        cost_, slope = gradient(loss, of_pairs((2.0, 0.0)))
        assert cost_.item() == pytest.approx(cost(2))
        assert slope[0].item() == pytest.approx(-sigmoid(-2))
        with pytest.raises(DataError, match="makes ties impossible, but the data has them: choose a larger nu"):
            loss(self.found)

    def test_a_tie_has_its_first_rows_weight(self) -> None:
        weighted = replace(self.found, weights=torch.tensor([2.0, 9.0, 3.0, 9.0]))
        for name in ("rao-kupper", "davidson"):
            win, tie = value(name, of_pairs((2.0, 0.0))), value(name, of_ties((0.5, 0.0)))
            assert value(name, weighted) == pytest.approx((2 * win + 3 * tie) / 2)


class TestMeanVariance:
    def test_by_hand(self) -> None:
        found = batch([[2.0, math.log(0.5)], [0.0, math.log(2.0)]], [(0, 1)])
        expected = cost(2 / math.sqrt(1 + math.pi * (0.25 + 4) / 8))
        assert value("mean-variance", found) == pytest.approx(expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize(("log_std", "expected"), [(-FAR, cost(2)), (FAR, math.log(2))])
    def test_extreme_deviations(self, log_std: float, expected: float, dtype: torch.dtype) -> None:
        found = batch([[2.0, log_std], [0.0, log_std]], [(0, 1)], dtype=dtype)
        cost_, slope = gradient(loss_of({"name": "mean-variance"}), found)
        assert cost_.item() == pytest.approx(expected, rel=1e-6)
        assert slope.isfinite().all()

    def test_its_outputs(self) -> None:
        heads = loss_of({"name": "mean-variance"}).heads([])
        assert heads.names == ("mean", "log_std")
        assert heads.weights == (1, 0)
        with pytest.raises(DataError, match="needs two outputs, mean and log_std, not 1"):
            value("mean-variance", of_pairs((2.0, 0.0)))


class TestGrm:
    def test_by_hand(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), logprobs=[-1.0, math.nan, -3.0, math.nan], weights=[1.0, 0.0, 2.0, 0.0])
        preference, language = (cost(2) + 2 * cost(-1)) / 2, (1 + 2 * 3) / 2
        assert value("grm", found, alpha=0.1) == pytest.approx(0.9 * preference + 0.1 * language)
        assert value("grm", found) == pytest.approx(0.99 * preference + 0.01 * language)

    def test_margins_are_used_as_in_bradley_terry(self) -> None:
        found = of_pairs((2.0, 0.0), logprobs=[-1.0, math.nan], margins=[0.5])
        assert value("grm", found, alpha=0.0) == pytest.approx(cost(1.5))

    def test_a_winner_without_tokens_costs_nothing(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), logprobs=[math.nan, math.nan, -3.0, math.nan])
        assert value("grm", found, alpha=1.0) == pytest.approx(1.5)

    def test_the_language_model_learns_from_winners_alone(self) -> None:
        found = of_pairs((2.0, 0.0), (0.0, 1.0), logprobs=torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True))
        loss_of({"name": "grm", "alpha": 0.1})(found).backward()  # type: ignore[no-untyped-call]
        assert found.logprobs is not None and found.logprobs.grad is not None
        assert found.logprobs.grad.tolist() == pytest.approx([-0.05, 0, -0.05, 0])

    def test_log_probabilities_are_needed(self) -> None:
        assert loss_of({"name": "grm"}).needs == {"pairs", "logprobs"}
        with pytest.raises(DataError, match="log-probabilities"):
            value("grm", of_pairs((2.0, 0.0)))


class TestOdin:
    # Quality deviates by (1, -1, 0), length by (-1, 2, -1); tokens by (-10, 10, 0).
    found = batch([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [(0, 1)], lengths=[10, 30, 20], head=[[3.0, 4.0], [-4.0, 0.0]])
    quality = -20 / math.sqrt(2 * 200)
    length = 30 / math.sqrt(6 * 200)

    def test_by_hand(self) -> None:
        assert value("odin", self.found) == pytest.approx(cost(2 - 3) + 1 - self.length + abs(self.quality) + 0.6)

    def test_weights_of_its_terms(self) -> None:
        terms = 2 * (1 - self.length + abs(self.quality)) + 3 * 0.6
        found = value("odin", self.found, length_weight=2.0, orthogonality_weight=3.0)
        assert found == pytest.approx(cost(-1) + terms)

    def test_without_a_single_layer_there_is_no_angle(self) -> None:
        bare = replace(self.found, head=None)
        assert value("odin", bare, orthogonality_weight=0.0, length_weight=0.0) == pytest.approx(cost(-1))
        with pytest.raises(SpecError, match="set orthogonality_weight to 0"):
            value("odin", bare)

    def test_only_the_quality_is_deployed(self) -> None:
        loss = loss_of({"name": "odin"})
        heads = loss.heads([])
        assert heads.names == ("quality", "length")
        assert heads.weights == (1, 0)
        assert loss.deployed(heads) == [0]
        with pytest.raises(DataError, match="two outputs, quality and length, not 1"):
            loss(of_pairs((2.0, 0.0)))

    def test_constant_lengths_are_no_correlation(self) -> None:
        found = replace(self.found, lengths=torch.tensor([5, 5, 5]))
        cost_, slope = gradient(loss_of({"name": "odin", "orthogonality_weight": 0.0}), found)
        assert cost_.item() == pytest.approx(cost(-1) + 1)
        assert slope[:, 0].tolist() == pytest.approx([-sigmoid(1), sigmoid(1), 0])


# Value and slope, by the winner's reward, of a pair that is right, and one that is wrong, by FAR.
_PROBIT = FAR / math.sqrt(2)
FAR_OUT: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "bradley-terry": ((0, 0), (FAR, -1)),
    "robust": ((-FAR / 8, -1 / 8), (FAR * 9 / 8, -9 / 8)),
    "focal": ((0, 0), (FAR, -1)),
    "scaled": ((0, 0), (3 * FAR, -3)),
    "hinge": ((0, 0), (FAR + 1, -1)),
    "squared-hinge": ((0, 0), ((FAR + 1) ** 2, -2 * (FAR + 1))),
    "ipo": (((FAR - 5) ** 2, 2 * (FAR - 5)), ((FAR + 5) ** 2, -2 * (FAR + 5))),
    "margin-mse": (((FAR - 3) ** 2, 2 * (FAR - 3)), ((FAR + 3) ** 2, -2 * (FAR + 3))),
    "thurstone": ((0, 0), (FAR**2 / 4 + math.log(_PROBIT * math.sqrt(2 * math.pi)), -(_PROBIT + 1 / _PROBIT) / math.sqrt(2))),
    "rao-kupper": ((0, 0), (FAR + math.log(2), -1)),
    "davidson": ((0, 0), (FAR, -1)),
    "k-wise": ((0, 0), (FAR, -1)),
    "plackett-luce": ((0, 0), (FAR, -1)),
    "info-nce": ((0, 0), (FAR, -1)),
    "listnet": ((FAR * sigmoid(-1), sigmoid(-1)), (FAR * sigmoid(1), -sigmoid(1))),
    "grm": ((0.01, 0), (0.99 * FAR + 0.01, -0.99)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
class TestFarOut:
    @pytest.mark.parametrize("wrong", [False, True])
    @pytest.mark.parametrize("name", FAR_OUT)
    def test_a_pair(self, name: str, wrong: bool, dtype: torch.dtype) -> None:
        pair = (0.0, FAR) if wrong else (FAR, 0.0)
        found = of_pairs(pair, margins=[3.0], ranks=[0.0, 1.0], logprobs=[-1.0, 0.0], dtype=dtype)
        if name in ("bradley-terry", "grm"):
            found = replace(found, margins=None)
        cost_, slope = gradient(loss_of({"name": name}), found)
        expected, expected_slope = FAR_OUT[name][wrong]
        assert cost_.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert slope[:, 0].tolist() == pytest.approx([expected_slope, -expected_slope], rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize(
        ("name", "expected", "expected_slope"),
        [("rao-kupper", FAR + math.log(2) - math.log(3), 1), ("davidson", FAR / 2, 0.5)],
    )
    def test_a_tie(self, name: str, expected: float, expected_slope: float, dtype: torch.dtype) -> None:
        for pair, sign in (((FAR, 0.0), 1), ((0.0, FAR), -1)):
            cost_, slope = gradient(loss_of({"name": name}), of_ties(pair, dtype=dtype))
            assert cost_.item() == pytest.approx(expected, rel=1e-5)
            assert slope[:, 0].tolist() == pytest.approx([sign * expected_slope, -sign * expected_slope])

    def test_soft_labels(self, dtype: torch.dtype) -> None:
        loss = loss_of({"name": "soft-bradley-terry"})
        for pair, expected, expected_slope in (((FAR, 0.0), FAR / 4, 0.25), ((0.0, FAR), FAR * 0.75, -0.75)):
            extras = {"confidence": torch.tensor([0.75], dtype=dtype)}
            cost_, slope = gradient(loss, replace(of_pairs(pair, dtype=dtype), extras=extras))
            assert cost_.item() == pytest.approx(expected, rel=1e-5)
            assert slope[0].item() == pytest.approx(expected_slope, rel=1e-5)

    def test_smoothed_labels(self, dtype: torch.dtype) -> None:
        loss = loss_of({"name": "bradley-terry", "label_smoothing": 0.1})
        for pair, expected, expected_slope in (((FAR, 0.0), FAR / 10, 0.1), ((0.0, FAR), FAR * 0.9, -0.9)):
            cost_, slope = gradient(loss, of_pairs(pair, dtype=dtype))
            assert cost_.item() == pytest.approx(expected, rel=1e-5)
            assert slope[0].item() == pytest.approx(expected_slope, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["bradley-terry", "davidson", "focal", "k-wise", "rao-kupper", "robust", "scaled", "squared-hinge", "thurstone"]
)
def test_it_falls_as_the_winner_pulls_away(name: str) -> None:
    margins = {"margins": [1.0]} if name == "scaled" else {}
    values = [value(name, of_pairs((delta, 0.0), **margins)) for delta in (-2.0, -1.0, 0.0, 0.5, 0.9)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
