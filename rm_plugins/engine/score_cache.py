"""Caches scores by scorer and row.

The key of an entry is a digest of the scorer's fingerprint and of the row. A model's fingerprint covers its weights, configuration and
dtype; its rows are token ids, the result of rendering and truncation. Another model, revision, dtype or rendering therefore never gets
these scores. Other scorers define their own fingerprint and rows.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import logging
import os
import sqlite3
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import OutputError, ScoringError
from rm_plugins.files import check_output
from rm_plugins.one_thread import OneThread
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEMORY = "memory"
"""Given instead of a file name: the cache lives as long as the provider."""

logger = logging.getLogger(__name__)

_ENTRIES_IN_MEMORY = 200_000
_BUSY_SECONDS = 10.0
_DIGEST_BYTES = 16
_NOT_OF_THE_NAME = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""Reasons why a file cannot be written although its name is right."""
_KEYS_A_QUERY = 500
_TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, outputs BLOB NOT NULL) WITHOUT ROWID"
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")

Result = TypeVar("Result")

IndexArray: TypeAlias = NDArray[np.intp]

Row: TypeAlias = bytes | Sequence[int]
"""One scored row: token ids, or any bytes."""


class ScoreCache:
    """Caches a scorer's outputs in memory and, if a file is named, in an SQLite file.

    Several processes on one machine may share a file. The memory holds the 200,000 most recently used entries; the file keeps everything
    until it is deleted, about 120 bytes per row. Every entry in the file has a checksum; an entry with a wrong one is recomputed.

    Scoring does not depend on the file: if it is locked, damaged, full or cannot be written, it is not used any more, after one warning.

    Args:
        where: ``memory``, or the path of the file, which is created if it does not exist.
        fingerprint: Identifies the scorer, such as a model's `model_fingerprint`.

    Raises:
        OutputError: The path is not a file, and no file can be created there.
        ScoringError: The file is not a score cache.
    """

    def __init__(self, where: str, fingerprint: str) -> None:
        self._file = None if where == MEMORY else Path(os.path.expanduser(where))
        self._fingerprint = hashlib.sha256(fingerprint.encode()).digest()
        self._memory: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._one_thread = OneThread()
        self._damaged = False
        if self._file is not None:
            self._prepare(self._file)

    def read(self, rows: Sequence[Row], outputs: FloatArray) -> IndexArray:
        """Fill in the outputs of cached rows; returns the numbers of the other rows.

        Args:
            rows: The rows to look up, [N].
            outputs: float64 [N, outputs], overwritten for cached rows.
        """
        with self._one_thread:
            return self._read(self._keys(rows), outputs)

    def _read(self, keys: Sequence[bytes], outputs: FloatArray) -> IndexArray:
        absent = list(dict.fromkeys(key for key in keys if key not in self._memory))
        nothing: list[tuple[bytes, object]] = []
        for key, stored in self._in_file(lambda connection: _stored(connection, absent), nothing):
            content = stored[:-_DIGEST_BYTES] if isinstance(stored, bytes) else b""
            if stored == _with_digest(key, content) and len(content) == outputs[0].nbytes:
                self._memory[key] = np.frombuffer(content, dtype=np.float64)
            else:
                self._warn_of_damage()
        unknown = []
        for row, key in enumerate(keys):
            known = self._memory.get(key)
            if known is None:
                unknown.append(row)
            else:
                self._memory.move_to_end(key)
                outputs[row] = known
        self._forget()
        return np.array(unknown, dtype=np.intp)

    def write(self, rows: Sequence[Row], outputs: FloatArray) -> None:
        """Store the outputs of rows.

        Args:
            rows: The scored rows, [N].
            outputs: float64 [N, outputs]; rows that are not finite are not stored.
        """
        fresh = {key: row.copy() for key, row in zip(self._keys(rows), outputs, strict=True) if np.isfinite(row).all()}
        with self._one_thread:
            self._memory.update(fresh)
            self._forget()
            stored = [(key, _with_digest(key, row.tobytes())) for key, row in fresh.items()]
            self._in_file(lambda connection: connection.executemany("REPLACE INTO scores VALUES (?, ?)", stored), None)

    def _keys(self, rows: Sequence[Row]) -> list[bytes]:
        contents = (row if isinstance(row, bytes) else array("q", row).tobytes() for row in rows)
        return [
            hashlib.blake2b(content, key=self._fingerprint, digest_size=20, person=b"checked").digest() for content in contents
        ]

    def _prepare(self, file: Path) -> None:
        """Create the file, or check that it is a cache."""
        try:
            check_output(file)
        except OutputError as error:
            if getattr(error.__cause__, "errno", None) not in _NOT_OF_THE_NAME:
                raise
            self._stop_using_file(error)
        # In WAL mode, readers and a writer do not wait for each other.
        self._in_file(lambda connection: connection.execute("PRAGMA journal_mode = WAL"), None, refuses=True)

    def _in_file(self, work: Callable[[sqlite3.Connection], Result], otherwise: Result, *, refuses: bool = False) -> Result:
        """The result of `work` on a new connection to the file; connections are not reused, because forks and threads must not share them.

        Args:
            work: What to do with the connection; committed, or rolled back on an error.
            otherwise: The result if there is no file or it cannot be used any more.
            refuses: Whether a file that is not a database is an error.
        """
        if self._file is None:
            return otherwise
        try:
            with closing(sqlite3.connect(str(self._file), timeout=_BUSY_SECONDS)) as connection, connection:
                connection.execute(_TABLE)  # each time, in case the file was deleted
                return work(connection)
        except sqlite3.Error as error:
            if refuses and error.sqlite_errorname == "SQLITE_NOTADB":
                raise ScoringError(
                    f"The score cache {self._file} cannot be used: {error}. Name another file in the spec, or delete this one if it is "
                    "meant to be a cache."
                ) from error
            self._stop_using_file(error)
        return otherwise

    def _stop_using_file(self, error: Exception) -> None:
        logger.warning(
            "The score cache %s cannot be used (%s). Scores are computed, and cached in memory only.", self._file, error
        )
        self._file = None

    def _warn_of_damage(self) -> None:
        if not self._damaged:
            logger.warning("The score cache %s is damaged: entries with a wrong checksum are recomputed.", self._file)
        self._damaged = True

    def _forget(self) -> None:
        while len(self._memory) > _ENTRIES_IN_MEMORY:
            self._memory.popitem(last=False)


