"""Scored blocks of rows that processes keep in a common folder until one of them joins the blocks in order.

Each block is a file of its own, which is written in one step. So any process that sees the folder, also of another machine, can write any
block at any time. No lock is needed, and the number of processes may change. A process that is killed leaves no part of a block. Writing a
block twice leaves it as it was.

One process owns the folder: it calls `KeptBlocks.begin`, tells the others the key, and calls `remove` and `discard`. There must be one
owner only; the scoring jobs hold the lock of their `rm_plugins.jobs.kept_rows.KeptRows` meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import output_errors, write_shared
from rm_plugins.jobs.run_note import read_row, refusal

WHEN_INTERRUPTED = "Rows that were written before are kept. Free some space, and run the same command again to resume."
"""What to do if rows cannot be kept."""
_NOTE = "run.json"
_DIGITS = 12
_ATTEMPTS = 10


class KeptBlocks:
    """A folder of scored blocks. Constructing it reads and writes nothing.

    Args:
        folder: The folder, which only the owner creates and deletes.
        key: The key of the run, which the owner has from `begin`. Blocks of another run are ignored.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, Any]) -> KeptBlocks:
        """Create the folder, or take over the one that an interrupted run has left.

        Args:
            folder: The folder.
            identity: What the blocks are made from: the reward, the data and the settings, as JSON values.

        Raises:
            DataError: The folder holds blocks of another reward, other data or other settings.
            OutputError: The folder cannot be written, or something else has its name.
        """
        identity = json.loads(json.dumps(identity))
        note = cls._note(folder)
        known = None if note is None else note.get("identity")
        if note is None or known != identity:
            if has_blocks(folder):
                raise DataError(refusal(folder, _NOTE, known, identity))
            note = {"identity": identity, "run": uuid4().hex}
            with output_errors(folder):
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    raise OutputError(f"{folder} is not a folder, but the name is needed for blocks of rows. Move it away.")
                folder.mkdir(parents=True, exist_ok=True)
            write_shared(folder / _NOTE, json.dumps(note, indent=2) + "\n")
        text = json.dumps(note, sort_keys=True)
        return cls(folder, hashlib.sha256(text.encode()).hexdigest()[:32])

    def write(self, first: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep a block, which is on the disk when this returns; any process may call it.

        Args:
            first: The number of the block's first row.
            rows: What is kept of each row.

        Raises:
            OutputError: The folder cannot be written, or its owner has deleted it.
        """
        lines = [json_line(row) for row in rows]
        head = json_line({"of": self.key, "first": first, "rows": len(lines)})
        write_shared(self._file(first), "".join([head, *lines]), WHEN_INTERRUPTED)

    def read(self, first: int) -> list[dict[str, Any]] | None:
        """What is kept of the rows of a block; None if the block is missing, incomplete or of another run."""
        try:
            content = self._file(first).read_bytes()
        except FileNotFoundError:
            return None
        rows = [read_row(line) for line in content.splitlines(keepends=True)]
        if rows[:1] != [{"of": self.key, "first": first, "rows": len(rows) - 1}]:
            return None
        whole = [row for row in rows[1:] if row is not None]
        return whole if len(whole) == len(rows) - 1 else None

    def index(self) -> list[tuple[int, int]]:
        """The blocks, as the number of their first row with their number of rows, in ascending order; only their heads are read.

        A block whose rows earlier ones have is left out.
        """
        index: list[tuple[int, int]] = []
        for path in sorted(_files(self.folder)):
            with path.open("rb") as file:
                head = read_row(file.readline()) or {}
            block = (int(path.stem), int(head.get("rows", 0)))
            if head.get("of") == self.key and sum(block) > sum(index[-1] if index else (1,)):
                index.append(block)
        return index

    def known(self, after: int = 0) -> dict[int, int]:
        """The complete blocks, by the number of their first row in ascending order, with their number of rows.

        If two blocks overlap, which a process of an earlier run may cause, only the first one counts.

        Args:
            after: Blocks that begin with this row or an earlier one are left out.
        """
        known: dict[int, int] = {}
        for path in sorted(_files(self.folder)):
            first = int(path.stem)
            if first > after and (rows := self.read(first)):
                known[first] = len(rows)
                after = first + len(rows) - 1
        return known

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is kept of all rows, in order.

        Raises:
            DataError: A block is missing between two others, or at the beginning.
        """
        expected = 1
        for first, count in self.known().items():
            if first != expected:
                raise DataError(
                    f"In {self.folder}, the scores of rows {expected} to {first - 1} are missing. Run the same command again to score them."
                )
            yield from self.read(first) or ()
            expected = first + count

    def remove(self, first: int) -> None:
        """Delete a block that is kept elsewhere by now."""
        self._file(first).unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the folder. Blocks that are still written get lost."""
        discard_blocks(self.folder)

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:0{_DIGITS}d}.jsonl"

    @staticmethod
    def _note(folder: Path) -> dict[str, Any] | None:
        try:
            return read_row((folder / _NOTE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None


def covering(index: Sequence[tuple[int, int]], first: int, rows: int) -> tuple[int, ...]:
    """The blocks that together have all of some rows that follow each other; empty if there is a row that none has.

    Args:
        index: The blocks, from `KeptBlocks.index`.
        first: The number of the first row.
        rows: How many rows.

    >>> index = [(1, 4), (3, 8), (20, 5)]
    >>> covering(index, 2, 6), covering(index, 9, 5)
    ((1, 3), ())
    """
    chosen: list[int] = []
    expected, after = first, first + rows
    for place in range(bisect_right(index, first, key=sum), len(index)):
        begin, count = index[place]
        if begin > expected:
            break
        chosen.append(begin)
        expected = begin + count
        if expected >= after:
            return tuple(chosen)
    return ()


def has_blocks(folder: Path) -> bool:
    """Whether a folder holds blocks, also those of another run."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    """The files of blocks in a folder."""
    return [path for path in folder.glob(f"{'[0-9]' * _DIGITS}.jsonl") if not path.is_symlink()]


def discard_blocks(folder: Path) -> None:
    """Delete a folder of blocks, if there is one."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with output_errors(folder):
        for path in _files(folder):  # before the note: what a run that is killed meanwhile leaves can be resumed from
            path.unlink(missing_ok=True)
        for _ in range(_ATTEMPTS):  # a process of a killed run may be writing its last block
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
