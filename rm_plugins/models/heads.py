"""The meaning of a reward model's outputs, and how the reward is computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.scores import FloatArray


@dataclass(frozen=True, slots=True)
class Heads:
    """The outputs of a model's head, possibly for several members with a shared backbone.

    A model with K members has K times the outputs of one member; those of the first member come first.

    Args:
        names: The names of one member's outputs: ``reward``, attributes, quantiles, and so on.
        weights: The weight of each output in a member's reward; the reward is the mean over members.
        members: The number of members.

    Raises:
        SpecError: The names are not unique, or there is not one weight per name.

    >>> heads = Heads(("helpful", "correct"), (0.5, 0.5), members=2)
    >>> heads.labels
    ('member/0/helpful', 'member/0/correct', 'member/1/helpful', 'member/1/correct')
    >>> heads.reward_weights
    (0.25, 0.25, 0.25, 0.25)
    """

    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    members: int = 1

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.weights) or self.members < 1:
            raise SpecError(
                "Heads need distinct names with one weight each and at least one member; got the names "
                f"{', '.join(self.names) or 'none'}, {len(self.weights)} weights and {self.members} members."
            )

    def __len__(self) -> int:
        return len(self.names) * self.members

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each output, as in the model's ``id2label``."""
        if self.members == 1:
            return self.names
        alone = len(self.names) == 1
        return tuple(
            f"member/{member}" if alone else f"member/{member}/{name}" for member in range(self.members) for name in self.names
        )

    @property
    def reward_weights(self) -> tuple[float, ...]:
        """The weight of each output in the reward."""
        return tuple(weight / self.members for weight in self.weights) * self.members

    def rewards_of_members(self, outputs: FloatArray) -> FloatArray:
        """The rewards of each member, float64 [members, N], from the model's outputs, [N, outputs]."""
        each = outputs.reshape(len(outputs), self.members, len(self.names))
        rewards: FloatArray = (each @ np.array(self.weights)).T
        return rewards
