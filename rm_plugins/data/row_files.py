"""Files of rows: JSON Lines, JSON, CSV, TSV, Parquet and Arrow, compressed or not, alone or in a folder; and datasets."""

from __future__ import annotations

import ast
import csv
import glob
import gzip
import json
import logging
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from functools import partial
from io import BufferedReader, TextIOBase, TextIOWrapper
from pathlib import Path
from typing import IO, Any, TypeAlias

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.written_mapping import mapping_beside, tell_of_unread_mapping
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import in_utf8, replacing
from rm_plugins.samples import PROMPT_COLUMNS

logger = logging.getLogger(__name__)

_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow", ".feather")
_COMPRESSED = (".gz", ".zst")
_DATA_ENDINGS = (*(f"{rows}{packed}" for rows in _ROWS for packed in ("", *_COMPRESSED)), *_TABLES)

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
"""The columns that rows are read by and that are no text: in a CSV file, where everything is text, they are JSON."""

_MESSAGES = re.compile(r"""\s*\[\s*\{.*["']role["']""", re.DOTALL)
_OUTPUTS = re.compile(r"\.(scored|ranked)\.\w+(\..+)?$")
"""What `rm-plugins score` and `rank` write beside their input, which is no data of the folder."""

_Refuse: TypeAlias = Callable[[DataError], None]
_READ_AT_ONCE = 1024


def is_data_file(source: str) -> bool:
    """Whether `source` looks like a file of rows rather than the name of a dataset."""
    return source == "-" or source.lower().endswith(_DATA_ENDINGS)


def without_data_ending(name: str) -> str:
    """The name of a file of rows without ``.jsonl``; another ending is kept, so that two files never become one name.

    >>> without_data_ending("pairs.v2.jsonl"), without_data_ending("pairs.v2.csv.gz")
    ('pairs.v2', 'pairs.v2.csv.gz')
    """
    return name.removesuffix(".jsonl")


