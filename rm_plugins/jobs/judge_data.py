"""Writes training data for a judge from judged rows: questions with the right verdict, in a folder that trainers read as a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from rm_plugins.data.compared_pairs import compared_pairs, is_held_out, without_common_beginning
from rm_plugins.data.judgements import Judgement, judgement
from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError, OutputError, SpecError
from rm_plugins.files import check_output, output_errors, replacing_folder
from rm_plugins.judges.verdict_questions import GoodnessQuestion, PairQuestion
from rm_plugins.samples import Message

JudgeForm: TypeAlias = Literal["pairwise", "pointwise"]

TRAIN, HELD_OUT = "train.jsonl", "test.jsonl"
"""The files of a folder of questions; `datasets.load_dataset` reads them as the splits ``train`` and ``test``."""

_TIES = "pairs that are ties"


class JudgeQuestions:
    """Makes questions for a judge, with their right verdicts, of judged rows.

    Args:
        form: ``pairwise``: two questions for each pair that a row compares, one in each order. ``pointwise``: one question for each
            labelled answer.
        template: The question, as for `rm_plugins.judges.verdict_questions`; by default the one of the form.
        criteria: What counts, as text for the template; by default the row's column ``criteria``, if the template uses it.
        keeps_ties: Whether equally good answers are asked about; else they are left out.
        max_pairs: The most pairs of a row; which pairs are chosen depends on their texts only.
        with_completion: Whether questions have the right answer, the verdict alone, in the column ``completion``, for supervised training.

    Raises:
        SpecError: The template is not valid, or does not use the criteria.
    """

    left_out: Counter[str]
    """The number of what was left out so far, by what it is."""

    def __init__(
        self,
        form: JudgeForm = "pairwise",
        *,
        template: str | None = None,
        criteria: str | None = None,
        keeps_ties: bool = False,
        max_pairs: int | None = None,
        with_completion: bool = False,
    ) -> None:
        self.question = PairQuestion(template or form, ties=keeps_ties) if form == "pairwise" else GoodnessQuestion(template or form)
        if criteria is not None and "criteria" not in self.question.template.names:
            raise SpecError("the template must use 'criteria', or no question would show the criteria that are given.", key="template")
        self.criteria = criteria
        self.keeps_ties = keeps_ties
        self.max_pairs = max_pairs
        self.with_completion = with_completion
        self.left_out = Counter()

    def of(self, judged: Judgement) -> list[dict[str, Any]]:
        """The questions of a row, as rows of TRL's conversational format of prompts; the two orders of a pair follow each other.

        Raises:
            DataError: The judgement does not fit the form, or the row lacks a column that the template uses.
        """
        return self._about_pairs(judged, self.question) if isinstance(self.question, PairQuestion) else self._about_answers(judged)

    def _about_pairs(self, judged: Judgement, question: PairQuestion) -> list[dict[str, Any]]:
        pairs = compared_pairs(judged)
        if not self.keeps_ties:
            self.left_out[_TIES] += sum(pair.better is None for pair in pairs)
            pairs = [pair for pair in pairs if pair.better is not None]
        if self.max_pairs is not None and len(pairs) > self.max_pairs:
            self.left_out["pairs beyond --max-pairs"] += len(pairs) - self.max_pairs
            pairs = sorted(pairs, key=lambda pair: pair.id)[: self.max_pairs]
        rows = []
        for pair in pairs:
            for order in (0, 1):
                messages = question.messages(pair.answers[order], pair.answers[1 - order], self.criteria)
                verdict = question.verdicts[2 if pair.better is None else pair.better ^ order]
                rows.append({**self._row(messages, verdict), "pair": pair.id, "order": order})
        return rows

    def _about_answers(self, judged: Judgement) -> list[dict[str, Any]]:
        question = self.question
        assert isinstance(question, GoodnessQuestion)
        if judged.format != "labelled" or judged.labels is None:
            raise DataError(
                f"the row has the format {judged.format}, which does not judge an answer by itself. --form pointwise needs rows with 'label' "
                "or 'labels'; --form pairwise asks which of two answers is better."
            )
        good, bad = question.verdicts
        return [
            self._row(question.messages(sample, self.criteria), good if label else bad)
            for sample, (label,) in zip(without_common_beginning(judged.samples), judged.labels, strict=True)
            if label is not None
        ]

    def _row(self, messages: tuple[Message, ...], verdict: str) -> dict[str, Any]:
        row: dict[str, Any] = {"prompt": list(messages), "verdict": verdict}
        if self.with_completion:
            row["completion"] = [{"role": "assistant", "content": self.question.answer(verdict)}]
        return row


@dataclass(frozen=True, slots=True)
class WrittenQuestions:
    """What `write_questions` has written.

    Args:
        train: The number of questions in the file ``train.jsonl``.
        held_out: The number of questions in the file ``test.jsonl``, which does not exist if there are none.
        left_out: The number of what was left out, by its description.
        verdicts: The number of questions by their right verdict.
    """

    train: int
    held_out: int
    left_out: Mapping[str, int]
    verdicts: Mapping[str, int]


def write_questions(
    rows: Iterable[Mapping[str, Any]],
    questions: JudgeQuestions,
    out: Path,
    *,
    source: str,
    held_out: float = 0.1,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> WrittenQuestions:
    """Write the questions of judged rows into a folder, whole or not at all; each row is written before the next one is read.

    The two orders of a pair follow each other. All rows of a prompt are on one side of the split, which depends on the text of the
    prompt only.

    Args:
        rows: The judged rows.
        questions: Makes the questions.
        out: The folder to write.
        source: What messages call the origin of the rows.
        held_out: The expected share of the prompts whose questions are held out.
        overwrite: Whether a folder of questions may be replaced.
        progress: Called with the number of rows that were read, one row after the other.

    Raises:
        DataError: A row is not judged or has no question of this form (the message names it), or no row gives a question.
        OutputError: The folder exists, has other files than questions, or cannot be written.
    """
    check_replaceable(out, overwrite=overwrite)
    numbers, verdicts, without = {TRAIN: 0, HELD_OUT: 0}, Counter[str](), 0
    with replacing_folder(out) as folder, ExitStack() as files:
        opened: dict[str, IO[str]] = {}
        for number, row in enumerate(rows, start=1):
            try:
                judged = judgement(row)
                asked = questions.of(judged)
            except DataError as error:
                raise DataError(f"{source}, row {number}: {error}") from error
            without += not asked
            side = HELD_OUT if asked and is_held_out(judged.samples, held_out) else TRAIN
            with output_errors(out):
                if asked and side not in opened:
                    opened[side] = files.enter_context((folder / side).open("w", encoding="utf-8"))
                for question in asked:
                    opened[side].write(json_line(question))
            numbers[side] += len(asked)
            verdicts.update(question["verdict"] for question in asked)
            if progress is not None:
                progress(number)
        if not sum(numbers.values()):
            raise DataError(_no_questions(source, questions, without))
        if not numbers[TRAIN]:
            raise DataError(
                f"{source} has questions of held-out prompts only, so there is nothing to train on. Lower the share of --held-out, which is "
                f"{held_out:g}."
            )
    left_out = {**questions.left_out, "rows without a question": without}
    return WrittenQuestions(numbers[TRAIN], numbers[HELD_OUT], left_out, verdicts)


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that a folder of questions can be written.

    Raises:
        DataError: The folder exists and `overwrite` is not set.
        OutputError: It has other files than questions, or cannot be written.
    """
    check_output(out, is_folder=True)
    with output_errors(out):
        files = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not files:
        return
    if others := [name for name in files if name not in (TRAIN, HELD_OUT)]:
        raise OutputError(f"{out} has other files than questions for a judge, such as {others[0]}, so it is not replaced. Name another folder.")
    if not overwrite:
        raise DataError(f"{out} exists already. Name another folder with -o, or replace it with --overwrite.")


def _no_questions(source: str, questions: JudgeQuestions, rows: int) -> str:
    if not rows:
        return f"{source} has no rows."
    ties = " All pairs are ties, which --ties keep asks about." if questions.left_out[_TIES] else ""
    return (
        f"No row of {source} gives a question: {rows} rows compare no two different answers.{ties} Rows with a single labelled answer are "
        "for --form pointwise."
    )
