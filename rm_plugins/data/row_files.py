"""Files of rows: JSON Lines, JSON, CSV, TSV, Parquet and Arrow, compressed or not, alone or in a folder; and datasets."""

from __future__ import annotations

import glob
import gzip
import json
import logging
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
from rm_plugins.data.plain_values import plain_value
from rm_plugins.data.row_formats import csv_rows, json_rows, table_rows, without_nan
from rm_plugins.data.written_mapping import check_path, mapping_beside, tell_of_unread_mapping
from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import in_utf8, replacing
from rm_plugins.missing_path import not_there

logger = logging.getLogger(__name__)

_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow", ".feather")
_COMPRESSED = (".gz", ".zst")
_DATA_ENDINGS = (*(f"{rows}{packed}" for rows in _ROWS for packed in ("", *_COMPRESSED)), *_TABLES)

_OTHER_FILES = (
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".xlsx",
    ".xls",
    ".xml",
    ".html",
    ".zip",
    ".tar",
    ".gz",
    ".zst",
    ".db",
    ".pkl",
    ".pt",
)
"""Endings of files that rows are not read from; a name with such an ending is not a dataset's name."""

MARKED_OUTPUTS = re.compile(r"\.(scored|ranked)\.\w+(\..+)?$")
"""What `rm-plugins score` and `rank` write beside their input by default, which is not data of the folder."""

