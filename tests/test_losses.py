"""What every loss and regularizer keeps to: gradients, numbers far out, weights, batches without items, parts of a batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.losses import Loss, Regularizer, RewardBatch
from rm_plugins.losses.reductions import Groups, pearson
from rm_plugins.spec import component
from rm_plugins.testing import check_loss

LOSSES = sorted(rm.Registry().all("loss"))
REGULARIZERS = sorted(rm.Registry().all("regularizer"))
SPECS: list[dict[str, Any]] = [
    *({"name": name} for name in LOSSES),
    {"name": "bradley-terry", "label_smoothing": 0.2},
    {"name": "listnet", "target": "labels", "temperature": 0.5},
    {"name": "mean-variance", "data": "ratings"},
    {"name": "plackett-luce", "top_k": 2},
    {"name": "regression", "kind": "huber", "delta": 0.3},
]
# Of these only a part is a mean over items.
CORRELATIONS = {"odin", "length-correlation"}


def batch(rewards: Any, pairs: Any = (), dtype: torch.dtype = torch.float64, **columns: Any) -> RewardBatch:
    """A batch of nested lists or tensors; without groups all rows are one."""
    rewards = torch.as_tensor(rewards, dtype=dtype if isinstance(rewards, (list, tuple)) else None)
    found: dict[str, Any] = {"groups": [0] * len(rewards), "lengths": list(range(1, len(rewards) + 1)), **columns}
    for name, value in found.items():
        kind = torch.int64 if name in ("groups", "lengths", "ties") else dtype
        found[name] = torch.as_tensor(value, dtype=kind if not isinstance(value, Tensor) else None)
    if "ties" in found:
        found["ties"] = found["ties"].reshape(-1, 2)
    return RewardBatch(rewards=rewards, pairs=torch.as_tensor(pairs, dtype=torch.int64).reshape(-1, 2), **found)


def loss_of(spec: dict[str, Any]) -> Loss:
    found = component("loss", spec)
    assert isinstance(found, Loss)
    return found


def outputs_of(loss: Loss) -> int:
    return len(loss.heads(attributes_of(loss)))


def attributes_of(loss: Loss) -> tuple[str, ...]:
    return ("helpful", "correct") if loss.name in ("regression", "binary") else ("helpful",)


def full_batch(outputs: int, attributes: int = 1, *, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> RewardBatch:
    """Eleven rows in four groups of different sizes, with everything that a loss may ask for."""
    generator = torch.Generator().manual_seed(7)
    groups = torch.tensor([0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])
    rows = len(groups)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = (random(rows, attributes) > 0).to(dtype)
    labels[4] = torch.nan
    labels[9, -1] = torch.nan
    return RewardBatch(
        rewards=scale * random(rows, outputs),
        pairs=torch.tensor([(1, 2), (4, 3), (4, 5), (4, 6), (3, 6), (7, 8)]),
        groups=groups,
        lengths=torch.tensor([9, 4, 7, 12, 3, 8, 8, 5, 20, 1, 6]),
        ties=torch.tensor([(3, 5), (9, 10)]),
        ranks=torch.tensor([0, 0, 1, 1, 0, 2, 3, 0, 1, torch.nan, 2], dtype=dtype),
        labels=labels,
        weights=torch.tensor([1.0, 0.5, 2.0, 0.25])[groups].to(dtype),
        margins=random(6).abs(),
        logprobs=random(rows),
        head=random(outputs, 5),
    )


def full_batch_of(loss: Loss, **settings: Any) -> RewardBatch:
    return full_batch(outputs_of(loss), len(attributes_of(loss)), **settings)


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


def gradient(term: Loss | Regularizer, found: RewardBatch) -> tuple[Tensor, Tensor]:
    """The value, and its gradient by the rewards."""
    rewards = found.rewards.clone().requires_grad_()
    value = term(replace(found, rewards=rewards))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.shape == ()
    assert rewards.grad is not None
    return value.detach(), rewards.grad


class TestRewardBatch:
    def test_winners_and_losers_are_rows(self) -> None:
        found = batch([[1.0], [2.0], [3.0]], [(2, 0), (1, 0)])
        assert found.winners.tolist() == [[3], [2]]
        assert found.losers.tolist() == [[1], [1]]


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
            found, **columns, pairs=place[found.pairs[pairs]], margins=found.margins[pairs], ties=place[found.ties.flip(0)]
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
        nothing = replace(found, **rows, pairs=found.pairs[:0], ties=found.pairs[:0], margins=torch.zeros(0))
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
            (lambda batch: torch.tensor(1.0, dtype=torch.float64), "does not depend on the rewards"),
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
