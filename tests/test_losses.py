"""Losses and regularizers: values by hand, gradients, and numbers far out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import rm_plugins as rm
from rm_plugins.losses import Loss, Regularizer, RewardBatch
from rm_plugins.losses.bradley_terry import BradleyTerry
from rm_plugins.losses.centering import Centering

ALL = sorted((kind, name) for kind in ("loss", "regularizer") for name in rm.Registry().all(kind))


def batch(rewards: Tensor, pairs: Any, margins: Tensor | None = None) -> RewardBatch:
    size = len(rewards)
    return RewardBatch(
        rewards=rewards,
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        groups=torch.arange(size) // 2,
        lengths=torch.arange(1, size + 1),
        margins=margins,
    )


def of_pairs(
    *rewards: tuple[float, float], margins: list[float] | None = None, dtype: torch.dtype = torch.float64
) -> RewardBatch:
    """One head; each pair is a winner's and a loser's reward."""
    flat = torch.tensor([reward for pair in rewards for reward in pair], dtype=dtype)[:, None]
    pairs = [(2 * row, 2 * row + 1) for row in range(len(rewards))]
    return batch(flat, pairs, None if margins is None else torch.tensor(margins, dtype=dtype))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class TestRewardBatch:
    def test_winners_and_losers_are_rows(self) -> None:
        found = batch(torch.tensor([[1.0], [2.0], [3.0]]), [(2, 0), (1, 0)])
        assert found.winners.tolist() == [[3], [2]]
        assert found.losers.tolist() == [[1], [1]]


class TestBradleyTerry:
    def test_by_hand(self) -> None:
        found = BradleyTerry()(of_pairs((2.0, 0.0), (0.0, 1.0)))
        assert found.item() == pytest.approx(-(math.log(sigmoid(2)) + math.log(sigmoid(-1))) / 2, abs=1e-12)

    def test_equal_rewards_cost_the_logarithm_of_two(self) -> None:
        assert BradleyTerry()(of_pairs((3.0, 3.0))).item() == pytest.approx(math.log(2))

    def test_a_margin_is_taken_off_the_difference(self) -> None:
        found = BradleyTerry()(of_pairs((2.0, 0.0), (1.0, 0.0), margins=[0.5, -1.0]))
        assert found.item() == pytest.approx(-(math.log(sigmoid(1.5)) + math.log(sigmoid(2))) / 2, abs=1e-12)

    def test_several_heads_are_averaged(self) -> None:
        found = BradleyTerry()(batch(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), [(0, 1)], torch.tensor([1.0])))
        assert found.item() == pytest.approx(-(math.log(sigmoid(1)) + math.log(sigmoid(-2))) / 2)

    def test_a_row_may_be_in_several_pairs(self) -> None:
        rewards = torch.tensor([[3.0], [1.0], [0.0]], requires_grad=True)
        BradleyTerry()(batch(rewards, [(0, 1), (0, 2), (1, 2)])).backward()  # type: ignore[no-untyped-call]
        assert rewards.grad is not None
        expected = [-(sigmoid(-2) + sigmoid(-3)), sigmoid(-2) - sigmoid(-1), sigmoid(-3) + sigmoid(-1)]
        assert rewards.grad[:, 0].tolist() == pytest.approx([value / 3 for value in expected])


class TestCentering:
    def test_by_hand(self) -> None:
        assert Centering()(of_pairs((2.0, 1.0), (-1.0, 0.0))).item() == (9 + 1) / 2
        assert Centering()(of_pairs((2.0, -2.0))).item() == 0

    def test_several_heads_are_averaged(self) -> None:
        assert Centering()(batch(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), [(0, 1)])).item() == (4 + 1) / 2


@pytest.mark.parametrize(("kind", "name"), ALL)
class TestEveryTerm:
    def term(self, kind: str, name: str) -> Loss | Regularizer:
        found = rm.Registry().get(kind, name)()
        assert isinstance(found, Loss if kind == "loss" else Regularizer)
        return found

    def test_its_gradient_is_right(self, kind: str, name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        rewards = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        margins = torch.rand(4, generator=generator, dtype=torch.float64)
        pairs = [(0, 1), (3, 2), (4, 5), (0, 5)]
        term = self.term(kind, name)
        assert torch.autograd.gradcheck(lambda rewards: term(batch(rewards, pairs, margins)), (rewards,))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("delta", [1e4, -1e4, 0.0])
    def test_it_is_finite_far_out(self, delta: float, dtype: torch.dtype, kind: str, name: str) -> None:
        found = of_pairs((delta, 0.0), dtype=dtype)
        rewards = found.rewards.clone().requires_grad_()
        value = self.term(kind, name)(batch(rewards, [(0, 1)]))
        value.backward()  # type: ignore[no-untyped-call]
        assert value.shape == ()
        assert rewards.grad is not None
        assert value.isfinite()
        assert rewards.grad.isfinite().all()

    def test_the_pairs_order_does_not_matter(self, kind: str, name: str) -> None:
        rewards = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        pairs = torch.tensor([(0, 1), (3, 2), (4, 5)])
        margins = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
        order = torch.tensor([2, 0, 1])
        term = self.term(kind, name)
        one = term(batch(rewards, pairs.tolist(), margins))
        other = term(batch(rewards, pairs[order].tolist(), margins[order]))
        assert one.item() == pytest.approx(other.item(), abs=1e-12)


@pytest.mark.parametrize("name", [name for kind, name in ALL if kind == "loss"])
def test_a_loss_falls_as_the_winner_pulls_away(name: str) -> None:
    term = rm.Registry().get("loss", name)()
    values = [term(of_pairs((delta, 0.0))).item() for delta in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert values == sorted(values, reverse=True)
