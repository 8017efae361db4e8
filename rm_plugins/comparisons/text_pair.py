"""Any reward that scores one text with both answers in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from rm_plugins.comparisons.comparer import Comparer, Comparison, Verdicts
from rm_plugins.comparisons.logistic import logistic
from rm_plugins.comparisons.pair_template import PairTemplate, shared_columns
from rm_plugins.errors import DataError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample

_TEMPLATE = "A: {first}\n\nB: {second}"


class TextPair(Comparer):
    """A reward that scores a text with both answers in it, and so says how much better the first one is.

    `template` makes the completion that is scored, under the prompt of the answers, or under a text that `prompt` makes. Text samples are
    scored as texts, and conversations as messages. With ``score: logit``, the probability that the first answer is better is σ(score).

    Args:
        reward: The reward.
        score: ``logit``, any number, positive if the first answer is better; or ``probability``, from 0 to 1.
        template: The scored completion, with ``{first}``, ``{second}`` and perhaps ``{prompt}``.
        prompt: The prompt of the scored completion, perhaps with ``{prompt}``; by default, that of the answers, unchanged.

    Raises:
        SpecError: The template lacks a placeholder.
    """

    name: ClassVar[str] = "text-pair"

    def __init__(
        self,
        *,
        reward: Provider,
        score: Literal["logit", "probability"],
        template: str = _TEMPLATE,
        prompt: str | None = None,
    ) -> None:
        self.reward = reward
        self.score = score
        self.template = PairTemplate(template, needed=("first", "second"))
        self.prompt = None if prompt is None else PairTemplate(prompt, key="prompt")
        self.concurrent = reward.concurrent

    def compare(self, samples: Sequence[Sample], asked: Sequence[Comparison]) -> Verdicts:
        """Score the texts of all comparisons in one call."""
        errors: dict[int, str] = {}
        texts: dict[int, Sample] = {}
        for place, comparison in enumerate(asked):
            try:
                texts[place] = self.sample(samples[comparison.first], samples[comparison.second])
            except DataError as error:
                errors[place] = str(error)
        probabilities = np.full(len(asked), np.nan)
        if texts:
            scores = self.reward.attempt([*texts.values()])
            places = np.array([*texts])
            values = scores.values
            if self.score == "probability":
                wrong = [row for row, value in enumerate(values.tolist()) if value < 0 or value > 1]
                errors |= {
                    int(
                        places[row]
                    ): f"{self.reward.called} gave {values[row]:g}, which is not a probability; if its scores are logits, set "
                    "`score: logit`"
                    for row in wrong
                }
                values = np.where((values < 0) | (values > 1), np.nan, values)
            probabilities[places] = values if self.score == "probability" else logistic(values)
            errors |= {int(places[row]): str(error) for row, error in self.reward.unhandled(scores).items()}
        return Verdicts(probabilities, errors)

    def sample(self, first: Sample, second: Sample) -> Sample:
        """What is scored for two answers.

        Raises:
            DataError: A message has a part that is not text.
        """
        columns = shared_columns([first, second])
        completion = self.template.fill(first, second)
        if self.prompt is None:
            return Sample(first.prompt, completion, columns)
        prompt = self.prompt.fill(first, second)
        return Sample([{"role": "user", "content": prompt}] if first.is_conversational else prompt, completion, columns)
