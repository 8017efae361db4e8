"""Ranges of rows: parts of JSON Lines and Parquet files that can be read without what is before them, by several machines at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, TypeAlias

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import mapped_rows, read_errors, read_rows
from rm_plugins.data.row_formats import json_rows, table_rows_from
from rm_plugins.data.written_mapping import mapping_beside
from rm_plugins.errors import DataError

Together: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether two rows that follow each other must be in one range."""

_LINES = (".jsonl", ".ndjson")
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PIECES = 16
"""Into how many ranges a row group of Parquet is divided at most, since each of them decodes the group up to its own end."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of a file that follow each other.

    Args:
        path: The file.
        first: The number of the first row, from 1.
        rows: How many; None for all rows of a file that can only be read from its beginning.
        start: In a file of lines, the byte where they begin.
        stop: In a file of lines, the byte after the last one.
        line: In a file of lines, the number of the first line, from 1.
    """

    path: str
    first: int = 1
    rows: int | None = None
    start: int = 0
    stop: int = 0
    line: int = 1


def row_ranges(
    path: Path, size: int, together: Together | None = None, mapping: RowMapping | None = None
) -> Iterator[RowRange]:
    """Divide the rows of a file; the same file and arguments always give the same ranges.

    Uncompressed JSON Lines and Parquet are divided. A file of another kind is one range.

    Args:
        path: The file.
        size: Rows of a range; more in Parquet with large row groups, and where rows must stay together.
        together: Which rows must stay together; by default any row may begin a range.
        mapping: Makes rows of our formats for `together`; by default what ``FILE.map.yaml`` says.

    Raises:
        DataError: The file cannot be read.
    """
    mapping = mapping or mapping_beside(str(path))
    with read_errors(str(path)):
        if path.suffix.lower() == ".parquet":
            yield from _table_ranges(path, size, together, mapping)
        elif path.suffix.lower() in _LINES and _has_lines(path):
            yield from _line_ranges(path, size, together, mapping)
        else:
            yield RowRange(str(path))


def read_range(part: RowRange, mapping: RowMapping | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a range, as `read_rows` reads them.

    Args:
        part: The range.
        mapping: Makes rows of our formats of them; by default what ``FILE.map.yaml`` says.

    Raises:
        DataError: The file cannot be read, or has other lines than when it was divided.
    """
    if part.rows is None:
        yield from read_rows(part.path, mapping=mapping)
        return
    read = partial(_lines_of, part) if part.stop else partial(_table_of, part)
    count = 0
    for row in mapped_rows(read, part.path, mapping or mapping_beside(part.path), None, first=part.first):
        count += 1
        yield row
    if count != part.rows:
        raise DataError(
            f"{part.path} has {count} rows where it had {part.rows}, from row {part.first} on: it was changed meanwhile, or its lines end "
            "with a carriage return only. End each line with a line feed."
        )


# --- Lines ---------------------------------------------------------------------------------------------------------------


def _has_lines(path: Path) -> bool:
    """Whether it is neither compressed nor one array."""
    with path.open("rb") as file:
        begin = file.read(64)
    return not begin.startswith(_PACKED) and not begin.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _line_ranges(path: Path, size: int, together: Together | None, mapping: RowMapping | None) -> Iterator[RowRange]:
    first, count, start, start_line = 1, 0, 0, 1
    before_at, before_line, at = 0, 1, 0
    name = str(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            stop = at + len(line)
            if (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip(b" \t\r\n"):
                if count >= size:
                    before = RowRange(name, first + count - 1, 1, before_at, at, before_line)
                    if not (
                        together and _joined(together, before, RowRange(name, first + count, 1, at, stop, number), mapping)
                    ):
                        yield RowRange(name, first, count, start, at, start_line)
                        first, count, start, start_line = first + count, 0, at, number
                count += 1
                before_at, before_line = at, number
            at = stop
    if count:
        yield RowRange(name, first, count, start, at, start_line)


def _joined(together: Together, before: RowRange, after: RowRange, mapping: RowMapping | None) -> bool:
    return together(next(read_range(before, mapping)), next(read_range(after, mapping)))


def _lines_of(part: RowRange, refuse: Callable[[DataError], None]) -> Iterator[dict[str, Any]]:
    with read_errors(part.path), open(part.path, "rb") as file:
        file.seek(part.start)
        text = file.read(part.stop - part.start).decode("utf-8-sig" if part.start == 0 else "utf-8")
        for row in json_rows(StringIO(text, newline=""), part.path, part.line):
            if isinstance(row, dict):
                yield row
            else:
                refuse(row)


# --- Parquet -------------------------------------------------------------------------------------------------------------


def _table_ranges(path: Path, size: int, together: Together | None, mapping: RowMapping | None) -> Iterator[RowRange]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    size = max(size, -(-max(groups, default=0) // _PIECES))
    first, total = 1, sum(groups)
    while first <= total:
        after = min(first + size, total + 1)
        if together and after <= total:
            rows = read_range(RowRange(str(path), after - 1, total - after + 2), mapping)
            after += sum(1 for _ in takewhile(lambda pair: together(*pair), pairwise(rows)))
        yield RowRange(str(path), first, after - first)
        first = after


def _table_of(part: RowRange, _: Callable[[DataError], None]) -> Iterator[dict[str, Any]]:
    with read_errors(part.path), open(part.path, "rb") as file:
        yield from islice(table_rows_from(file, part.first - 1), part.rows)
