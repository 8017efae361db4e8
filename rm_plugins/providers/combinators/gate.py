"""A reward that only counts where another one is high enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, score_rows
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class Gate(Combinator):
    """The score of `reward` where that of `gate` is at least `at`; it abstains where `gate` does.

    Only samples that pass the gate are scored by `reward`; `counts["closed"]` counts the others.

    Args:
        gate: The reward that decides.
        reward: The reward where the gate is open.
        at: The gate is open from this score on.
        closed: The score where the gate is closed; None abstains there.
    """

    name: ClassVar[str] = "gate"

    def __init__(self, *, gate: Provider, reward: Provider, at: FiniteFloat = 0.5, closed: FiniteFloat | None = 0.0) -> None:
        self.gate = gate
        self.reward = reward
        self.at = at
        self.closed = closed

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score with the gate, then score what passes it."""
        gate = self.gate.attempt(samples)
        is_open = gate.values >= self.at
        (reward,) = score_rows(samples, [(self.reward, np.flatnonzero(is_open).tolist())])
        is_closed = ~is_open & ~gate.abstained
        self._counted("closed", int(is_closed.sum()))
        values = np.where(is_closed, np.nan if self.closed is None else self.closed, reward.values)
        return self.whole(values, {"gate": (self.gate, gate), "reward": (self.reward, reward)})
