"""Questions about criteria, and the values in the judge's answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.judges import Reply, verdict_of
from rm_plugins.providers.judged.criteria import YES_NO, Criterion
from rm_plugins.replies import Labels, LabelScale, after_reasoning, json_in

_LINE = re.compile(r"^[ \t>*_-]*(?:criterion )?(\d{1,4})[ \t*_]*[.):=-]+([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
"""A line such as ``3. yes``."""


@dataclass(frozen=True, slots=True)
class CriterionValue:
    """What a judge says about a criterion.

    Args:
        value: The value of its level; NaN if there is no verdict.
        error: Why there is none; empty if there is one.
    """

    value: float = math.nan
    error: str = ""


def verdict_labels(criterion: Criterion) -> tuple[str, ...]:
    """The levels as labels whose probabilities can be read at the first token of an answer; empty if that cannot tell them apart."""
    with suppress(SpecError):
        return Labels(criterion.levels).names
    return ()


def instruction_for_one(criterion: Criterion) -> str:
    """The sentence that tells the judge the form of its answer about one criterion."""
    return f"Answer with one of these words and nothing else: {', '.join(criterion.levels)}."


def instruction_for_several(criteria: Sequence[Criterion], explain: bool) -> str:
    """The sentences that tell the judge the form of its answer about several criteria."""
    level = next(iter(criteria[0].levels))
    shown: Any = {"reason": "...", "verdict": level} if explain else level
    example = json.dumps({"1": shown}, ensure_ascii=False)
    return (
        f"Answer with a JSON object and nothing else. It has a key for each criterion, its number in quotes, from 1 to {len(criteria)}, "
        f"as in {example}."
    )


def answer_schema(criteria: Sequence[Criterion], explain: bool) -> dict[str, Any]:
    """The JSON schema of an answer about several criteria."""

    def of(criterion: Criterion) -> dict[str, Any]:
        verdict = {"type": "string", "enum": [*criterion.levels]}
        if not explain:
            return verdict
        properties = {"reason": {"type": "string"}, "verdict": verdict}
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    verdicts = {str(number): of(criterion) for number, criterion in enumerate(criteria, start=1)}
    return {"type": "object", "properties": verdicts, "required": [*verdicts], "additionalProperties": False}


def value_of_one(reply: Reply, criterion: Criterion, min_label_mass: float) -> CriterionValue:
    """The value of a criterion from an answer about it alone.

    The expected value under the label probabilities if the labels have enough of them together, else that of the verdict in the text.
    """
    if reply.error:
        return CriterionValue(error=reply.error)
    reason = ""
    if reply.label_probabilities is not None:
        grade = LabelScale(criterion.levels, min_label_mass).of_masses(reply.label_probabilities, reply.text)
        if grade.value is not None:
            return CriterionValue(grade.value)
        reason = grade.error
    verdict = verdict_of(reply, criterion.levels)
    return CriterionValue(error=reason or verdict.error) if verdict.error else CriterionValue(criterion.levels[verdict.label])


def values_of_several(reply: Reply, criteria: Sequence[Criterion]) -> list[CriterionValue]:
    """The values of criteria from one answer: a JSON object by their numbers, or a line such as ``1. yes`` for each."""
    if reply.error:
        return [CriterionValue(error=reply.error)] * len(criteria)
    answer = json_in(reply.text)
    given: Mapping[int, Any]
    if not answer.error:
        given = {int(key): value for key, value in answer.content.items() if key.isdecimal() and len(key) < 5}
        read = _value
    else:
        lines: dict[int, set[str]] = {}
        levels = {name.casefold() for criterion in criteria for name in criterion.levels}
        for number, line in _LINE.findall(after_reasoning(reply.text) or ""):
            verdict = line.strip(" \t*_.`").casefold()
            if verdict in levels or 1 <= int(number) <= len(criteria):  # another line with a number is prose
                lines.setdefault(int(number), set()).add(verdict)
        if not lines:
            return [CriterionValue(error=answer.error)] * len(criteria)
        given, read = lines, _value_in_lines
    if strange := sorted(given.keys() - set(range(1, len(criteria) + 1))):
        # The judge counted in another way, so its other numbers may mean other criteria too.
        error = f"the answer has a verdict on criterion {strange[0]}, but they are numbered from 1 to {len(criteria)}"
        return [CriterionValue(error=error)] * len(criteria)
    return [read(given.get(number), number, criterion) for number, criterion in enumerate(criteria, start=1)]


def _value(found: Any, number: int, criterion: Criterion) -> CriterionValue:
    if isinstance(found, Mapping):
        found = found.get("verdict")
    if isinstance(found, bool) and {*criterion.levels} == {*YES_NO}:
        found = "yes" if found else "no"
    if found is None:
        return CriterionValue(error=f"the answer has no verdict on criterion {number}")
    return _named(str(found), number, criterion)


def _value_in_lines(found: set[str] | None, number: int, criterion: Criterion) -> CriterionValue:
    if not found:
        return CriterionValue(error=f"the answer has no verdict on criterion {number}")
    if len(found) > 1:
        return CriterionValue(error=f"the answer has different verdicts on criterion {number}: {', '.join(sorted(found))}")
    return _named(next(iter(found)), number, criterion)


def _named(said: str, number: int, criterion: Criterion) -> CriterionValue:
    folded = said.strip().casefold()
    for name, value in criterion.levels.items():
        if name.casefold() == folded:
            return CriterionValue(value)
    return CriterionValue(
        error=f"the verdict {said!r:.80} on criterion {number} is not one of {', '.join(map(repr, criterion.levels))}"
    )
