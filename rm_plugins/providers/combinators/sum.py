"""The weighted sum of rewards; weights may change during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.errors import SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, numbered, score_side_by_side
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.training_progress import Schedule


class Sum(Combinator):
    """The weighted sum of its members.

    Every member scores every sample, so that its scores show among the parts, even while its weight is 0. Where a member with a weight
    other than 0 abstains, the sum does.

    Args:
        members: Any providers.
        weights: One per member, all 1 by default: a number, or ``{from: 0.0, to: 1.0, start: 0.0, end: 1.0}`` (see
            `rm_plugins.training_progress.Schedule`), which changes during training and has its final value outside of one.

    Raises:
        SpecError: There is no member, there is not one weight per member, a schedule is wrong, or all weights are 0.
    """

    name: ClassVar[str] = "sum"

    def __init__(
        self, *, members: Sequence[Provider], weights: Sequence[FiniteFloat | Mapping[str, Any]] | None = None
    ) -> None:
        if not members:
            raise SpecError("a sum needs at least one member.", key="members")
        if weights is not None and len(weights) != len(members):
            raise SpecError(f"there are {len(weights)} weights for {len(members)} members; give one per member.", key="weights")
        self.members = list(members)
        self.weights = [_weight(weight, place) for place, weight in enumerate(weights or [1.0] * len(members))]
        if not any(self.weights):
            raise SpecError("all weights are 0, so every score would be 0; give at least one other weight.", key="weights")

    @property
    def is_scheduled(self) -> bool:
        """Whether a weight changes during training."""
        return any(isinstance(weight, Schedule) for weight in self.weights)

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The members by their numbers."""
        return {str(number): member for number, member in enumerate(self.members)}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let every member score the batch, and add the scores up."""
        scored = score_side_by_side([(member, samples) for member in self.members])
        weights = [weight.value() if isinstance(weight, Schedule) else weight for weight in self.weights]
        silent = np.all([scores.abstained for scores in scored], axis=0)
        values = np.where(silent, np.nan, 0.0)
        for weight, scores in zip(weights, scored, strict=True):
            if weight:
                values += weight * scores.values
        return self.whole(values, numbered(self.members, scored), kind="member", metadata={"weights": weights})


def _weight(weight: float | Mapping[str, Any], place: int) -> float | Schedule:
    if not isinstance(weight, Mapping):
        return float(weight)
    try:
        return Schedule.from_spec(weight)
    except SpecError as error:
        raise error.inside(f"weights[{place}]") from None
