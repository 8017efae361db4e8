"""Scoring a file of rows, resumably: what ``score`` and ``rank`` share.

Scored rows are appended to ``OUT.part``, one JSON line each. A job that finds this file goes on behind its last whole line,
after checking that it was made by the same reward and of the same rows; the finished output replaces it in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import rm_plugins as rm
from rm_plugins.data import is_data_file, json_line, read_rows, row_samples, write_rows
from rm_plugins.errors import DataError
from rm_plugins.files import write_atomically
from rm_plugins.wire import values_to_json

__all__ = ["ScoredRow", "ScoringJob", "output_path", "progress_bar", "scoring_options"]

_WORK = {"tokens": "", "seconds": "", "rows": "", "duplicates": "duplicates", "cached": "from the cache"}
"""Entries of `Scores.metadata` that add up to the work of a job, and what their share in the rows is called."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """An input row, the scores of its samples, and their details (name to one value a sample); None is an abstention."""

    row: dict[str, Any]
    scores: list[float | None]
    details: dict[str, list[float | None]]


def output_path(source: str, out: str | None, ending: str) -> Path:
    """Where the output goes: `out`, else beside the input file, as ``NAME.ending.jsonl``."""
    if out is not None:
        return Path(out)
    if source == "-":
        raise click.UsageError("Reading standard input needs an output file: -o FILE.")
    path = Path(source)
    stem = path.name.partition(".")[0] if is_data_file(source) else path.name
    return (path.parent if is_data_file(source) else Path()) / f"{stem}.{ending}.jsonl"


def scoring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that is a scoring job."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace the output, and begin an interrupted one anew."),
        click.option("--batch-size", default=512, show_default=True, help="Samples scored at a time, and kept if interrupted."),
        click.option("--split", default="train", show_default=True, help="The split, where FILE is the name of a dataset."),
    ):
        command = option(command)
    return command


class ScoringJob:
    """Scores every row of a source with one provider.

    Args:
        spec: The reward's spec, which is loaded once the output is known to be free.
        source: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        out: The finished output, beside which the unfinished one is kept.
        overwrite: Whether to replace a finished output and to begin anew where an unfinished one is found.

    Raises:
        DataError: `out` exists, or the unfinished output is of another reward or other rows.
    """

    def __init__(self, spec: str, source: str, split: str, out: Path, overwrite: bool) -> None:
        if out.exists() and not overwrite:
            raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
        self.provider = rm.load(spec)
        self.out = out
        self.source = source
        self.split = split
        self.work: Counter[str] = Counter()
        self.part = out.with_name(f"{out.name}.part")
        self._identity_file = out.with_name(f"{out.name}.part.json")
        self._identity = {"spec": spec, "source": source, "split": split, "manifest": _manifest_digest(self.provider)}
        if overwrite:
            self.discard()

    def write(self, shape: Callable[[Iterable[ScoredRow]], Iterable[dict[str, Any]]], batch_size: int) -> int:
        """Score, and write what `shape` makes of the scored rows; returns the number of rows written.

        Args:
            shape: Makes the rows of the output.
            batch_size: Samples handed to the provider at a time.
        """
        count = write_rows(shape(self.run(batch_size)), self.out)
        self.discard()
        return count

    def run(self, batch_size: int) -> Iterator[ScoredRow]:
        """Score what is not scored yet, then give back every row in the order of the source.

        Args:
            batch_size: Samples handed to the provider at a time.
        """
        done = self._resume()
        rows = read_rows(self.source, self.split)
        for number, before in enumerate(self._finished(), start=1):
            if _json_row(next(rows, None)) != before.row:
                raise DataError(
                    f"{self.part} was begun with other data: its row {number} is not the source's. Begin anew with --overwrite."
                )
        if done:
            click.echo(f"Going on behind {done} rows that were scored before.", err=True)
        with progress_bar() as bar, self.part.open("a", encoding="utf-8") as file:
            task = bar.add_task("Scoring", total=None if bar.disable else _row_count(self.source), completed=done)
            for batch in _sample_batches(rows, batch_size, first=done + 1):
                for scored in self._score(batch):
                    line = {"row": scored.row, "scores": scored.scores, "details": scored.details}
                    file.write(json_line(line))
                file.flush()
                os.fsync(file.fileno())
                bar.update(task, advance=len(batch), description=f"Scoring {self.throughput}".strip())
        return self._finished()

    def _score(self, batch: list[tuple[dict[str, Any], tuple[rm.Sample, ...]]]) -> Iterator[ScoredRow]:
        scores = self.provider.score([sample for _, samples in batch for sample in samples])
        self.work.update({name: scores.metadata[name] for name in _WORK if name in scores.metadata})
        start = 0
        for row, samples in batch:
            end = start + len(samples)
            details = {name: values_to_json(column[start:end]) for name, column in scores.details.items()}
            yield ScoredRow(row, values_to_json(scores.values[start:end]), details)
            start = end

    @property
    def throughput(self) -> str:
        """How fast this run has scored so far, in words; empty where the provider does not say."""
        if not self.work["seconds"]:
            return ""
        shares = (
            f"{self.work[name] / self.work['rows']:.0%} {word}" for name, word in _WORK.items() if word and self.work[name]
        )
        return ", ".join([f"{self.work['tokens'] / self.work['seconds']:,.0f} tokens/s", *shares])

    def _resume(self) -> int:
        """Cut a half-written last line off the unfinished output; returns how many rows it holds."""
        if not self.part.exists():
            self.part.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._identity_file, json.dumps(self._identity, indent=2) + "\n")
            self.part.touch()
            return 0
        known = json.loads(self._identity_file.read_text(encoding="utf-8")) if self._identity_file.exists() else None
        if known != self._identity:
            raise DataError(
                f"{self.part} was begun by another reward or from another source ({known}). Begin anew with --overwrite, or name "
                "another output with -o."
            )
        whole = count = 0
        with self.part.open("rb+") as file:
            for line in file:
                if line.endswith(b"\n"):
                    whole += len(line)
                    count += 1
            file.truncate(whole)
        return count

    def _finished(self) -> Iterator[ScoredRow]:
        with self.part.open(encoding="utf-8") as file:
            for line in file:
                yield ScoredRow(**json.loads(line))

    def discard(self) -> None:
        """Delete the unfinished output."""
        self.part.unlink(missing_ok=True)
        self._identity_file.unlink(missing_ok=True)


def _sample_batches(
    rows: Iterable[dict[str, Any]], size: int, first: int
) -> Iterator[list[tuple[dict[str, Any], tuple[rm.Sample, ...]]]]:
    """Rows with their samples, in lists of about `size` samples."""
    batch: list[tuple[dict[str, Any], tuple[rm.Sample, ...]]] = []
    count = 0
    for number, row in enumerate(rows, start=first):
        samples = row_samples(row, f"row {number}").samples
        batch.append((row, samples))
        count += len(samples)
        if count >= size:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _json_row(row: object) -> Any:
    """The row as it comes back from the unfinished output."""
    return json.loads(json_line(row))


def _manifest_digest(provider: rm.Provider) -> str | None:
    manifest = getattr(provider, "manifest", None)
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest() if manifest is not None else None


def _row_count(source: str) -> int | None:
    """The number of rows, where it is cheap to know."""
    return sum(1 for _ in read_rows(source)) if source != "-" and is_data_file(source) else None


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
