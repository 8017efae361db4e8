"""Losses on all the answers to a prompt at once: rankings, graded lists, and lists with a best answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.labels import check_one_attribute
from rm_plugins.losses.loss import Loss
from rm_plugins.losses.reductions import Groups, check_finite, log_sigmoid, mean_over_items
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor


class KWise(Loss):
    """Bradley-Terry on all pairs of a prompt's answers, averaged per prompt, so each prompt counts once.

    Formula: mean over a group's pairs of −log σ(Δ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``pairs`` | [M, 2] | winner and loser; Δ is the difference of their rewards |
    | ``groups`` | [N] | a group without pairs counts with a loss of 0 |
    | ``weights`` | [N] | optional, a group has its first row's |

    Source: InstructGPT, arXiv 2203.02155, eq. 1; Open-Assistant.

    >>> batch = RewardBatch.of([[0.0]] * 3, pairs=[[0, 1], [0, 2], [1, 2]])
    >>> round(KWise()(batch).item(), 4)
    0.6931
    """

    name = "k-wise"
    mean_over = "groups"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over groups and heads."""
        groups = Groups.of(batch.groups)
        of_pair = groups.index[batch.pairs[:, 0]]
        share = 1 / of_pair.bincount(minlength=len(groups))[of_pair]
        weights = groups.weights(batch)
        if weights is not None:
            share = share * weights[of_pair]
        losses = share[:, None] * -log_sigmoid(batch.winners - batch.losers)
        return losses.sum() / max(len(groups) * batch.rewards.shape[1], 1)


class PlackettLuce(Loss):
    """Plackett-Luce (ListMLE): the best answer is drawn from a softmax over all answers, the next from one over the rest, and so on.

    Formula: Σ_k [log Σ_{j ≥ k} exp r_(j) − r_(k)], where r_(k) is the reward of the k-th best answer

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``groups`` | [N] | a group without ranks counts with a loss of 0 |
    | ``ranks`` | [N] | 0 for the best; equal ranks are taken in the order of their rows; answers with NaN are left out |
    | ``weights`` | [N] | optional, a group has its first row's |

    A group's loss is a sum over its places, so longer lists count for more.

    Args:
        top_k: How many of the first places count; None for all. With 1 it is ``info-nce`` with a temperature of 1.

    Raises:
        SpecError: ``top_k`` is below 1.
        DataError: When called: the batch has no ranks.

    Source: ListMLE, Xia et al. 2008; ``ListMLELoss`` of sentence-transformers.

    >>> batch = RewardBatch.of([[0.0]] * 3, ranks=[2.0, 0.0, 1.0])
    >>> round(PlackettLuce()(batch).exp().item(), 4)
    6.0
    """

    name = "plackett-luce"
    needs = frozenset({"ranks"})
    mean_over = "groups"

    def __init__(self, *, top_k: int | None = None) -> None:
        if top_k is not None and top_k < 1:
            raise SpecError(f"plackett-luce needs a top_k of at least 1, not {top_k}; leave it out to count all places.")
        self.top_k = top_k

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over groups and heads."""
        import torch

        groups = Groups.of(batch.groups)
        ranks, present = _ranks(batch, groups, self.name)
        order = ranks.masked_fill(~present, math.inf).argsort(dim=1, stable=True)  # the absent are last
        absent = ~present.gather(1, order)[..., None]
        rewards = batch.rewards[groups.rows.gather(1, order)]
        # What is absent is finite: the gradient of logcumsumexp would be NaN where nothing is summed up.
        filled = rewards.masked_fill(absent, torch.finfo(rewards.dtype).min)
        filled = filled - filled.detach().amax(dim=1, keepdim=True)  # its gradient is less exact the larger the rewards
        remaining = filled.flip(1).logcumsumexp(dim=1).flip(1)
        losses = (remaining - filled).masked_fill(absent, 0.0)
        return mean_over_items(losses[:, : self.top_k].sum(dim=1), groups.weights(batch))


class ListNet(Loss):
    """ListNet: fits the softmax of the rewards of a prompt's answers to the softmax of their labels or ranks.

    Formula: −Σ_i p_i·log softmax(r)_i, with p = softmax(y/τ)

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``groups`` | [N] | a group without any y counts with a loss of 0 |
    | ``ranks`` | [N] | for ``target="ranks"``: y is the negative rank; answers with NaN are left out |
    | ``labels`` | [N, 1] | for ``target="labels"``: y; answers with NaN are left out |
    | ``weights`` | [N] | optional, a group has its first row's |

    Args:
        target: Where y comes from. Ratings give both; ranks do not keep by how much one answer is better than the next.
        temperature: τ of the labels or ranks; the smaller, the more p concentrates on the best answer.

    Raises:
        SpecError: ``temperature`` is not positive and finite; with labels, the data does not have exactly one attribute.
        DataError: When called: the batch has no ranks or not one label per row.

    Source: ListNet, Cao et al. 2007; ``ListNetLoss`` of sentence-transformers.

    >>> batch = RewardBatch.of([[0.0]] * 3, ranks=[2.0, 0.0, 1.0])
    >>> round(ListNet()(batch).exp().item(), 4)
    3.0
    """

    name = "listnet"
    needs = frozenset({"ranks"})
    mean_over = "groups"

    def __init__(self, *, target: Literal["ranks", "labels"] = "ranks", temperature: float = 1.0) -> None:
        if target not in ("ranks", "labels"):
            raise SpecError(f"listnet needs the target 'ranks' or 'labels', not {target!r}.")
        self.target = target
        check_finite(self.name, temperature=temperature)
        self.temperature = temperature
        self.needs = frozenset({target})  # type: ignore[misc]  # the class has what the default needs

    def heads(self, attributes: Sequence[str]) -> Heads:
        """One output, ``reward``."""
        if self.target == "labels":
            check_one_attribute(self.name, attributes)
        return Heads()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over groups and heads."""
        groups = Groups.of(batch.groups)
        targets, present = self._targets(batch, groups)
        probabilities = _log_softmax((targets / self.temperature)[..., None], present).exp()
        losses = -(probabilities * _log_softmax(batch.rewards[groups.rows], present)).sum(dim=1)
        return mean_over_items(losses, groups.weights(batch))

    def _targets(self, batch: RewardBatch, groups: Groups) -> tuple[Tensor, Tensor]:
        if self.target == "ranks":
            ranks, present = _ranks(batch, groups, self.name)
            return -ranks, present
        if batch.labels is None or batch.labels.shape[1] != 1:
            raise DataError("The loss 'listnet' with target='labels' needs exactly one label per row.")
        return _known(batch.labels[:, 0], groups)


