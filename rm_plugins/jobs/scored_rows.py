"""Scoring rows, resumably: what ``score``, ``rank``, ``evaluate`` and ``diff`` share.

The scores of each row are appended to a file of parts with the row's digest, one JSON line each. A job that finds this file
continues after its last whole batch, with what the reward had learned by then; it checks that the file is of the same reward and of
the same rows. So every row is scored in the batch, and after the batches, in which it would have been without an interruption.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rm_plugins as rm
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import is_data_file, json_line, read_rows, write_rows
from rm_plugins.data.rows import RowSamples, row_samples
from rm_plugins.data.scored_rows import ScoredRow, scored_batches
from rm_plugins.errors import DataError
from rm_plugins.files import check_output, output_errors, scratch_file, would_replace
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.kept_rows import KeptRows
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.providers.combinators.parts import compares_samples, learns_while_scoring
from rm_plugins.training.reward_state import restore_reward_state, reward_state

logger = logging.getLogger(__name__)

_WORK = {"tokens": "", "seconds": "", "rows": "", "duplicates": "duplicates", "cached": "from the cache"}
"""Entries of `Scores.metadata` that add up to the work of a job, and what their share in the rows is called."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows come from.

    Args:
        name: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        rows: Reads them, from the first one on; they are read several times.
    """

    name: str
    split: str
    rows: Callable[[], Iterator[dict[str, Any]]]

    @classmethod
    def of(cls, name: str, split: str, mapping: RowMapping | None = None) -> RowSource:
        """The rows of `read_rows`."""
        file = spooled_input() if name == "-" else name
        return cls(name, split, lambda: read_rows(file, split, mapping=mapping))

    def count(self) -> int | None:
        """The number of rows, where it is cheap to know."""
        return sum(1 for _ in self.rows()) if self.name != "-" and is_data_file(self.name) else None


class RowScoring:
    """Scores every row of a source with one provider, and keeps what is scored.

    Args:
        provider: The reward.
        source: The rows.
        part: The file that scores are kept in, beside which a note says whose they are.
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
        samples: Callable[[Mapping[str, Any], str], tuple[rm.Sample, ...]] = lambda row, where: row_samples(row, where).samples,
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

        Raises:
            DataError: A row was another one when it was scored.
        """
        progress = progress or JobProgress()
        compares = compares_samples(self.provider)
        if compares or any(learns_while_scoring(part) for _, part in self.provider.walk()):
            self._kept.identify(batch_size=batch_size)
        done = self._kept.resume()
        if done:
            restore_reward_state(self.provider, self._kept.state)
        rows = self.source.rows()
        for _ in self._scored_before(rows):  # which must be the rows that the source has now
            pass
        if done:
            progress.resume("scoring", done)
        progress.begin("scoring", done, self.source.count)
        try:
            batches = scored_batches(
                self.provider, rows, self._samples, batch_size, unit="samples", first=done + 1, whole_prompts=compares
            )
            for batch, metadata in batches:
                self.work.update({name: metadata[name] for name in _WORK if name in metadata})
                kept = (
                    {"row": _digest(json_line(scored.row)), "scores": scored.scores, "details": scored.details}
                    for scored in batch
                )
                self._kept.append(kept, reward_state(self.provider))
                progress.advance(len(batch), self.throughput)
        finally:
            progress.end()
        return (
            ScoredRow(json.loads(line), row["scores"], row["details"]) for line, row in self._scored_before(self.source.rows())
        )

    def _scored_before(self, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows that scores are kept of, each as a line of JSON, and what is kept of it."""
        for number, kept in enumerate(self._kept.rows(), start=1):
            line = json_line(next(rows, None))
            if _digest(line) != kept["row"]:
                raise DataError(
                    f"{self._kept.path} was begun with other data: its row {number} is not the source's. Begin anew with --overwrite."
                )
            yield line, kept

    @property
    def throughput(self) -> str:
        """How fast this run has scored so far, in words; empty where the provider does not say."""
        if not self.work["seconds"]:
            return ""
        shares = (
            f"{self.work[name] / self.work['rows']:.0%} {word}" for name, word in _WORK.items() if word and self.work[name]
        )
        return ", ".join([f"{self.work['tokens'] / self.work['seconds']:,.0f} tokens/s", *shares])

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
        mapping: How its columns become those that rows are read by.
        column: What the columns of scores are called (`RowSamples.columns`).

    Raises:
        DataError: `out` exists, or the unfinished output is of another reward or other rows.
        OutputError: `out` cannot be written.
    """

    def __init__(
        self,
        spec: str,
        source: str,
        split: str,
        out: Path,
        overwrite: bool,
        *,
        mapping: RowMapping | None = None,
        column: str = "score",
    ) -> None:
        check_output(out)
        part = out.with_name(f"{out.name}.part")
        if would_replace(out) and not overwrite and not part.exists():  # of a run with --overwrite that was interrupted
            raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
        provider = rm.load(spec)
        identity = {"spec": spec, "fingerprint": fingerprint(provider)}
        self.out = out
        self._column = column
        self._told = False
        self._repeated = RepeatedPrompts()
        super().__init__(provider, RowSource.of(source, split, mapping), part, identity, self._samples_to_score)
        if overwrite:
            self.discard()

    def write(self, batch_size: int, progress: JobProgress | None = None) -> int:
        """Score, and write the rows with their scores; returns the number of rows. The arguments are those of `run`."""
        rows = self.run(batch_size, progress)
        if warning := self._repeated.warning:
            logger.warning(warning)
        count = write_rows(map(self._with_scores, rows), self.out)
        self.discard()
        return count

    def _samples_to_score(self, row: Mapping[str, Any], where: str) -> tuple[rm.Sample, ...]:
        self._repeated.add(row)
        samples = self._unscored(row, where)
        if not self._told and samples.samples and "prompt" not in row and not samples.samples[0].prompt:
            self._told = True
            logger.warning(
                "%s has no 'prompt', so its answer is scored by itself; the row has %s. --map OLD=prompt reads another column.",
                where,
                ", ".join(map(repr, row)),
            )
        return samples.samples

    def _unscored(self, row: Mapping[str, Any], where: str) -> RowSamples:
        samples = row_samples(row, where)
        for name in samples.columns([None] * len(samples.names), self._column):
            if any(column == name or column.startswith(f"{name}/") for column in row):
                raise DataError(
                    f"{where}: it has a column {name!r} already, which its score would replace. Name another with --column, such as "
                    "--column reward."
                )
        return samples

    def _with_scores(self, scored: ScoredRow) -> dict[str, Any]:
        samples = self._unscored(scored.row, "a row")
        row = {**scored.row, **samples.columns(scored.scores, self._column)}
        for name, values in scored.details.items():
            row |= {f"{column}/{name}": value for column, value in samples.columns(values, self._column).items()}
        return row


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def spooled_input() -> str:
    """A file with what standard input says, which can be read several times; it is gone when the process ends.

    Raises:
        DataError: Standard input is closed.
    """
    if sys.stdin is None:
        raise DataError("Standard input is closed.")
    scratch = ExitStack()
    atexit.register(scratch.close)
    path = scratch.enter_context(scratch_file("standard-input", ".jsonl"))
    with output_errors(path), path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return str(path)
