"""PPO's formulas against hand-worked numbers, against their definitions, and against float64 gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins_trl.ppo.advantages import (
    explained_variance,
    generalized_advantages,
    last_tokens,
    token_rewards,
    whitened,
)
from rm_plugins_trl.ppo.kl import AdaptiveKl, kl_terms
from rm_plugins_trl.ppo.losses import policy_loss, value_loss
from rm_plugins_trl.ppo.rewards import RunningScale


def alone(numbers: torch.Tensor) -> torch.Tensor:
    return numbers


def bools(*rows: str) -> torch.Tensor:
    return torch.tensor([[char == "x" for char in row] for row in rows])


class TestTokenRewards:
    def test_the_score_is_at_the_last_token_and_the_penalty_at_each(self) -> None:
        kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        found = token_rewards(torch.tensor([10.0, 20.0]), kl, bools("xx.", "xxx"), kl_coef=0.1)
        torch.testing.assert_close(found, torch.tensor([[-0.1, 9.8, 0.0], [-0.4, -0.5, 19.4]]))

    def test_a_tools_tokens_get_nothing(self) -> None:
        assert last_tokens(bools("x.x.", "xx..", "....")).tolist() == bools("..x.", ".x..", "....").tolist()


class TestAdvantages:
    def test_by_hand(self) -> None:
        """gamma = 0.5, lambda = 0.5: A3 = 8 - 4; A2 = 2 + 0.5 * 4 - 2 + 0.25 * 4; A1 = 0 + 0.5 * 2 - 1 + 0.25 * 3."""
        rewards, values = torch.tensor([[0.0, 2.0, 8.0]]), torch.tensor([[1.0, 2.0, 4.0]])
        advantages, returns = generalized_advantages(rewards, values, bools("xxx"), 0.5, 0.5)
        assert advantages.tolist() == [[0.75, 3.0, 4.0]]
        assert returns.tolist() == [[1.75, 5.0, 8.0]]

    @given(st.data(), st.floats(0, 1), st.floats(0, 1))
    def test_the_sum_of_discounted_errors(self, data: st.DataObject, gamma: float, lam: float) -> None:
        """A[t] is the sum of (gamma lambda)^k delta[t + k] over the tokens that the policy chose, whatever stands between them."""
        width = data.draw(st.integers(1, 7))
        chosen = data.draw(st.lists(st.booleans(), min_size=width, max_size=width))
        numbers = st.lists(st.floats(-5, 5, width=32), min_size=width, max_size=width)
        rewards, values = data.draw(numbers), data.draw(numbers)
        mask = torch.tensor([chosen])
        found, returns = generalized_advantages(
            torch.tensor([rewards], dtype=torch.float64) * mask, torch.tensor([values], dtype=torch.float64), mask, gamma, lam
        )
        steps = [place for place, is_chosen in enumerate(chosen) if is_chosen]
        later = [values[place] for place in steps[1:]] + [0.0]
        deltas = [rewards[place] + gamma * after - values[place] for place, after in zip(steps, later, strict=bool(steps))]
        expected = [0.0] * width
        for step, place in enumerate(steps):
            expected[place] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[step:]))
        np.testing.assert_allclose(found[0], expected, atol=1e-9)
        np.testing.assert_allclose(returns[0], np.where(chosen, np.add(expected, values), 0.0), atol=1e-9)

    def test_lambda_1_gives_the_returns_of_the_rewards_alone(self) -> None:
        torch.manual_seed(0)
        rewards, values = torch.randn(4, 9, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
        _, returns = generalized_advantages(rewards, values, torch.ones(4, 9, dtype=torch.bool), 1.0, 1.0)
        torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))

    def test_a_chain_whose_values_are_known_has_no_advantage(self) -> None:
        """Where the critic is right, V[t] = r[t] + gamma V[t + 1], no token is better than expected, for every lambda."""
        gamma, rewards = 0.9, torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
        values = torch.zeros_like(rewards)
        for token in reversed(range(4)):
            values[:, token] = rewards[:, token] + (gamma * values[:, token + 1] if token < 3 else 0.0)
        for lam in (0.0, 0.5, 1.0):
            advantages, returns = generalized_advantages(rewards, values, bools("xxxx"), gamma, lam)
            torch.testing.assert_close(advantages, torch.zeros_like(rewards))
            torch.testing.assert_close(returns, values)


class TestWhitening:
    def test_by_numpy(self) -> None:
        values, mask = torch.tensor([[1.0, 2.0, 9.0], [4.0, 8.0, 7.0]]), bools("xx.", "x.x")
        kept = np.array([1.0, 2.0, 4.0, 7.0])
        found = whitened(values, mask, alone)[mask]
        np.testing.assert_allclose(found, (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8), rtol=1e-6)
        found = whitened(values, mask, alone, shift_mean=False)[mask]
        np.testing.assert_allclose(found, (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8) + kept.mean(), rtol=1e-6)
        assert not whitened(values, mask, alone)[~mask].any()

    def test_two_processes_are_one(self) -> None:
        values, mask = torch.randn(4, 5), torch.rand(4, 5) > 0.3
        whole = whitened(values, mask, alone)
        halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
        count = mask.sum().double()
        mean = values[mask].double().sum()
        sums = iter([count, mean, (values[mask].double() - mean / count).square().sum()])
        torch.testing.assert_close(whitened(*halves[0], lambda _: next(sums)), whole[:2])

    def test_one_token_stays(self) -> None:
        assert whitened(torch.tensor([[3.0, 4.0]]), bools("x."), alone).tolist() == [[3.0, 0.0]]


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), bools("xxx.")
    assert explained_variance(returns, returns, mask, alone) == 1
    assert explained_variance(returns, torch.full_like(returns, 7.0), mask, alone) == 0
    assert explained_variance(returns, -returns, mask, alone) == pytest.approx(-3)
    assert math.isnan(explained_variance(torch.ones(1, 4), returns, mask, alone))


class TestLosses:
    def test_the_policys_by_hand(self) -> None:
        ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
        advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
        found = policy_loss(ratio.log(), advantages, 0.2)
        torch.testing.assert_close(found.loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2]))
        assert found.is_clipped.tolist() == [True, False, False, True, False]

    def test_the_critics_by_hand(self) -> None:
        values, old, returns = torch.tensor([3.0, 0.9, -1.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([2.0, 2.0, 0.0])
        found = value_loss(values, old, returns, 0.2)
        torch.testing.assert_close(found.loss, 0.5 * torch.tensor([1.0, 1.21, 1.0]))
        assert found.is_clipped.tolist() == [False, False, False]
        assert value_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0]), 0.2).is_clipped.tolist() == [True]

    def test_gradients(self) -> None:
        torch.manual_seed(0)
        numbers = [torch.randn(12, dtype=torch.float64) for _ in range(3)]
        log_ratio = (0.5 * numbers[0]).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: policy_loss(x, numbers[1], 0.2).loss, log_ratio)
        values = numbers[0].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: value_loss(x, numbers[1], numbers[2], 0.2).loss, values)

    def test_at_the_rollouts_policy_the_gradient_is_the_policy_gradient(self) -> None:
        log_probs = torch.randn(6, dtype=torch.float64, requires_grad=True)
        advantages = torch.randn(6, dtype=torch.float64)
        policy_loss(log_probs - log_probs.detach(), advantages, 0.2).loss.sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(log_probs.grad, -advantages)


class TestKl:
    def test_both_estimates_are_right_on_average(self) -> None:
        """Their means over tokens drawn from p are KL(p, q)."""
        p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
        exact = (p * (p / q).log()).sum()
        for estimator in ("k1", "k3"):
            torch.testing.assert_close((p * kl_terms(p.log(), q.log(), estimator)).sum(), exact)
        assert (kl_terms(p.log(), q.log(), "k3") >= 0).all()

    def test_the_weight_follows_the_target(self) -> None:
        control = AdaptiveKl(0.1, target=6.0, horizon=1_000)
        control.update(6.6, 100)
        assert control.weight == pytest.approx(0.1 * 1.01)
        control.update(100.0, 100)
        assert control.weight == pytest.approx(0.1 * 1.01 * 1.02)
        control.update(0.0, 100)
        assert control.weight == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
        fixed = AdaptiveKl(0.1)
        fixed.update(100.0, 100)
        assert fixed.weight == 0.1


@given(st.lists(st.lists(st.floats(-100, 100, width=32), max_size=5), min_size=1, max_size=5))
def test_the_running_scale_is_that_of_all_numbers(batches: list[list[float]]) -> None:
    scale = RunningScale()
    for batch in batches:
        scale.add(torch.tensor(batch))
    numbers = [number for batch in batches for number in batch]
    std = np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0
    assert scale.std == pytest.approx(std if std > 1e-6 else scale.std, rel=1e-6, abs=1e-9)