class InfoNce(Loss):
    """InfoNCE: classifies which of a prompt's answers is the best.

    Formula: −log softmax(r/τ)_best

    | input | shape | |
    |---|---|---|
    | ``rewards`` | [N, heads] | |
    | ``groups`` | [N] | a group without a best answer has a loss of 0 |
    | ``ranks`` | [N] | 0 for the best, of several of which the mean is taken; answers with NaN are left out |
    | ``weights`` | [N] | optional, a group has its first row's |

    Args:
        temperature: τ of the rewards; the smaller, the sharper the softmax.

    Raises:
        SpecError: ``temperature`` is not positive and finite.
        DataError: When called: the batch has no ranks.

    Source: arXiv 1807.03748; ms-swift and sentence-transformers for rerankers.

    >>> batch = RewardBatch.of([[0.0]] * 3, ranks=[1.0, 0.0, 1.0])
    >>> round(InfoNce()(batch).exp().item(), 4)
    3.0
    """

    name = "info-nce"
    needs = frozenset({"ranks"})
    mean_over = "groups"

    def __init__(self, *, temperature: float = 1.0) -> None:
        check_finite(self.name, temperature=temperature)
        self.temperature = temperature

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over groups and heads."""
        groups = Groups.of(batch.groups)
        ranks, present = _ranks(batch, groups, self.name)
        best = present & (ranks == 0)
        logs = _log_softmax(batch.rewards[groups.rows] / self.temperature, present)
        losses = -logs.masked_fill(~best[..., None], 0.0).sum(dim=1) / best.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_over_items(losses, groups.weights(batch))


def _ranks(batch: RewardBatch, groups: Groups, loss: str) -> tuple[Tensor, Tensor]:
    """The ranks [G, longest], 0 where unknown; and bool of that shape, which are known."""
    if batch.ranks is None:
        raise DataError(f"The loss {loss!r} needs ranks, and the data gives no order of its answers.")
    return _known(batch.ranks, groups)


def _known(values: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    table = values[groups.rows]
    known = groups.present & ~table.isnan()
    return table.masked_fill(~known, 0.0), known


def _log_softmax(values: Tensor, present: Tensor) -> Tensor:
    """log softmax of values [G, longest, heads] over the present [G, longest] of each group; 0 for the others."""
    absent = ~present[..., None]
    left_out = absent & present.any(dim=1)[:, None, None]  # not in an empty group, where it would be NaN
    return values.masked_fill(left_out, -math.inf).log_softmax(dim=1).masked_fill(absent, 0.0)