def read_rows(
    source: str,
    split: str = "train",
    *,
    mapping: RowMapping | None = None,
    on_bad_line: _Refuse | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows of a file, of the files of a folder, of standard input (``-``), or of a dataset.

    A file is JSON Lines, a JSON array, CSV or TSV with a header, all of which may be compressed (``.gz``, ``.zst``); Parquet or
    Arrow. Text is UTF-8. NaN is null. Of CSV and TSV every value is text and an empty one is null, but in columns that rows are
    read by and that are no text, such as ``scores`` or ``tie``; a list of messages is one everywhere. A folder is read as
    `datasets.load_dataset` does: the names of files say which split they are of.

    Args:
        source: A path, ``-``, or the name or folder of a dataset for `datasets.load_dataset`.
        split: The split of a dataset or folder; unused for files.
        mapping: Makes rows of our formats of those in the file; by default what ``FILE.map.yaml`` says, where there is one.
        on_bad_line: Called with the error for what is no row, which is then left out; by default it is raised.

    Raises:
        DataError: There is no such file, it cannot be read, or a line is no row; the message names file and line.
    """
    if mapping is None:
        mapping = mapping_beside(source)
    else:
        tell_of_unread_mapping(source)
    if source == "-":
        yield from _mapped(_standard_input, "standard input", mapping, on_bad_line)
    elif is_data_file(source):
        yield from _mapped(partial(_path_rows, Path(source)), source, mapping, on_bad_line)
    elif (files := _folder_files(source, split)) is not None:
        for file in files:
            own = mapping or mapping_beside(str(file))
            yield from _mapped(partial(_path_rows, file), str(file), own, on_bad_line)
    else:
        yield from _mapped(lambda _: _dataset_rows(source, split), source, mapping, on_bad_line)


def _mapped(
    read: Callable[[_Refuse], Iterator[dict[str, Any]]], name: str, mapping: RowMapping | None, on_bad_line: _Refuse | None
) -> Iterator[dict[str, Any]]:
    """Rows as a mapping makes them; what is no row, or cannot be mapped, is handed to `on_bad_line`, or raised."""
    bad = 0

    def refuse(error: DataError) -> None:
        nonlocal bad
        bad += 1
        if on_bad_line is None:
            raise error
        on_bad_line(error)

    for number, row in enumerate(read(refuse), start=1):
        if mapping is None:
            yield row
            continue
        try:
            mapped = mapping(row)
        except DataError as error:
            refused = DataError(f"{name}, row {number + bad}: {error}")
            if on_bad_line is None:
                raise refused from error
            on_bad_line(refused)
        else:
            yield mapped


def _standard_input(refuse: _Refuse) -> Iterator[dict[str, Any]]:
    if sys.stdin is None:
        raise DataError("Standard input is closed.")
    with _read_errors("standard input"):
        yield from _file_rows(getattr(sys.stdin, "buffer", sys.stdin), "standard input", ".jsonl", refuse)


def _path_rows(path: Path, refuse: _Refuse) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    with _read_errors(str(path)), path.open("rb") as file:
        yield from _file_rows(file, str(path), Path(name).suffix, refuse)


@contextmanager
def _read_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a cut-off archive, bytes that are no UTF-8, no Parquet
        raise DataError(f"{name} cannot be read: {error}") from error


def _file_rows(file: IO[Any], name: str, ending: str, refuse: _Refuse) -> Iterator[dict[str, Any]]:
    if ending in _TABLES:
        yield from _table_rows(file, ending)
        return
    with ExitStack() as stack:
        text = file if isinstance(file, TextIOBase) else _text_of(file, stack)
        rows = _csv_rows(text, name, ending) if ending in (".csv", ".tsv") else _json_rows(text, name)
        for row in rows:
            if isinstance(row, dict):
                yield row
            else:
                refuse(row)


def _text_of(file: Any, stack: ExitStack) -> IO[str]:
    """The UTF-8 text of a binary file, which may be compressed, without a byte order mark."""
    file = file if hasattr(file, "peek") else BufferedReader(file)
    start = file.peek(4)[:4]
    if start[:2] == b"\x1f\x8b":
        file = stack.enter_context(gzip.GzipFile(fileobj=file))
    elif start == b"\x28\xb5\x2f\xfd":
        import pyarrow as arrow

        file = stack.enter_context(arrow.CompressedInputStream(arrow.PythonFile(file), "zstd"))
    text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
    stack.callback(text.detach)  # standard input stays open
    return text


# --- JSON -----------------------------------------------------------------------------------------------------------------


def _json_rows(lines: IO[str], source: str) -> Iterator[dict[str, Any] | DataError]:
    """The rows of JSON Lines or of a JSON array, in one line or many; an error in the place of what is none."""
    is_first = True
    for number, line in enumerate(lines, start=1):
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
        raise DataError(f"{source} begins with [ and is no JSON array: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield row if isinstance(row, dict) else _no_mapping(row, f"{source}, item {number}")


def _row_or_error(line: str, where: str) -> dict[str, Any] | DataError:
    try:
        row = _parsed(line)
    except ValueError as error:
        return DataError(f"{where} is no JSON: {error}. The file must be JSON Lines, one row a line, or one array of rows.")
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
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


# --- CSV and TSV ----------------------------------------------------------------------------------------------------------


def _csv_rows(text: IO[str], source: str, ending: str) -> Iterator[dict[str, Any] | DataError]:
    """The rows below a header; an error in the place of one with another number of values."""
    csv.field_size_limit(2**31 - 1)
    lines = _tsv_lines(text) if ending == ".tsv" else csv.reader(text, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            values = next(lines, None)
        except csv.Error as error:
            raise DataError(f"{source} is no CSV: {error}, after line {getattr(lines, 'line_num', '?')}.") from error
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
            yield DataError(f"{source}, row {number - 1}: {what}: {values[0]!r:.80}. Is it {hint}? JSON Lines has neither.")
        else:
            try:
                yield {name: _csv_value(name, value) for name, value in zip(header, values, strict=True)}
            except DataError as error:
                yield DataError(f"{source}, row {number - 1}: {error}")


def _tsv_lines(text: Iterable[str]) -> Iterator[list[str]]:
    """The values of each line. A quote is a quote, but around a whole value that has doubled ones only, as CSV writes them."""
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
            raise DataError(
                f"{column!r} looks like a list of messages and is none that can be read: {value!r:.80}. Write it as JSON."
            )
        if all(isinstance(turn, dict) and "role" in turn for turn in messages):
            return messages
    return value


# --- Tables, folders and datasets -----------------------------------------------------------------------------------------


def _table_rows(file: IO[bytes], ending: str) -> Iterator[dict[str, Any]]:
    import pyarrow as arrow

    opened: Any
    batches: Any
    if ending == ".parquet":
        import pyarrow.parquet as parquet

        opened = parquet.ParquetFile(file)
        names, batches = opened.schema_arrow.names, opened.iter_batches(batch_size=_READ_AT_ONCE)
    else:
        try:
            opened = arrow.ipc.open_file(file)
            names, batches = opened.schema.names, (opened.get_batch(number) for number in range(opened.num_record_batches))
        except arrow.ArrowInvalid:
            file.seek(0)
            batches = arrow.ipc.open_stream(file)  # as `datasets` writes its files
            names = batches.schema.names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"There are two columns {repeated[0]!r}. Rename one.")
    for batch in batches:
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            yield {name: without_nan(value) for name, value in row.items()}


def without_nan(value: Any) -> Any:
    """The value with null for every NaN in it, however deep."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return {name: without_nan(item) for name, item in value.items()} if isinstance(value, dict) else value


def _folder_files(source: str, split: str) -> list[Path] | None:
    """The data files of a folder that are of a split, in the order of their names; None where it is a dataset's own folder."""
    folder = Path(source)
    saved_by_datasets = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    card = folder / "README.md"
    if not folder.is_dir() or saved_by_datasets or (card.is_file() and "\nconfigs:" in card.read_text("utf-8", "replace")):
        return None
    from datasets.data_files import get_data_patterns, resolve_pattern

    base = glob.escape(source)
    with suppress(FileNotFoundError):
        splits = {
            str(name): sorted(
                {
                    os.path.abspath(file)
                    for pattern in patterns
                    for file in _resolved(resolve_pattern, pattern, base)
                    if is_data_file(file) and not _OUTPUTS.search(file)
                }
            )
            for name, patterns in get_data_patterns(base).items()
        }
        if any(splits.values()):
            if not splits.get(split):
                raise DataError(f"The folder {source!r} has no files of the split {split!r}; it has {', '.join(splits)}.")
            walked = os.walk(os.path.abspath(source), followlinks=True)
            inside = {os.path.join(place, file) for place, _, files in walked for file in files if is_data_file(file)}
            if left := sorted(inside - {file for files in splits.values() for file in files}):
                logger.warning("Of the folder %s, %s is in no split and is not read.", source, ", ".join(left))
            return [Path(file) for file in splits[split]]
    raise DataError(f"The folder {source!r} has no data file ({', '.join(_DATA_ENDINGS)}).")


def _resolved(resolve: Callable[[str, str], list[str]], pattern: str, folder: str) -> list[str]:
    try:
        return resolve(pattern, folder)
    except FileNotFoundError:
        return []


def _dataset_rows(source: str, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset, load_from_disk

    try:
        if (Path(source) / "state.json").is_file():
            rows = load_from_disk(source)
        elif (Path(source) / "dataset_dict.json").is_file():
            rows = load_from_disk(source)[split]
        else:
            rows = load_dataset(source, split=split, streaming=True)
    except Exception as error:  # whatever the hub, the disk or a loading script raises
        raise DataError(
            f"{source!r} is no data file ({', '.join(_DATA_ENDINGS)}) and no dataset with a split {split!r} could be loaded: {error}"
        ) from error
    for row in rows:
        yield {name: without_nan(value) for name, value in row.items()}


# --- Writing --------------------------------------------------------------------------------------------------------------


def json_line(row: object) -> str:
    """A row as a line of JSON Lines; decimals become numbers, dates and bytes, which Parquet files hold too, become text."""
    text = json.dumps(row, ensure_ascii=False, default=lambda value: float(value) if isinstance(value, Decimal) else str(value))
    return in_utf8(text) + "\n"


def _in_utf8(value: Any) -> Any:
    match value:
        case str():
            return in_utf8(value)
        case dict():
            return {_in_utf8(key): _in_utf8(item) for key, item in value.items()}
        case list() | tuple():
            return [_in_utf8(item) for item in value]
    return value


def write_rows(rows: Iterable[Mapping[str, Any]], out: Path) -> int:
    """Write rows as JSON Lines or, where the name ends in ``.parquet``, as Parquet, whole or not at all; returns their number.

    Raises:
        OutputError: The file cannot be written, or Parquet has no form for a column.
    """
    count = 0
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            import pyarrow as arrow
            import pyarrow.parquet as parquet

            whole = list(rows)
            names = dict.fromkeys(name for row in whole for name in row)  # not of the first row alone, as pyarrow takes them
            try:
                table = arrow.Table.from_pylist([_in_utf8({name: row.get(name) for name in names}) for row in whole])
                parquet.write_table(table, temporary)
            except (arrow.ArrowException, OverflowError) as error:  # values of several types in a column
                raise OutputError(f"{out} cannot be written as Parquet: {error}. Name a file that ends in .jsonl.") from error
            count = table.num_rows
        else:
            with temporary.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json_line(row))
                    count += 1
    return count
