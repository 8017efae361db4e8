"""Language models that compare answers: two at a time, or a ranking of several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from rm_plugins.comparisons.comparer import Comparer, Comparison, Verdicts
from rm_plugins.comparisons.listwise import covering_lists, ranking_in
from rm_plugins.comparisons.pair_template import shared_columns
from rm_plugins.component import LocalPath
from rm_plugins.errors import DataError, SpecError
from rm_plugins.judges import COSTS, Judge, Question, Reply, Template, cost_of
from rm_plugins.replies import LabelScale
from rm_plugins.samples import Message, Sample

_FIRST, _SECOND, _TIE = "A", "B", "tie"
_VALUES = {_FIRST: 1.0, _SECOND: 0.0, _TIE: 0.5}
_MOST_IN_A_LIST = 20


class JudgeComparer(Comparer):
    """A language model that is asked which of two answers is better, or to rank several.

    For two answers, the verdict is the probability of the label ``A`` for the first answer, where the judge gives label probabilities, and
    a decision where not. With `explain`, the judge writes an explanation first, and the verdict is always a decision.

    With `k`, one question asks for a ranking of up to `k` answers, which is the verdict on all of their pairs. Pairs in the other order are
    asked in another question. A schedule with many pairs per answer, such as ``all-pairs``, makes long lists.

    An answer without a verdict, with an unknown one, with several different ones, or with one in the reasoning only, fails. A question that
    is refused or cut off fails too.

    Args:
        judge: The judge.
        k: The most answers of a question, from 3 to 20; 2 if unset.
        explain: Whether the judge explains its verdict before it gives it; for two answers.
        tie: Whether the judge may answer that two answers are equally good.
        template: A template of the question: a name (``pairwise``, ``listwise``), a file, or Jinja. It knows ``prompt``, the columns that
            the compared rows share, ``instruction``, and ``first`` and ``second``, or ``responses`` with `k`.
        system: A system message before the question.
        min_label_mass: The smallest total probability of the labels; below it, the judge did not answer the question.

    Raises:
        SpecError: A value is out of range, or the template is not valid.
    """

    name: ClassVar[str] = "judge"
    metrics: ClassVar[tuple[str, ...]] = COSTS

    def __init__(
        self,
        *,
        judge: Judge,
        k: int | None = None,
        explain: bool = False,
        tie: bool = True,
        template: Annotated[str, LocalPath] | None = None,
        system: str | None = None,
        min_label_mass: float = 0.5,
    ) -> None:
        if k is not None and not 3 <= k <= _MOST_IN_A_LIST:
            raise SpecError(f"must be from 3 to {_MOST_IN_A_LIST}, not {k}; leave it out to compare two answers.", key="k")
        if k is not None and explain:
            raise SpecError("is for two answers: a ranking may be explained anyway.", key="explain")
        self.labels = (_FIRST, _SECOND, _TIE) if tie else (_FIRST, _SECOND)
        self._scale = LabelScale({label: _VALUES[label] for label in self.labels}, min_label_mass)
        self.judge = judge
        self.k = k
        self.explain = explain
        self.tie = tie
        self.system = system
        self.min_label_mass = min_label_mass
        self.concurrent = judge.concurrent
        answers = ("first", "second") if k is None else ("responses",)
        usual = "pairwise" if k is None else "listwise"
        self.template = Template(template or usual, given=(*answers, "instruction"), needed=answers)
        if lacking := sorted({*answers} - self.template.names):
            raise SpecError(f"the template must use {lacking[0]!r}, or the judge would not see all answers.", key="template")

    @property
    def identity(self) -> dict[str, Any]:
        """Its settings, the text of its template, and the judge's identity."""
        settings = {name: getattr(self, name) for name in ("k", "explain", "tie", "system", "min_label_mass")}
        return {**settings, "template": self.template.source, "judge": self.judge.identity}

    def close(self) -> None:
        """Close the judge."""
        self.judge.close()
        super().close()

    def compare(self, samples: Sequence[Sample], asked: Sequence[Comparison]) -> Verdicts:
        """Ask all questions in one call of the judge."""
        begun = time.monotonic()
        places: dict[tuple[int, int], list[int]] = {}
        for place, each in enumerate(asked):
            places.setdefault((each.first, each.second), []).append(place)
        lists = [list(pair) for pair in places] if self.k is None else covering_lists(asked, self.k)
        probabilities = np.full(len(asked), np.nan)
        errors: dict[int, str] = {}
        questions: dict[int, Question] = {}
        for number, members in enumerate(lists):
            try:
                questions[number] = self.question([samples[member] for member in members])
            except DataError as error:
                errors |= {place: str(error) for pair in _pairs(members) for place in places[pair]}
        replies = self.judge.replies([*questions.values()])
        for number, reply in zip(questions, replies, strict=True):
            shares, reason = self._shares(reply, len(lists[number]))
            for pair, share in zip(_pairs(lists[number]), shares, strict=True):
                probabilities[places[pair]] = share
                if reason:
                    errors |= dict.fromkeys(places[pair], reason)
        return Verdicts(probabilities, errors, cost_of(replies, time.monotonic() - begun))

    def question(self, answers: Sequence[Sample]) -> Question:
        """The question about answers to one prompt, in the order in which they are shown.

        Raises:
            DataError: The template uses a column that the rows lack or do not share, or a sample has no text.
        """
        texts = [answer.completion_text for answer in answers]
        shown: dict[str, Any] = {"responses": texts} if self.k is not None else {"first": texts[0], "second": texts[1]}
        sample = Sample(answers[0].prompt, answers[0].completion, shared_columns(answers))
        text = self.template.render(sample, {**shown, "instruction": self._instruction(len(answers))})
        messages: list[Message] = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return Question(tuple(messages), labels=self.labels if self.k is None and not self.explain else ())

    def _instruction(self, answers: int) -> str:
        if self.k is not None:
            equal = ", and = between equally good ones" if self.tie else ""
            return (
                f"End with a line that has the numbers of all {answers} responses in double brackets, the best first, with > between them"
                f"{equal}, in the form [[NUMBER > NUMBER > ...]]."
            )
        if self.explain:
            marked = [f"[[{label}]]" for label in self.labels]
            return f"Explain your comparison in a few sentences, then end with your verdict: {' or '.join(marked)}."
        return f"Answer with one word and nothing else: {' or '.join(self.labels)}."

    def _shares(self, reply: Reply, answers: int) -> tuple[list[float], str]:
        """The probability that the first of each pair of a list is better, in the order of `_pairs`, or NaN and why there is none."""
        pairs = _pairs(range(answers))
        nothing = [np.nan] * len(pairs)
        if reply.error:
            return nothing, reply.error
        if self.k is None:
            share, error = self._share_of_two(reply)
            return [share], error
        names = [str(number) for number in range(1, answers + 1)]
        ranking, error = ranking_in(reply.text, names)
        if error:
            return nothing, error
        gaps = [ranking[names[second]] - ranking[names[first]] for first, second in pairs]
        if not self.tie and 0 in gaps:
            return nothing, "the ranking has a tie, which was not allowed"
        return [0.5 if gap == 0 else float(gap > 0) for gap in gaps], ""

    def _share_of_two(self, reply: Reply) -> tuple[float, str]:
        if reply.label_probabilities is None or self.explain:
            grade = self._scale.of_text(reply.text)
        else:
            grade = self._scale.of_masses(reply.label_probabilities, reply.text)
        return np.nan if grade.value is None else min(max(grade.value, 0.0), 1.0), grade.error


def _pairs(members: Sequence[int]) -> list[tuple[int, int]]:
    """The questions that a list answers."""
    return [(first, second) for number, first in enumerate(members) for second in members[number + 1 :]]
