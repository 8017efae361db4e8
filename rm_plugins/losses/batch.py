"""The input of a loss: the rewards of a batch, and what the data says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """The rewards of N rows (texts that the model scored) and what the data says about them.

    Preference pairs, rankings, ratings and unpaired labels are all converted to this, so that one trainer serves every loss. With several
    processes it holds the rows of all of them; for members that share a backbone a loss is given one member's outputs at a time.

    Args:
        rewards: float [N, heads], the model's outputs for each row.
        pairs: int64 [M, 2], the rows of winner and loser of each comparison; [0, 2] where the data has none.
        groups: int64 [N], rows of one group answer one prompt.
        lengths: int64 [N], tokens of each row's completion.
        ties: int64 [T, 2], rows that were judged equally good; None where the data has no ties.
        ranks: float [N], 0 for the best of a group and larger for worse rows, NaN where unknown; None if the data has no order.
        labels: float [N, attributes], ratings or 0 and 1, NaN where missing; None where the data has none.
        weights: float [N], the weight of each row; a pair has its winner's, a group its first row's. None for 1.
        margins: float [M], by how much the winner should win; None where the data has no margins.
        logprobs: float [N], mean log-probability of the completion's tokens under the model's language-model head, NaN for rows
            that win no pair; None unless the loss needs them.
        head: float [heads, hidden], the weight of the layer that gives the rewards; None where it is not a single layer.
        extras: What a loss's own needs (`rm_plugins.losses.Need`) have read, by name: float [N], [M] or [T], one value for each
            row, pair or tie.
    """

    rewards: Tensor
    pairs: Tensor
    groups: Tensor
    lengths: Tensor
    ties: Tensor | None = None
    ranks: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    margins: Tensor | None = None
    logprobs: Tensor | None = None
    head: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rewards: Any, pairs: Any = (), **others: Any) -> RewardBatch:
        """A batch of nested lists, to try a loss out.

        Args:
            rewards: [N, heads].
            pairs: [M, 2].
            others: The other tensors by name; names that are not fields of a batch become its `extras`. By default, all rows
                are one group and every length is 1.
        """
        import torch

        others = {"groups": [0] * len(rewards), "lengths": [1] * len(rewards), **others}
        tensors: dict[str, Any] = {name: torch.as_tensor(values) for name, values in others.items()}
        extras = {name: tensors.pop(name) for name in others if name not in cls.__dataclass_fields__}
        pairs = torch.as_tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return cls(torch.as_tensor(rewards), pairs, **tensors, extras=extras)

    @property
    def winners(self) -> Tensor:
        """float [M, heads], the rewards of the pairs' winners."""
        return self.rewards[self.pairs[:, 0]]

    @property
    def losers(self) -> Tensor:
        """float [M, heads], the rewards of the pairs' losers."""
        return self.rewards[self.pairs[:, 1]]