def _stored(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[tuple[bytes, object]]:
    stored: list[tuple[bytes, object]] = []
    for start in range(0, len(keys), _KEYS_A_QUERY):
        some = keys[start : start + _KEYS_A_QUERY]
        marks = ", ".join("?" * len(some))
        stored += connection.execute(f"SELECT key, outputs FROM scores WHERE key IN ({marks})", some).fetchall()
    return stored


def _with_digest(key: bytes, content: bytes) -> bytes:
    """The stored form of a row's outputs: their bytes, followed by a digest of key and bytes."""
    return content + hashlib.blake2b(content, key=key, digest_size=_DIGEST_BYTES).digest()


def model_fingerprint(model: PreTrainedModel) -> str:
    """The SHA-256 of a model's weights, configuration and dtype, in hexadecimal. Reads every weight once.

    If the model's code came with its checkpoint, the code is included.
    """
    import torch

    from rm_plugins.engine.placement import stored_weights

    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    # The scale of an adapter's weights is not in any tensor.
    scales = {
        name: scale for name, module in model.named_modules() if isinstance(scale := getattr(module, "scaling", None), dict)
    }
    code = _code_of_the_checkpoint(model)
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings, scales, *code], sort_keys=True, default=str).encode())
    for name, tensor in stored_weights(model):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def _code_of_the_checkpoint(model: PreTrainedModel) -> list[str]:
    """Digests of the Python files in the folder of the model's code, if that code came with the checkpoint."""
    module = type(model).__module__
    if not module.startswith("transformers_modules."):  # the package in which transformers puts code from checkpoints
        return []
    file = inspect.getsourcefile(type(model))
    files = [] if file is None else sorted(Path(file).parent.glob("*.py"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
