"""Rewards multiplied with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, part_details, score_side_by_side, summed_work
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

__all__ = ["Product"]


class Product(Combinator):
    """The product of its members; where one abstains, it does.

    Args:
        members: Any providers.

    Raises:
        SpecError: There is no member.
    """

    name: ClassVar[str] = "product"

    def __init__(self, *, members: Sequence[Provider]) -> None:
        if not members:
            raise SpecError("a product needs at least one member.", key="members")
        self.members = list(members)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Have every member score the batch, and multiply."""
        found = score_side_by_side([(member, samples) for member in self.members])
        details = part_details({f"member/{number}": scores for number, scores in enumerate(found)})
        return Scores(np.prod([scores.values for scores in found], axis=0), details, summed_work(found))
