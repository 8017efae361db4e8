"""Groups of rows in files that are scored block by block: the rows of a group that are in two blocks would not be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import ScoredGroups
from rm_plugins.errors import DataError
from rm_plugins.groups import RowGroups

_DIGEST_BYTES = 16


def group_digests(path: Path, blocks: Iterable[tuple[int, Iterable[Mapping[str, Any]]]], groups: RowGroups) -> bytes:
    """The digests of the groups of a file, of 16 bytes each, in which it can be compared with other files.

    Args:
        path: The file, for messages.
        blocks: The number of the first row of each block, and its rows.
        groups: How the reward groups samples.

    Raises:
        DataError: A row has no samples, or a group is in two blocks; the message names the rows.
    """
    before = ScoredGroups(groups)
    for first, rows in blocks:
        of_rows = []
        for number, row in enumerate(rows, start=first):
            of_rows.append(row_samples(row, f"{path}, row {number}").samples)
            try:
                before.check(number, of_rows[-1])
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        before.add(first, of_rows)
    return b"".join(hashlib.blake2b(repr(key).encode(), digest_size=_DIGEST_BYTES).digest() for key in before.keys)


def check_whole_groups(paths: Sequence[Path], digests: Sequence[bytes]) -> None:
    """Refuse a group that is in two files.

    Args:
        paths: The files.
        digests: What `group_digests` returned for each of them.

    Raises:
        DataError: The message names two files that have rows of one group.
    """
    sorted_digests = np.sort(np.frombuffer(b"".join(digests), f"V{_DIGEST_BYTES}"))
    repeated = sorted_digests[1:][sorted_digests[1:] == sorted_digests[:-1]]
    if not len(repeated):
        return
    first, second, *_ = (
        path for path, of_file in zip(paths, digests, strict=True) if repeated[0] in np.frombuffer(of_file, f"V{_DIGEST_BYTES}")
    )
    raise DataError(
        f"{first} and {second} have rows of one group, whose completions the reward compares. Move the rows of each group into one file, "
        "one after the other. If a file begins with the group that ends the one before, the command also works without --engine."
    )
