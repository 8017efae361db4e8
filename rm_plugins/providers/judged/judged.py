"""Rewards from a judge's grade of a completion."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from rm_plugins.component import LocalPath
from rm_plugins.errors import DataError, RmPluginsError, ScoringError
from rm_plugins.judges import COSTS, Judge, Question, Reply, Template, cost_of
from rm_plugins.provider import Provider
from rm_plugins.replies import Grade, LabelScale, answer_scale
from rm_plugins.samples import Message, Sample
from rm_plugins.scores import Scores


class Judged(Provider):
    """A judge's grade of a completion: the expected value over labels, or a number.

    With labels, the score is the sum of the labels' values weighted by their share of the label probabilities at the first token of the
    answer. A judge without label probabilities gives the value of the label that its answer is. With a range, the answer ends with a
    number, after any reasoning. Anything else, such as a refusal, an answer that was cut off, two verdicts or another language, is an error
    of the sample and never a score.

    Args:
        judge: The judge.
        template: A template of the question: a name (``pointwise``), a file, or Jinja. It can use the prompt, the completion, the messages
            and every column of the row; ``{{ instruction }}`` tells the judge the form of the answer.
        system: A system message before the question.
        labels: The value of each label; by default ``{"Yes": 1.0, "No": 0.0}`` (YAML needs the quotes) unless `range` is set. A label
            should be a single token of the judge.
        min_label_mass: The smallest total probability of the labels, by default 0.5. Refused beside `range`.
        range: The lowest and the highest number that the judge may answer.
        pattern: A regular expression with one group, the number. By default the last line must be ``Score: NUMBER``. An answer with
            different numbers fails.

    Raises:
        SpecError: Keys exclude each other, a value is invalid, or the template is not valid.
    """

    name: ClassVar[str] = "judge"
    metrics: ClassVar[tuple[str, ...]] = COSTS

    def __init__(
        self,
        *,
        judge: Judge,
        template: Annotated[str, LocalPath] = "pointwise",
        system: str | None = None,
        labels: Mapping[str, float] | None = None,
        min_label_mass: float | None = None,
        range: Sequence[float] | None = None,
        pattern: str | None = None,
    ) -> None:
        self.judge = judge
        self.concurrent = judge.concurrent
        self.scale = answer_scale(labels=labels, min_label_mass=min_label_mass, range=range, pattern=pattern)
        self.template = Template(template, given=("instruction",), needed=("completion", "messages"))
        self.system = system

    def close(self) -> None:
        """Close the judge."""
        self.judge.close()
        super().close()

    def render(self, sample: Sample) -> str:
        """The question about a sample."""
        return "\n\n".join(str(message["content"]) for message in self._question(sample).messages)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Ask all questions about the batch in one call of the judge."""
        begun = time.monotonic()
        errors: dict[int, RmPluginsError] = {}
        questions: dict[int, Question] = {}
        for row, sample in enumerate(samples):
            try:
                questions[row] = self._question(sample)
            except DataError as error:
                errors[row] = DataError(f"item {row}: {error}", rows=[row])
        replies = self.judge.replies([*questions.values()])
        values = np.full(len(samples), np.nan)
        details: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        for row, reply in zip(questions, replies, strict=True):
            grade = self._grade(reply)
            for name, number in grade.details.items():
                details.setdefault(name, np.full(len(samples), np.nan))[row] = number
            if grade.value is None:
                errors[row] = ScoringError(f"item {row} has no grade: {grade.error}", rows=[row])
            else:
                values[row] = grade.value
        return Scores(values, details, cost_of(replies, time.monotonic() - begun), errors=errors)

    def _question(self, sample: Sample) -> Question:
        text = self.template.render(sample, {"instruction": self.scale.instruction})
        messages: list[Message] = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return Question(tuple(messages), labels=self.scale.names if isinstance(self.scale, LabelScale) else ())

    def _grade(self, reply: Reply) -> Grade:
        if reply.error:
            return Grade(error=reply.error)
        if not isinstance(self.scale, LabelScale):
            return self.scale.of_text(reply.text)
        if reply.label_probabilities is None:
            return self.scale.of_text(reply.text)
        return self.scale.of_masses(reply.label_probabilities, reply.text)
