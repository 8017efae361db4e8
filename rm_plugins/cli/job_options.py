"""Options and progress bars of the commands that run jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rm_plugins.cli.printed import Console, echo
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import is_data_file, without_data_ending
from rm_plugins.data.written_mapping import mapping_of
from rm_plugins.jobs.progress import JobProgress

_WRITTEN = (".jsonl", ".json", ".ndjson", ".parquet")
_RESUMED = {"scoring": "rows that were scored before", "generating": "prompts whose completions were written before"}


def output_path(source: str, split: str, out: str | None, ending: str) -> Path:
    """Where the output goes: `out`, else beside the input file, as ``NAME.ending.jsonl``; no two inputs have one output.

    Raises:
        click.UsageError: `out` has another ending than those that are written, or there is nothing beside which it could go.
    """
    if out is not None:
        if Path(out).suffix not in _WRITTEN:
            raise click.UsageError(f"-o writes {', '.join(_WRITTEN)}; {out!r} ends in none of these.")
        return Path(out)
    if source == "-":
        raise click.UsageError("Reading standard input needs an output file: -o FILE.")
    path = Path(source)
    if is_data_file(source):
        return path.with_name(f"{without_data_ending(path.name)}.{ending}.jsonl")
    name = source.strip("/").replace("/", "--")
    return Path(f"{name}@{split}.{ending}.jsonl")


def _mapping(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> RowMapping | None:
    return mapping_of(texts)


map_option = click.option(
    "--map",
    "--rename",
    "mapping",
    metavar="PRESET|OLD=NEW|FILE.yaml",
    multiple=True,
    callback=_mapping,
    help="How its columns become those that rows are read by: a published shape such as arena, one column, or YAML. May be repeated.",
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Samples scored at a time, and kept if interrupted.",
)


def scoring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that is a scoring job."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace the output, and begin an interrupted one anew."),
        batch_size_option,
        map_option,
        click.option("--split", default="train", show_default=True, help="The split, where FILE is the name of a dataset."),
    ):
        command = option(command)
    return command


class ConsoleProgress(JobProgress):
    """Says on standard error how far a job is, with a bar where that is a terminal."""

    def __init__(self) -> None:
        self._bar = progress_bar()
        self._task = TaskID(0)
        self._work = ""

    def resume(self, work: str, done: int) -> None:
        """Say what an earlier run has left."""
        echo(f"Going on behind {done} {_RESUMED[work]}.", err=True)

    def note(self, message: str) -> None:
        """Print it."""
        echo(message, err=True)

    def begin(self, work: str, done: int, total: Callable[[], int | None]) -> None:
        """Show the bar."""
        self._work = work.capitalize()
        self._bar = progress_bar()
        self._bar.start()
        self._task = self._bar.add_task(self._work, total=None if self._bar.disable else total(), completed=done)

    def advance(self, count: int, throughput: str = "") -> None:
        """Move the bar."""
        self._bar.update(self._task, advance=count, description=f"{self._work} {throughput}".strip())

    def end(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def progress_bar() -> Progress:
    """A progress bar on standard error, which disappears where that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
