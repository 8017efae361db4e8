"""What losses on labels share: the labels beside the outputs that predict them, and one output per attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rm_plugins.errors import DataError, SpecError
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor

    from rm_plugins.losses.batch import RewardBatch


def attribute_heads(loss: str, attributes: Sequence[str], weights: Mapping[str, float] | None = None) -> Heads:
    """One output per attribute.

    Args:
        loss: The loss's name, for messages.
        attributes: The names of the data's attributes.
        weights: The weight of each attribute in the reward; None for equal ones that sum to 1.

    Raises:
        SpecError: There are no attributes, or the weights are not those of the attributes.
    """
    if not attributes:
        raise SpecError(f"The loss {loss!r} needs labels, and the data has none.")
    if weights is None:
        return Heads(tuple(attributes), (1 / len(attributes),) * len(attributes))
    if set(weights) != set(attributes):
        raise SpecError(
            f"The loss {loss!r} has weights for {', '.join(weights) or 'nothing'}, but the attributes of the data are "
            f"{', '.join(attributes)}: give each of these a weight (0 leaves it out of the reward)."
        )
    return Heads(tuple(attributes), tuple(float(weights[name]) for name in attributes))


def check_one_attribute(loss: str, attributes: Sequence[str]) -> None:
    """Make sure that there is one attribute.

    Raises:
        SpecError: There is none, or more than one.
    """
    if len(attributes) != 1:
        given = f"has {', '.join(attributes)}: keep one of these columns" if attributes else "has none"
        raise SpecError(f"The loss {loss!r} needs labels on exactly one attribute, and the data {given}.")


def labels_beside(batch: RewardBatch, loss: str) -> tuple[Tensor, Tensor]:
    """The labels in the shape of the rewards, 0 where missing; and bool of that shape, which are present.

    A single column of labels applies to every output; several columns apply to one output each.

    Raises:
        DataError: There are no labels, or not as many as there are outputs.
    """
    if batch.labels is None:
        raise DataError(f"The loss {loss!r} needs labels, and the data has none.")
    outputs, columns = batch.rewards.shape[1], batch.labels.shape[1]
    if columns not in (1, outputs):
        raise DataError(f"The loss {loss!r} has labels on {columns} attributes for a model with {outputs} outputs.")
    labels = batch.labels.expand(-1, outputs)
    missing = labels.isnan()
    return labels.masked_fill(missing, 0.0), ~missing


def zero_to_one(labels: Tensor, loss: str) -> Tensor:
    """The labels, all between 0 and 1.

    Raises:
        DataError: One of them is not.
    """
    outside = labels[(labels < 0) | (labels > 1)]
    if len(outside):
        raise DataError(f"The loss {loss!r} needs labels from 0 to 1, not {outside[0]:g}; for ratings there is 'regression'.")
    return labels


def mean_over_labels(batch: RewardBatch, losses: Tensor, present: Tensor) -> Tensor:
    """The mean over present labels of losses [N, outputs], each times its row's weight; 0 where none is present."""
    losses = losses.masked_fill(~present, 0.0)
    if batch.weights is not None:
        losses = losses * batch.weights[:, None]
    return losses.sum() / present.sum().clamp(min=1)
