"""Dataset rows as samples, and files of rows."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from rm_plugins.errors import DataError, OutputError
from rm_plugins.files import in_utf8, replacing
from rm_plugins.samples import Message, Sample

_ROLES = ("prompt", "completion", "completions", "chosen", "rejected", "messages")


@dataclass(frozen=True, slots=True)
class RowSamples:
    """The samples of one row.

    Args:
        names: The column of each sample's score: ``score``; ``chosen_score`` and ``rejected_score``; or ``scores``, which is
            one list column for all.
        samples: The samples, as many as `names` unless the column is ``scores``.
    """

    names: tuple[str, ...]
    samples: tuple[Sample, ...]

    def columns(self, scores: Sequence[float | None]) -> dict[str, Any]:
        """The score columns of the row."""
        return {"scores": list(scores)} if self.names == ("scores",) else dict(zip(self.names, scores, strict=True))


def row_samples(row: Mapping[str, Any], where: str = "row") -> RowSamples:
    """What is to be scored in a row of any of TRL's formats.

    ``prompt`` with ``completion``, with ``completions`` (several), or with ``chosen`` and ``rejected``; ``messages``, whose
    last turns by the assistant are the completion; ``chosen`` and ``rejected`` alone, which contain their prompt.

    Args:
        row: Columns by name.
        where: What an error message calls the row.

    Raises:
        DataError: The row has none of these, or a part of it is not text or messages.
    """
    try:
        if "chosen" in row and "rejected" in row:
            return RowSamples(("chosen_score", "rejected_score"), preference_samples(row))
        columns = {name: value for name, value in row.items() if name not in _ROLES}
        if row.get("messages") is not None and "prompt" not in row:
            return RowSamples(("score",), (_from_conversation(row["messages"], columns),))
        if "prompt" not in row or not ("completion" in row or "completions" in row):
            missing = "'prompt'" if "prompt" not in row else "'completion' (or 'completions')"
            raise DataError(
                f"there is no {missing}; it has the columns {', '.join(map(repr, row)) or 'none'}. A row to score has 'prompt' "
                "with 'completion' or 'completions', 'chosen' and 'rejected', or 'messages'."
            )
        if "completions" in row:
            if not isinstance(row["completions"], Sequence) or isinstance(row["completions"], str):
                raise DataError(f"'completions' must be a list, not {row['completions']!r:.80}.")
            return RowSamples(("scores",), tuple(Sample(row["prompt"], text, columns) for text in row["completions"]))
        return RowSamples(("score",), (Sample(row["prompt"], row["completion"], columns),))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def preference_samples(row: Mapping[str, Any]) -> tuple[Sample, Sample]:
    """The chosen and the rejected sample of a preference row, in TRL's standard or conversational format.

    Without ``prompt``, the messages that both conversations begin with are the prompt; of text, all is the completion.

    Raises:
        DataError: A column is missing, or is not text or messages.
    """
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise DataError(f"there is no {name!r}; it has the columns {', '.join(map(repr, row)) or 'none'}.")
    columns = {name: value for name, value in row.items() if name not in _ROLES}
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        return Sample(row["prompt"], chosen, columns), Sample(row["prompt"], rejected, columns)
    prompt, (chosen, rejected) = _shared_prompt((chosen, rejected))
    return Sample(prompt, chosen, columns), Sample(prompt, rejected, columns)


def completion_samples(row: Mapping[str, Any]) -> tuple[Sample, ...]:
    """The samples of a row that has ``completions``, a ``completion`` or ``messages``; ``prompt`` may be absent or null.

    Without ``prompt``, the messages that all `completions` begin with are the prompt, and so are the messages before the last
    turns of the assistant in a single conversation; of text, all is the completion.

    Raises:
        DataError: The row has none of these, or both of the first two; or a part of it is not text or messages.
    """
    columns = {name: value for name, value in row.items() if name not in _ROLES}
    prompt, completion, completions = (row.get(name) for name in ("prompt", "completion", "completions"))
    if completions is not None:
        if completion is not None:
            raise DataError("there are both 'completion' and 'completions'; a row has one of them.")
        if not isinstance(completions, Sequence) or isinstance(completions, str):
            raise DataError(f"'completions' must be a list, not {completions!r:.80}.")
        if not completions:
            raise DataError("'completions' is empty; a list of at least one text or message list is allowed.")
        if prompt is None:
            prompt, completions = _shared_prompt(completions)
        return tuple(Sample(prompt, text, columns) for text in completions)
    if completion is None and prompt is None:
        completion = row.get("messages")
    if completion is None:
        raise DataError(f"there is no 'completion' or 'completions'; it has the columns {', '.join(map(repr, row)) or 'none'}.")
    if prompt is not None or isinstance(completion, str):
        return (Sample("" if prompt is None else prompt, completion, columns),)
    return (_from_conversation(completion, columns),)


def _shared_prompt(conversations: Sequence[Any]) -> tuple[str | list[Message], Sequence[Any]]:
    """The messages that all conversations begin with, and what is left of each; nothing of texts."""
    if not all(isinstance(turns, Sequence) and not isinstance(turns, str) for turns in conversations):
        return "", conversations
    first, *others = conversations
    shared = 0
    while shared < min(map(len, conversations)) - 1 and all(first[shared] == other[shared] for other in others):
        shared += 1
    return list(first[:shared]), [list(turns[shared:]) for turns in conversations]


def _from_conversation(messages: Sequence[Message], columns: Mapping[str, Any]) -> Sample:
    sample = Sample([], messages, columns)
    turns = [dict(turn) for turn in sample.messages]
    start = len(turns)
    while start > 0 and turns[start - 1]["role"] == "assistant":
        start -= 1
    if start == len(turns):
        raise DataError("'messages' must end with a turn of the assistant, which is what is scored.")
    return Sample(turns[:start], turns[start:], columns)


_DATA_ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz", ".parquet")


def is_data_file(source: str) -> bool:
    """Whether `source` looks like a file of rows rather than the name of a dataset."""
    return source == "-" or source.endswith(_DATA_ENDINGS)


def read_rows(
    source: str, split: str = "train", *, on_bad_line: Callable[[DataError], None] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines or Parquet file (gzipped or not), of standard input (``-``), or of a dataset.

    Args:
        source: A path, ``-``, or the name or folder of a dataset for `datasets.load_dataset`.
        split: The dataset's split; unused for files.
        on_bad_line: Called with the error for a line that is no JSON mapping, which is then left out; by default it is raised.

    Raises:
        DataError: There is no such file, it cannot be read, or a line is no JSON mapping; the message names file and line.
    """
    if source == "-":
        yield from _json_lines(sys.stdin, "standard input", on_bad_line)
        return
    path = Path(source)
    if not is_data_file(source):
        yield from _dataset_rows(source, split)
        return
    if not path.is_file():
        raise DataError(f"There is no file {source!r}.")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        else:
            opened: Any = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as file:
                yield from _json_lines(file, source, on_bad_line)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a cut-off archive, bytes that are no UTF-8, no Parquet
        raise DataError(f"{source} cannot be read: {error}") from error


def _json_lines(lines: Iterable[str], source: str, on_bad_line: Callable[[DataError], None] | None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _json_row(line, f"{source}, line {number}")
        except DataError as error:
            if on_bad_line is None:
                raise
            on_bad_line(error)
        else:
            yield row


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON: {error}. The file must be JSON Lines, one row a line.") from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}; a mapping of column to value was expected.")
    return row


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
    yield from rows


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
