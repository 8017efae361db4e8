"""``rm-plugins judge-data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.job_options import check_separate, map_option, progress_bar
from rm_plugins.cli.printed import say
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.data.mapping import RowMapping
    from rm_plugins.jobs.judge_questions import JudgeForm


@click.command("judge-data", cls=Command, resuming="Nothing was written; run the same command again to start over.")
@click.argument("file")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder for train.jsonl and test.jsonl."
)
@click.option(
    "--form",
    type=click.Choice(["pairwise", "pointwise"]),
    default="pairwise",
    show_default=True,
    help="pairwise: which of two answers is better, in both orders. pointwise: is a labelled answer good.",
)
@click.option(
    "--template", help="The template of the questions: a name, a Jinja file, or Jinja; by default pairwise or pointwise."
)
@click.option(
    "--explain/--no-explain",
    "explains",
    default=True,
    show_default=True,
    help="Whether the judge explains its verdict on a pair first, as with `explain` of the comparer judge.",
)
@click.option("--criteria", help="The criteria to judge by, in place of each row's column criteria.")
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the prompts whose questions go to test.jsonl. It depends on the prompt's text only.",
)
@click.option(
    "--ties",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    show_default=True,
    help="Leave out equally good answers, or ask about them, with a third verdict.",
)
@click.option("--max-pairs", type=click.IntRange(min=1), help="Most pairs of a row; by default all that it compares.")
@click.option("--with-completion", is_flag=True, help="Add the column completion, the verdict alone, for supervised training.")
@click.option("--split", default="train", show_default=True, help="The split, if FILE is a dataset.")
@map_option
@click.option("--overwrite", is_flag=True, help="Replace the output.")
def command(
    file: str,
    output: Path,
    form: JudgeForm,
    template: str | None,
    explains: bool,
    criteria: str | None,
    held_out: float,
    ties: str,
    max_pairs: int | None,
    with_completion: bool,
    split: str,
    mapping: RowMapping | None,
    overwrite: bool,
) -> None:
    """Write questions to train a judge on, from the judged rows of FILE.

    FILE is as for `rm-plugins score`, with rows that `rm-plugins data check` accepts. Each pair gives two questions, one in each order.
    The output has the columns `prompt` (messages), `verdict` (the right answer), `pair` and `order`, for `trl grpo` with the reward
    `verdict`. The two questions of a pair follow each other; `--shuffle_dataset false` keeps them in one batch.
    """
    from rm_plugins.data.row_files import check_source, read_rows
    from rm_plugins.jobs.judge_data import HELD_OUT, TRAIN, check_replaceable, write_questions
    from rm_plugins.jobs.judge_questions import JudgeQuestions

    if output.resolve() in Path(file).resolve().parents:
        raise click.UsageError(f"FILE {file} is in the output folder {str(output)!r}, which is replaced. Name another output.")
    check_separate([("FILE", file)], [("the output", output)])
    check_replaceable(output, overwrite=overwrite)
    check_source(file)
    questions = JudgeQuestions(
        form,
        template=template,
        explains=explains,
        criteria=criteria,
        keeps_ties=ties == "keep",
        max_pairs=max_pairs,
        with_completion=with_completion,
    )
    with progress_bar() as bar:
        task = bar.add_task("Writing", total=None)

        def advance(number: int) -> None:
            if number % 1000 == 0:
                bar.update(task, completed=number)

        rows = read_rows(file, split, mapping=mapping)
        written = write_questions(
            rows, questions, output, source=file, held_out=held_out, overwrite=overwrite, progress=advance
        )
    verdicts = ", ".join(f"{verdict} {count:,}" for verdict, count in sorted(written.verdicts.items()))
    say(
        f"Wrote {counted(written.train, 'question')} to {output / TRAIN} and {written.held_out:,} of held-out prompts to "
        f"{output / HELD_OUT}. Right verdicts: {verdicts}."
    )
    if left_out := ", ".join(f"{count:,} {what}" for what, count in written.left_out.items() if count):
        say(f"Left out: {left_out}.")
