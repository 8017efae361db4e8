"""Rewards from a rubric: a judge checks a completion against criteria."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from rm_plugins.component import LocalPath
from rm_plugins.data.row_formats import without_nan
from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError, did_you_mean
from rm_plugins.judges import COSTS, Judge, Question, Reply, Template, cost_of
from rm_plugins.provider import Provider
from rm_plugins.providers.judged.criteria import Criterion, read_criteria
from rm_plugins.providers.judged.criterion_answers import (
    CriterionValue,
    answer_schema,
    instruction_for_one,
    instruction_for_several,
    value_of_one,
    values_of_several,
    verdict_labels,
)
from rm_plugins.providers.judged.weighted_criteria import weighted_score
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

logger = logging.getLogger(__name__)

CRITERION = "criterion"
"""The kind of the parts."""

MOST_PARTS = 64
"""The most different names of criteria in a batch for which there are parts."""

_GIVEN = ("criteria", "criterion", "instruction")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question about some of a row's criteria."""

    row: int
    places: Sequence[int]
    question: Question


class Rubric(Provider):
    """The weighted mean of criteria that a judge checks.

    The judge gives a verdict on each criterion, which is the value of one of its levels (``yes`` is 1 and ``no`` is 0 unless the criterion
    says otherwise). With one criterion per question and a judge that gives label probabilities, the value is the expected one.

    Let w be the weights, v the values, P the criteria that are not negative and Q the negative ones, and W the sum of w over P (over Q if
    there are no others). The score is

        S = (sum over P of w v - sum over Q of w v) / W

    so that it is at most 1 with levels from 0 to 1. A criterion that is `required` and not met gives the lowest possible S; met in part, a
    score in between (`rm_plugins.providers.judged.weighted_criteria.weighted_score`).

    A criterion on which the judge gives no verdict (a refusal, an answer that was cut off, two verdicts, no answer) is missing. It is never
    a number: `missing` says what happens to the sample. ``scores.parts`` has the values of each criterion, with the reasons of missing ones
    as errors; ``scores.details["missing"]`` and ``counts["missing"]`` count them.

    Args:
        judge: The judge.
        criteria: The criteria, each a text or a mapping with ``text``. A mapping may also have a ``name``, a ``weight`` (1 by default),
            ``levels`` (a mapping of verdicts to values, or a list from the worst to the best), and be ``required`` or ``negative``.
        criteria_column: The column with the criteria of each row, as a list of the same form or JSON, instead of `criteria`.
        reference_column: The column with an answer that is known to be good, which is shown to the judge.
        per_question: The most criteria in one question; all of a row's if unset. With 1, label probabilities are used where the judge gives
            them.
        explain: Whether the judge gives its reason for each verdict first; needs more than one criterion per question.
        template: A template of the question: a name (``rubric``, or ``rubric-single`` if `per_question` is 1), a file, or Jinja.
        system: A system message before the question.
        missing: What happens to a sample with a missing criterion: it has no score (``abstain``), it is an error (``raise``, to which
            `on_error` applies), or the criterion is left out (``skip``, except for a required one and if no criterion is left that is
            not negative, in which case it abstains).
        min_label_mass: The smallest total probability of a criterion's levels; below it, the verdict is read from the text.

    Raises:
        SpecError: Keys exclude each other, criteria are empty, doubled or contradict each other, or the template is not valid.
    """

    name: ClassVar[str] = "rubric"
    metrics: ClassVar[tuple[str, ...]] = COSTS

    def __init__(
        self,
        *,
        judge: Judge,
        criteria: Sequence[str | Mapping[str, Any]] | None = None,
        criteria_column: str | None = None,
        reference_column: str | None = None,
        per_question: int | None = None,
        explain: bool = False,
        template: Annotated[str, LocalPath] | None = None,
        system: str | None = None,
        missing: Literal["abstain", "raise", "skip"] = "abstain",
        min_label_mass: float = 0.5,
    ) -> None:
        if (criteria is None) == (criteria_column is None):
            raise SpecError("a rubric needs either 'criteria' or 'criteria_column', and not both.", key="criteria")
        if per_question is not None and per_question < 1:
            raise SpecError(f"must be at least 1, not {per_question}.", key="per_question")
        if explain and per_question == 1:
            raise SpecError("needs more than one criterion per question: one alone is answered with one word.", key="explain")
        if not 0 < min_label_mass <= 1:
            raise SpecError(f"must be a probability above 0, not {min_label_mass}.", key="min_label_mass")
        self.judge = judge
        self.concurrent = judge.concurrent
        try:
            self.criteria = None if criteria is None else read_criteria(list(criteria), "criteria")
        except DataError as error:
            raise SpecError(str(error).removeprefix("criteria"), key="criteria") from error
        self.criteria_column = criteria_column
        self.reference_column = reference_column
        self.per_question = per_question
        self.explain = explain
        self.system = system
        self.missing = missing
        self.min_label_mass = min_label_mass
        usual = "rubric-single" if per_question == 1 else "rubric"
        self.template = Template(template or usual, given=_GIVEN, needed=("completion", "messages"))
        if not self.template.names & {"criteria", "criterion"}:
            raise SpecError("the template must use 'criteria' or 'criterion', or the judge would not see them.", key="template")

    def close(self) -> None:
        """Close the judge."""
        self.judge.close()
        super().close()

    def render(self, sample: Sample) -> str:
        """The questions about a sample, separated by lines."""
        questions = self._questions(0, sample, self._criteria_of(sample))
        return "\n\n---\n\n".join(str(message["content"]) for asked in questions for message in asked.question.messages)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Ask all questions about the batch in one call of the judge."""
        begun = time.monotonic()
        errors: dict[int, RmPluginsError] = {}
        rubrics: dict[int, tuple[Criterion, ...]] = {}
        asked: list[_Asked] = []
        for row, sample in enumerate(samples):
            try:
                criteria = self._criteria_of(sample)
                asked += self._questions(row, sample, criteria)
                rubrics[row] = criteria
            except DataError as error:
                errors[row] = DataError(f"item {row}: {error}", rows=[row])
        replies = self.judge.replies([each.question for each in asked])
        found = {row: [CriterionValue()] * len(criteria) for row, criteria in rubrics.items()}
        for each, reply in zip(asked, replies, strict=True):
            some = [rubrics[each.row][place] for place in each.places]
            for place, value in zip(each.places, self._values(reply, some), strict=True):
                found[each.row][place] = value
        return self._scores(len(samples), rubrics, found, errors, cost_of(replies, time.monotonic() - begun))

    # --- Questions --------------------------------------------------------------------------------------------------------

    def _criteria_of(self, sample: Sample) -> tuple[Criterion, ...]:
        if self.criteria is not None:
            return self.criteria
        column = str(self.criteria_column)
        return read_criteria(_column(sample, column, "the criteria"), f"the column {column!r}")

    def _questions(self, row: int, sample: Sample, criteria: Sequence[Criterion]) -> list[_Asked]:
        given: dict[str, Any] = {}
        if self.reference_column is not None:
            given["reference"] = _column(sample, self.reference_column, "the reference answer")
        size = self.per_question or len(criteria)
        parts = [range(start, min(start + size, len(criteria))) for start in range(0, len(criteria), size)]
        return [_Asked(row, part, self._question(sample, [criteria[place] for place in part], given)) for part in parts]

    def _question(self, sample: Sample, criteria: Sequence[Criterion], given: Mapping[str, Any]) -> Question:
        is_single = self.per_question == 1
        shown = [
            {"number": number, "name": criterion.name, "text": criterion.text, "verdicts": [*criterion.levels]}
            for number, criterion in enumerate(criteria, start=1)
        ]
        instruction = instruction_for_one(criteria[0]) if is_single else instruction_for_several(criteria, self.explain)
        text = self.template.render(sample, {**given, "criteria": shown, "criterion": shown[0], "instruction": instruction})
        messages = ({"role": "user", "content": text},)
        if self.system is not None:
            messages = ({"role": "system", "content": self.system}, *messages)  # type: ignore[assignment]
        if is_single:
            return Question(messages, labels=verdict_labels(criteria[0]))
        return Question(messages, schema=answer_schema(criteria, self.explain))

    def _values(self, reply: Reply, criteria: Sequence[Criterion]) -> list[CriterionValue]:
        if self.per_question == 1:
            return [value_of_one(reply, criteria[0], self.min_label_mass)]
        return values_of_several(reply, criteria)

    # --- Scores -----------------------------------------------------------------------------------------------------------

    def _scores(
        self,
        size: int,
        rubrics: Mapping[int, Sequence[Criterion]],
        found: Mapping[int, Sequence[CriterionValue]],
        errors: dict[int, RmPluginsError],
        cost: Mapping[str, float],
    ) -> Scores:
        values = np.full(size, np.nan)
        counted = np.full(size, np.nan)
        reasons = Counter[str]()
        for row, criteria in rubrics.items():
            missing = {place: value.error for place, value in enumerate(found[row]) if math.isnan(value.value)}
            counted[row] = len(missing)
            reasons.update(missing.values())
            if missing and self.missing == "raise":
                place, reason = next(iter(missing.items()))
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                errors[row] = ScoringError(
                    f"item {row}: there is no verdict on the criterion {_called(criteria[place], place)}{more}: {reason}",
                    rows=[row],
                )
                continue
            values[row] = weighted_score(criteria, [value.value for value in found[row]], skips=self.missing == "skip")
        if reasons:
            self._counted("missing", reasons.total())
            told = "; ".join(f"{times} times: {reason}" for reason, times in reasons.most_common(3))
            logger.warning("%s: %d criteria have no verdict. %s", self.called, reasons.total(), told)
        return Scores(
            values,
            {"missing": counted},
            {**cost, "missing": reasons.total()},
            errors=errors,
            parts=self._parts(size, rubrics, found),
        )

    def _parts(
        self, size: int, rubrics: Mapping[int, Sequence[Criterion]], found: Mapping[int, Sequence[CriterionValue]]
    ) -> dict[str, Scores]:
        """The values by criterion; of criteria in columns, only those with names, because numbers mean different things in each row."""
        values: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        errors: dict[str, dict[int, RmPluginsError]] = {}
        for row, criteria in rubrics.items():
            for place, (criterion, value) in enumerate(zip(criteria, found[row], strict=True)):
                name = criterion.name or (str(place + 1) if self.criteria is not None else "")
                if not name:
                    continue
                values.setdefault(name, np.full(size, np.nan))[row] = value.value
                of_name = errors.setdefault(name, {})
                if value.error:
                    of_name[row] = ScoringError(value.error, rows=[row])
        if self.criteria is None and len(values) > MOST_PARTS:
            return {}
        return {name: Scores(column, errors=errors[name], kind=CRITERION) for name, column in values.items()}


def _called(criterion: Criterion, place: int) -> str:
    return repr(criterion.name) if criterion.name else f"{place + 1}, {criterion.text!r:.80}"


def _column(sample: Sample, column: str, what: str) -> Any:
    value = without_nan(sample.columns.get(column))
    if value is None:
        if column in sample.columns:
            raise DataError(f"the column {column!r}, which holds {what}, is null.")
        raise DataError(f"the row has no column {column!r}, which holds {what}. {did_you_mean(column, sample.columns)}")
    return value
