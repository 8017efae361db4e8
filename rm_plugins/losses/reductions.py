"""What losses share: weighted means over items, rows laid out by group, and correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rm_plugins.errors import DataError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from rm_plugins.losses.batch import RewardBatch


def check_finite(loss: str, *, least: float | None = None, **arguments: float) -> None:
    """Refuse arguments of a loss that are not finite or are below `least`; without `least`, they must be positive.

    Raises:
        SpecError: One is out of bounds.
    """
    for name, value in arguments.items():
        if least is None and not 0 < value < math.inf:
            raise SpecError(f"{loss} needs a positive, finite {name}, not {value}.")
        if least is not None and not least <= value < math.inf:
            raise SpecError(f"{loss} needs a finite {name} of at least {least}, not {value}.")


def log_sigmoid(values: Tensor) -> Tensor:
    """log σ of each value, for modules that import no torch."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def mean_over_items(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of each item's loss times its weight, over the number of items and heads; 0 where there are none.

    Args:
        losses: float [items, heads].
        weights: float [items]; None for 1.
    """
    if weights is not None:
        losses = losses * weights[:, None]
    return losses.sum() / max(losses.numel(), 1)


def mean_over_pairs(batch: RewardBatch, losses: Tensor) -> Tensor:
    """The mean over pairs and heads of losses [M, heads], each times the weight of the pair's winner."""
    return mean_over_items(losses, None if batch.weights is None else batch.weights[batch.pairs[:, 0]])


def required_margins(batch: RewardBatch, loss: str) -> Tensor:
    """float [M, 1], the margin of each pair.

    Raises:
        DataError: The data has no margins, which the loss of this name needs.
    """
    if batch.margins is None:
        raise DataError(f"The loss {loss!r} needs the pairs' margins: give the data a column `margin`.")
    return batch.margins[:, None]


@dataclass(frozen=True, slots=True)
class Groups:
    """The rows of each of G groups, in a table as wide as the largest one.

    >>> import torch
    >>> groups = Groups.of(torch.tensor([7, 3, 7, 7]))
    >>> groups.rows.tolist(), groups.present.tolist()
    ([[1, 0, 0], [0, 2, 3]], [[True, False, False], [True, True, True]])
    >>> groups.index.tolist()
    [1, 0, 1, 1]

    Args:
        rows: int64 [G, longest], a group's rows in the batch's order, then zeros.
        present: bool [G, longest], which of these are not padding.
        index: int64 [N], the group of each row.
    """

    rows: Tensor
    present: Tensor
    index: Tensor

    @classmethod
    def of(cls, groups: Tensor) -> Groups:
        """The table of ``RewardBatch.groups``."""
        import torch

        rows = groups.argsort(stable=True)
        _, index, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
        longest = int(sizes.max()) if len(sizes) else 1
        present = torch.arange(longest, device=groups.device) < sizes[:, None]
        return cls(rows.new_zeros(present.shape).masked_scatter(present, rows), present, index)

    def __len__(self) -> int:
        return len(self.rows)

    def weights(self, batch: RewardBatch) -> Tensor | None:
        """float [G], the weight of each group, which is its first row's."""
        return None if batch.weights is None else batch.weights[self.rows[:, 0]]


def pearson(values: Tensor, other: Tensor) -> Tensor:
    """The correlation of each column of values [N, columns] with other [N], at least in float32.

    It is 0, with a gradient of 0, where there are fewer than two rows or either side is constant up to rounding.

    >>> import torch
    >>> pearson(torch.tensor([[-1.0, 5.0], [0.0, 5.0], [1.0, 5.0]]), torch.tensor([30, 20, 10])).round(decimals=4).tolist()
    [-1.0, 0.0]
    """
    import torch

    if len(values) < 2:
        return values.sum(dim=0) * 0
    values = at_least_float32(values)
    deviations, norms, constant = _centred(values)
    other_deviations, other_norms, other_constant = _centred(other.to(values.dtype)[:, None])
    undefined = constant | other_constant
    products = (deviations * other_deviations).sum(dim=0) / (norms * other_norms)
    return torch.where(undefined, torch.zeros_like(products), products)


def _centred(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns minus their means, their norms (1 if constant), and which columns are constant up to rounding."""
    import torch

    deviations = values - values.mean(dim=0)
    squares = deviations.square().sum(dim=0)
    rounding = 8 * torch.finfo(values.dtype).eps * values.detach().abs().amax(dim=0)
    constant = squares <= len(values) * rounding.square()
    return deviations, squares.masked_fill(constant, 1.0).sqrt(), constant


def at_least_float32(values: Tensor) -> Tensor:
    """The values, in float32 if they are in half precision."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32))
