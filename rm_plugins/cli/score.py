"""``rm-plugins score``."""

from __future__ import annotations

import click

from rm_plugins.cli.job_options import ConsoleProgress, output_path, scoring_options
from rm_plugins.jobs.scored_rows import ScoringJob

__all__ = ["command"]


@click.command("score")
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Where to write (.jsonl or .parquet); FILE.scored.jsonl by default.")
@scoring_options
def command(spec: str, file: str, output: str | None, split: str, batch_size: int, overwrite: bool) -> None:
    """Score the rows of FILE with SPEC.

    FILE is JSON Lines or Parquet, the name of a dataset, or - for standard input. Its rows have `prompt` with `completion` or
    `completions`, `chosen` and `rejected`, or `messages`. The output has the same rows with `score`, `scores`, or
    `chosen_score` and `rejected_score`; null where the reward abstained. An interrupted run goes on where it stopped.
    """
    out = output_path(file, output, "scored")
    job = ScoringJob(spec, file, split, out, overwrite)
    count = job.write(batch_size, ConsoleProgress())
    counts = job.provider.counts
    speed = f" ({job.throughput})" if job.throughput else ""
    click.echo(
        f"Wrote {count} rows to {out}: {counts['samples']} samples scored now{speed}, {counts['abstained']} abstained.",
        err=True,
    )
