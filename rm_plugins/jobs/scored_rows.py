"""Scoring rows, resumably: what ``score``, ``rank``, ``evaluate`` and ``diff`` share.

The scores of each row are appended to a ``.part`` file with the row's digest, one JSON line each. A job that finds this file checks
that it belongs to the same reward and the same rows, and continues after its last complete batch with what the reward had learned by
then. Every row is thus scored in the same batch, and after the same batches, as in a run without an interruption.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import rm_plugins as rm
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import check_source, is_data_file, json_line, read_rows, write_rows
from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import Block, ScoredGroups, ScoredRow, planned_blocks, scored_block, unscored_samples
from rm_plugins.errors import DataError
from rm_plugins.files import output_errors, scratch_file
from rm_plugins.groups import RowGroups
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.blocks import KeptBlocks
from rm_plugins.jobs.crew import Crew
from rm_plugins.jobs.crew_member import Task
from rm_plugins.jobs.kept_rows import KeptRows, kept_line, row_digest, unfinished_part
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.work import counted_work, speed
from rm_plugins.providers.combinators.parts import groupings, learns_while_scoring
from rm_plugins.training.reward_state import restore_reward_state, reward_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows come from.

    Args:
        name: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        rows: Reads them from the first one; it is called several times.
    """

    name: str
    split: str
    rows: Callable[[], Iterator[dict[str, Any]]]

    @classmethod
    def of(cls, name: str, split: str, mapping: RowMapping | None = None) -> RowSource:
        """The rows that `read_rows` reads.

        Raises:
            DataError: The name can only be a path, and there is nothing.
        """
        check_source(name)
        file = spooled_input() if name == "-" else name
        return cls(name, split, lambda: read_rows(file, split, mapping=mapping))

    def count(self) -> int | None:
        """The number of rows where it is cheap to count them, else None."""
        return sum(1 for _ in self.rows()) if self.name != "-" and is_data_file(self.name) else None


