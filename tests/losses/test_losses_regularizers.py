"""Regularizers: values by hand."""

from __future__ import annotations

import math

import pytest
import torch

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.losses.regularizers import Centering, LengthCorrelation, LogBarrier, ScoreL2
from tests.losses.conftest import batch, gradient

PAIRS = [(0, 1), (2, 3)]


class TestCentering:
    def test_by_hand(self) -> None:
        assert Centering()(batch([[2.0], [1.0], [-1.0], [0.0]], PAIRS)).item() == (9 + 1) / 2
        assert Centering()(batch([[2.0], [-2.0]], [(0, 1)])).item() == 0


class TestScoreL2:
    def test_by_hand(self) -> None:
        found = batch([[2.0], [1.0], [-1.0], [0.0]], PAIRS)
        assert ScoreL2()(found).item() == (4 + 1 + 1 + 0) / 4
        assert ScoreL2()(found).item() == ((4 + 1) / 2 + (1 + 0) / 2) / 2  # as a mean over pairs

    def test_it_needs_no_pairs(self) -> None:
        assert ScoreL2()(batch([[3.0]])).item() == 9


class TestLogBarrier:
    def test_by_hand(self) -> None:
        found = batch([[2.0], [-3.0]], [(0, 1)])
        assert LogBarrier()(found).item() == pytest.approx(-(math.log(3 * 7) + math.log(8 * 2)) / 2)
        bounded = rm.Registry().get("regularizer", "log-barrier")(lower=-4.0, upper=3.0)
        assert bounded(found).item() == pytest.approx(-(math.log(1 * 6) + math.log(6 * 1)) / 2)

    def test_it_stops_growing_at_the_bounds(self) -> None:
        for reward in (4.9999, 5.0, 1e4, -1e4):
            value, slope = gradient(LogBarrier(), batch([[reward]]))
            assert value.item() == pytest.approx(-math.log(1e-3 * (10 - 1e-3)))
            assert slope.item() == 0

    def test_it_pushes_inwards(self) -> None:
        _, slope = gradient(LogBarrier(), batch([[4.0], [-4.0]]))
        assert slope[:, 0].tolist() == pytest.approx([(1 - 1 / 9) / 2, (1 / 9 - 1) / 2])

    def test_it_is_exact_in_half_precision(self) -> None:
        half = batch(torch.tensor([[4.0]], dtype=torch.bfloat16))
        assert LogBarrier()(half).item() == pytest.approx(-math.log(9), rel=1e-6)

    @pytest.mark.parametrize(
        "arguments", [{"lower": 5.0}, {"upper": -6.0}, {"epsilon": 0.0}, {"epsilon": 5.0}, {"epsilon": math.nan}]
    )
    def test_bounds_are_in_order(self, arguments: dict[str, float]) -> None:
        with pytest.raises(SpecError, match="lower below upper and epsilon between 0 and half their distance"):
            LogBarrier(**arguments)


class TestLengthCorrelation:
    def test_by_hand(self) -> None:
        # Rewards deviate by (1, -1, 0), tokens by (-10, 10, 0); and a second output not at all with them.
        found = batch([[2.0, 1.0], [0.0, 1.0], [1.0, 4.0]], lengths=[10, 30, 20])
        assert LengthCorrelation()(found).item() == pytest.approx((1 + 0) / 2)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_the_scale_of_rewards_does_not_matter(self, dtype: torch.dtype) -> None:
        rewards = torch.tensor([[0.2], [1.0], [-0.3], [0.5]], dtype=dtype)
        plain = LengthCorrelation()(batch(rewards, lengths=[3, 9, 4, 1])).item()
        assert LengthCorrelation()(batch(1e4 * rewards + 5, lengths=[3, 9, 4, 1])).item() == pytest.approx(plain, rel=1e-4)
