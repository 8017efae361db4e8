"""A reward that only counts where another one is high enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, score_rows
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

logger = logging.getLogger(__name__)


class Gate(Combinator):
    """The score of `reward` where that of `gate` is at least `at`; it abstains where `gate` does.

    Only samples that pass the gate are scored by `reward`; `counts["closed"]` counts the others.

    `closed` should be below every score of `reward`: a policy learns to close the gate where that pays more. If the spec has no
    `closed` (in Python: if it is 0.0), the first score of `reward` below it is logged as a warning. A value that the spec sets is taken
    as intended.

    Args:
        gate: The reward that decides.
        reward: The reward where the gate is open.
        at: The gate is open from this score on.
        closed: The score where the gate is closed, below all scores of `reward`; None abstains there.
    """

    name: ClassVar[str] = "gate"

    def __init__(self, *, gate: Provider, reward: Provider, at: FiniteFloat = 0.5, closed: FiniteFloat | None = 0.0) -> None:
        self.gate = gate
        self.reward = reward
        self.at = at
        self.closed = closed
        self._warned = False

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The gate, and the reward that it opens."""
        return {"gate": self.gate, "reward": self.reward}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score with the gate, then score what passes it."""
        gate = self.gate.attempt(samples)
        is_open = gate.values >= self.at
        (reward,) = score_rows(samples, [(self.reward, np.flatnonzero(is_open).tolist())])
        is_closed = ~is_open & ~gate.abstained
        self._counted("closed", int(is_closed.sum()))
        self._warn_if_closing_pays(reward)
        values = np.where(is_closed, np.nan if self.closed is None else self.closed, reward.values)
        return self.whole(values, {"gate": (self.gate, gate), "reward": (self.reward, reward)})

    def _warn_if_closing_pays(self, reward: Scores) -> None:
        """Warn once if a sample that passed the gate scored less than a closed gate does by default."""
        is_default = self.closed == 0.0 if self.spec is None else "closed" not in self.spec
        scored = reward.values[~reward.abstained]
        if not is_default or self.closed is None or scored.size == 0 or scored.min() >= self.closed:
            return
        with self.one_thread:
            warned, self._warned = self._warned, True
        if not warned:
            logger.warning(
                "The provider %s: a sample that passed the gate scored %.4g, less than the %g of samples that did not (`closed`, not "
                "set). A policy can therefore raise its reward by closing the gate. Set `closed` below the lowest score of `reward`, or "
                "to null to abstain; `closed: %g` in the spec keeps the value without this warning.",
                self.called,
                scored.min(),
                self.closed,
                self.closed,
            )
