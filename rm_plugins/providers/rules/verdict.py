"""A reward for language models that are trained to be judges: it compares their verdict with the known one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError, did_you_mean
from rm_plugins.groups import groups_of
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import score_rows
from rm_plugins.replies import alike_verdicts, end_of_reasoning, verdict_in, without_reasoning_tags
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores

VERDICT, PAIR, ORDER = "verdict", "pair", "order"
"""The columns that ``rm-plugins judge-data`` writes: the right verdict, the pair of answers, and the order in which they are shown."""

PARTS = ("right", "format", "agreement", "reasoning")

_WEIGHTS = {"right": 1.0, "format": 0.2}
_PIECE_ENDS = re.compile(r"\n|(?<=\]\])|(?<=\})")


class Verdict(Provider):
    """The weighted sum of what is good about a judge's answer, for training the judge.

    The completion is a judge's answer to a question of ``rm-plugins judge-data``, whose columns each row has. The verdict is read like
    that of a judge in use (`rm_plugins.judges.verdict_of`). The parts are numbers from 0 to 1:

    - ``right``: 1 if the verdict is the one in the column ``verdict``, else 0;
    - ``format``: 1 if the answer gives its verdict exactly once, at its end, else 0;
    - ``agreement``: the share of the answers in the batch to the same pair in the other order that prefer the same answer of the pair;
    - ``reasoning``: the score of the text before the verdict, by the reward `reasoning`.

    The completion itself is judged here. So a completion without a verdict (none, several different ones, an unknown one, or one in the
    reasoning only) is not a failure of this reward: all its parts are 0, and its reward is `no_verdict`.

    Args:
        weights: The weight of each part in the sum, by default ``{right: 1.0, format: 0.2}``. A part that is not named is not computed,
            except ``right`` and ``format``.
        no_verdict: The reward of a completion without a verdict.
        labels: The possible verdicts: the first answer is better, the second one is, and, if the data has ties, ``tie``. For
            questions about a single answer, ``[Yes, No]``.
        reasoning: Scores the reasoning, such as ``{provider: length-window, unit: words, low: 20, high: 300, soft: 100}``. A completion
            without any reasoning has an empty text.

    Raises:
        SpecError: A weight is of an unknown part, all are 0, `reasoning` and its weight are not given together, or the labels are not at
            least two different texts.
    """

    name: ClassVar[str] = "verdict"
    metrics: ClassVar[tuple[str, ...]] = ("no_verdict", "first_preferred")

    def __init__(
        self,
        *,
        weights: Mapping[str, FiniteFloat] | None = None,
        no_verdict: FiniteFloat = 0.0,
        labels: Sequence[str] = ("A", "B"),
        reasoning: Provider | None = None,
    ) -> None:
        self.weights = dict(_WEIGHTS if weights is None else weights)
        for part in self.weights:
            if part not in PARTS:
                raise SpecError(f"there is no part {part!r}. {did_you_mean(part, PARTS)}", key=f"weights.{part}")
        if not any(self.weights.values()):
            raise SpecError("all weights are 0, so every reward would be 0; give at least one other weight.", key="weights")
        if ("reasoning" in self.weights) != (reasoning is not None):
            raise SpecError(
                "`reasoning` is a reward that scores the text before the verdict, and `weights.reasoning` is its weight. Give both, or "
                "leave out both.",
                key="reasoning",
            )
        if len(labels) < 2 or alike_verdicts(labels) or len(set(labels)) < len(labels):
            raise SpecError(f"needs at least two different texts, not {list(labels)}.", key="labels")
        if "agreement" in self.weights and len(labels) not in (2, 3):
            raise SpecError(
                f"`agreement` needs two or three labels: first, second, and optionally equally good; there are {len(labels)}.",
                key="labels",
            )
        self.no_verdict = float(no_verdict)
        self.labels = tuple(labels)
        self.reasoning = reasoning
        self.group = PAIR

    @property
    def depends_on_batch(self) -> bool:  # type: ignore[override]  # depends on the weights
        """Whether agreement counts: it needs the answers to the other order of the pair."""
        return "agreement" in self.weights

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Read every verdict, and compare it with the right one and with those of the other order."""
        answers: dict[int, _Answer] = {}
        errors: dict[int, RmPluginsError] = {}
        right, form = (np.full(len(samples), np.nan) for _ in range(2))
        for row, sample in enumerate(samples):
            try:
                expected = self._expected(sample)
                answers[row] = answer = _answer_of(sample.completion_text, self.labels)
            except DataError as error:
                errors[row] = error
                continue
            right[row] = float(answer.label == expected)
            form[row] = float(answer.is_well_formed)
        parts = {"right": Scores(right), "format": Scores(form)}
        if "agreement" in self.weights:
            agreement, lonely = self._agreement(samples, answers)
            errors |= lonely
            parts["agreement"] = Scores(agreement, errors=lonely)
        if self.reasoning is not None:
            scored = self._reasoned(samples, answers, self.reasoning)
            errors |= self.reasoning.unhandled(scored)
            parts["reasoning"] = scored
        values = np.zeros(len(samples))
        for part, weight in self.weights.items():
            values += weight * parts[part].values if weight else 0.0
        silent = [row for row, answer in answers.items() if not answer.label]
        values[silent] = self.no_verdict
        values[list(errors)] = np.nan
        self._counted("no_verdict", len(silent))
        return Scores(values, metadata=self._metadata(answers), errors=errors, parts=parts)

    def _expected(self, sample: Sample) -> str:
        """The right verdict of a sample, which its column has."""
        expected = sample.columns.get(VERDICT)
        if expected is None:
            raise DataError(
                f"There is no column {VERDICT!r} with the right verdict; the sample has {_names(sample)}. `rm-plugins judge-data` writes "
                "it."
            )
        if expected not in self.labels:
            raise DataError(
                f"The column {VERDICT!r} is {expected!r:.80}, which is not one of the labels {', '.join(map(repr, self.labels))}. Set "
                "`labels` to those of the data."
            )
        return str(expected)

    def _agreement(
        self, samples: Sequence[Sample], answers: Mapping[int, _Answer]
    ) -> tuple[FloatArray, dict[int, RmPluginsError]]:
        """The share of the other order's answers that prefer the same, float64 [N], and the errors of rows without such answers."""
        agreement = np.full(len(samples), np.nan)
        errors: dict[int, RmPluginsError] = {}
        orders: dict[int, int] = {}
        for row in answers:
            try:
                orders[row] = _order_of(samples[row])
            except DataError as error:
                errors[row] = error
        known = list(orders)
        for group in groups_of([samples[row] for row in known], PAIR):
            rows = [known[place] for place in group]
            preferred = {row: self._preferred(answers[row].label, orders[row]) for row in rows}
            for order in (0, 1):
                here = [row for row in rows if orders[row] == order]
                there = [preferred[row] for row in rows if orders[row] != order]
                if here and not there:
                    alone = ScoringError(
                        f"`agreement` needs answers to both orders of a pair in one batch, but the pair {samples[here[0]].columns[PAIR]!r} "
                        f"has {len(here)} in the order {order} and 0 in the other one. Keep the order of the file (TRL: --shuffle_dataset "
                        "false) with an even number of prompts per batch, or leave out weights.agreement.",
                        rows=here,
                    )
                    errors |= dict.fromkeys(here, alone)
                for row in here if there else ():
                    agrees = preferred[row] is not None
                    agreement[row] = there.count(preferred[row]) / len(there) if agrees else 0.0
        return agreement, errors

    def _preferred(self, label: str, order: int) -> int | None:
        """Which answer of the pair a verdict prefers, regardless of the order: 0, 1, or 2 for neither; None without a verdict."""
        if not label:
            return None
        place = self.labels.index(label)
        return place if place == 2 else place ^ order

    @staticmethod
    def _reasoned(samples: Sequence[Sample], answers: Mapping[int, _Answer], reasoning: Provider) -> Scores:
        """The scores of the reasonings; 0 without a verdict, as nothing leads to one."""
        rows = [row for row, answer in answers.items() if answer.label]
        texts = {row: Sample(samples[row].prompt, answers[row].reasoning, samples[row].columns) for row in rows}
        batch = [texts.get(row, sample) for row, sample in enumerate(samples)]
        (scored,) = score_rows(batch, [(reasoning, rows)])
        values = scored.values.copy()
        values[[row for row, answer in answers.items() if not answer.label]] = 0.0
        return replace(scored, values=values)

    def _metadata(self, answers: Mapping[int, _Answer]) -> dict[str, float]:
        """The share of answers without a verdict, and of those with one, the share that prefers the answer that is shown first."""
        given = [answer.label for answer in answers.values() if answer.label]
        metadata = {"no_verdict": 1 - len(given) / len(answers)} if answers else {}
        chosen = [label for label in given if label in self.labels[:2]]
        return metadata | ({"first_preferred": chosen.count(self.labels[0]) / len(chosen)} if chosen else {})