class RowScoring:
    """Scores every row of a source with one provider, and keeps what is scored.

    Args:
        provider: The reward, or the processes that have loaded it.
        source: The rows.
        part: The file that scores are kept in, with a note beside it that identifies the reward and the data.
        identity: What the note says of the reward, such as its spec and fingerprint; a file of another reward is refused.
        samples: Makes the samples of a row; its second argument is what errors call the row.
        judged: Whether the rows are judged, so that each one of several samples is a group of its own.

    Raises:
        DataError: The file was begun with another reward or another source.
        UnsupportedError: The reward cannot be shared by several processes.
    """

    def __init__(
        self,
        provider: rm.Provider | Crew,
        source: RowSource,
        part: Path,
        identity: Mapping[str, Any],
        samples: Callable[[Mapping[str, Any], str], tuple[rm.Sample, ...]] = lambda row, where: row_samples(row, where).samples,
        *,
        judged: bool = False,
    ) -> None:
        self.source = source
        self.work: Counter[str] = Counter()
        self._provider = provider
        self._samples = samples
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        if isinstance(provider, Crew):
            provider.facts.check_shared()
            compared = provider.facts.groupings
            self._learns = False
        else:
            compared = groupings(provider)
            self._learns = any(learns_while_scoring(part) for _, part in provider.walk())
        self._groups = RowGroups(compared, each_row=judged)
        self._kept = KeptRows(part, {**identity, "source": source.name, "split": source.split})

    def run(self, batch_size: int, progress: JobProgress | None = None) -> Iterator[ScoredRow]:
        """Score what is not scored yet, then return every row in the order of the source.

        Where it fails before a batch was scored, no file is left behind.

        Args:
            batch_size: Samples scored at a time.
            progress: Is told how far the job is.

        Raises:
            DataError: A row has changed since it was scored.
            JobInterrupted: It was interrupted with Ctrl-C.
        """
        progress = progress or JobProgress()
        if self._groups or self._learns:
            self._kept.identify(batch_size=batch_size)
        done = self._kept.resume()
        with self._kept.released_on_failure("scoring"):
            if done and not isinstance(self._provider, Crew):
                restore_reward_state(self._provider, self._kept.state)
            rows = self.source.rows()
            scored = ScoredGroups(self._groups)
            kept = enumerate(self._scored_before(rows), start=1)
            for number, (line, _) in kept:  # raises where the source has other rows by now
                if self._groups:
                    scored.add(number, [self._samples(json.loads(line), f"row {number}")])
            blocks = None
            if isinstance(self._provider, Crew) or self._kept.blocks_folder.is_dir():
                blocks = self._kept.begin_blocks()
            known = {} if blocks is None else blocks.known(after=done)
            self._kept.beside = sum(known.values())
            if known or done:
                progress.resume("scoring", done + self._kept.beside)
            progress.begin("scoring", done + self._kept.beside, self.source.count)
            try:
                planned = planned_blocks(
                    rows,
                    self._samples,
                    batch_size,
                    unit="samples",
                    first=done + 1,
                    groups=self._groups,
                    known=known,
                    scored=scored,
                )
                if isinstance(self._provider, Crew):
                    assert blocks is not None
                    self._score_together(self._provider, planned, blocks, progress)
                else:
                    self._score_here(self._provider, planned, blocks, progress)
            finally:
                progress.end()
            if blocks is not None:
                blocks.discard()
        return (
            ScoredRow(json.loads(line), row["scores"], row["details"], row.get("errors", []))
            for line, row in self._scored_before(self.source.rows())
        )

    def _score_here(
        self, provider: rm.Provider, planned: Iterator[Block], blocks: KeptBlocks | None, progress: JobProgress
    ) -> None:
        for block in planned:
            if block.samples is None and blocks is not None:
                self._join(blocks, block.first, _digests(block))
                continue
            scored, metadata = scored_block(provider, block, self._groups)
            self.work.update(counted_work(metadata))
            self._kept.append(map(kept_line, _digests(block), scored), reward_state(provider))
            progress.advance(len(scored), self.throughput)

    def _score_together(self, crew: Crew, planned: Iterator[Block], blocks: KeptBlocks, progress: JobProgress) -> None:
        """Score blocks in several processes, and append each to the kept rows once all before it are there."""
        waiting: deque[tuple[int, list[str]]] = deque()
        finished: set[int] = set()

        def tasks() -> Iterator[Task]:
            for block in planned:
                digests = _digests(block)
                waiting.append((block.first, digests))
                if block.samples is None:
                    finished.add(block.first)
                else:
                    yield Task(block.first, digests, block.samples, blocks.folder, blocks.key, self._groups)

        def join() -> None:
            while waiting and waiting[0][0] in finished:
                first, digests = waiting.popleft()
                finished.discard(first)
                self._join(blocks, first, digests)

        begun = monotonic()
        for done in crew.score(tasks()):
            self.work.update(done.work)
            self._seconds = monotonic() - begun  # those of all processes together would be more
            self._counts.update(done.counts)
            finished.add(done.first)
            count = next(len(digests) for first, digests in waiting if first == done.first)
            self._kept.beside += count
            join()
            progress.advance(count, self.throughput)
        join()

    def _join(self, blocks: KeptBlocks, first: int, digests: list[str]) -> None:
        """Append a block to the kept rows."""
        rows = blocks.read(first)
        if rows is None:
            raise DataError(
                f"The scores of rows {first} to {first + len(digests) - 1} in {blocks.folder} are missing or damaged. Run the same command "
                "again to score them."
            )
        if len(rows) != len(digests):
            raise self._changed(first + min(len(rows), len(digests)))
        for number, (row, digest) in enumerate(zip(rows, digests, strict=True), start=first):
            if row["row"] != digest:
                raise self._changed(number)
        self._kept.append(rows)
        self._kept.beside -= len(rows)
        blocks.remove(first)

    def _scored_before(self, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows whose scores are kept, each as a line of JSON, with what is kept of it."""
        for number, kept in enumerate(self._kept.rows(), start=1):
            line = json_line(next(rows, None))
            if row_digest(line) != kept["row"]:
                raise self._changed(number)
            yield line, kept

    def _changed(self, number: int) -> DataError:
        return DataError(
            f"The interrupted run in {self._kept.path} cannot be resumed: row {number} of {self.source.name} has changed since it was "
            "scored. Start again with --overwrite."
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """What the reward has counted in this run (`Provider.counts`)."""
        return self._counts if isinstance(self._provider, Crew) else self._provider.counts

    @property
    def throughput(self) -> str:
        """The speed of this run so far, in words; empty where the provider does not measure it."""
        return speed(self.work, self._seconds if self.work["seconds"] else None)

    def close(self) -> None:
        """Release the kept scores for other processes."""
        self._kept.close()

    def discard(self) -> None:
        """Delete the kept scores."""
        self._kept.discard()


class ScoringJob(RowScoring):
    """Scores every row of a file or dataset into an output, which replaces the ``.part`` file in one step.

    Args:
        spec: The reward's spec, which is loaded after the output was checked.
        source: A path, ``-`` for standard input, or the name of a dataset.
        split: The dataset's split.
        out: The finished output; the unfinished one beside it is ``OUT.part``.
        overwrite: Whether to replace a finished output, and to start again instead of resuming.
        mapping: How its columns become those that are read.
        column: What the columns of scores are called (`RowSamples.columns`).
        crew: The processes that score; by default this one does.

    Raises:
        DataError: `out` exists, or the unfinished output belongs to another reward or other rows.
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
        crew: Crew | None = None,
    ) -> None:
        part = unfinished_part(source, out, overwrite)
        rows = RowSource.of(source, split, mapping)  # refuses a missing file before a model is loaded
        provider, identity = loaded_reward(spec, crew)
        self.out = out
        self._column = column
        self._told = False
        self._repeated = RepeatedPrompts()
        super().__init__(provider, rows, part, {"spec": spec, "fingerprint": identity}, self._samples_to_score)
        if overwrite:
            self.discard()

    def write(self, batch_size: int, progress: JobProgress | None = None) -> int:
        """Score, and write the rows with their scores; returns the number of rows. The arguments are those of `run`."""
        rows = self.run(batch_size, progress)
        if warning := self._repeated.warning:
            logger.warning(warning)
        with self._kept.released_on_failure("writing"):
            count = write_rows(map(self._with_scores, rows), self.out)
        self.discard()
        return count

    def _samples_to_score(self, row: Mapping[str, Any], where: str) -> tuple[rm.Sample, ...]:
        self._repeated.add(row)
        samples = unscored_samples(row, where, self._column)
        if not self._told and samples.samples and "prompt" not in row and not samples.samples[0].prompt:
            self._told = True
            logger.warning(
                "%s has no 'prompt', so its answer is scored by itself; the row has %s. --map OLD=prompt reads another column.",
                where,
                ", ".join(map(repr, row)),
            )
        return samples.samples

    def _with_scores(self, scored: ScoredRow) -> dict[str, Any]:
        return {**scored.row, **scored.columns(unscored_samples(scored.row, "a row", self._column), self._column)}


def loaded_reward(spec: str, crew: Crew | None) -> tuple[rm.Provider | Crew, str]:
    """A reward that is loaded here or in other processes, and its fingerprint.

    Args:
        spec: The reward's spec.
        crew: The processes that load it; None for this one.
    """
    if crew is not None:
        return crew, crew.load(spec).fingerprint
    provider = rm.load(spec)
    return provider, fingerprint(provider)


def _digests(block: Block) -> list[str]:
    return [row_digest(json_line(row)) for row in block.rows]


def spooled_input() -> str:
    """A file with the contents of standard input, which can be read several times; it is deleted when the process ends.

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
