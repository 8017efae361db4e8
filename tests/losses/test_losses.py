"""What every loss and regularizer keeps to: gradients, numbers far out, weights, batches without items, parts of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rm_plugins.losses import Loss, Regularizer, RewardBatch
from rm_plugins.spec import component
from tests.losses.conftest import (
    LOSSES,
    REGULARIZERS,
    SPECS,
    attributes_of,
    batch,
    full_batch,
    full_batch_of,
    gradient,
    loss_of,
    outputs_of,
)

# Of these only a part is a mean over items.
CORRELATIONS = {"odin", "length-correlation"}


def parts(whole: RewardBatch, split: Sequence[int]) -> list[RewardBatch]:
    """The rows of the groups in `split`, and the others."""
    chosen = torch.isin(whole.groups, torch.tensor(split))
    found = []
    for kept in (chosen, ~chosen):
        place = kept.cumsum(0) - 1
        columns = {name: getattr(whole, name)[kept] for name in ("rewards", "groups", "lengths", "ranks", "labels", "weights")}
        pairs = kept[whole.pairs[:, 0]]
        assert whole.ties is not None and whole.margins is not None and whole.logprobs is not None
        found.append(
            replace(
                whole,
                **columns,
                pairs=place[whole.pairs[pairs]],
                ties=place[whole.ties[kept[whole.ties[:, 0]]]],
                margins=whole.margins[pairs],
                extras={name: values[pairs] for name, values in whole.extras.items()},
                logprobs=whole.logprobs[kept],
            )
        )
    return found


def items(loss: Loss, found: RewardBatch) -> int:
    """How many items the loss of this batch is a mean over."""
    assert found.ties is not None and found.labels is not None
    return {
        "pairs": len(found.pairs),
        "comparisons": len(found.pairs) + len(found.ties),
        "groups": len(found.groups.unique()),  # type: ignore[no-untyped-call]
        "rows": len(found.rewards),
        "labels": int((~found.labels.isnan()).sum()),
    }[loss.mean_over]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: ",".join(map(str, spec.values())))
class TestEveryLoss:
    def test_its_gradient_is_right(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        loss.load_state({"mean": 0.3, "count": 10**15})  # a running mean that does not move
        found = full_batch_of(loss)
        assert found.logprobs is not None and found.head is not None
        inputs = [found.rewards.requires_grad_(), found.logprobs.requires_grad_(), found.head.requires_grad_()]

        def value(rewards: Tensor, logprobs: Tensor, head: Tensor) -> Tensor:
            return loss(replace(found, rewards=rewards, logprobs=logprobs, head=head))

        assert torch.autograd.gradcheck(value, inputs)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("scale", [0.0, 1e4])
    def test_it_is_finite_far_out(self, scale: float, dtype: torch.dtype, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        value, slope = gradient(loss, full_batch_of(loss, dtype=dtype, scale=scale))
        assert value.isfinite()
        assert slope.isfinite().all()
        if dtype == torch.float32:
            exact, exact_slope = gradient(loss_of(spec), full_batch_of(loss, scale=scale))
            assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-6)
            # PyTorch's gradient of logcumsumexp is relative to the size of what it sums up.
            close = 2e-4 if loss.name == "plackett-luce" else 1e-6
            assert torch.allclose(slope.double(), exact_slope, rtol=1e-4, atol=close)

    def test_a_batch_is_the_mean_of_its_parts(self, spec: dict[str, Any]) -> None:
        """What gradient accumulation relies on."""
        loss = loss_of(spec)
        if loss.name in CORRELATIONS:
            return
        whole = full_batch_of(loss)
        for split in ([0], [0, 2], [1, 3], [3]):
            values = [loss(part).item() * items(loss, part) for part in parts(whole, split)]
            assert sum(values) / items(loss, whole) == pytest.approx(loss(whole).item(), abs=1e-12)

    def test_weights_multiply_what_they_are_of(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        if loss.name in CORRELATIONS:
            return
        found = full_batch_of(loss)
        assert found.weights is not None
        plain = loss(replace(found, weights=None)).item()
        assert plain != pytest.approx(loss(found).item())
        assert loss(replace(found, weights=torch.full_like(found.weights, 3.0))).item() == pytest.approx(3 * plain)
        assert loss(replace(found, weights=torch.ones_like(found.weights))).item() == pytest.approx(plain)

    def test_the_order_of_rows_and_pairs_does_not_matter(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        found = full_batch_of(loss)
        order = torch.tensor([5, 10, 0, 3, 1, 8, 2, 9, 4, 7, 6])
        place = order.argsort()
        columns = {
            name: getattr(found, name)[order]
            for name in ("rewards", "groups", "lengths", "ranks", "labels", "weights", "logprobs")
        }
        pairs = torch.tensor([3, 0, 5, 2, 4, 1])
        assert found.margins is not None and found.ties is not None
        mixed = replace(
            found,
            **columns,
            pairs=place[found.pairs[pairs]],
            margins=found.margins[pairs],
            extras={name: values[pairs] for name, values in found.extras.items()},
            ties=place[found.ties.flip(0)],
        )
        assert loss(mixed).item() == pytest.approx(loss(found).item(), abs=1e-12)

    def test_rows_that_are_no_items_cost_nothing(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        found = full_batch_of(loss)
        nothing = replace(
            found,
            pairs=found.pairs[:0],
            ties=None,
            margins=torch.zeros(0),
            extras={"confidence": torch.zeros(0)},
            ranks=torch.full((len(found.rewards),), torch.nan),
            labels=torch.full_like(found.labels, torch.nan),  # type: ignore[arg-type]
        )
        value, slope = gradient(loss, nothing)
        if loss.name in CORRELATIONS:
            assert value.isfinite() and slope.isfinite().all()
        else:
            assert value == 0
            assert (slope == 0).all()

    @pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
    def test_no_nan_arises_on_the_way_back(self, spec: dict[str, Any]) -> None:
        """Not even where it would be masked afterwards: PyTorch's anomaly detection stops a training at it."""
        loss = loss_of(spec)
        found = full_batch_of(loss)
        assert found.ranks is not None and found.labels is not None
        sparse = replace(
            found,
            ranks=found.ranks.masked_fill(found.groups == 1, torch.nan),
            labels=found.labels.masked_fill((found.groups == 1)[:, None], torch.nan),
        )
        with torch.autograd.detect_anomaly(check_nan=True):
            gradient(loss, sparse)

    def test_no_rows_cost_nothing(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        found = full_batch_of(loss)
        rows = {name: getattr(found, name)[:0] for name in ("rewards", "groups", "lengths", "ranks", "labels", "weights")}
        nothing = replace(
            found,
            **rows,
            pairs=found.pairs[:0],
            ties=found.pairs[:0],
            margins=torch.zeros(0),
            extras={"confidence": torch.zeros(0)},
        )
        value, slope = gradient(loss, nothing)
        assert value.isfinite()
        assert slope.shape == (0, outputs_of(loss))
        if loss.name not in CORRELATIONS:
            assert value == 0

    def test_a_loss_of_one_output_is_the_mean_over_all_it_is_given(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        if outputs_of(loss) > 1:
            return
        found = full_batch(2)
        alone = [loss(replace(found, rewards=found.rewards[:, [column]])).item() for column in (0, 1)]
        assert loss(found).item() == pytest.approx(sum(alone) / 2, abs=1e-12)

    def test_its_state_is_taken_up_by_another(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        gradient(loss, full_batch_of(loss))
        other = loss_of(spec)
        other.load_state(loss.state())
        assert other.state() == loss.state()
        assert other(full_batch_of(loss)).item() == loss(full_batch_of(loss)).item()

    def test_its_outputs_make_a_reward(self, spec: dict[str, Any]) -> None:
        loss = loss_of(spec)
        heads = loss.heads(attributes_of(loss))
        assert sum(heads.weights) == pytest.approx(1)
        deployed = loss.deployed(heads)
        assert set(deployed) <= set(range(len(heads.names)))
        assert sum(heads.weights[column] for column in deployed) == pytest.approx(1)


@pytest.mark.parametrize("name", REGULARIZERS)
class TestEveryRegularizer:
    def term(self, name: str) -> Regularizer:
        found = component("regularizer", name)
        assert isinstance(found, Regularizer)
        return found

    def test_its_gradient_is_right(self, name: str) -> None:
        found = full_batch(2)
        term = self.term(name)
        assert torch.autograd.gradcheck(lambda rewards: term(replace(found, rewards=rewards)), found.rewards.requires_grad_())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("scale", [0.0, 1e4])
    def test_it_is_finite_far_out(self, scale: float, dtype: torch.dtype, name: str) -> None:
        value, slope = gradient(self.term(name), full_batch(2, dtype=dtype, scale=scale))
        assert value.isfinite()
        assert slope.isfinite().all()

    def test_several_outputs_are_averaged(self, name: str) -> None:
        found, term = full_batch(2), self.term(name)
        alone = [term(replace(found, rewards=found.rewards[:, [column]])).item() for column in (0, 1)]
        assert term(found).item() == pytest.approx(sum(alone) / 2)

    @pytest.mark.parametrize("rows", [0, 1])
    def test_hardly_any_rows(self, rows: int, name: str) -> None:
        value, slope = gradient(self.term(name), batch(torch.ones(rows, 1, dtype=torch.float64)))
        assert value.isfinite()
        assert slope.isfinite().all()
        if rows == 0 or name not in ("score-l2", "log-barrier"):
            assert value == 0
            assert (slope == 0).all()


@pytest.mark.parametrize(
    ("kind", "name"), [*(("loss", name) for name in LOSSES), *(("regularizer", name) for name in REGULARIZERS)]
)
def test_a_batch_is_left_as_it_is(kind: str, name: str) -> None:
    term = component(kind, name)
    given = full_batch_of(term) if kind == "loss" else full_batch(2)
    before = copy.deepcopy(vars_of(given))
    term(given)
    torch.testing.assert_close(vars_of(given), before, rtol=0, atol=0, equal_nan=True)


def vars_of(given: RewardBatch) -> dict[str, Any]:
    columns = {field.name: getattr(given, field.name) for field in fields(given)}
    return {name: values for name, values in columns.items() if values is not None}
