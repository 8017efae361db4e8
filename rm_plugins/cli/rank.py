"""``rm-plugins rank``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

import rm_plugins as rm
from rm_plugins.cli.scoring_job import ScoredRow, ScoringJob, output_path, scoring_options
from rm_plugins.data import row_samples

__all__ = ["command"]


@click.command("rank")
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Where to write (.jsonl or .parquet); FILE.ranked.jsonl by default.")
@click.option("--best", default=None, type=click.IntRange(min=1), help="Keep only the N best completions of a prompt.")
@scoring_options
def command(spec: str, file: str, output: str | None, best: int | None, split: str, batch_size: int, overwrite: bool) -> None:
    """Order the completions of each prompt in FILE by SPEC, best first.

    A prompt's completions are a list (`completions`), or those of all rows with this prompt. A row of the output has `prompt`,
    `completions` and `scores` in the new order, and `order`, their places in the input; with --best 1 it has `completion` and
    `score`. Completions on which the reward abstained come last.
    """
    out = output_path(file, output, "ranked")
    job = ScoringJob(spec, file, split, out, overwrite)
    count = job.write(lambda rows: _ranked(rows, best), batch_size)
    click.echo(f"Wrote {count} prompts to {out}.", err=True)


def _ranked(rows: Iterable[ScoredRow], best: int | None) -> Iterator[dict[str, Any]]:
    groups: dict[str, tuple[dict[str, Any], list[Any], list[float | None]]] = {}
    for scored in rows:
        samples = row_samples(scored.row).samples
        if not samples:
            continue
        key = json.dumps(samples[0].prompt, sort_keys=True)
        _, completions, scores = groups.setdefault(key, (scored.row, [], []))
        completions += [_as_written(scored.row, sample) for sample in samples]
        scores += scored.scores
    for row, completions, scores in groups.values():
        order = sorted(range(len(scores)), key=lambda place: (scores[place] is None, -(scores[place] or 0.0)))[:best]
        found = {"prompt": row_samples(row).samples[0].prompt}
        if best == 1:
            yield {**found, "completion": completions[order[0]], "score": scores[order[0]], "order": order}
        else:
            ranked = {"completions": [completions[place] for place in order], "scores": [scores[place] for place in order]}
            yield {**found, **ranked, "order": order}


def _as_written(row: dict[str, Any], sample: rm.Sample) -> Any:
    """The completion in the form of the input: a text under a conversational prompt stays a text."""
    written = row.get("completion") if "completion" in row else (row.get("completions") or [None])[0]
    if isinstance(written, str) and not isinstance(sample.completion, str):
        return sample.completion[0]["content"]
    return sample.completion