@dataclass(frozen=True, slots=True)
class _Answer:
    """A judge's answer: its verdict, empty if it has none; whether it is given once and at the end; and the text before it."""

    label: str
    is_well_formed: bool
    reasoning: str


def _answer_of(text: str, labels: Sequence[str]) -> _Answer:
    label = verdict_in(text, labels).label
    if not label:
        return _Answer("", False, "")
    begin = end_of_reasoning(text) or 0
    places = [begin, *(match.end() for match in _PIECE_ENDS.finditer(text, begin)), len(text)]
    pieces = [(start, text[start:stop]) for start, stop in pairwise(places)]
    pieces = [(start, piece) for start, piece in pieces if re.search(r"\w", piece)]
    giving = [(start, piece) for start, piece in pieces if verdict_in(piece, labels).label]
    start, piece = (giving or pieces)[-1]
    start += max(0, piece.rfind("[["), piece.rfind("\\boxed"))
    return _Answer(label, len(giving) < 2 and start >= pieces[-1][0], without_reasoning_tags(text[:start]).strip())


def _order_of(sample: Sample) -> int:
    for name in (PAIR, ORDER):
        if sample.columns.get(name) is None:
            raise DataError(
                f"`agreement` needs the column {name!r}; the sample has {_names(sample)}. `rm-plugins judge-data` writes it."
            )
    order = sample.columns[ORDER]
    if isinstance(order, bool) or order not in (0, 1):
        raise DataError(f"The column {ORDER!r} is {order!r:.80}; 0 or 1 is allowed.")
    return int(order)


def _names(sample: Sample) -> str:
    return ", ".join(map(repr, sample.columns)) or "no columns"
