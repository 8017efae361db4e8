"""``rm-plugins calibrate``."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

import rm_plugins as rm
from rm_plugins.cli.command import Command
from rm_plugins.cli.job_options import check_separate, map_option, progress_bar
from rm_plugins.cli.printed import STANDARD_OUTPUT, Console, echo, say
from rm_plugins.errors import DataError
from rm_plugins.files import check_output, would_replace, write_atomically
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.calibration import Calibrated
    from rm_plugins.data.mapping import RowMapping


@click.command("calibrate", cls=Command, resuming="Nothing was written; run the same command again to start over.")
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Output (.yaml), - for standard output; by default SPEC.calibrated.yaml.")
@click.option("--transform", default="zscore", show_default=True, help="The transform to add if none in SPEC takes statistics.")
@click.option("--split", default="train", show_default=True, help="The split, if FILE is a dataset.")
@map_option
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N rows.")
@click.option("--overwrite", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON instead of a table.")
def command(
    spec: str,
    file: str,
    output: str | None,
    transform: str,
    split: str,
    mapping: RowMapping | None,
    limit: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure the statistics that SPEC's transforms need on the rows of FILE, and write SPEC with them.

    FILE has rows as for `rm-plugins score`. Every transform in SPEC that takes statistics (zscore, min-max, log-sigmoid-centred, par)
    gets them. If there is none, --transform is added to each member of SPEC's ensembles, or to SPEC itself. The output is a complete
    spec: nested files are written into it.
    """
    import yaml

    from rm_plugins.calibration import Calibration
    from rm_plugins.data.row_files import read_rows
    from rm_plugins.data.rows import row_samples
    from rm_plugins.transforms.fitted import FEWEST_SCORES

    prints_spec = output == STANDARD_OUTPUT
    if prints_spec and as_json:
        raise click.UsageError("-o - and --json both write to standard output; leave one out.")
    out = Path(output) if output is not None and not prints_spec else _beside(spec)
    if out.suffix not in (".yaml", ".yml"):
        raise click.UsageError(f"-o writes .yaml, or - for standard output; {out.name!r} is neither.")
    if not prints_spec:
        check_separate([("FILE", file), ("SPEC", spec)], [("the output", out)])
        check_output(out)
        if would_replace(out) and not overwrite:
            raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
    most = None if limit is None else min(limit, sys.maxsize)
    rows = enumerate(islice(read_rows(file, split, mapping=mapping), most), start=1)
    samples = [sample for number, row in rows for sample in row_samples(row, f"row {number}").samples]
    if not samples:
        raise DataError(f"{file} has no row to calibrate with.")
    if len(samples) < FEWEST_SCORES:  # before a model is loaded
        raise DataError(
            f"Each transform needs at least {FEWEST_SCORES} scores for its statistics, and {file} has {counted(len(samples), 'sample')}. "
            "Give more rows."
        )
    calibration = Calibration(spec, transform=transform)
    with progress_bar() as bar:
        task = bar.add_task(f"Scoring {len(samples):,} samples", total=sum(1 for _ in calibration.provider.walk()))
        calibrated = calibration.fit(samples, lambda scored: bar.advance(task))
    text = yaml.safe_dump(calibration.spec(Path() if prints_spec else out.parent), sort_keys=False, allow_unicode=True)
    text = f"# Calibrated by rm-plugins {rm.__version__} with {len(samples)} samples of {file}.\n{text}"
    if prints_spec:
        echo(text, nl=False)
        return
    write_atomically(out, text)
    if as_json:
        echo(json.dumps([dataclasses.asdict(entry) for entry in calibrated], indent=2))
    else:
        _show(calibrated)
    say(f"Wrote {out}; use it in place of {spec}.")


def _beside(spec: str) -> Path:
    path = Path(spec)
    folder = path.parent if path.exists() else Path()
    return folder / f"{path.stem if path.is_file() else path.resolve().name}.calibrated.yaml"


def _show(calibrated: list[Calibrated]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    counts = (Column(heading, justify="right") for heading in ("scores", "abstained"))
    texts = (Column(heading, overflow="fold") for heading in ("path", "transform", "statistics"))
    table = Table(*texts, *counts, box=None, pad_edge=False)
    for entry in calibrated:
        statistics = ", ".join(f"{name} {value:.6g}" for name, value in entry.statistics.items())
        table.add_row(escape(entry.path), entry.transform, statistics, f"{entry.scores:,}", f"{entry.abstained:,}")
    Console().print(table)
