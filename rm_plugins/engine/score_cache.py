"""Scores that were computed before, found again by what was scored and by what scored it.

The key of a row is a digest of the scorer's fingerprint and of the row. A model's fingerprint is made of its weights, configuration
and dtype, and its rows are token ids, which are all that rendering and truncation come to: another model, revision, dtype or
rendering never meets these scores. Other scorers have a fingerprint and rows of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import ScoringError
from rm_plugins.files import check_output
from rm_plugins.one_thread import OneThread
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEMORY = "memory"
"""In place of a file's name: the cache lives as long as the provider."""

_ENTRIES_IN_MEMORY = 200_000
_BUSY_SECONDS = 60.0
_KEYS_A_QUERY = 500
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")

IndexArray: TypeAlias = NDArray[np.intp]

Row: TypeAlias = bytes | Sequence[int]
"""What is scored: token ids, or any bytes."""


class ScoreCache:
    """A scorer's outputs for a row, in memory, and in an SQLite file where one is named.

    Several processes of one machine may share a file. The memory holds the 200,000 entries used last; the file keeps everything
    until it is deleted, about 100 bytes a row.

    Args:
        where: ``memory``, or the file's path, which is made where there is none.
        fingerprint: What identifies the scorer, such as a model's `model_fingerprint`.

    Raises:
        OutputError: The file cannot be written.
        ScoringError: It is no cache.
    """

    def __init__(self, where: str, fingerprint: str) -> None:
        self._file = None if where == MEMORY else Path(os.path.expanduser(where))
        self._fingerprint = hashlib.sha256(fingerprint.encode()).digest()
        self._memory: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._one_thread = OneThread()
        if self._file is not None:
            check_output(self._file)
            with self._connection() as connection:
                # Readers and a writer do not wait for each other.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, outputs BLOB NOT NULL) WITHOUT ROWID"
                )

    def read(self, rows: Sequence[Row], outputs: FloatArray) -> IndexArray:
        """Fill in the outputs of known rows; returns the numbers of the others.

        Args:
            rows: What is scored, [N].
            outputs: float64 [N, outputs], changed where a row is known.
        """
        with self._one_thread:
            return self._read(self._keys(rows), outputs)

    def _read(self, keys: Sequence[bytes], outputs: FloatArray) -> IndexArray:
        absent = list(dict.fromkeys(key for key in keys if key not in self._memory))
        for key, stored in self._stored(absent):
            self._memory[key] = np.frombuffer(stored, dtype=np.float64)
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
        """Keep the outputs of rows.

        Args:
            rows: What is scored, [N].
            outputs: float64 [N, outputs]; rows that are not finite are not kept.
        """
        fresh = {key: row.copy() for key, row in zip(self._keys(rows), outputs, strict=True) if np.isfinite(row).all()}
        with self._one_thread:
            self._memory.update(fresh)
            self._forget()
        if self._file is not None:
            with self._connection() as connection:
                stored = [(key, row.tobytes()) for key, row in fresh.items()]
                connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", stored)

    def _keys(self, rows: Sequence[Row]) -> list[bytes]:
        contents = (row if isinstance(row, bytes) else array("q", row).tobytes() for row in rows)
        return [hashlib.blake2b(content, key=self._fingerprint, digest_size=20).digest() for content in contents]

    def _stored(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        if self._file is None or not keys:
            return []
        stored: list[tuple[bytes, bytes]] = []
        with self._connection() as connection:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                marks = ", ".join("?" * len(some))
                stored += connection.execute(f"SELECT key, outputs FROM scores WHERE key IN ({marks})", some).fetchall()
        return stored

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of this moment, which no fork and no thread can inherit; commits, or rolls back on an error."""
        try:
            with closing(sqlite3.connect(str(self._file), timeout=_BUSY_SECONDS)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise ScoringError(
                f"The score cache {self._file} cannot be used: {error}. Name another file in the spec, or delete this one if it is "
                "meant to be a cache."
            ) from error

    def _forget(self) -> None:
        while len(self._memory) > _ENTRIES_IN_MEMORY:
            self._memory.popitem(last=False)


def model_fingerprint(model: PreTrainedModel) -> str:
    """A SHA-256 over a model's weights, configuration and dtype, as hexadecimal text. Reads every weight once."""
    import torch

    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_THE_MODEL}
    # What an adapter's weights are multiplied with is in no tensor.
    scales = {
        name: scale for name, module in model.named_modules() if isinstance(scale := getattr(module, "scaling", None), dict)
    }
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings, scales], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
