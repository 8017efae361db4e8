"""Files of rows that are written batch by batch, and resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from rm_plugins.data.row_files import MARKED_OUTPUTS, json_line
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import check_kept, check_output, open_kept, output_errors, sync_folder, would_replace, write_atomically
from rm_plugins.jobs.blocks import WHEN_INTERRUPTED, KeptBlocks, discard_blocks, has_blocks
from rm_plugins.jobs.interruption import JobInterrupted
from rm_plugins.jobs.run_note import read_row, refusal

if TYPE_CHECKING:
    from rm_plugins.data.scored_rows import ScoredRow

_BATCH = "batch"
"""An extra key in the last row of a batch: the digest of what the rows were made from, and what the reward had learned by then."""


def check_outside(source: str, out: Path) -> None:
    """Refuse an output in the folder that is read: what a job writes would be rows of the next one, or of the same one after a kill.

    Args:
        source: Where rows are read.
        out: The output.

    Raises:
        OutputError: The output is in the folder, and its name does not mark it as one (`MARKED_OUTPUTS`).
    """
    folder = Path(source)
    if folder.is_dir() and folder.resolve() in out.resolve().parents and not MARKED_OUTPUTS.search(str(out)):
        raise OutputError(
            f"{out} is inside of {source}, where every file of rows is read. Name an output outside of that folder."
        )


def unfinished_part(source: str, out: Path, overwrite: bool, *, is_folder: bool = False) -> Path:
    """The file in which a scoring job keeps its rows until its output is whole.

    Args:
        source: Where rows are read.
        out: The output.
        overwrite: Whether a finished output may be replaced.
        is_folder: Whether the output is a folder.

    Raises:
        DataError: The output exists, and no run that was to replace it was interrupted.
        OutputError: The output cannot be written, or is in the folder that is read.
    """
    check_outside(source, out)
    check_output(out, is_folder=is_folder)
    part = out.with_name(f"{out.name}.part")
    if would_replace(out) and not overwrite and not part.exists():  # an interrupted run with --overwrite has a part
        raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
    return part


def row_digest(line: str) -> str:
    """The digest of a row, as a line of JSON, by which a resumed job knows it again."""
    return hashlib.sha256(line.encode()).hexdigest()


def kept_line(digest: str, scored: ScoredRow) -> dict[str, Any]:
    """What is kept of a row: its digest, and its scores."""
    return {"row": digest, **scored.kept}


class KeptRows:
    """Rows that are appended to a file as JSON Lines, batch by batch, with a note beside it of the reward and the data they come from.

    A batch counts once its last line is complete; a partial batch, left by a kill, a full disk or a power cut, is cut off. From
    `resume` to `close` or `discard`, no other process can use the file.

    Args:
        path: The file; the note is ``PATH.json``.
        identity: What the rows are made from: the reward, the data and the settings, as JSON values.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")
        self._identity = json.loads(json.dumps(identity))
        self._lock_file = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self._lock_file, is_singleton=True)  # one for this process, however often it asks
        self.count = 0
        """How many rows it holds; set by `resume`."""
        self.state: dict[str, Any] = {}
        """What the reward had learned when the last complete batch was scored; set by `resume`."""
        self.beside = 0
        """How many further rows are kept in blocks beside the file."""

    def identify(self, **more: Any) -> None:
        """Add to what the note says, before `resume`."""
        self._identity |= more

    def resume(self) -> int:
        """Begin the file, or cut a partial batch off its end; returns how many rows it holds.

        Raises:
            DataError: It was begun with another reward, other data or other settings, or another process writes it.
            OutputError: It cannot be written.
        """
        self._take()
        self.count = 0
        try:
            return self._resumed()
        except BaseException:
            self.close()
            raise

    def _resumed(self) -> int:
        if not self._file.exists():
            self._write_note()
            with output_errors(self.path):
                os.close(open_kept(self.path, new=True))
                sync_folder(self.path.parent)
            return 0
        with output_errors(self._file), open(open_kept(self._file), "rb+") as file:
            count, size, last = self._whole(file)
            known = self._read_note()
            if known is None and last is not None and last.get("of") == self._digest:
                known = self._identity
            if count and known != self._identity:
                raise DataError(refusal(self.path, self._note.name, known, self._identity))
            file.truncate(size)
            os.fsync(file.fileno())
        if self._read_note() != self._identity:
            self._write_note()
        self.state = {} if last is None else last["state"]
        self.count = count
        return count

    def append(self, rows: Iterable[Mapping[str, Any]], state: Mapping[str, Any] | None = None) -> None:
        """Add a batch of rows, which are on the disk when this returns, all of them or none.

        Args:
            rows: The rows.
            state: What the reward has learned from them and needs to resume.

        Raises:
            OutputError: They cannot be written; those that were added before are kept.
        """
        batch = list(rows)
        if batch:
            batch[-1] = self._ended(batch[-1], state or {})
        # Opening it fails where somebody has deleted it.
        with output_errors(self.path, WHEN_INTERRUPTED), open(open_kept(self.path), "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.writelines(json_line(row) for row in batch)
            file.flush()
            os.fsync(file.fileno())
        self.count += len(batch)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the file."""
        with output_errors(self._file), open(open_kept(self._file), encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    @property
    def blocks_folder(self) -> Path:
        """The folder beside the file in which several processes keep blocks of rows until these are appended in order."""
        return self.path.with_name(f"{self.path.name}.blocks")

    def begin_blocks(self) -> KeptBlocks:
        """Create the folder of blocks, or take over that of an interrupted run; call it after `resume`.

        Raises:
            DataError: The folder holds blocks of another reward, other data or other settings.
            OutputError: It cannot be written.
        """
        return KeptBlocks.begin(self.blocks_folder, self._identity)

    def moved_into_blocks(self, rows: int) -> KeptBlocks:
        """As `begin_blocks`, for a job that keeps blocks only: the rows in the file become blocks of so many rows, and `count` is 0.

        Raises:
            DataError: As `begin_blocks`.
            OutputError: It cannot be written.
        """
        blocks = self.begin_blocks()
        if self.count:
            first, kept = 1, self.rows()
            while lines := list(islice(kept, rows)):
                blocks.write(first, ({name: value for name, value in line.items() if name != _BATCH} for line in lines))
                first += len(lines)
            with output_errors(self.path):
                os.truncate(self.path, 0)
            self.count = 0
        return blocks

    @contextmanager
    def released_on_failure(self, work: str) -> Iterator[None]:
        """Within it, a failure releases the file, and deletes it where it holds no row.

        Args:
            work: What is done within it: ``scoring``, ``generating`` or ``writing``.

        Raises:
            JobInterrupted: It was interrupted with Ctrl-C.
        """
        try:
            yield
        except JobInterrupted:
            raise
        except KeyboardInterrupt as error:
            count = self.count + self.beside
            self.release()
            raise JobInterrupted(work, count, self._file) from error
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release it for other processes, and delete it where no row is kept, in it or in blocks: those of a refused run stay."""
        if self._lock.is_locked and not self.count and not has_blocks(self.blocks_folder):
            discard_blocks(self.blocks_folder)
            self._note.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release it for other processes."""
        if self._lock.is_locked:
            self._lock_file.unlink(missing_ok=True)  # while it is held: the next process makes another one
            self._lock.release(force=True)

    def discard(self) -> None:
        """Delete file and note.

        Raises:
            DataError: Another process writes it.
        """
        self._take()
        discard_blocks(self.blocks_folder)
        # The rows go last: a run that is killed meanwhile can be resumed from them alone.
        for path in (self._lock_file, self._note, self.path):
            path.unlink(missing_ok=True)
        self.close()

    @property
    def _file(self) -> Path:
        return self.path

    def _take(self) -> None:
        for path in (self.path, self._note, self._lock_file):
            check_kept(path)
        check_output(self._note)
        with output_errors(self._lock_file):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise DataError(
                    f"{self.path} is being written by another run of the same command. Wait for it, or name another output (or another "
                    "folder with --scores)."
                ) from None

    def _ended(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The last row of a batch, marked as such."""
        return {**row, _BATCH: {"of": self._digest, "state": state}}

    def _end_of_batch(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `_ended` has added to a row; None within a batch."""
        ended: dict[str, Any] | None = row.get(_BATCH)
        return ended

    def _whole(self, file: Iterable[bytes]) -> tuple[int, int, dict[str, Any] | None]:
        """The number of rows in complete batches, their size in bytes, and what the last one ends with."""
        count = size = rows = read = 0
        last: dict[str, Any] | None = None
        for line in file:
            row = read_row(line)
            if row is None:  # cut off, or zeros where the power failed
                break
            rows, read = rows + 1, read + len(line)
            if (ended := self._end_of_batch(row)) is not None:
                count, size, last = rows, read, ended
        return count, size, last

    @property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:32]

    def _write_note(self) -> None:
        write_atomically(self._note, json.dumps(self._identity, indent=2) + "\n")

    def _read_note(self) -> dict[str, Any] | None:
        """What the note says; None where it is missing or broken."""
        try:
            with open(open_kept(self._note), "rb") as file:
                return read_row(file.read())
        except FileNotFoundError:
            return None


class UnfinishedFile(KeptRows):
    """``OUT.part``, which becomes ``OUT`` when all rows are in it; each row is a batch of its own.

    Args:
        out: The finished file.
        identity: As for `KeptRows`.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        super().__init__(out.with_name(f"{out.name}.part"), identity)
        self.out = out

    @property
    def is_finished(self) -> bool:
        """Whether all rows are in it, and only a later step was interrupted."""
        return self.out.exists() and self._note.exists() and not self.path.exists()

    def finish(self) -> None:
        """Give it the name of the finished file; the note stays until `forget` or `discard`."""
        with output_errors(self.out, WHEN_INTERRUPTED):
            os.replace(self.path, self.out)
            sync_folder(self.out.parent)

    def forget(self) -> None:
        """Delete the note; the finished file is then an ordinary file."""
        self._lock_file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Delete it, finished or not."""
        self._take()
        self.out.unlink(missing_ok=True)  # before the note, without which it is an ordinary file
        super().discard()

    def _ended(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        return row

    def _end_of_batch(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"state": {}}

    @property
    def _file(self) -> Path:
        return self.out if self.is_finished else self.path
