"""Which samples of a batch are compared with each other: the groups that rewards see which rank, standardize or judge samples together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rm_plugins.canonical_json import canonical_json, listed
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample


def groups_of(samples: Sequence[Sample], id_column: str | None = None) -> list[list[int]]:
    """The rows of each group, in the order of their first rows.

    Samples of the same prompt are a group. A sample without a prompt, which may answer any question, is alone. With `id_column`, the
    samples with the same value in that column are a group instead, regardless of their prompts. Prompts may then differ in a detail, such
    as a date, and equal prompts may be kept apart, such as those with different images. In an evaluation, each row of several samples is a
    group (`rows_as_groups`).

    Args:
        samples: The batch, [N].
        id_column: The column that names a sample's group.

    Raises:
        DataError: Samples lack the column, or it is null, NaN or an empty text; its `rows` are those samples.

    >>> groups_of([Sample("a", "1"), Sample("", "2"), Sample("a", "3"), Sample("", "4")])
    [[0, 2], [1], [3]]
    >>> groups_of([Sample("a", "1", {"id": 7}), Sample("b", "2", {"id": 7}), Sample("a", "3", {"id": 8})], "id")
    [[0, 1], [2]]
    """
    groups: dict[str | int, list[int]] = defaultdict(list)
    for row, key in enumerate(_known_keys(samples, id_column)):
        groups[row if key is None else key].append(row)
    return list(groups.values())


def check_group_columns(samples: Sequence[Sample], id_columns: Iterable[str | None]) -> None:
    """Refuse samples that lack a column that names their group, before anything is computed or learned from the others.

    Args:
        samples: The batch, [N].
        id_columns: The columns, each as for `groups_of`; None needs no column.

    Raises:
        DataError: Samples lack a column, or it is null, NaN or an empty text; its `rows` are those samples.
    """
    for column in id_columns:
        if column is not None:
            _known_keys(samples, column)


def _known_keys(samples: Sequence[Sample], id_column: str | None) -> list[str | None]:
    keys = group_keys(samples, id_column)
    if lacking := [row for row, key in enumerate(keys) if key == ""]:
        first = samples[lacking[0]].columns
        value = first.get(str(id_column))
        problem = f"it is {'null' if value is None else repr(value)}"
        if id_column not in first:
            problem = f"the sample has {', '.join(map(repr, first)) or 'no columns'}"
        raise DataError(
            f"The samples are grouped by the column {id_column!r}, but {len(lacking)} of {len(samples)} samples lack it (first: item "
            f"{lacking[0]}; {problem}). Give every row this column, or leave `group` out to group samples by their prompt.",
            rows=lacking,
        )
    return keys


def group_keys(samples: Sequence[Sample], id_column: str | None = None) -> list[str | None]:
    """What names the group of each sample, [N]: the same text in every process; None for a sample that is alone.

    Args:
        samples: The batch, [N].
        id_column: As for `groups_of`. The key of a sample that lacks this column is empty.
    """
    rows = _rows.get()
    return [f"row {rows[id(sample)]}" if id(sample) in rows else _key(sample, id_column) for sample in samples]


@contextmanager
def rows_as_groups(samples_of_rows: Sequence[Sequence[Sample]]) -> Iterator[None]:
    """Within it, the samples of a row are a group of their own, regardless of their prompts and columns.

    This is for judged data: its judgements compare the samples of a row, which may lack a prompt, or have that of another row. Rows of a
    single sample are grouped as everywhere.

    Args:
        samples_of_rows: The samples of each row; the same objects that are scored.

    >>> rows = [[Sample("a", "1"), Sample("a", "2")], [Sample("a", "3"), Sample("a", "4")]]
    >>> with rows_as_groups(rows):
    ...     groups_of([sample for samples in rows for sample in samples])
    [[0, 1], [2, 3]]
    """
    several = (samples for samples in samples_of_rows if len(samples) > 1)
    token = _rows.set({id(sample): number for number, samples in enumerate(several) for sample in samples})
    try:
        yield
    finally:
        _rows.reset(token)


@dataclass(frozen=True, slots=True)
class RowGroups:
    """How a reward groups the samples of rows; false if it compares no samples.

    Args:
        by: By what its parts group samples: None for the prompt, or the name of a column; empty if it compares none.
        each_row: Whether a row of several samples is a group of its own, as in judged data (`rows_as_groups`).
    """

    by: tuple[str | None, ...] = ()
    each_row: bool = False

    def __bool__(self) -> bool:
        return bool(self.by)

    def keys(self, samples: Sequence[Sample]) -> set[tuple[str | None, str]]:
        """The groups to which the samples of a row belong, without those that no other row can belong to."""
        if self.each_row and len(samples) > 1:
            return set()
        return {(column, key) for column in self.by for key in group_keys(samples, column) if key}

    def join(self, before: Sequence[Sample], after: Sequence[Sample]) -> bool:
        """Whether samples of two rows are in one group."""
        return bool(self.keys(before) & self.keys(after))

    def scoring(self, samples_of_rows: Sequence[Sequence[Sample]]) -> AbstractContextManager[None]:
        """Within it, a reward that scores these rows finds their groups."""
        return rows_as_groups(samples_of_rows) if self and self.each_row else nullcontext()


_rows: ContextVar[Mapping[int, int]] = ContextVar("rm_plugins_rows_as_groups", default={})  # noqa: B039 - never changed


def _key(sample: Sample, id_column: str | None) -> str | None:
    if id_column is None:
        return sample.prompt_key.hex() if sample.prompt else None
    value = listed(sample.columns.get(id_column))
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():  # a table whose column lacks some values has floats for integers
        value = int(value)
    return f"{id_column}={canonical_json(value)}"


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none, in any format of a dataset: a NaN is not equal to itself, and pandas' NA to nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # the answer of NA is neither, and that of some values not one
        return type(value).__name__ == "NAType"