_Refuse: TypeAlias = Callable[[DataError], None]


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
    Arrow. Text is UTF-8. NaN is null. In CSV and TSV every value is text and an empty one is null, except in columns that
    hold numbers, such as ``scores`` or ``tie``; a list of messages is read as one everywhere. A folder is read as
    `datasets.load_dataset` does: a file's name contains the name of its split.

    Args:
        source: A path, ``-``, or the name or folder of a dataset for `datasets.load_dataset`.
        split: The split of a dataset or folder; unused for files.
        mapping: Makes rows of our formats of those in the file; by default what ``FILE.map.yaml`` says, where there is one.
        on_bad_line: Called with the error for a line that is not a row, which is then left out; by default the error is raised.

    Raises:
        DataError: There is no such file, it cannot be read, or a line is not a row; the message names file and line.
    """
    if mapping is None:
        mapping = mapping_beside(source)
    else:
        tell_of_unread_mapping(source)
    if source == "-":
        yield from mapped_rows(_standard_input, "standard input", mapping, on_bad_line)
    elif is_data_file(source):
        yield from mapped_rows(partial(_path_rows, Path(source)), source, mapping, on_bad_line)
    elif (files := _folder_files(source, split)) is not None:
        for file in files:
            own = mapping or mapping_beside(str(file))
            yield from mapped_rows(partial(_path_rows, file), str(file), own, on_bad_line)
    else:
        yield from mapped_rows(lambda _: _dataset_rows(source, split), source, mapping, on_bad_line)


def mapped_rows(
    read: Callable[[_Refuse], Iterator[dict[str, Any]]],
    name: str,
    mapping: RowMapping | None,
    on_bad_line: _Refuse | None,
    *,
    first: int = 1,
) -> Iterator[dict[str, Any]]:
    """Rows as a mapping makes them.

    Args:
        read: Gives the rows, and calls its argument with an error for what is not a row.
        name: What an error calls where they come from.
        mapping: Makes rows of our formats of them; None leaves them as they are.
        on_bad_line: As in `read_rows`, also for rows that cannot be mapped.
        first: The number of the first row in the file.

    Raises:
        DataError: A line is not a row, or a row cannot be mapped, and there is no `on_bad_line`.
    """
    bad = 0

    def refuse(error: DataError) -> None:
        nonlocal bad
        bad += 1
        if on_bad_line is None:
            raise error
        on_bad_line(error)

    for number, row in enumerate(read(refuse), start=first):
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


def source_files(source: str, split: str = "train") -> list[Path] | None:
    """The files whose rows `read_rows` reads, in order; None for standard input and for datasets.

    Raises:
        DataError: There is no such file, or the folder has no files of the split.
    """
    check_source(source)
    if source == "-":
        return None
    return [Path(source)] if is_data_file(source) else _folder_files(source, split)


def check_source(source: str) -> None:
    """Refuse a source that can only be a file or folder and is not there; it is cheap, as nothing is read.

    Raises:
        DataError: The message names the path.
    """
    if not is_data_file(source):
        _check_name(source)
    elif source != "-":
        _check_file(Path(source))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}{not_there(path)}")


def _standard_input(refuse: _Refuse) -> Iterator[dict[str, Any]]:
    if sys.stdin is None:
        raise DataError("Standard input is closed.")
    with read_errors("standard input"):
        yield from _file_rows(getattr(sys.stdin, "buffer", sys.stdin), "standard input", ".jsonl", refuse)


def _path_rows(path: Path, refuse: _Refuse) -> Iterator[dict[str, Any]]:
    _check_file(path)
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    with read_errors(str(path)), path.open("rb") as file:
        yield from _file_rows(file, str(path), Path(name).suffix, refuse)


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn what reading a file of rows raises into a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a cut-off archive, bytes that are not UTF-8, not Parquet
        raise DataError(f"{name} cannot be read: {error}") from error


def _file_rows(file: IO[Any], name: str, ending: str, refuse: _Refuse) -> Iterator[dict[str, Any]]:
    if ending in _TABLES:
        yield from table_rows(file, ending)
        return
    with ExitStack() as stack:
        text = file if isinstance(file, TextIOBase) else _text_of(file, stack)
        rows = csv_rows(text, name, ending) if ending in (".csv", ".tsv") else json_rows(text, name)
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


# --- Folders and datasets ------------------------------------------------------------------------------------------------


def _folder_files(source: str, split: str) -> list[Path] | None:
    """The data files of a split in a folder, in the order of their names; None if `datasets` saved the folder."""
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
                    if is_data_file(file) and not MARKED_OUTPUTS.search(file)
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
                logger.warning("In the folder %s, %s belongs to no split and is not read.", source, ", ".join(left))
            return [Path(file) for file in splits[split]]
    raise DataError(f"The folder {source!r} has no data file ({', '.join(_DATA_ENDINGS)}).")


def _resolved(resolve: Callable[[str, str], list[str]], pattern: str, folder: str) -> list[str]:
    try:
        return resolve(pattern, folder)
    except FileNotFoundError:
        return []


def _dataset_rows(source: str, split: str) -> Iterator[dict[str, Any]]:
    rows = load_rows(source, split, streaming=True)
    try:
        for row in rows:
            yield {name: without_nan(value) for name, value in row.items()}
    except Exception as error:  # any error of the hub, the disk or a loading script
        raise _unreadable(source, split, None, error) from error


def load_rows(source: str, split: str, *, config: str | None = None, streaming: bool = False) -> Any:
    """A split of a dataset: of one that `datasets` saved in a folder, or of one that it loads by its name.

    Args:
        source: The folder or name.
        split: The split.
        config: The dataset's configuration.
        streaming: Whether rows are read as they are needed.

    Raises:
        DataError: There is no such dataset, configuration or split.
    """
    _check_name(source)
    from datasets import load_dataset, load_from_disk

    try:
        if (Path(source) / "state.json").is_file():
            return load_from_disk(source)
        if (Path(source) / "dataset_dict.json").is_file():
            splits = load_from_disk(source)
            if split not in splits:
                raise ValueError(f"It has the splits {', '.join(splits)}.")
            return splits[split]
        return load_dataset(source, name=config, split=split, streaming=streaming)
    except Exception as error:  # any error of the hub, the disk or a loading script
        raise _unreadable(source, split, config, error) from error


def _check_name(source: str) -> None:
    """Refuse a name that can only mean a file or folder, but is not one that rows are read from."""
    check_path(source)
    path = Path(source)
    endings = ", ".join(_ROWS + _TABLES)
    if path.is_file():
        raise DataError(
            f"{source!r} is not a file of rows: its name must end in {endings}. Text files may be compressed (.gz, .zst). Write plain "
            "text as JSON Lines, one row per line."
        )
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in _OTHER_FILES
    if looks_like_path and not path.exists():
        raise DataError(f"There is no file or folder {source!r}{not_there(path, source)} Files of rows end in {endings}.")


def _unreadable(source: str, split: str, config: str | None, error: Exception) -> DataError:
    """The error for a dataset that cannot be loaded, with what `datasets` says about it."""
    what = f"the split {split!r}" + ("" if config is None else f" of the configuration {config!r}")
    reason = " ".join(str(error).split()) or type(error).__name__
    if Path(source).is_dir():
        return DataError(f"From the folder {source!r}, {what} cannot be read: {reason}")
    hint = " HF_HUB_OFFLINE is set, so only datasets that were downloaded before can be used." if "Offline" in reason else ""
    return DataError(
        f"{source!r} is not a file or folder here, and {what} of the dataset of that name cannot be loaded: {reason}{hint} A name has the "
        "form OWNER/NAME."
    )


# --- Writing --------------------------------------------------------------------------------------------------------------


def json_line(row: object) -> str:
    """A row as a line of JSON Lines; decimals become numbers, arrays lists, and dates and bytes, which Parquet files hold too, text."""
    return in_utf8(json.dumps(row, ensure_ascii=False, default=_in_json)) + "\n"


def _in_json(value: Any) -> Any:
    plain = plain_value(value)
    return (float(value) if isinstance(value, Decimal) else str(value)) if plain is value else plain


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
        if out.suffix.lower() == ".parquet":
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
                for count, row in enumerate(rows, start=1):  # noqa: B007 - it is returned
                    file.write(json_line(row))
    return count
