"""The samples of a request: which of them the reward takes, and how several replicas share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from rm_plugins.errors import RmPluginsError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, joined
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.served_reward import HostedReward

_COMPLETIONS_TOGETHER = 16
"""Completions of a prompt that one replica scores, because each replica computes the prompt again."""


@dataclass(frozen=True, slots=True)
class Work:
    """The samples of a request.

    Args:
        samples: The samples.
        name: The name of the request in the log.
        reward: The reward that they were checked for.
        sizes: The sizes of the valid samples, by row.
        refused: The errors of the others, by row.
    """

    samples: Sequence[Sample]
    name: str
    reward: HostedReward
    sizes: dict[int, int] = field(default_factory=dict)
    refused: dict[int, RmPluginsError] = field(default_factory=dict)

    @property
    def valid(self) -> list[Sample]:
        """The valid samples."""
        return [self.samples[row] for row in self.sizes]

    @property
    def size(self) -> int:
        """The size of all valid samples."""
        return sum(self.sizes.values())

    @property
    def refusal(self) -> Problem:
        """The problem of a request without a valid sample."""
        row = min(self.refused)
        return Problem("invalid", f"item {row}: {self.refused[row]}")

    def completed(self, scores: Scores) -> Scores:
        """The scores of the valid samples, with the errors of the others."""
        size = len(self.samples)
        return joined([scores.scattered([*self.sizes], size), Scores(np.full(size, np.nan), errors=self.refused)])

    def divided(self) -> list[Work]:
        """The valid samples in parts of about equal size, at most one per replica; in order, and up to 16 completions of a prompt together.

        There is one part if the score of a sample may depend on others.
        """
        replicas = len(self.reward.replicas)
        if replicas == 1 or not self.reward.facts.is_merged:
            return [self]
        parts: dict[int, dict[int, int]] = {}
        before, total = 0, self.size
        for rows in self._of_one_prompt():
            sizes = {row: self.sizes[row] for row in rows}
            middle = before + sum(sizes.values()) / 2
            parts.setdefault(int(replicas * middle / total), {}).update(sizes)
            before += sum(sizes.values())
        if len(parts) == 1:
            return [self]
        return [
            Work([self.samples[row] for row in part], self.name, self.reward, dict(enumerate(part.values())))
            for part in parts.values()
        ]

    def _of_one_prompt(self) -> Iterator[Sequence[int]]:
        """Valid rows that follow each other and have the same prompt; where they are many, some of them."""
        for _, rows in groupby(self.sizes, lambda row: self.samples[row].prompt or row):
            same = list(rows)
            for start in range(0, len(same), _COMPLETIONS_TOGETHER):
                yield same[start : start + _COMPLETIONS_TOGETHER]

    def together(self, scores: Sequence[Scores]) -> Scores:
        """The scores of all samples from those of the parts, each of which has the scores of its samples."""
        places = np.cumsum([0, *(len(part.values) for part in scores)])
        size = int(places[-1])
        return self.completed(
            joined(
                [
                    part.scattered(range(start, stop), size)
                    for part, start, stop in zip(scores, places, places[1:], strict=False)
                ]
            )
        )
