"""Scoring files block by block, for engines whose workers read, score and write without the driver: no row passes through it.

A block is a range of rows of a file, and all rows of a group where the reward compares them. Its scores are kept as those of every scoring
job are (`rm_plugins.jobs.kept_rows`, `rm_plugins.jobs.blocks`): under the number of its first row in the whole source. So it may be scored
twice and counts once, and a job that was begun without an engine continues with one, and the other way round. `FileScoring` is what the
driver does, and `BlockScoring` what workers do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import rm_plugins as rm
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import json_line, source_files, write_rows
from rm_plugins.data.row_ranges import RowRange, read_range, row_ranges
from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import ScoredRow, scored_batches, unscored_samples
from rm_plugins.data.written_mapping import mapping_beside
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import output_errors, replacing_folder
from rm_plugins.groups import RowGroups
from rm_plugins.jobs.blocks import KeptBlocks, covering
from rm_plugins.jobs.divided_groups import check_whole_groups, group_digests
from rm_plugins.jobs.job_engine import ScoringRequest
from rm_plugins.jobs.kept_rows import KeptRows, kept_line, row_digest, unfinished_part

_OUTPUTS = (".jsonl", ".json", ".ndjson", ".parquet")
_FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A block of a file of the source.

    Args:
        number: The number of the file, from 0.
        part: Its rows in the file.
        first: The number of its first row in the source, from 1.
        rows: How many rows it has.
        kept: The kept blocks that have its scores, by the numbers of their first rows; empty while it is not scored.
    """

    number: int
    part: RowRange
    first: int
    rows: int
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredBlock:
    """What scoring a block has done.

    Args:
        first: The number of its first row in the source.
        rows: How many rows it has.
        counts: ``samples`` that were scored, and of them ``abstained`` and ``errors``.
        work: ``tokens`` and ``seconds`` of the models, where they are counted.
    """

    first: int
    rows: int
    counts: Mapping[str, int] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockScoring:
    """What every worker of a job knows; it can be pickled.

    Args:
        folder: Where the blocks are kept.
        key: The key of the run (`KeptBlocks`).
        files: The files of the source.
        mapping: How their columns become those that are read.
        column: What the columns of scores are called.
        batch_size: Samples scored at a time.
        block_rows: Rows of a block.
        groups: How the reward groups samples; rows of one group must be in one block.
        names: What the output files are called, one per file, where the output is a folder; else empty.
    """

    folder: Path
    key: str
    files: tuple[Path, ...]
    mapping: RowMapping | None
    column: str
    batch_size: int
    block_rows: int
    groups: RowGroups
    names: tuple[str, ...] = ()

    @property
    def kept(self) -> KeptBlocks:
        """The kept blocks."""
        return KeptBlocks(self.folder, self.key)

    def divide(self, number: int) -> list[FileBlock]:
        """Divide a file into blocks, as if no file came before it.

        Raises:
            DataError: It cannot be read.
        """
        blocks = []
        for part in row_ranges(self.files[number], self.block_rows, self._together, self.mapping):
            rows = sum(1 for _ in read_range(part, self.mapping)) if part.rows is None else part.rows
            if rows:
                blocks.append(FileBlock(number, part, part.first, rows))
        return blocks

    def group_digests(self, blocks: Sequence[FileBlock]) -> bytes:
        """The digests of the groups of a file, which has these blocks, for `FileScoring.plan`; empty if the reward compares no samples.

        Raises:
            DataError: A row cannot be read, or a group is in two blocks.
        """
        if not self.groups or not blocks:
            return b""
        of_blocks = ((block.part.first, read_range(block.part, self.mapping)) for block in blocks)
        return group_digests(self.files[blocks[0].number], of_blocks, self.groups)

    def check(self, blocks: Sequence[FileBlock]) -> None:
        """Refuse rows that have changed since they were scored.

        Args:
            blocks: Blocks that are scored.

        Raises:
            DataError: The message names the first such row.
        """
        for _ in self.rows(blocks):
            pass

    def score(self, provider: rm.Provider, block: FileBlock) -> ScoredBlock:
        """Score a block and keep its scores.

        Raises:
            DataError: A row cannot be read or scored.
            ScoringError: The reward failed.
            OutputError: The scores cannot be written, or the run has ended.
        """
        path = self.files[block.number]
        counts, work, lines = Counter[str](), Counter[str](), []
        before = Counter(provider.counts)
        batches = scored_batches(
            provider,
            read_range(block.part, self.mapping),
            lambda row, where: unscored_samples(row, f"{path}, {where}", self.column).samples,
            self.batch_size,
            unit="samples",
            first=block.part.first,
            groups=self.groups,
            named=lambda rows: f"{path}, {rows}",
        )
        for batch, metadata in batches:
            lines += [kept_line(row_digest(json_line(scored.row)), scored) for scored in batch]
            work.update({name: metadata[name] for name in ("tokens", "seconds") if name in metadata})
        counts.update(provider.counts - before)
        self.kept.write(block.first, lines)
        return ScoredBlock(block.first, len(lines), dict(counts), dict(work))

    def rows(self, blocks: Sequence[FileBlock]) -> Iterator[dict[str, Any]]:
        """The rows of scored blocks with their scores, in order.

        Raises:
            DataError: A row has changed since it was scored, or a block is missing.
        """
        for block in blocks:
            pairs = zip_longest(read_range(block.part, self.mapping), self._lines(block))
            for number, (row, line) in enumerate(pairs, start=block.part.first):
                if row is None or line is None or row_digest(json_line(row)) != line["row"]:
                    raise DataError(
                        f"The interrupted run in {self.folder} cannot be resumed: row {number} of {block.part.path} has changed since it "
                        "was scored. Start again with --overwrite."
                    )
                row = json.loads(json_line(row))
                scored = ScoredRow(row, line["scores"], line["details"], line.get("errors", []))
                yield {**row, **scored.columns(unscored_samples(row, "a row", self.column), self.column)}

    def finish(self, blocks: Sequence[FileBlock], number: int) -> int:
        """Write the output file of a file of the source, which has these blocks, into the folder of blocks; returns the number of rows.

        Raises:
            DataError: As `rows`.
            OutputError: The file cannot be written.
        """
        return write_rows(self.rows(blocks), self.finished(number))

    def finished(self, number: int) -> Path:
        """Where `finish` writes: a folder per file, as a machine does not see the locks of others on temporary files."""
        return self.folder / _FINISHED / f"{number:06d}" / self.names[number]

    def _lines(self, block: FileBlock) -> Iterator[dict[str, Any]]:
        """What is kept of each row of a block."""
        expected, after = block.first, block.first + block.rows
        for first in block.kept:
            lines = self.kept.read(first)
            if lines is None or first > expected or first + len(lines) <= expected:
                break
            yield from lines[expected - first : after - first]
            expected = min(first + len(lines), after)
        if expected < after:
            raise DataError(
                f"In {self.folder}, the scores of {self.files[block.number]} from row {block.part.first + expected - block.first} on are "
                "missing. Run the same command again to score them."
            )

    def _together(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        return bool(self.groups) and self.groups.join(row_samples(before).samples, row_samples(after).samples)


class FileScoring:
    """What the driver of a job does: it checks, tells workers what to do, and joins what they have written.

    Args:
        request: What to score. If the output is a folder, the source must be one too, and each of its files gives one file of the output.
        fingerprint: That of the reward.
        groups: How the reward groups samples.
        block_rows: Rows of a block.

    Raises:
        DataError: The output exists, the source is not made of files, or an interrupted run belongs to another reward, source or setting.
        OutputError: The output cannot be written.
    """

    def __init__(self, request: ScoringRequest, fingerprint: str, groups: RowGroups, block_rows: int) -> None:
        self.request = request
        self.out = request.out
        self.files = files_of(request)
        part = unfinished_part(request.source, self.out, request.overwrite, is_folder=self.is_folder)
        # As `rm_plugins.jobs.scored_rows.RowScoring` has it, so that a run of the one continues with the other.
        note = {"spec": request.spec, "fingerprint": fingerprint, "source": request.source, "split": request.split}
        self._kept = KeptRows(part, {**note, "batch_size": request.batch_size} if groups else note)
        if request.overwrite:
            self._kept.discard()
        self._kept.resume()
        try:
            kept = self._kept.moved_into_blocks(block_rows)
            self._index = kept.index()
            self._kept.beside = sum(rows for _, rows in self._index)
        except BaseException:
            self._kept.release()
            raise
        self.blocks = BlockScoring(
            kept.folder.absolute(),
            kept.key,
            tuple(path.absolute() for path in self.files),
            request.mapping or mapping_beside(request.source),
            request.column,
            request.batch_size,
            block_rows,
            groups,
            tuple(_output_name(path) for path in self.files) if self.is_folder else (),
        )
        self.of_files: list[list[FileBlock]] = []
        """The blocks of each file, since `plan`."""

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.out.suffix not in _OUTPUTS

    def plan(self, divided: Sequence[Sequence[FileBlock]], digests: Sequence[bytes]) -> list[list[FileBlock]]:
        """Number the blocks of all files, and find those that an earlier run has scored; returns these, by file.

        Args:
            divided: The blocks of each file, from `BlockScoring.divide`.
            digests: The digests of the groups of each file, from `BlockScoring.group_digests`.

        Raises:
            DataError: A group is in two files.
        """
        check_whole_groups(self.files, digests)
        self.of_files, first = [], 1
        for blocks in divided:
            numbered = []
            for block in blocks:
                kept = covering(self._index, first, block.rows)
                numbered.append(replace(block, first=first, kept=kept))
                first += block.rows
            self.of_files.append(numbered)
        scored = [[block for block in blocks if block.kept] for blocks in self.of_files]
        self._kept.beside = sum(block.rows for blocks in scored for block in blocks)
        return scored

    @property
    def missing(self) -> list[FileBlock]:
        """The blocks that must be scored."""
        return [block for blocks in self.of_files for block in blocks if not block.kept]

    @property
    def done(self) -> int:
        """How many rows are scored."""
        return self._kept.beside

    def add(self, scored: ScoredBlock) -> None:
        """Take note that a worker has scored a block."""
        self._kept.beside += scored.rows

    def finishing(self) -> list[list[FileBlock]]:
        """The blocks of each file, when all are scored."""
        self.of_files = [[replace(block, kept=block.kept or (block.first,)) for block in blocks] for blocks in self.of_files]
        return self.of_files

    def join(self) -> int:
        """Write the output, of which `BlockScoring.finish` has written the files where it is a folder; returns the number of rows.

        Raises:
            DataError: As `BlockScoring.rows`.
            OutputError: It cannot be written.
        """
        blocks = [block for of_file in self.finishing() for block in of_file]
        rows = sum(block.rows for block in blocks)
        if self.is_folder:
            with replacing_folder(self.out) as folder:
                for number, name in enumerate(self.blocks.names):
                    with output_errors(self.out):
                        self.blocks.finished(number).rename(folder / name)
        else:
            write_rows(self.blocks.rows(blocks), self.out)
        self._kept.discard()
        return rows

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Within it, a failure lets other processes score into the same output; what is scored stays.

        Raises:
            JobInterrupted: It was interrupted with Ctrl-C.
        """
        with self._kept.released_on_failure("scoring"):
            try:
                yield
            except KeyboardInterrupt:  # the message counts blocks that workers have not told of yet
                self._kept.beside = self._kept.beside or sum(rows for _, rows in self.blocks.kept.index())
                raise

    def close(self) -> None:
        """Let other processes score into the same output; what is scored stays."""
        self._kept.release()


def files_of(request: ScoringRequest) -> list[Path]:
    """The files of the source.

    Raises:
        DataError: It is standard input or a dataset, or the output is a folder and the source a single file.
        OutputError: Two files would have the same name in the folder of the output.
    """
    files = source_files(request.source, request.split)
    if files is None:
        raise DataError(
            f"{request.source!r} is not a file or a folder of files, which workers on other machines could read. Save it as Parquet or "
            "JSON Lines first."
        )
    if request.out.suffix not in _OUTPUTS:
        if not Path(request.source).is_dir():
            raise DataError(
                f"{request.source} is a file, so the output must be a file too: -o NAME.jsonl or NAME.parquet, not {str(request.out)!r}."
            )
        names = Counter(_output_name(path) for path in files)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise OutputError(
                f"Two files of {request.source} would both be {repeated[0]} in {request.out}. Write one file: -o NAME.jsonl."
            )
    return files


def _output_name(path: Path) -> str:
    """What the scored rows of a file are called: Parquet stays Parquet, all else becomes JSON Lines."""
    return path.name if path.suffix.lower() in (".parquet", ".jsonl") else f"{path.name}.jsonl"
