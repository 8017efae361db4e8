"""The product of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, numbered, score_side_by_side
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class Product(Combinator):
    """The product of its members' scores; it abstains where one of them does.

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

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The members by their numbers."""
        return {str(number): member for number, member in enumerate(self.members)}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let every member score the batch, and multiply the scores."""
        scored = score_side_by_side([(member, samples) for member in self.members])
        values = np.prod([scores.values for scores in scored], axis=0)
        return self.whole(values, numbered(self.members, scored), kind="member")
