"""Ranges of rows are the rows of the file, however they are divided."""

from __future__ import annotations

import gzip
import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import read_rows
from rm_plugins.data.row_ranges import RowRange, read_range, row_ranges
from rm_plugins.errors import DataError

ROWS = st.lists(
    st.fixed_dictionaries({"prompt": st.sampled_from("abc"), "completion": st.text(st.characters(codec="utf-8"), max_size=4)}),
    max_size=30,
)


def same_prompt(before: Any, after: Any) -> bool:
    return bool(before["prompt"] == after["prompt"])


def check(path: Path, rows: list[dict[str, Any]], size: int, grouped: bool) -> list[RowRange]:
    """Ranges join to the rows, have at least the size, and keep what belongs together."""
    ranges = list(row_ranges(path, size, same_prompt if grouped else None))
    read = [list(read_range(part)) for part in ranges]
    assert list(chain(*read)) == rows == list(read_rows(str(path)))
    assert [part.first for part in ranges] == [1 + sum(map(len, read[:place])) for place in range(len(read))]
    for before, after in pairwise(read):
        assert len(before) >= size
        assert not (grouped and same_prompt(before[-1], after[0]))
    return ranges


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    size=st.integers(1, 9),
    grouped=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    mark=st.booleans(),
    plain=st.booleans(),
)
def test_lines(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    size: int,
    grouped: bool,
    end: str,
    mark: bool,
    plain: bool,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=plain) + end for row in rows)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    check(path, rows, size, grouped)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=st.integers(1, 9), grouped=st.booleans(), group=st.integers(1, 12))
def test_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], size: int, grouped: bool, group: int
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    parquet.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)
    check(path, rows, size, grouped)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl", "rows.json", "rows.csv"])
def test_what_cannot_be_divided_is_one_range(tmp_path: Path, name: str) -> None:
    """Also an array and a compressed file that are called JSON Lines."""
    rows = [{"prompt": "a", "completion": str(number)} for number in range(5)]
    text = "prompt,completion\n" + "".join(f"a,{number}\n" for number in range(5)) if name.endswith("csv") else json.dumps(rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert check(tmp_path / name, rows, 2, False) == [RowRange(str(tmp_path / name))]


def test_an_error_has_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3}\nnothing\n')
    *_, last = row_ranges(path, 2)
    with pytest.raises(DataError, match=r"rows.jsonl, line 5 is not valid JSON"):
        list(read_range(last))


def test_a_mapping_is_applied_and_its_errors_have_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "a"}\n{"q": "b"}\n{"q": "c"}\n{"x": "d"}\n')
    mapping = RowMapping(rename={"q": "prompt"})
    first, last = row_ranges(path, 2, same_prompt, mapping)
    assert list(read_range(first, mapping)) == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(DataError, match=r"rows.jsonl, row 4: "):
        list(read_range(last, mapping))
    with pytest.raises(DataError, match=r"rows.jsonl, row 4: "):
        list(row_ranges(path, 3, same_prompt, mapping))


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    (part,) = row_ranges(path, 2)
    path.write_text('{"a": 1}        \n')
    with pytest.raises(DataError, match="has 1 rows where it had 2, from row 1 on"):
        list(read_range(part))
