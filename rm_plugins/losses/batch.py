"""What a loss sees, and what a loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Loss", "Regularizer", "RewardBatch"]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """The rewards of a batch and how its rows compare.

    Args:
        rewards: float [N, heads], what the model said of each row.
        pairs: int64 [M, 2], the rows of winner and loser of each comparison.
        groups: int64 [N], rows of one group answer one prompt.
        lengths: int64 [N], tokens per row.
        margins: float [M], by how much the winner should win; None where the data has no margins.
    """

    rewards: Tensor
    pairs: Tensor
    groups: Tensor
    lengths: Tensor
    margins: Tensor | None = None

    @property
    def winners(self) -> Tensor:
        """float [M, heads], the rewards of the pairs' winners."""
        return self.rewards[self.pairs[:, 0]]

    @property
    def losers(self) -> Tensor:
        """float [M, heads], the rewards of the pairs' losers."""
        return self.rewards[self.pairs[:, 1]]


class _Term(ABC):
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, batch: RewardBatch) -> Tensor:
        """The scalar value on a batch, differentiable in ``batch.rewards``."""


class Loss(_Term):
    """A reward-model loss.

    Its constructor's annotated keyword arguments are its schema: ``RewardConfig(loss={"name": NAME, ...})``.
    """


class Regularizer(_Term):
    """A term added to a loss with a weight: ``RewardConfig(regularizers={NAME: WEIGHT})``."""
