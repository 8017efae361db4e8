"""``rm-plugins evaluate``."""

from __future__ import annotations

import dataclasses
import json

import click

import rm_plugins as rm
from rm_plugins.cli.scoring_job import progress_bar
from rm_plugins.data import read_rows
from rm_plugins.evaluation import evaluate_pairs

__all__ = ["command"]


@click.command("evaluate")
@click.argument("spec")
@click.argument("file")
@click.option("--split", default="train", show_default=True, help="The split, where FILE is the name of a dataset.")
@click.option("--batch-size", default=256, show_default=True, help="Pairs scored at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(spec: str, file: str, split: str, batch_size: int, as_json: bool) -> None:
    """Say how often SPEC prefers the chosen answer of the preference pairs in FILE.

    FILE is JSON Lines or Parquet, the name of a dataset, or - for standard input; its rows have `chosen` and `rejected`.
    """
    with progress_bar() as bar:
        task = bar.add_task("Evaluating", total=None)
        found = evaluate_pairs(
            rm.load(spec), read_rows(file, split), batch_size=batch_size, progress=lambda pairs: bar.advance(task, pairs)
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        click.echo(found)
