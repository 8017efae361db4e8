"""``rm-plugins merge``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.job_options import map_option, progress_bar
from rm_plugins.cli.printed import Console, echo, say
from rm_plugins.files import check_output

if TYPE_CHECKING:
    from rm_plugins.data.mapping import RowMapping
    from rm_plugins.evaluation import PairMetrics
    from rm_plugins.models.manifest import ScoreStatistics
    from rm_plugins.scores import FloatArray


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,1,2.", param=parameter) from None


@click.command("merge", cls=Command, resuming="Nothing was written; run the same command again to start over.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of the merged model.")
@click.option("--weights", callback=_numbers, help="The weight of each model, such as 1,1,2; by default all are equal.")
@click.option("--data", help="Preference pairs: compare the models on them, and save the statistics of the scores.")
@click.option("--split", default="train", show_default=True, help="The split, if --data is a dataset.")
@map_option
@click.option("--overwrite", is_flag=True, help="Replace the output.")
@click.option("--allow-different-starts", is_flag=True, help="Merge models that were not trained from the same weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison on --data as JSON instead of a table.")
def command(
    models: tuple[str, ...],
    output: Path,
    weights: list[float] | None,
    data: str | None,
    split: str,
    mapping: RowMapping | None,
    overwrite: bool,
    allow_different_starts: bool,
    as_json: bool,
) -> None:
    """Average the weights of MODELs (folders, LoRA adapter folders or hub ids) into one model.

    The models must have the same architecture, tokenizer and rendering, and be trained from the same weights; an error names what
    differs. With --data, the accuracy of each model and of the merged one is printed.
    """
    from rm_plugins.data.row_files import check_source, read_rows

    if data is not None and output.resolve() in Path(data).resolve().parents:
        raise click.UsageError(
            f"--data {data} is in the output folder {str(output)!r}, which is replaced. Name another output."
        )
    check_output(output, is_folder=True)
    if data is not None:
        check_source(data)

    import numpy as np
    from rich.markup import escape

    from rm_plugins.models.manifest import ScoreStatistics
    from rm_plugins.models.merge import merge_models

    rows = None if data is None else list(read_rows(data, split, mapping=mapping))
    measured: dict[str, PairMetrics] = {}
    with progress_bar() as bar:
        task = bar.add_task("Merging", total=len(models))

        def compare(merged: Path) -> ScoreStatistics | None:
            scores = np.empty(0)
            for name, folder in [*((model, model) for model in models), (str(output), str(merged))]:
                pairs = bar.add_task(f"Evaluating {escape(name)}", total=len(rows or ()))
                measured[name], scores = _evaluated(folder, rows or (), partial(bar.advance, pairs))
            return ScoreStatistics.of(scores, str(data))

        merge_models(
            models,
            output,
            weights=weights,
            allow_different_starts=allow_different_starts,
            overwrite=overwrite,
            statistics=None if rows is None else compare,
            progress=lambda _: bar.advance(task),
        )
    if as_json:
        echo(json.dumps({name: dataclasses.asdict(metrics) for name, metrics in measured.items()}, indent=2))
    elif measured:
        _print(measured)
    say(f"Wrote {output}: the mean of {len(models)} models. `rm-plugins verify {output}` checks it.")


def _evaluated(
    model: str, rows: Sequence[Mapping[str, Any]], progress: Callable[[int], None]
) -> tuple[PairMetrics, FloatArray]:
    """The figures of a model on preference pairs, and all of its scores."""
    import numpy as np

    from rm_plugins.evaluation import evaluate_pairs
    from rm_plugins.providers.models.sequence_classifier import SequenceClassifier

    provider = SequenceClassifier(model=model)
    scores: list[FloatArray] = []
    provider.observer = lambda _, __, batch: scores.append(batch.values)
    return evaluate_pairs(provider, rows, progress=progress), np.concatenate(scores)


def _print(measured: Mapping[str, PairMetrics]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    figures = (Column(heading, justify="right") for heading in ("accuracy", "standard error", "ties", "margin"))
    table = Table(Column("", overflow="fold"), *figures, box=None, pad_edge=False)
    for name, metrics in measured.items():
        numbers = (f"{metrics.accuracy:.4f}", f"{metrics.standard_error:.4f}", f"{metrics.ties:,}", f"{metrics.margin:.4g}")
        table.add_row(escape(name), *numbers)
    Console().print(table)
