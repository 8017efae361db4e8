"""``rm-plugins score``."""

from __future__ import annotations

import click

from rm_plugins.cli.job_options import ConsoleProgress, output_path, scoring_options
from rm_plugins.cli.printed import echo
from rm_plugins.data.mapping import RowMapping
from rm_plugins.jobs.scored_rows import ScoringJob


@click.command("score")
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Where to write (.jsonl or .parquet); FILE.scored.jsonl by default.")
@click.option(
    "--column",
    default="score",
    show_default=True,
    help="What the new columns are called: NAME, NAMEs, or chosen_NAME and rejected_NAME.",
)
@scoring_options
def command(
    spec: str,
    file: str,
    output: str | None,
    column: str,
    split: str,
    mapping: RowMapping | None,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Score the rows of FILE with SPEC.

    FILE is JSON Lines, JSON, CSV, TSV, Parquet or Arrow, a folder of these, the name of a dataset, or - for standard input. Its rows
    have `prompt` with `completion` or `completions`, `chosen` and `rejected`, or `messages`. The output has the same rows with
    `score`, `scores`, or `chosen_score` and `rejected_score`; null where the reward abstained. A row that has such a column
    already is refused: --column names another. An interrupted run goes on where it stopped.
    """
    out = output_path(file, split, output, "scored")
    job = ScoringJob(spec, file, split, out, overwrite, mapping=mapping, column=column)
    count = job.write(batch_size, ConsoleProgress())
    counts = job.provider.counts
    speed = f" ({job.throughput})" if job.throughput else ""
    echo(
        f"Wrote {count} rows to {out}: {counts['samples']} samples scored now{speed}, {counts['abstained']} abstained.",
        err=True,
    )
