"""Files of rows that are written bit by bit, and gone on with after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError
from rm_plugins.files import check_kept, check_output, open_kept, output_errors, sync_folder, write_atomically

_WHEN_INTERRUPTED = "What was written before is kept: once there is room, the same command resumes after it."
_BATCH = "batch"
"""The key that the last row of a batch has more: what the rows are made by and of, and what that had learned when they were made."""


class KeptRows:
    """Rows that are appended to a file as JSON Lines, batch by batch, with a note beside it of what they were made by and of.

    A batch counts once its last line is whole: what a kill, a full disk or a power cut has left of another one is cut off. From
    `resume` to `close` or `discard`, no other process has the file.

    Args:
        path: The file; the note is ``PATH.json``.
        identity: What the rows are made by and of, as JSON has it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")
        self._identity = json.loads(json.dumps(identity))
        self._lock_file = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self._lock_file, is_singleton=True)  # this process's, however often it asks
        self.state: dict[str, Any] = {}
        """What had learned, when the last whole batch was made; set by `resume`."""

    def identify(self, **more: Any) -> None:
        """Have more of what the rows are made by written down, before `resume`."""
        self._identity |= more

    def resume(self) -> int:
        """Begin the file, or cut half a batch off its end; returns how many rows it holds.

        Raises:
            DataError: It was begun by or of something else, or another process writes it.
            OutputError: It cannot be written.
        """
        self._take()
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
                raise DataError(self._refusal(known))
            file.truncate(size)
            os.fsync(file.fileno())
        if self._read_note() != self._identity:
            self._write_note()
        self.state = {} if last is None else last["state"]
        return count

    def append(self, rows: Iterable[Mapping[str, Any]], state: Mapping[str, Any] | None = None) -> None:
        """Add a batch of rows, which are on the disk when this returns, all of them or none.

        Args:
            rows: The rows.
            state: What has learned of them, to go on with after them.

        Raises:
            OutputError: They cannot be written; those that were added before stay.
        """
        batch = list(rows)
        if batch:
            batch[-1] = self._ended(batch[-1], state or {})
        # To open it fails where somebody has deleted it.
        with output_errors(self.path, _WHEN_INTERRUPTED), open(open_kept(self.path), "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.writelines(json_line(row) for row in batch)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is in the file."""
        with output_errors(self._file), open(open_kept(self._file), encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Leave it to others."""
        if self._lock.is_locked:
            self._lock_file.unlink(missing_ok=True)  # while it is held: whoever comes next makes another one
            self._lock.release(force=True)

    def discard(self) -> None:
        """Delete file and note.

        Raises:
            DataError: Another process writes it.
        """
        self._take()
        # Last goes what a run that is killed meanwhile is gone on with: rows say themselves what they are of.
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
                    f"{self.path} is being written by another run, which does the same. Wait for it, or name another output, or another "
                    "folder with --scores."
                ) from None

    def _ended(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The last row of a batch, which says that it is."""
        return {**row, _BATCH: {"of": self._digest, "state": state}}

    def _end_of_batch(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `_ended` has put into a row; None within a batch."""
        ended: dict[str, Any] | None = row.get(_BATCH)
        return ended

    def _whole(self, file: Iterable[bytes]) -> tuple[int, int, dict[str, Any] | None]:
        """The number of rows in whole batches, the bytes that they take, and the end of the last one."""
        count = size = rows = read = 0
        last: dict[str, Any] | None = None
        for line in file:
            row = _row(line)
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
        """What the file is of; None where nothing says it any more."""
        try:
            with open(open_kept(self._note), "rb") as file:
                return _row(file.read())
        except FileNotFoundError:
            return None

    def _refusal(self, known: Mapping[str, Any] | None) -> str:
        begin_anew = f"Begin anew with --overwrite, name another output, or delete {self.path.name} to lose what it holds."
        if known is None:
            return f"{self.path} was begun, and its note {self._note.name} is gone or broken, so that nothing says of what. {begin_anew}"
        names = [name for name in {**self._identity, **known} if known.get(name) != self._identity.get(name)]
        other = "; ".join(f"{name} was {known.get(name)!r:.200} and is {self._identity.get(name)!r:.200}" for name in names)
        return f"{self.path} was begun by another reward, from another source or with other settings: {other}. {begin_anew}"


def _row(line: bytes) -> dict[str, Any] | None:
    """What a whole line says; None for half a line, and for what is no row."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class UnfinishedFile(KeptRows):
    """``OUT.part``, which becomes ``OUT`` when all rows are in it; each row is a batch, made without the others.

    Args:
        out: The finished file.
        identity: What its rows are made by and of, as JSON has it.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        super().__init__(out.with_name(f"{out.name}.part"), identity)
        self.out = out

    @property
    def is_finished(self) -> bool:
        """Whether all rows are in it, and only what is made of them was interrupted."""
        return self.out.exists() and self._note.exists() and not self.path.exists()

    def finish(self) -> None:
        """Give it the name of the finished file; the note stays until `forget` or `discard`."""
        with output_errors(self.out, _WHEN_INTERRUPTED):
            os.replace(self.path, self.out)
            sync_folder(self.out.parent)

    def forget(self) -> None:
        """Delete the note, so that the finished file is one like any other."""
        self._lock_file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Delete it, finished or not."""
        self._take()
        self.out.unlink(missing_ok=True)  # before the note, without which it is one like any other
        super().discard()

    def _ended(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        return row

    def _end_of_batch(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        return {"state": {}}

    @property
    def _file(self) -> Path:
        return self.out if self.is_finished else self.path
