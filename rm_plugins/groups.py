"""Which samples of a batch are compared with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rm_plugins.errors import DataError
from rm_plugins.samples import Sample, canonical_json


def groups_of(samples: Sequence[Sample], id_column: str | None = None) -> list[list[int]]:
    """The rows of each group, in the order of their first rows.

    Args:
        samples: The batch, [N].
        id_column: The column that names a sample's group; by default, samples of the same prompt are a group.

    Raises:
        DataError: Samples lack the column, or it is null; its `rows` are those samples.
    """
    lacking = [] if id_column is None else [row for row, sample in enumerate(samples) if sample.columns.get(id_column) is None]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(samples)} samples lack the column {id_column!r}.", rows=lacking)
    groups: dict[bytes | str | int, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        if id_column is not None:
            groups[canonical_json(sample.columns[id_column])].append(row)
        else:
            groups[sample.prompt_key if sample.prompt else row].append(row)
    return list(groups.values())
