"""Writes training data for a judge from judged rows: questions with the right verdict, in a folder that trainers read as a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rm_plugins.data.compared_pairs import is_held_out
from rm_plugins.data.judgements import judgement
from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import check_output, output_errors, replacing_folder
from rm_plugins.jobs.judge_questions import JudgeQuestions

TRAIN, HELD_OUT = "train.jsonl", "test.jsonl"
"""The files of a folder of questions; `datasets.load_dataset` reads them as the splits ``train`` and ``test``."""


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
        held_out: The expected share of the prompts whose questions are held out, from 0 to 1.
        overwrite: Whether a folder of questions may be replaced.
        progress: Called with the number of rows that were read, one row after the other.

    Raises:
        DataError: The share is out of range, a row is not judged or has no question of this form (the message names it), or no row gives
            a question.
        OutputError: The folder exists, has other files than questions, or cannot be written.
    """
    if not 0 <= held_out <= 1:
        raise DataError(f"--held-out must be a share of the prompts, from 0 to 1, not {held_out:g}.")
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
                f"{source} has questions of held-out prompts only, so there is nothing to train on. Lower the share of --held-out, now "
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
        raise OutputError(
            f"{out} has other files than questions for a judge, such as {others[0]}, so it is not replaced. Name another folder."
        )
    if not overwrite:
        raise DataError(f"{out} exists already. Name another folder with -o, or replace it with --overwrite.")


def _no_questions(source: str, questions: JudgeQuestions, rows: int) -> str:
    if not rows:
        return f"{source} has no rows."
    return f"No row of {source} gives a question: no two different answers are compared in {rows} rows. {questions.what_to_do}".rstrip()
