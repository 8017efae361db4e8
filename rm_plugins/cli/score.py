"""``rm-plugins score``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.engine_options import engine_options, scored_by
from rm_plugins.cli.job_options import (
    ConsoleProgress,
    check_separate,
    how_to_resume,
    rows_output,
    scoring_options,
    shown_output,
)
from rm_plugins.cli.printed import say
from rm_plugins.cli.processes import shared_by_processes
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.data.mapping import RowMapping
    from rm_plugins.jobs.crew import Crew
    from rm_plugins.jobs.job_engine import JobEngine


@click.command("score", cls=Command, resuming=how_to_resume)
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Output (.jsonl or .parquet), - for standard output; by default FILE.scored.jsonl.")
@click.option(
    "--column",
    default="score",
    show_default=True,
    help="Name of the new columns: NAME, NAMEs, or chosen_NAME and rejected_NAME.",
)
@scoring_options
@shared_by_processes
@engine_options
def command(
    spec: str,
    file: str,
    output: str | None,
    column: str,
    split: str,
    mapping: RowMapping | None,
    batch_size: int,
    overwrite: bool,
    crew: Crew | None,
    engine: JobEngine | None,
) -> None:
    """Score the rows of FILE with SPEC.

    FILE is JSON Lines, JSON, CSV, TSV, Parquet or Arrow, a folder of these, the name of a dataset, or - for standard input. Its rows
    have `prompt` with `completion` or `completions`, `chosen` and `rejected`, or `messages`. The output has the same rows with
    `score`, `scores`, or `chosen_score` and `rejected_score`; null means that the reward abstained. A row that already has such a
    column is an error: choose another name with --column. An interrupted run resumes where it stopped. With --engine, FILE is a file or
    folder that all workers see, and the output of a folder may be a folder.
    """
    if engine is not None:
        if crew is not None:
            raise click.UsageError("--engine shares the work among its own workers. Leave out --processes, or the launcher.")
        settings = {"overwrite": overwrite, "mapping": mapping, "column": column, "batch_size": batch_size}
        say(scored_by(engine, spec=spec, file=file, output=output, split=split, **settings))
        return
    from rm_plugins.jobs.scored_rows import ScoringJob

    with rows_output(file, split, output, "scored") as out:
        check_separate([("FILE", file), ("SPEC", spec)], [("the output", out)])
        job = ScoringJob(spec, file, split, out, overwrite, mapping=mapping, column=column, crew=crew)
        count = job.write(batch_size, ConsoleProgress())
        counts = job.counts
    speed = f" ({job.throughput})" if job.throughput else ""
    say(
        f"Wrote {counted(count, 'row')} to {shown_output(out, output)}: {counted(counts['samples'], 'sample')} scored now{speed}, "
        f"{counts['abstained']} abstained."
    )
