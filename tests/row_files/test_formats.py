"""What people have: JSON, CSV, TSV, tables, compressed or not, alone or in a folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, DatasetDict

from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.errors import DataError
from rm_plugins_trl.reward_training.training_rows import stored_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "Q é ", "chosen": "a", "rejected": "b\nc"},
    {"prompt": "Q", "chosen": 'a,"x"', "rejected": "4", "tie": True},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue().to_pybytes())


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.ndjson", LINES.replace("\n", "\r\n\r\n").encode()),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2).encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.json.zst", zstd(json.dumps(ROWS, indent=1).encode())),
        ("a.jsonl.zst", zstd(LINES.encode()) + zstd(b"")),
        ("A.JSONL", LINES.encode()),
        ("a.csv", b"\xef\xbb\xbf" + as_csv(ROWS).encode()),
        ("a.csv.gz", gzip.compress(as_csv(ROWS).encode(), mtime=0)),
    ],
)
def test_one_file_in_every_form(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    rows = [{key: value for key, value in row.items() if value is not None} for row in read_rows(str(tmp_path / name))]
    assert rows == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
def test_tables(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = [{**row, "tie": row.get("tie"), "score": float("nan"), "list": [1.0, float("nan")]} for row in ROWS]
    table = arrow.Table.from_pylist(whole)
    if name == "a.parquet":
        parquet.write_table(table, path)
    elif name == "a.feather":
        feather.write_feather(table, path)
    else:
        opened = arrow.ipc.new_stream if name.startswith("stream") else arrow.ipc.new_file
        with opened(str(path), table.schema) as file:
            file.write_table(table)
    assert list(read_rows(str(path))) == [{**row, "score": None, "list": [1.0, None]} for row in whole]


class TestText:
    def test_csv_values(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(
            'id,prompt,completions,scores,label,weight,note\n007,4,"[""1"", ""2""]","[1, null]",True,0.5,\n'
            "8,\"[{'role': 'user', 'content': 'it''s'}]\",x,nan,yes,1,\"[{\"\"a\"\": 1}]\"\n",
            encoding="utf-8",
        )
        first, second = read_rows(str(path))
        assert first == {
            **{"id": "007", "prompt": "4", "completions": ["1", "2"], "scores": [1, None]},
            **{"label": True, "weight": 0.5, "note": None},
        }
        assert second["prompt"] == "[{'role': 'user', 'content': 'it''s'}]" or isinstance(second["prompt"], list)
        assert (second["completions"], second["scores"], second["label"]) == ("x", "nan", "yes")
        assert second["note"] == '[{"a": 1}]'  # a list, but none of messages

    def test_tsv_keeps_quotes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text('a1\ta2\tlabel\n"no" he said\tsay "x\ta1\n"a ""b"""\t"c"\ta2\n', encoding="utf-8")
        assert [(row["a1"], row["a2"]) for row in read_rows(str(path))] == [('"no" he said', 'say "x'), ('a "b"', "c")]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.csv", "a,b\n1,2,3\n", "row 1: there are 3 values and the header has 2 columns"),
            ("a.tsv", "a\tb\nx\n", "row 1: there are 1 values and the header has 2 columns"),
            ("a.csv", "a,a\n1,2\n", "has the column 'a' twice"),
            ("a.csv", 'a,b\n"x,1\n', "is not valid CSV"),
            ("a.json", "[1]", "item 1 is int"),
            ("a.json", '[{"a": 1}', "begins with [ but is not a JSON array"),
            ("a.jsonl", '{"a": 1}\nnull\n', "line 2 is NoneType"),
            ("a.jsonl.zst", "x", "line 1 is not valid JSON"),
            ("a.jsonl", '{"chosen": "a", "chosen": "b"}', "line 1 is not valid JSON: 'chosen' occurs twice"),
            ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1 is not valid JSON: it is nested too deeply"),
            (
                "a.csv",
                "chosen\n\"[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'user'}]\"\n",
                "looks like a list of messages",
            ),
        ],
    )
    def test_what_is_no_row(self, name: str, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.") as told:
            list(read_rows(str(tmp_path / name)))
        assert message in str(told.value)

    def test_bad_rows_of_an_array_are_told_one_by_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"a": 1}, 2, {"a": 3}, []]', encoding="utf-8")
        told: list[str] = []
        assert list(read_rows(str(tmp_path / "a.json"), on_bad_line=lambda error: told.append(str(error)))) == [
            {"a": 1},
            {"a": 3},
        ]
        assert [message.partition(", ")[2][:6] for message in told] == ["item 2", "item 4"]

    def test_a_cut_off_archive(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES.encode() * 100)[:-5])
        with pytest.raises(DataError, match="cannot be read: Truncated"):
            list(read_rows(str(tmp_path / "a.jsonl.zst")))

    @pytest.mark.parametrize(
        "written", [LINES.encode(), gzip.compress(LINES.encode(), mtime=0), json.dumps(ROWS, ensure_ascii=False).encode()]
    )
    def test_standard_input_is_utf_8_whatever_the_locale(self, written: bytes, tmp_path: Path) -> None:
        program = "import json, sys; from rm_plugins.data.row_files import read_rows; print(json.dumps(list(read_rows('-'))))"
        environment = {
            **os.environ,
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "latin-1",
        }
        shown = subprocess.run([sys.executable, "-c", program], input=written, env=environment, capture_output=True, check=True)
        assert json.loads(shown.stdout) == ROWS

    def test_conversations_in_csv(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "it's"}]
        (tmp_path / "a.csv").write_text(
            as_csv([{"chosen": json.dumps(turns, indent=1), "rejected": str(turns)}]), encoding="utf-8"
        )
        assert list(read_rows(str(tmp_path / "a.csv"))) == [{"chosen": turns, "rejected": turns}]

    @pytest.mark.parametrize("written", [b'{"a": "\xe9"}\n', gzip.compress(LINES.encode(), mtime=0)[:-9]])
    def test_standard_input_that_cannot_be_read(self, written: bytes) -> None:
        command = [sys.executable, "-m", "rm_plugins", "data", "check", "-"]
        shown = subprocess.run(command, input=written, capture_output=True, check=False)
        assert shown.returncode == 1
        assert b"Error: standard input cannot be read: " in shown.stderr

    def test_columns_that_are_there_twice(self, tmp_path: Path) -> None:
        parquet.write_table(arrow.table([["a"], ["b"]], names=["chosen", "chosen"]), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a.parquet cannot be read: There are two columns 'chosen'"):
            list(read_rows(str(tmp_path / "a.parquet")))

    def test_mappings_in_parquet(self, tmp_path: Path) -> None:
        column = arrow.array([[("x", [1.0, 2.0])]], type=arrow.map_(arrow.string(), arrow.list_(arrow.float64())))
        parquet.write_table(arrow.table({"scores": column}), tmp_path / "a.parquet")
        assert list(read_rows(str(tmp_path / "a.parquet"))) == [{"scores": {"x": [1.0, 2.0]}}]

    def test_keys_that_json_does_not_have_become_text(self, tmp_path: Path) -> None:
        column = arrow.array([[(date(2026, 1, 31), 1)]], type=arrow.map_(arrow.date32(), arrow.int64()))
        parquet.write_table(arrow.table({"days": column}), tmp_path / "a.parquet")
        rows = read_rows(str(tmp_path / "a.parquet"))
        assert write_rows(rows, tmp_path / "a.jsonl") == 1
        assert json.loads((tmp_path / "a.jsonl").read_text()) == {"days": {"2026-01-31": 1}}

    def test_a_mapping_with_a_key_twice(self, tmp_path: Path) -> None:
        column = arrow.array([[("x", 1), ("x", 2)]], type=arrow.map_(arrow.string(), arrow.int64()))
        parquet.write_table(arrow.table({"counts": column}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a.parquet cannot be read: A map in a column has a key twice\. .*'x'"):
            list(read_rows(str(tmp_path / "a.parquet")))

    def test_parquet_is_written_whatever_the_case_of_its_ending(self, tmp_path: Path) -> None:
        write_rows(ROWS[:1], tmp_path / "a.PARQUET")
        assert list(read_rows(str(tmp_path / "a.PARQUET"))) == ROWS[:1]


class TestFolders:
    def test_what_is_not_read_is_told_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, other = tmp_path / "fo[1]", tmp_path / "other"
        (folder / "x").mkdir(parents=True)
        other.mkdir()
        for path in (folder / "train.jsonl", folder / "train.scored.jsonl", folder / "extra.jsonl", other / "more.jsonl"):
            path.write_text(json.dumps({"prompt": path.name}) + "\n", encoding="utf-8")
        (folder / "train.scored.jsonl.part.json").write_text("{}", encoding="utf-8")
        (folder / "link").symlink_to(other)
        monkeypatch.chdir(tmp_path)
        for source in ("fo[1]", str(folder)):
            caplog.clear()
            assert [row["prompt"] for row in read_rows(source)] == ["train.jsonl"]
            told = caplog.text
            assert all(name in told for name in ("extra.jsonl", "train.scored.jsonl", "more.jsonl"))
            assert "/train.jsonl" not in told

    def test_splits_are_told_by_the_names_of_files(self, tmp_path: Path) -> None:
        for name, text in {"train-0.jsonl": "a", "train-1.jsonl": "b", "test.jsonl": "c", "README.md": ""}.items():
            (tmp_path / name).write_text(json.dumps({"prompt": text}) if text else "", encoding="utf-8")
        assert [row["prompt"] for row in read_rows(str(tmp_path))] == ["a", "b"]
        assert [row["prompt"] for row in read_rows(str(tmp_path), "test")] == ["c"]
        with pytest.raises(DataError, match="no files of the split 'dev'; it has train, test"):
            list(read_rows(str(tmp_path), "dev"))

    def test_any_names_and_forms(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "b.tsv").write_text("prompt\tid\nb\t1\n", encoding="utf-8")
        write_rows([{"prompt": "c", "tie": None}], tmp_path / "x" / "c.parquet")
        (tmp_path / "a.json").write_text('[{"prompt": "a"}]', encoding="utf-8")
        assert [row["prompt"] for row in read_rows(str(tmp_path))] == ["a", "b", "c"]

    def test_datasets_that_were_saved(self, tmp_path: Path) -> None:
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        DatasetDict(test=Dataset.from_list([{"x": float("nan")}])).save_to_disk(tmp_path / "splits")
        assert [row["prompt"] for row in read_rows(str(tmp_path / "one"))] == ["Q é ", "Q"]
        assert list(read_rows(str(tmp_path / "splits"), "test")) == [{"x": None}]

    def test_a_folder_without_data(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no data file"):
            list(read_rows(str(tmp_path)))


def test_what_is_stored_for_training_is_what_was_read() -> None:
    rows: list[dict[str, Any]] = [
        {"a": 1},
        {"a": "x", "tools": [{"f": {"x": 1}}, {"f": {"y": 2}}]},
        {"a": 2**70, "b": "\ud800", "c": 0.1 + 0.2},
    ]
    assert [json.loads(row["row_json"]) for row in stored_rows(rows)] == rows
