"""``rm-plugins data``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.job_options import map_option, progress_bar
from rm_plugins.cli.printed import Console, echo
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.data.check_report import DataReport, Problem
    from rm_plugins.data.mapping import RowMapping
    from rm_plugins.rendering.render import Renderer


@click.group("data")
def command() -> None:
    """Check training data."""


@command.command("check", cls=Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--split",
    "splits",
    default=["train"],
    show_default=True,
    multiple=True,
    help="A split, if FILE is a dataset. May be repeated.",
)
@click.option(
    "--tokenizer", help="A model folder or hub id: count lengths in its tokens, as training does, instead of in characters."
)
@click.option("--max-length", type=click.IntRange(min=1), help="Warn of longer rows; by default the limit of the model.")
@click.option("--trust-remote-code", is_flag=True, help="Run the tokenizer's own Python code.")
@map_option
@click.option("--strict", is_flag=True, help="Exit with 1 on warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.pass_context
def check(
    context: click.Context,
    files: tuple[str, ...],
    splits: tuple[str, ...],
    tokenizer: str | None,
    max_length: int | None,
    trust_remote_code: bool,
    mapping: RowMapping | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Check the rows of each FILE: formats, lengths, duplicates, rows that two FILEs share, and what cannot be read.

    FILE is as for `rm-plugins score`. Exits with 1 if a row is malformed or there is nothing to train on; with --strict, also on
    warnings.
    """
    from rm_plugins.data.check import DataCheck
    from rm_plugins.data.row_files import read_rows

    parts = list(_parts(files, splits))
    if tokenizer is None:
        data_check = DataCheck(max_length=max_length, compares_sources=len(parts) > 1)
    else:
        renderer = _renderer(tokenizer, max_length, trust_remote_code=trust_remote_code)
        data_check = DataCheck(
            token_ids=renderer.untruncated_ids,
            unit="tokens",
            max_length=renderer.rendering.max_length,
            compares_sources=len(parts) > 1,
        )
    with progress_bar() as bar:
        for name, source, part in parts:
            task = bar.add_task(f"Checking {name}", total=None)
            data_check.begin(name)
            for number, row in enumerate(read_rows(source, part, mapping=mapping, on_bad_line=data_check.refuse), start=1):
                data_check.add(row)
                if number % 1000 == 0:
                    bar.update(task, completed=number)
    report = data_check.report()
    if as_json:
        echo(json.dumps({"trainable": report.is_trainable, **dataclasses.asdict(report)}, indent=2))
    else:
        _print(report)
    if not report.is_trainable or (strict and report.problems):
        context.exit(1)


def _parts(files: Sequence[str], splits: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """What to call each thing that is read, its source, and its split."""
    from rm_plugins.data.row_files import is_data_file

    for source in files:
        if len(splits) == 1 or is_data_file(source) or (Path(source) / "state.json").is_file():
            yield source, source, splits[0]
        else:
            for split in splits:
                yield f"{source} ({split})", source, split


def _renderer(tokenizer: str, max_length: int | None, *, trust_remote_code: bool) -> Renderer:
    """Renders samples as training a model from this folder or hub id does."""
    from rm_plugins.models.model_folder import load_config, load_tokenizer
    from rm_plugins.rendering.positions import position_limit
    from rm_plugins.rendering.render import Renderer
    from rm_plugins.rendering.rendering import Rendering

    origin: dict[str, Any] = {"code_setting": "--trust-remote-code", "trust_remote_code": trust_remote_code}
    loaded = load_tokenizer([tokenizer], repr(tokenizer), advice="Name a folder or hub id that has one.", **origin)
    config = load_config(tokenizer, **origin)
    if max_length is None:
        return Renderer(loaded, Rendering.default(loaded, position_limit(config)))
    return Renderer(loaded, Rendering.up_to(max_length, loaded, config))


# --- What is printed ------------------------------------------------------------------------------------------------------


def _print(report: DataReport) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    counted = (Column(heading, justify="right") for heading in ("rows", "samples", "pairs", "ties"))
    sources = Table(Column("", overflow="fold"), *counted, "format", box=None, pad_edge=False)
    for source in report.sources:
        formats = ", ".join(name if len(source.formats) == 1 else f"{name} {rows:,}" for name, rows in source.formats.items())
        numbers = (f"{number:,}" for number in (source.rows, source.samples, source.pairs, source.ties))
        sources.add_row(escape(source.name), *numbers, formats)
    console.print(sources)
    if report.attributes:
        measured = (Column(heading, justify="right") for heading in ("rated", "missing", "mean", "lowest", "highest"))
        attributes = Table(Column("attribute", overflow="fold"), *measured, box=None, pad_edge=False)
        for name, summary in report.attributes.items():
            values = ("" if value is None else f"{value:.4g}" for value in (summary.mean, summary.lowest, summary.highest))
            attributes.add_row(escape(name), f"{summary.rated:,}", f"{summary.missing:,}", *values)
        console.print()
        console.print(attributes)
    if report.lengths:
        quantiles = ", ".join(f"{name} {length:,}" for name, length in report.lengths.items())
        echo(f"\nLengths in {report.unit}: {quantiles}")
    if (bias := report.length_bias) is not None:
        equal = f"; {bias.equal:,} more have equal lengths" if bias.equal else ""
        share = f"{bias.longer_wins:.1%} of {bias.pairs:,} pairs (standard error {bias.standard_error:.1%})"
        echo(f"The longer answer wins {share}{equal}")
    echo()
    for problem in report.problems:
        echo(_problem_lines(problem))
    verdict = "The data can be trained on." if report.is_trainable else "The data cannot be trained on."
    echo(verdict if report.problems else "No problems.")


def _problem_lines(problem: Problem) -> str:
    rows = f"{counted(problem.count, 'row')} " if problem.count else ""
    lines = [f"{'error' if problem.is_error else 'warning'}: {rows}{problem.description}"]
    for example in problem.examples if problem.is_error else problem.examples[:1]:
        lines.append(f"  {example.source}, row {example.row}: {example.text}")
    return "\n".join(lines)
