"""What the author of a loss meets: descriptions, refused arguments, the check, formulas, batches."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.losses import Loss, RewardBatch
from rm_plugins.losses.reductions import Groups, pearson
from rm_plugins.spec import component
from rm_plugins.testing import check_loss
from tests.losses.conftest import LOSSES, REGULARIZERS, SPECS, batch, full_batch, full_batch_of, loss_of


class TestRewardBatch:
    def test_winners_and_losers_are_rows(self) -> None:
        found = batch([[1.0], [2.0], [3.0]], [(2, 0), (1, 0)])
        assert found.winners.tolist() == [[3], [2]]
        assert found.losers.tolist() == [[1], [1]]


class TestDescriptions:
    @pytest.mark.parametrize(("kind", "name"), [("loss", name) for name in LOSSES] + [("regularizer", n) for n in REGULARIZERS])
    def test_a_docstring_has_formula_inputs_source_and_example(self, kind: str, name: str) -> None:
        cls = rm.Registry().get(kind, name)
        text = " ".join((cls.__doc__ or "").split())
        assert f"Formula: {cls.formula} |" in text
        assert "\n" not in cls.formula
        for part in ("| input | shape | |", "``rewards``", "Source: ", ">>> "):
            assert part in text
        for argument in set(getattr(cls.__init__, "__annotations__", {})) - {"return"}:
            assert f" {argument}: " in text

    def test_they_are_listed_without_torch(self) -> None:
        code = (
            "import sys, rm_plugins as rm\n"
            "found = {**rm.Registry().all('loss'), **rm.Registry().all('regularizer')}\n"
            "assert len(found) > 20 and 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "bradley-terry", "label_smoothing": 0.5}, "label_smoothing of at least 0 and below 0.5"),
        ({"name": "bradley-terry", "label_smoothing": -0.1}, "label_smoothing"),
        ({"name": "robust", "epsilon": 0.5}, "epsilon of at least 0 and below 0.5"),
        ({"name": "focal", "gamma": -1.0}, "gamma of at least 0"),
        ({"name": "hinge", "margin": 0.0}, "hinge needs a positive"),
        ({"name": "squared-hinge", "margin": -1.0}, "squared-hinge needs a positive"),
        ({"name": "ipo", "beta": 0.0}, "positive, finite beta"),
        ({"name": "thurstone", "sigma": float("inf")}, "positive, finite sigma"),
        ({"name": "thurstone", "sigma": float("nan")}, "positive, finite sigma"),
        ({"name": "rao-kupper", "nu": 0.9}, "nu of at least 1"),
        ({"name": "davidson", "nu": -0.1}, "nu of at least 0"),
        ({"name": "plackett-luce", "top_k": 0}, "top_k of at least 1"),
        ({"name": "listnet", "temperature": 0.0}, "listnet needs a positive, finite temperature"),
        ({"name": "listnet", "target": "margins"}, "'ranks' or 'labels'"),
        ({"name": "info-nce", "temperature": -1.0}, "info-nce needs a positive, finite temperature"),
        ({"name": "regression", "kind": "mae"}, "'mse' or 'huber'"),
        ({"name": "regression", "delta": 0.0}, "positive, finite delta"),
        ({"name": "quantile", "quantiles": 0}, "1 to 999"),
        ({"name": "mean-variance", "data": "ranks"}, "'pairs' or 'ratings'"),
        ({"name": "mean-variance", "min_std": 0.0}, "min_std"),
        ({"name": "grm", "alpha": 1.1}, "alpha from 0 to 1"),
        ({"name": "odin", "length_weight": -1.0}, "length_weight of at least 0"),
        ({"name": "odin", "orthogonality_weight": float("inf")}, "orthogonality_weight"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        component("loss", spec)
    arguments = {name: value for name, value in spec.items() if name != "name"}
    with pytest.raises(SpecError, match=message):  # also where no schema has looked at it
        rm.Registry().get("loss", spec["name"])(**arguments)


class TestGroups:
    def test_groups_of_different_sizes_are_padded(self) -> None:
        found = Groups.of(torch.tensor([5, 2, 5, 9, 5]))
        assert len(found) == 3
        assert found.rows.tolist() == [[1, 0, 0], [0, 2, 4], [3, 0, 0]]
        assert found.present.tolist() == [[True, False, False], [True, True, True], [True, False, False]]
        assert found.index.tolist() == [1, 0, 1, 2, 1]

    def test_a_group_has_its_first_rows_weight(self) -> None:
        weights = torch.tensor([1.0, 2.0, 3.0])
        found = Groups.of(torch.tensor([1, 0, 1]))
        assert found.weights(batch([[0.0]] * 3, weights=weights)).tolist() == [2, 1]  # type: ignore[union-attr]
        assert found.weights(batch([[0.0]] * 3)) is None


class TestPearson:
    def test_by_hand(self) -> None:
        # Deviations (-1, 0, 1) and (-1, 2, -1): 0; and (-1, 0, 1) with (-4, -1, 5): 9 / sqrt(2 * 42).
        found = pearson(torch.tensor([[0.0, 1.0], [1.0, 4.0], [2.0, 10.0]], dtype=torch.float64), torch.tensor([10, 20, 30]))
        assert found.tolist() == pytest.approx([1.0, 9 / 84**0.5])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
    def test_a_constant_correlates_with_nothing(self, level: float, dtype: torch.dtype) -> None:
        values = torch.full((7, 1), level, dtype=dtype).requires_grad_()
        found = pearson(values, torch.arange(7))
        found.sum().backward()  # type: ignore[no-untyped-call]
        assert found.tolist() == [0]
        assert values.grad is not None and (values.grad == 0).all()

    def test_a_constant_length_has_no_gradient(self) -> None:
        values = torch.randn(7, 2).requires_grad_()
        found = pearson(values, torch.full((7,), 12))
        found.sum().backward()  # type: ignore[no-untyped-call]
        assert found.tolist() == [0, 0]
        assert values.grad is not None and (values.grad == 0).all()

    def test_what_is_nearly_constant_still_correlates(self) -> None:
        values = 1 + 1e-4 * torch.tensor([[1.0], [2.0], [3.0]])
        assert pearson(values, torch.tensor([1, 2, 3])).item() == pytest.approx(1, abs=1e-3)


class TestCheckLoss:
    """What the author of a loss runs."""

    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_every_loss_passes(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        found = full_batch_of(loss)
        assert check_loss(loss, found) == check_loss(loss, found)  # what it remembers is put back

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda batch: (batch.winners - batch.losers).square(), "must be a scalar"),
            (lambda batch: (batch.winners - batch.losers).mean().log() * torch.nan, "the loss is nan"),
            (lambda batch: torch.tensor(1.0, dtype=torch.float64), "no gradient with respect to the rewards"),
            (lambda batch: (batch.losers - batch.winners).exp().mean(), "the loss is inf at rewards of 10000"),
        ],
    )
    def test_a_wrong_one_is_told_why(self, function: Any, message: str) -> None:
        wrong = type("Wrong", (Loss,), {"name": "wrong", "__call__": lambda self, batch: function(batch)})()
        with pytest.raises(AssertionError, match=message):
            check_loss(wrong, full_batch(1))

    def test_a_gradient_that_is_wrong(self) -> None:
        class Detached(Loss):
            name = "detached"

            def __call__(self, batch: RewardBatch) -> Tensor:
                return (batch.winners * batch.losers.detach()).mean()

        with pytest.raises(GradcheckError):
            check_loss(Detached(), full_batch(1))


def test_a_formula_is_that_of_the_docstring() -> None:
    class Documented(Loss):
        """A loss.

        Formula: −Δ
        """

        def __call__(self, batch: RewardBatch) -> Tensor:
            return (batch.losers - batch.winners).mean()

    class Inheriting(Documented):
        """Without a formula of its own."""

    class Explicit(Documented):
        """Another.

        Formula: −2Δ
        """

        formula = "2·(l − w)"

    assert [Documented.formula, Inheriting.formula, Explicit.formula] == ["−Δ", "−Δ", "2·(l − w)"]
    assert Loss.formula == ""


def test_a_batch_of_lists_has_what_a_loss_needs() -> None:
    batch = RewardBatch.of([[2.0], [0.0]], labels=[[1.0], [float("nan")]], lengths=[7, 9])
    assert batch.pairs.shape == (0, 2) and batch.pairs.dtype == torch.int64
    assert batch.groups.tolist() == [0, 0] and batch.lengths.tolist() == [7, 9]
    assert batch.labels is not None and batch.labels.shape == (2, 1)
    assert RewardBatch.of([[2.0], [0.0]], [[1, 0]]).winners.tolist() == [[0.0]]
