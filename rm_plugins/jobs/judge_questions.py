"""Questions to train a judge on, with the right verdict: the questions that rewards ask a judge in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias

from rm_plugins.comparisons.judge_comparer import JudgeComparer
from rm_plugins.data.compared_pairs import compared_pairs, without_common_beginning
from rm_plugins.data.judgements import Judgement
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.judges import Judge, Question, Reply
from rm_plugins.providers.judged.judged import Judged
from rm_plugins.samples import Message, Sample

JudgeForm: TypeAlias = Literal["pairwise", "pointwise"]

_TIES = "pairs that are ties"


class JudgeQuestions:
    """Makes questions for a judge, with their right verdicts, of judged rows.

    A question about two answers is the one of the comparer ``judge`` (`rm_plugins.comparisons`), and a question about a single answer the
    one of the reward ``judge``. So a judge is trained on what it is asked later.

    Args:
        form: ``pairwise``: two questions for each pair that a row compares, one in each order. ``pointwise``: one question for each
            labelled answer.
        template: The question, as the key `template` of that comparer or reward; by default the template of the form.
        explains: Whether the judge explains its verdict on a pair before it gives it.
        criteria: What counts, in place of the rows' column ``criteria``; the template must use it.
        keeps_ties: Whether equally good answers are asked about; else they are left out.
        max_pairs: The most pairs of a row; which pairs are chosen depends on their texts only.
        with_completion: Whether questions have the right answer, the verdict alone, in the column ``completion``, for supervised training.

    Raises:
        SpecError: The template is not valid, or does not use the criteria that are given.
    """

    verdicts: tuple[str, ...]
    """The possible verdicts: the first answer is better, the second one is, and perhaps neither; or good and bad."""
    left_out: Counter[str]
    """The number of what was left out so far, by what it is."""

    def __init__(
        self,
        form: JudgeForm = "pairwise",
        *,
        template: str | None = None,
        explains: bool = True,
        criteria: str | None = None,
        keeps_ties: bool = False,
        max_pairs: int | None = None,
        with_completion: bool = False,
    ) -> None:
        self.form = form
        self.criteria = criteria
        self.keeps_ties = keeps_ties
        self.max_pairs = max_pairs
        self.with_completion = with_completion
        self.left_out = Counter()
        self._explains = explains and form == "pairwise"
        self._comparer = JudgeComparer(
            judge=_Unasked(), explain=self._explains, tie=keeps_ties, template=template if form == "pairwise" else None
        )
        self._grader = Judged(judge=_Unasked(), template=(template if form == "pointwise" else None) or "pointwise")
        uses = (self._comparer if form == "pairwise" else self._grader).template.names
        if criteria is not None and "criteria" not in uses:
            raise SpecError(
                "the template must use 'criteria', or no question would show the criteria that are given.", key="template"
            )
        self.verdicts = self._comparer.labels if form == "pairwise" else tuple(self._grader.scale.names)  # type: ignore[union-attr]

    @property
    def what_to_do(self) -> str:
        """What to do where no row gave a question; empty where it is not known."""
        if self.form == "pairwise" and self.left_out[_TIES]:
            return "All pairs are ties, which --ties keep asks about."
        return "" if self.form == "pointwise" else "Rows with a single labelled answer are for --form pointwise."

    def of(self, judged: Judgement) -> list[dict[str, Any]]:
        """The questions of a row, as rows of TRL's conversational format of prompts; the two orders of a pair follow each other.

        Raises:
            DataError: The judgement does not fit the form, or the row lacks a column that the template uses.
        """
        return self._about_pairs(judged) if self.form == "pairwise" else self._about_answers(judged)

    def _about_pairs(self, judged: Judgement) -> list[dict[str, Any]]:
        pairs = compared_pairs(judged)
        if not self.keeps_ties:
            self.left_out[_TIES] += sum(pair.better is None for pair in pairs)
            pairs = [pair for pair in pairs if pair.better is not None]
        if self.max_pairs is not None and len(pairs) > self.max_pairs:
            self.left_out["pairs beyond --max-pairs"] += len(pairs) - self.max_pairs
            pairs = sorted(pairs, key=lambda pair: pair.id)[: self.max_pairs]
        rows = []
        for pair in pairs:
            answers = [self._with_criteria(answer) for answer in pair.answers]
            for order in (0, 1):
                question = self._comparer.question(answers if order == 0 else answers[::-1])
                verdict = self.verdicts[2 if pair.better is None else pair.better ^ order]
                rows.append({**self._row(question.messages, verdict), "pair": pair.id, "order": order})
        return rows

    def _about_answers(self, judged: Judgement) -> list[dict[str, Any]]:
        if judged.format != "labelled" or judged.labels is None:
            raise DataError(
                f"the row has the format {judged.format}, which does not judge an answer by itself. --form pointwise needs rows with "
                "'label' or 'labels'; --form pairwise asks which of two answers is better."
            )
        good, bad = self.verdicts
        rows = []
        for sample, (label,) in zip(without_common_beginning(judged.samples), judged.labels, strict=True):
            if label is not None:
                content = self._grader.render(self._with_criteria(sample))
                rows.append(self._row([{"role": "user", "content": content}], good if label else bad))
        return rows

    def _with_criteria(self, sample: Sample) -> Sample:
        if self.criteria is None:
            return sample
        return replace(sample, columns={**sample.columns, "criteria": self.criteria})

    def _row(self, messages: Sequence[Message], verdict: str) -> dict[str, Any]:
        row: dict[str, Any] = {"prompt": list(messages), "verdict": verdict}
        if self.with_completion:
            answer = f"[[{verdict}]]" if self._explains else verdict
            row["completion"] = [{"role": "assistant", "content": answer}]
        return row


class _Unasked(Judge):
    """In place of the judge that will be trained."""

    name: ClassVar[str] = "unasked"

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """There is no judge yet."""
        raise ScoringError("These questions are for training; there is no judge yet that could answer them.")
