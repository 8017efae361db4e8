"""Scoring files block by block, for engines whose workers read, score and write without the driver: no row passes through it.

A block is a range of rows of a file, and all rows of a group where the reward compares them. Its scores are kept under a name that depends
on the block only (`rm_plugins.jobs.blocks.KeptBlocks`), so it may be scored twice and counts once. Each file of the source has a folder of
blocks of its own. `FileScoring` is what the driver does, and `BlockScoring` what workers do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import rm_plugins as rm
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import json_line, read_rows, source_files, write_rows
from rm_plugins.data.row_ranges import RowRange, read_range, row_ranges
from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import ScoredRow, scored_batches, unscored_samples
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import check_kept, check_output, output_errors, replacing_folder, would_replace
from rm_plugins.groups import RowGroups
from rm_plugins.jobs.blocks import KeptBlocks
from rm_plugins.jobs.job_engine import ScoringRequest
from rm_plugins.jobs.run_note import read_row, refusal

_OUTPUTS = (".jsonl", ".json", ".ndjson", ".parquet")
_FINISHED = "finished"
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A block of a file of the source.

    Args:
        number: The number of the file, from 0.
        rows: Its rows.
        kept: The number of its rows where an earlier run has scored it, else None.
    """

    number: int
    rows: RowRange
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredBlock:
    """What scoring a block has done.

    Args:
        rows: How many rows it has.
        counts: ``samples`` that were scored, and of them ``abstained`` and ``errors``.
        work: ``tokens`` and ``seconds`` of the models, where they are counted.
    """

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

    def kept(self, number: int) -> KeptBlocks:
        """The blocks of a file."""
        return KeptBlocks(self.folder / f"file-{number:06d}", self.key)

    def blocks(self, number: int) -> Iterator[FileBlock]:
        """Divide a file into blocks.

        Raises:
            DataError: It cannot be read, or rows of a block that an earlier run has scored have changed since.
            OutputError: The folder of blocks cannot be written, or has gone.
        """
        kept = self.kept(number)
        with output_errors(kept.folder):
            kept.folder.mkdir(exist_ok=True)  # not its parent, which goes when the run ends
        rows = None
        for rows in row_ranges(self.files[number], self.block_rows, self._together, self.mapping):
            known = kept.read(rows.first)
            if known is not None:
                for _ in self._checked(rows, known):
                    pass
            yield FileBlock(number, rows, None if known is None else len(known))
        if self.groups and rows is not None:
            self._check_next(number, rows)

    def score(self, provider: rm.Provider, block: FileBlock) -> ScoredBlock:
        """Score a block and keep its scores.

        Raises:
            DataError: A row cannot be read or scored.
            ScoringError: The reward failed.
            OutputError: The scores cannot be written, or the run has ended.
        """
        path, first = self.files[block.number], block.rows.first
        counts, work, lines = Counter[str](), Counter[str](), []
        before = Counter(provider.counts)
        batches = scored_batches(
            provider,
            read_range(block.rows, self.mapping),
            lambda row, where: unscored_samples(row, f"{path}, {where}", self.column).samples,
            self.batch_size,
            unit="samples",
            first=first,
            groups=self.groups,
        )
        for batch, metadata in batches:
            lines += [{"row": _digest(scored.row), **scored.kept} for scored in batch]
            work.update({name: metadata[name] for name in ("tokens", "seconds") if name in metadata})
        counts.update(provider.counts - before)
        self.kept(block.number).write(first, lines)
        return ScoredBlock(len(lines), dict(counts), dict(work))

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of a file with their scores, in order.

        Raises:
            DataError: A row has changed since it was scored, or a block is missing.
        """
        kept = self.kept(number)
        for rows in row_ranges(self.files[number], self.block_rows, self._together, self.mapping):
            known = kept.read(rows.first)
            if known is None:
                raise DataError(
                    f"In {kept.folder}, the scores of {self.files[number]} from row {rows.first} on are missing. Run the same command "
                    "again to score them."
                )
            for row, line in self._checked(rows, known):
                scored = ScoredRow(row, line["scores"], line["details"], line.get("errors", []))
                yield {**row, **scored.columns(unscored_samples(row, "a row", self.column), self.column)}

    def finish(self, number: int) -> int:
        """Write the output file of a file of the source into the folder of blocks; returns the number of rows.

        Raises:
            DataError: As `rows`.
            OutputError: The file cannot be written.
        """
        return write_rows(self.rows(number), self.finished(number))

    def finished(self, number: int) -> Path:
        """Where `finish` writes: a folder per file, as a machine does not see the locks of others on temporary files."""
        return self.folder / _FINISHED / f"{number:06d}" / self.names[number]

    def _checked(
        self, rows: RowRange, known: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
        """The rows of a block as they are read again, each with what is kept of it."""
        read = read_range(rows, self.mapping)
        for number, (row, line) in enumerate(zip_longest(read, known), start=rows.first):
            if row is None or line is None or _digest(row) != line["row"]:
                raise DataError(
                    f"The interrupted run in {self.folder} cannot be resumed: row {number} of {rows.path} has changed since it was scored. "
                    "Start again with --overwrite."
                )
            yield json.loads(json_line(row)), line

    def _check_next(self, number: int, last: RowRange) -> None:
        """Refuse a group whose rows are in this file and in the next one, as its blocks would be compared without each other."""
        path, *others = self.files[number : number + 2]
        after = next((row for other in others for row in read_rows(str(other), mapping=self.mapping)), None)
        if after is not None and self._together(deque(read_range(last, self.mapping), maxlen=1)[0], after):
            raise DataError(
                f"The last row of {path} and the first one of {others[0]} are of one group, whose completions the reward compares. "
                "Move the rows of each group into one file."
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
        self.folder = self.out.with_name(f"{self.out.name}.part.blocks-of-files")
        self.files = files_of(request)
        identity = {
            "spec": request.spec,
            "fingerprint": fingerprint,
            "source": request.source,
            "split": request.split,
            "files": _named([str(path) for path in self.files]),
            "rows in a block": block_rows,
            "output": "a folder" if self.is_folder else "a file",
        }
        self._stack = ExitStack()
        with ExitStack() as stack:
            stack.enter_context(self._alone())
            if request.overwrite:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._check_earlier(identity)
            key = KeptBlocks.begin(self.folder, identity).key
            names = tuple(_output_name(path) for path in self.files) if self.is_folder else ()
            self.blocks = BlockScoring(
                self.folder.absolute(),
                key,
                tuple(path.absolute() for path in self.files),
                request.mapping,
                request.column,
                request.batch_size,
                block_rows,
                groups,
                names,
            )
            self._stack = stack.pop_all()

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return self.out.suffix not in _OUTPUTS

    def join(self) -> int:
        """Write the output, of which `BlockScoring.finish` has written the files where it is a folder; returns the number of rows.

        Raises:
            DataError: As `BlockScoring.rows`.
            OutputError: It cannot be written.
        """
        rows = 0
        if self.is_folder:
            with replacing_folder(self.out) as folder:
                for number, name in enumerate(self.blocks.names):
                    with output_errors(self.out):
                        self.blocks.finished(number).rename(folder / name)
        else:
            rows = write_rows((row for number in range(len(self.files)) for row in self.blocks.rows(number)), self.out)
        KeptBlocks(self.folder, self.blocks.key).discard()
        return rows

    def close(self) -> None:
        """Let other processes score into the same output; what is scored stays."""
        if self.folder.is_dir() and not any(self.folder.glob("file-*/[0-9]*.jsonl")):
            KeptBlocks(self.folder, self.blocks.key).discard()
        self._stack.close()

    def _check_earlier(self, identity: Mapping[str, Any]) -> None:
        """Refuse what must not be replaced or continued."""
        has_blocks = any(self.folder.glob("file-*/[0-9]*.jsonl"))
        if would_replace(self.out) and not self.request.overwrite and not has_blocks:
            raise DataError(f"{self.out} exists already. Name another output with -o, or replace it with --overwrite.")
        part = self.out.with_name(f"{self.out.name}.part")
        if part.exists() and not self.request.overwrite:
            raise DataError(
                f"{part} is of an interrupted run without --engine. Run that command again without --engine to finish it, or name another "
                "output."
            )
        note = self.folder / "run.json"
        known = (read_row(note.read_bytes()) or {}).get("identity") if note.is_file() else None
        if known == identity:
            return
        if has_blocks:
            raise DataError(refusal(self.folder, note.name, known, identity))
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it, no other process is the driver of a job with this output."""
        path = self.out.with_name(f".{self.out.name}.part.blocks-of-files.lock")
        check_output(self.out, is_folder=self.is_folder)
        check_kept(path)
        lock = FileLock(path)
        with output_errors(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise DataError(
                    f"{self.out} is being written by another run of the same command. Wait for it, or name another output."
                ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release(force=True)


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


def _named(names: Sequence[str]) -> Any:
    if len(names) <= _MOST_NAMED:
        return list(names)
    return f"{len(names)} files, {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}"


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_line(row).encode()).hexdigest()
