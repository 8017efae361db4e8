"""``rm-plugins calibrate``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click
import yaml
from rich.markup import escape
from rich.table import Column, Table

import rm_plugins as rm
from rm_plugins.calibration import Calibrated, Calibration
from rm_plugins.cli.job_options import map_option, progress_bar
from rm_plugins.cli.printed import Console, echo
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import read_rows
from rm_plugins.data.rows import row_samples
from rm_plugins.errors import DataError
from rm_plugins.files import check_output, would_replace, write_atomically


@click.command("calibrate")
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Where to write (.yaml); SPEC.calibrated.yaml by default.")
@click.option(
    "--transform", default="zscore", show_default=True, help="What members get where nothing in SPEC takes statistics."
)
@click.option("--split", default="train", show_default=True, help="The split, where FILE is the name of a dataset.")
@map_option
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N rows.")
@click.option("--overwrite", is_flag=True, help="Replace the output.")
def command(
    spec: str,
    file: str,
    output: str | None,
    transform: str,
    split: str,
    mapping: RowMapping | None,
    limit: int | None,
    overwrite: bool,
) -> None:
    """Find the statistics of SPEC's transforms in its scores of FILE, and write SPEC with them.

    FILE has rows as for `rm-plugins score`. Every transform in SPEC that takes statistics (zscore, min-max, log-sigmoid-centred,
    par) gets them; where there is none, each member of SPEC's ensembles, or SPEC itself, gets the one that --transform names. The
    output is a spec of its own: nested files are written out.
    """
    out = Path(output) if output is not None else _beside(spec)
    if out.suffix not in (".yaml", ".yml"):
        raise click.UsageError(f"The output is YAML: name it .yaml, not {out.name!r}.")
    check_output(out)
    if would_replace(out) and not overwrite:
        raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
    rows = enumerate(islice(read_rows(file, split, mapping=mapping), limit), start=1)
    samples = [sample for number, row in rows for sample in row_samples(row, f"row {number}").samples]
    if not samples:
        raise DataError(f"{file} has no row to calibrate with.")
    calibration = Calibration(spec, transform=transform)
    with progress_bar() as bar:
        task = bar.add_task(f"Scoring {len(samples):,} samples", total=sum(1 for _ in calibration.provider.walk()))
        calibrated = calibration.fit(samples, lambda scored: bar.advance(task))
    text = yaml.safe_dump(calibration.spec(out.parent), sort_keys=False, allow_unicode=True)
    write_atomically(out, f"# Calibrated by rm-plugins {rm.__version__} with {len(samples)} samples of {file}.\n{text}")
    _show(calibrated)
    echo(f"Wrote {out}.", err=True)


def _beside(spec: str) -> Path:
    path = Path(spec)
    folder = path.parent if path.exists() else Path()
    return folder / f"{path.stem if path.is_file() else path.resolve().name}.calibrated.yaml"


def _show(calibrated: list[Calibrated]) -> None:
    counts = (Column(heading, justify="right") for heading in ("scores", "abstained"))
    table = Table("path", "transform", "statistics", *counts, box=None, pad_edge=False)
    for entry in calibrated:
        statistics = ", ".join(f"{name} {value:.6g}" for name, value in entry.statistics.items())
        table.add_row(escape(entry.path), entry.transform, statistics, f"{entry.scores:,}", f"{entry.abstained:,}")
    Console().print(table)
