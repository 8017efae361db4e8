"""The forms of a file of rows: JSON Lines and arrays, CSV and TSV, Parquet and Arrow."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from rm_plugins.errors import DataError
from rm_plugins.samples import PROMPT_COLUMNS

_OF_VALUES = {
    "label",
    "labels",
    "messages",
    "margin",
    "score",
    "scores",
    "completions",
    "ranks",
    "best",
    "weight",
    "tie",
    *PROMPT_COLUMNS,
}
"""The columns that do not hold text: in a CSV file, where everything is text, they are read as JSON."""

_MESSAGES = re.compile(r"""\s*\[\s*\{.*["']role["']""", re.DOTALL)
_READ_AT_ONCE = 1024
_JSON_KEYS = (str, int, float, type(None))
"""What `json` writes as a key."""


# --- JSON -----------------------------------------------------------------------------------------------------------------


def json_rows(lines: IO[str], source: str, first: int = 1) -> Iterator[dict[str, Any] | DataError]:
    """The rows of JSON Lines or of a JSON array, in one line or many; an error in place of what is not a row.

    Args:
        lines: The lines.
        source: What an error calls the file.
        first: The number of the first of them in the file. From the middle of a file on, there is no array.

    Raises:
        DataError: An array does not end, or is not JSON.
    """
    is_first = first == 1
    for number, line in enumerate(lines, start=first):
        stripped = line.strip(" \t\r\n")
        if not stripped:
            continue
        if is_first and stripped[0] == "[":  # which a row never is
            yield from _json_array(line + lines.read(), source)
            return
        is_first = False
        yield _row_or_error(stripped, f"{source}, line {number}")


def _json_array(text: str, source: str) -> Iterator[dict[str, Any] | DataError]:
    try:
        rows = _parsed(text)
    except ValueError as error:
        raise DataError(f"{source} begins with [ but is not a JSON array: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield row if isinstance(row, dict) else _no_mapping(row, f"{source}, item {number}")


def _row_or_error(line: str, where: str) -> dict[str, Any] | DataError:
    try:
        row = _parsed(line)
    except ValueError as error:
        return DataError(
            f"{where} is not valid JSON: {error}. The file must be JSON Lines, one row per line, or one array of rows."
        )
    return row if isinstance(row, dict) else _no_mapping(row, where)


def _no_mapping(row: Any, where: str) -> DataError:
    return DataError(f"{where} is {type(row).__name__}; a mapping of column to value was expected.")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _without_repetition(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return values


# --- CSV and TSV ----------------------------------------------------------------------------------------------------------


def csv_rows(text: IO[str], source: str, ending: str) -> Iterator[dict[str, Any] | DataError]:
    """The rows below a header, of ``.csv`` or ``.tsv``; an error in place of a row with another number of values.

    Raises:
        DataError: It is not CSV, or two columns have the same name.
    """
    csv.field_size_limit(2**31 - 1)
    lines = _tsv_lines(text) if ending == ".tsv" else csv.reader(text, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            values = next(lines, None)
        except csv.Error as error:
            raise DataError(f"{source} is not valid CSV: {error}, after line {getattr(lines, 'line_num', '?')}.") from error
        if values is None:
            return
        if not values:
            continue
        number += 1
        if header is None:
            header = values
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{source} has the column {repeated[0]!r} twice. Rename one.")
        elif len(values) != len(header):
            what = f"there are {len(values)} values and the header has {len(header)} columns"
            hint = "a line break in a value" if ending == ".tsv" else "a comma or quote in a value"
            yield DataError(
                f"{source}, row {number - 1}: {what}: {values[0]!r:.80}. Is it {hint}? JSON Lines has no such problem."
            )
        else:
            try:
                yield {name: _csv_value(name, value) for name, value in zip(header, values, strict=True)}
            except DataError as error:
                yield DataError(f"{source}, row {number - 1}: {error}")


def _tsv_lines(text: Iterable[str]) -> Iterator[list[str]]:
    """The values of each line. Quotes are kept, except around a whole value whose inner quotes are all doubled, as in CSV."""
    for line in text:
        values = []
        for value in line.rstrip("\r\n").split("\t"):
            inner = value[1:-1].replace('""', "")
            quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner
            values.append(value[1:-1].replace('""', '"') if quoted else value)
        yield [] if values == [""] else values


def _csv_value(column: str, value: str) -> Any:
    if not value:
        return None
    if column in _OF_VALUES:
        with suppress(ValueError):
            return _parsed(value.lower() if value in ("True", "False") else value)
    if _MESSAGES.match(value):
        messages: Any = None
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            messages = _parsed(value) if '"role"' in value else ast.literal_eval(value)  # as Python prints a list
        if not isinstance(messages, list):
            raise DataError(f"{column!r} looks like a list of messages but cannot be read: {value!r:.80}. Write it as JSON.")
        if all(isinstance(turn, dict) and "role" in turn for turn in messages):
            return messages
    return value


# --- Tables --------------------------------------------------------------------------------------------------------------


def table_rows(file: IO[bytes], ending: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet (``.parquet``) or Arrow file; NaN is null.

    Raises:
        ValueError: Two columns have the same name, or a map has a key twice.
    """
    if ending == ".parquet":
        yield from table_rows_from(file, 0)
        return
    import pyarrow as arrow

    try:
        opened = arrow.ipc.open_file(file)
        names, batches = opened.schema.names, (opened.get_batch(number) for number in range(opened.num_record_batches))
    except arrow.ArrowInvalid:
        file.seek(0)
        batches = arrow.ipc.open_stream(file)  # as `datasets` writes its files
        names = batches.schema.names
    yield from _rows_of_batches(names, batches)


def table_rows_from(file: IO[bytes], skipped: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file after the first `skipped` ones; row groups that lie before them are not read.

    Raises:
        ValueError: Two columns have the same name, or a map has a key twice.
    """
    import pyarrow.parquet as parquet

    opened = parquet.ParquetFile(file)
    groups: list[int] = []
    for number in range(opened.num_row_groups):
        rows = opened.metadata.row_group(number).num_rows
        if groups or skipped < rows:
            groups.append(number)
        else:
            skipped -= rows
    batches = opened.iter_batches(batch_size=_READ_AT_ONCE, row_groups=groups)
    yield from _rows_of_batches(opened.schema_arrow.names, _without_first(batches, skipped))


def _without_first(batches: Iterable[Any], skipped: int) -> Iterator[Any]:
    for batch in batches:
        if skipped < batch.num_rows:
            yield batch.slice(skipped)
        skipped = max(skipped - batch.num_rows, 0)


def _rows_of_batches(names: list[str], batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"There are two columns {repeated[0]!r}. Rename one.")
    for batch in batches:
        yield from rows_of_table(batch)


def rows_of_table(table: Any) -> list[dict[str, Any]]:
    """The rows of a table or batch of Arrow, as `without_nan` gives them.

    Raises:
        ValueError: A map has a key twice.
    """
    try:
        rows = table.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        raise ValueError(f"A map in a column has a key twice. Remove the column, or make it a list. {error.args[0]}") from error
    return [{name: without_nan(value) for name, value in row.items()} for row in rows]


def without_nan(value: Any) -> Any:
    """The value with null in place of every NaN in it, at any depth, and with text in place of keys that JSON does not have.

    >>> import datetime
    >>> without_nan({datetime.date(2026, 1, 31): [float("nan"), {1: "a"}]})
    {'2026-01-31': [None, {1: 'a'}]}
    """
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name if isinstance(name, _JSON_KEYS) else str(name): without_nan(item) for name, item in value.items()}
    return value
