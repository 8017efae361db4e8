"""Files of rows that are written bit by bit, and gone on with after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError
from rm_plugins.files import check_output, output_errors, write_atomically

_WHEN_INTERRUPTED = "What was written before is kept: once there is room, the same command resumes after it."


class KeptRows:
    """Rows that are appended to a file as JSON Lines, with a note beside it of what they were made by and of.

    From `resume` to `close` or `discard`, no other process has it.

    Args:
        path: The file; the note is ``PATH.json``.
        identity: What the rows are made by and of, as JSON has it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")
        self._identity = json.loads(json.dumps(identity))
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), is_singleton=True)  # this process's, however often it asks

    def resume(self) -> int:
        """Begin the file, or cut a half-written last line off; returns how many rows it holds.

        Raises:
            DataError: It was begun by or of something else, or another process writes it.
            OutputError: It cannot be written.
        """
        self._take()
        if not self._file.exists():
            write_atomically(self._note, json.dumps(self._identity, indent=2) + "\n")
            with output_errors(self.path):
                self.path.touch()
            return 0
        known = json.loads(self._note.read_text(encoding="utf-8")) if self._note.exists() else None
        if known != self._identity:
            raise DataError(
                f"{self.path} was begun by another reward, from another source or with other settings ({known}). Begin anew with "
                "--overwrite, or name another output."
            )
        whole = count = 0
        with output_errors(self._file), self._file.open("rb+") as file:
            for line in file:
                if line.endswith(b"\n"):
                    whole += len(line)
                    count += 1
            file.truncate(whole)
        return count

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, which are on the disk when this returns.

        Raises:
            OutputError: They cannot be written; those that were added before stay.
        """
        # To open it fails where somebody has deleted it.
        with output_errors(self.path, _WHEN_INTERRUPTED), self.path.open("r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.writelines(json_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is in the file."""
        with self._file.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Leave it to others."""
        if self._lock.is_locked:
            self._lock.release(force=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete file and note.

        Raises:
            DataError: Another process writes it.
        """
        self._take()
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)
        self.close()

    def _take(self) -> None:
        check_output(self._note)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"{self.path} is being written by another run, which does the same. Wait for it, or name another output, or another "
                "folder with --scores."
            ) from None

    @property
    def _file(self) -> Path:
        return self.path


class UnfinishedFile(KeptRows):
    """``OUT.part``, which becomes ``OUT`` when all rows are in it.

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
        os.replace(self.path, self.out)

    def forget(self) -> None:
        """Delete the note, so that the finished file is one like any other."""
        self._note.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Delete it, finished or not."""
        super().discard()
        self.out.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.out if self.is_finished else self.path
