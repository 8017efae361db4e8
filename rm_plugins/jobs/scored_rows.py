"""Scoring rows, resumably: what ``score``, ``rank``, ``evaluate`` and ``diff`` share.

Scored rows are appended to a file of parts, one JSON line each. A job that finds this file resumes after its last whole line,
after checking that it was made by the same reward and of the same rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rm_plugins as rm
from rm_plugins.data.rows import is_data_file, json_line, read_rows, row_samples, write_rows
from rm_plugins.errors import DataError
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.kept_rows import KeptRows
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.wire import values_to_json

__all__ = ["RowScoring", "RowSource", "ScoredRow", "ScoringJob"]

_WORK = {"tokens": "", "seconds": "", "rows": "", "duplicates": "duplicates", "cached": "from the cache"}
"""Entries of `Scores.metadata` that add up to the work of a job, and what their share in the rows is called."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """An input row, the scores of its samples, and their details (name to one value a sample); None is an abstention."""

    row: dict[str, Any]
    scores: list[float | None]
    details: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows come from.

    Args:
        name: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        rows: Reads them, from the first one on.
    """

    name: str
    split: str
    rows: Callable[[], Iterator[dict[str, Any]]]

    @classmethod
    def of(cls, name: str, split: str) -> RowSource:
        """The rows as they stand there."""
        return cls(name, split, lambda: read_rows(name, split))

    def count(self) -> int | None:
        """The number of rows, where it is cheap to know."""
        return sum(1 for _ in self.rows()) if self.name != "-" and is_data_file(self.name) else None


class RowScoring:
    """Scores every row of a source with one provider, and keeps what is scored.

    Args:
        provider: The reward.
        source: The rows.
        part: The file that scored rows are kept in, beside which a note says whose they are.
        identity: What the note says of the reward, such as its spec and fingerprint; another one is refused.
        samples: The samples of a row, which an error calls by its second argument.

    Raises:
        DataError: The file was begun by another reward or from another source.
    """

    def __init__(
        self,
        provider: rm.Provider,
        source: RowSource,
        part: Path,
        identity: Mapping[str, Any],
        samples: Callable[[dict[str, Any], str], tuple[rm.Sample, ...]] = lambda row, where: row_samples(row, where).samples,
    ) -> None:
        self.provider = provider
        self.source = source
        self.work: Counter[str] = Counter()
        self._samples = samples
        self._kept = KeptRows(part, {**identity, "source": source.name, "split": source.split})

    def run(self, batch_size: int, progress: JobProgress | None = None) -> Iterator[ScoredRow]:
        """Score what is not scored yet, then give back every row in the order of the source.

        Args:
            batch_size: Samples handed to the provider at a time.
            progress: Is told how far the job is.
        """
        progress = progress or JobProgress()
        done = self._kept.resume()
        rows = self.source.rows()
        for number, before in enumerate(self.scored_rows(), start=1):
            if _json_row(next(rows, None)) != before.row:
                raise DataError(
                    f"{self._kept.path} was begun with other data: its row {number} is not the source's. Begin anew with --overwrite."
                )
        if done:
            progress.resume("scoring", done)
        progress.begin("scoring", done, self.source.count)
        try:
            for batch in self._batches(rows, batch_size, first=done + 1):
                self._kept.append(
                    {"row": scored.row, "scores": scored.scores, "details": scored.details} for scored in self._score(batch)
                )
                progress.advance(len(batch), self.throughput)
        finally:
            progress.end()
        return self.scored_rows()

    def _batches(
        self, rows: Iterable[dict[str, Any]], size: int, first: int
    ) -> Iterator[list[tuple[dict[str, Any], tuple[rm.Sample, ...]]]]:
        """Rows with their samples, in lists of about `size` samples."""
        batch: list[tuple[dict[str, Any], tuple[rm.Sample, ...]]] = []
        count = 0
        for number, row in enumerate(rows, start=first):
            samples = self._samples(row, f"row {number}")
            batch.append((row, samples))
            count += len(samples)
            if count >= size:
                yield batch
                batch, count = [], 0
        if batch:
            yield batch

    def _score(self, batch: list[tuple[dict[str, Any], tuple[rm.Sample, ...]]]) -> Iterator[ScoredRow]:
        scores = self.provider.score([sample for _, samples in batch for sample in samples])
        self.work.update({name: scores.metadata[name] for name in _WORK if name in scores.metadata})
        start = 0
        for row, samples in batch:
            end = start + len(samples)
            details = {name: values_to_json(column[start:end]) for name, column in scores.columns.items()}
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

    def scored_rows(self) -> Iterator[ScoredRow]:
        """What was scored so far."""
        return (ScoredRow(**kept) for kept in self._kept.rows())

    def close(self) -> None:
        """Leave what was kept to others."""
        self._kept.close()

    def discard(self) -> None:
        """Delete what was kept."""
        self._kept.discard()


class ScoringJob(RowScoring):
    """Scores every row of a file or dataset into an output, which replaces the file of parts in one step.

    Args:
        spec: The reward's spec, which is loaded once the output is known to be free.
        source: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        out: The finished output, beside which the unfinished one is kept as ``OUT.part``.
        overwrite: Whether to replace a finished output and to begin anew where an unfinished one is found.

    Raises:
        DataError: `out` exists, or the unfinished output is of another reward or other rows.
    """

    def __init__(self, spec: str, source: str, split: str, out: Path, overwrite: bool) -> None:
        part = out.with_name(f"{out.name}.part")
        if out.exists() and not overwrite and not part.exists():  # of a run with --overwrite that was interrupted
            raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
        provider = rm.load(spec)
        identity = {"spec": spec, "fingerprint": fingerprint(provider)}
        super().__init__(provider, RowSource.of(source, split), part, identity)
        self.out = out
        if overwrite:
            self.discard()

    def write(self, batch_size: int, progress: JobProgress | None = None) -> int:
        """Score, and write the rows with their scores; returns the number of rows. The arguments are those of `run`."""
        count = write_rows(map(_with_scores, self.run(batch_size, progress)), self.out)
        self.discard()
        return count


def _with_scores(scored: ScoredRow) -> dict[str, Any]:
    samples = row_samples(scored.row)
    row = {**scored.row, **samples.columns(scored.scores)}
    for name, values in scored.details.items():
        row |= {f"{column}/{name}": value for column, value in samples.columns(values).items()}
    return row


def _json_row(row: object) -> Any:
    """The row as it comes back from the unfinished output."""
    return json.loads(json_line(row))
