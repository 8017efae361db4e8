"""What a loss sees, and what a loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FunctionLoss", "Item", "Loss", "Need", "Regularizer", "RewardBatch"]

Need: TypeAlias = Literal["pairs", "margins", "ranks", "labels", "logprobs"]
"""What a loss may need of its data."""

Item: TypeAlias = Literal["pairs", "comparisons", "groups", "rows", "labels"]
"""What a loss is a mean over: pairs; pairs and ties; groups; rows; or labels that are not missing."""


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """The rewards of N rows (texts that the model scored) and what is known of them.

    Preference pairs, rankings, ratings and unpaired labels all become this, so that one trainer serves every loss. With several
    processes it holds the rows of all of them; with a shared-trunk ensemble a loss is given one member's outputs at a time.

    Args:
        rewards: float [N, heads], what the model said of each row.
        pairs: int64 [M, 2], the rows of winner and loser of each comparison; [0, 2] where the data has none.
        groups: int64 [N], rows of one group answer one prompt.
        lengths: int64 [N], tokens of each row's completion.
        ties: int64 [T, 2], rows that were judged equally good; None where the data has no ties.
        ranks: float [N], 0 for the best of a group, and the larger the worse, NaN where unknown; None where the data has no order.
        labels: float [N, attributes], ratings or 0 and 1, NaN where missing; None where the data has none.
        weights: float [N], the weight of each row; a pair has its winner's, a group its first row's. None for 1.
        margins: float [M], by how much the winner should win; None where the data has no margins.
        logprobs: float [N], mean log-probability of the completion's tokens under the model's language-model head, NaN for rows
            that win no pair; None unless the loss needs them.
        head: float [heads, hidden], the weight of the layer that gives the rewards; None where it is not a single layer.
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
    formula: ClassVar[str] = ""
    """The formula in one line, for `rm-plugins list`."""

    @abstractmethod
    def __call__(self, batch: RewardBatch) -> Tensor:
        """The scalar value on a batch, differentiable in ``batch.rewards``."""


class Loss(_Term):
    """A reward-model loss: a mean over the items of a batch, each times its weight.

    Its constructor's annotated keyword arguments are its schema: ``RewardConfig(loss={"name": NAME, ...})``.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"pairs"})
    """What the data must have; a dataset without is refused."""
    mean_over: ClassVar[Item] = "pairs"
    """What the loss is a mean over, which is how the trainer weighs batches of different sizes."""

    def heads(self, attributes: Sequence[str]) -> Heads:
        """The outputs that the loss trains, given the names of the data's attributes.

        Raises:
            SpecError: The loss cannot be trained on these attributes.
        """
        return Heads()

    def deployed(self, heads: Heads) -> Sequence[int]:
        """The outputs, of one member, that the final model keeps: all of them, unless some serve training only."""
        return range(len(heads.names))

    def state(self) -> Mapping[str, Any]:
        """What the loss remembers from batch to batch, as JSON, saved in checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""


class FunctionLoss(Loss):
    """A function of a batch as a loss over pairs.

    Args:
        function: Takes a `RewardBatch`, returns a scalar.
    """

    def __init__(self, function: Callable[[RewardBatch], Tensor]) -> None:
        self.function = function

    @property
    def name(self) -> str:  # type: ignore[override]  # a registered class has it once and for all
        """The function's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """What the function returns."""
        return self.function(batch)


class Regularizer(_Term):
    """A term added to a loss with a weight: ``RewardConfig(regularizers={NAME: WEIGHT})``."""
