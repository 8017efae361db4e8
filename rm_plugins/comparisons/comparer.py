"""The interface of comparers: which of two answers to a prompt is better."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rm_plugins.component import Component
from rm_plugins.constructor_schema import held_by
from rm_plugins.errors import ScoringError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question to a comparer: is the first answer better than the second?

    Args:
        first: The position, in a list of samples, of the answer that is shown first.
        second: The position of the other answer.
    """

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a comparer says of M comparisons.

    Args:
        probabilities: float64 [M], the probability that the first answer is better: 1 or 0 for a decision, 0.5 for a tie, and NaN where
            there is no verdict.
        errors: Why there is no verdict, by position, for comparisons that failed. Comparers that merely abstain give no reason.
        metadata: Facts about the call, each a number, such as ``calls``, the questions that a language model was asked.

    Raises:
        ScoringError: A probability is not between 0 and 1, or a comparison with an error has one.
    """

    probabilities: FloatArray
    errors: Mapping[int, str] = field(default_factory=dict)
    metadata: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        probabilities = np.asarray(self.probabilities, dtype=np.float64)
        if probabilities.ndim != 1:
            raise ScoringError(
                f"Verdicts need one probability per comparison, [M]; got an array of shape {probabilities.shape}."
            )
        wrong = [place for place, value in enumerate(probabilities.tolist()) if value < 0 or value > 1]
        if wrong:
            raise ScoringError(
                f"A verdict is a probability from 0 to 1, or NaN where there is no verdict; comparison {wrong[0]} has "
                f"{probabilities[wrong[0]]:g}."
            )
        decided = [place for place in self.errors if not 0 <= place < len(probabilities) or not np.isnan(probabilities[place])]
        if decided:
            raise ScoringError(f"Comparison {decided[0]} has an error, and also a verdict or no place among the comparisons.")
        object.__setattr__(self, "probabilities", probabilities)

    def __len__(self) -> int:
        return len(self.probabilities)

    def check_answers(self, asked: int, comparer: str) -> None:
        """Refuse verdicts that are not one per question.

        Raises:
            ScoringError: There are more or fewer verdicts than questions.
        """
        if len(self) != asked:
            raise ScoringError(
                f"The comparer {comparer!r} gave {len(self)} verdicts on {asked} comparisons; one each is needed."
            )


class Comparer(Component):
    """Compares answers to a prompt two by two; used as ``comparer: NAME`` or ``comparer: {name: NAME, ...}`` in the provider `comparison`.

    A subclass sets `name` and implements `compare`. Providers that are arguments of its constructor, and kept in attributes of the same
    names, are parts of the reward.
    """

    kind: ClassVar[str] = "comparer"

    metrics: ClassVar[tuple[str, ...]] = ()
    """Entries of `Verdicts.metadata` that trainers log beside the reward."""

    concurrent: bool = False
    """Whether comparing mostly waits instead of computing here; `compare` must then be safe to call in several threads at once."""

    @abstractmethod
    def compare(self, samples: Sequence[Sample], asked: Sequence[Comparison]) -> Verdicts:
        """Answer questions about pairs of answers.

        Args:
            samples: Answers, [N], perhaps to several prompts.
            asked: The questions, [M], at least one. Each is about two answers to the same prompt.

        Returns:
            The verdicts, [M], in the order of `asked`. A comparison that fails is among their errors.

        Raises:
            ScoringError: No comparison can be made, because the comparer itself does not work.
        """

    @property
    def children(self) -> dict[str, Provider]:
        """The providers that it uses, by their path in its spec."""
        children: dict[str, Provider] = held_by(self, Provider)
        return children

    @property
    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on besides the answers, as JSON values, without its children."""
        return {key: value for key, value in super().identity.items() if key not in self.children}

    def close(self) -> None:
        """Free what it holds: connections, processes."""
        for child in self.children.values():
            child.close()
