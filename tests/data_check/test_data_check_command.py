"""The command that checks data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner, Result
from datasets import Dataset, DatasetDict

from rm_plugins.cli import main
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import Sample
from tests.data_check.conftest import FIVE, FOUR, USER, pair

# --- The command ----------------------------------------------------------------------------------------------------------

GOOD = [pair("p", "aaa", "b"), pair("q", "a", "bb")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **settings: CliRunner().invoke(main, ["data", "check", *map(str, arguments)], **settings)


def write(path: str, rows: Sequence[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.endswith(".gz"):
        Path(path).write_bytes(gzip.compress(text.encode()))
    elif path.endswith(".parquet"):
        parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
    else:
        Path(path).write_text(text, encoding="utf-8")
    return path


class TestCommand:
    def test_good_data(self, run: Any) -> None:
        found = run(write("good.jsonl", GOOD))
        assert found.exit_code == 0
        lines = [" ".join(line.split()) for line in found.output.splitlines()]
        assert lines == [
            "rows samples pairs ties format",
            "good.jsonl 2 4 2 0 preference",
            "",
            "Lengths in characters: shortest 2, 5% 2, 25% 2, median 2, 75% 3, 95% 4, 99% 4, longest 4",
            "The longer answer wins 50.0% of 2 pairs (standard error 35.4%)",
            "",
            "No problems.",
        ]

    def test_warnings_fail_only_if_strict(self, run: Any) -> None:
        write("twice.jsonl", [*GOOD, GOOD[0]])
        found = run("twice.jsonl")
        assert found.exit_code == 0
        assert "warning: 1 row equal to an earlier row\n  twice.jsonl, row 3: as row 1: 'p' → 'aaa'\n" in found.output
        assert found.output.endswith("The data can be trained on.\n")
        assert run("twice.jsonl", "--strict").exit_code == 1
        assert run(write("good.jsonl", GOOD), "--strict").exit_code == 0

    def test_errors_fail_and_do_not_stop_the_check(self, run: Any) -> None:
        Path("bad.jsonl").write_text(
            f'{{oops\n{json.dumps(GOOD[0])}\n\n[1]\n{{"prompt": "p"}}\n{json.dumps(GOOD[0])}\n', encoding="utf-8"
        )
        found = run("bad.jsonl")
        assert found.exit_code == 1
        assert (
            "error: 3 rows that cannot be trained on\n  bad.jsonl, row 1: bad.jsonl, line 1 is not valid JSON" in found.output
        )
        assert "\n  bad.jsonl, row 3: bad.jsonl, line 4 is list" in found.output
        assert "\n  bad.jsonl, row 4: there is nothing judged" in found.output
        assert "warning: 1 row equal to an earlier row\n  bad.jsonl, row 5: as row 2" in found.output
        assert found.output.endswith("The data cannot be trained on.\n")
        assert "no row has a comparison" in run(write("empty.jsonl", [])).output

    def test_json(self, run: Any) -> None:
        rows = [{"prompt": "p", "completions": ["a", "b"], "scores": {"x": [1, 2], "y": None}}, *GOOD]
        found = run(write("in.jsonl", rows), "--json", "--max-length", "3")
        assert found.exit_code == 0
        report = json.loads(found.output, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert report["trainable"] is True
        assert report["sources"] == [
            {"name": "in.jsonl", "rows": 3, "samples": 6, "pairs": 3, "ties": 0, "formats": {"ratings": 1, "preference": 2}}
        ]
        assert report["attributes"]["x"] == {"rated": 2, "missing": 0, "mean": 1.5, "lowest": 1.0, "highest": 2.0}
        assert report["attributes"]["y"] == {"rated": 0, "missing": 2, "mean": None, "lowest": None, "highest": None}
        assert (report["unit"], report["max_length"], report["lengths"]["longest"]) == ("characters", 3, 4)
        assert report["length_bias"]["pairs"] == 2
        assert {problem["kind"]: problem["count"] for problem in report["problems"]} == {"overlong": 1, "mixed-formats": 2}
        assert report["problems"][0]["examples"] == [{"source": "in.jsonl", "row": 2, "text": "4 characters: 'p' → 'aaa'"}]

    def test_attributes_are_shown(self, run: Any) -> None:
        rows = [{"prompt": "p", "completions": ["a", "b"], "scores": {"help[ful]": [1, 2], "brief": None}}]
        lines = [line.split() for line in run(write("in.jsonl", rows)).output.splitlines()]
        assert ["help[ful]", "2", "0", "1.5", "1", "2"] in lines
        assert ["brief", "0", "2"] in lines

    @pytest.mark.parametrize("source", ["in.jsonl", "in.jsonl.gz", "in.parquet", "saved", "-"])
    def test_every_source(self, source: str, run: Any) -> None:
        given = None
        if source == "saved":
            DatasetDict({"train": Dataset.from_list(GOOD)}).save_to_disk(source)
        elif source == "-":
            given = "".join(json.dumps(row) + "\n" for row in GOOD)
        else:
            write(source, GOOD)
        report = json.loads(run(source, "--json", input=given).output)
        assert [(found["name"], found["pairs"]) for found in report["sources"]] == [(source, 2)]

    def test_leaks_between_files(self, run: Any) -> None:
        found = run(write("train.jsonl", GOOD), write("test.jsonl", [pair("p", "x", "b"), pair("q", "x", "y")]))
        assert "warning: 1 row with a prompt and completion that are in an earlier file too" in found.output
        assert "  test.jsonl, row 1: as in train.jsonl: 'p' → 'x'" in found.output
        assert "warning: 1 row with a prompt that is in an earlier file too, and other completions" in found.output

    def test_leaks_between_splits(self, run: Any) -> None:
        DatasetDict({"train": Dataset.from_list(GOOD), "test": Dataset.from_list(GOOD[:1])}).save_to_disk("saved")
        report = json.loads(run("saved", "--split", "train", "--split", "test", "--json").output)
        assert [found["name"] for found in report["sources"]] == ["saved (train)", "saved (test)"]
        assert [(found["kind"], found["count"]) for found in report["problems"]] == [("leaked-sample", 1)]

    def test_splits_are_those_of_datasets_and_not_of_files(self, run: Any) -> None:
        Dataset.from_list(GOOD).save_to_disk("alone")
        for source in ("alone", write("in.jsonl", GOOD)):
            report = json.loads(run(source, "--split", "train", "--split", "test", "--json").output)
            assert [(found["name"], found["rows"]) for found in report["sources"]] == [(source, 2)]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "cut.jsonl.gz",
                gzip.compress(b'{"prompt": "p"}\n' * 1000, mtime=0)[:-20],
                "cut.jsonl.gz cannot be read: Compressed file ended",
            ),
            ("latin.jsonl", '{"prompt": "é"}\n'.encode("latin-1"), "latin.jsonl cannot be read: 'utf-8' codec"),
            ("text.parquet", b"text", "text.parquet cannot be read: "),
        ],
    )
    def test_files_that_cannot_be_read(self, name: str, content: bytes, message: str, run: Any) -> None:
        Path(name).write_bytes(content)
        found = run(name)
        assert found.exit_code == 1
        assert f"Error: {message}" in found.output

    def test_what_is_asked_wrongly(self, run: Any) -> None:
        assert "There is no file 'none.jsonl'" in run("none.jsonl").output
        assert run().exit_code == 2
        assert run(write("in.jsonl", GOOD), "--max-length", "0").exit_code == 2
        found = run("in.jsonl", "--tokenizer", "./nowhere")
        assert (found.exit_code, "No tokenizer could be loaded for './nowhere'" in found.output) == (1, True)


class TestCommandWithTokenizer:
    def test_lengths_are_those_of_training(self, run: Any, tiny_decoder: Any) -> None:
        folder = tiny_decoder(positions=40)
        rows = [
            {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE, USER, FOUR]},
            {"prompt": [USER], "chosen": [{**FOUR, "content": "long " * 40}], "rejected": [FIVE]},
        ]
        report = json.loads(run(write("in.jsonl", rows), "--tokenizer", folder, "--json").output)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        renderer = Renderer(tokenizer, Rendering.default(tokenizer))
        longest = renderer.untruncated_ids([Sample([USER], [{**FOUR, "content": "long " * 40}])])[0]
        assert (report["unit"], report["max_length"]) == ("tokens", 40)
        assert report["lengths"]["longest"] == len(longest) > 40
        (overlong,) = report["problems"]
        assert (overlong["kind"], overlong["count"], overlong["examples"][0]["row"]) == ("overlong", 1, 2)
        assert overlong["description"] == "longer than 40 tokens"

    @pytest.mark.parametrize(("model", "asked", "limit"), [("encoder", 20, 20), ("encoder", 100, 40), ("decoder", 100, 100)])
    def test_a_limit_is_no_more_than_the_positions_that_end(
        self, model: str, asked: int, limit: int, run: Any, tiny_decoder: Any, tiny_encoder: Any
    ) -> None:
        folder = {"encoder": tiny_encoder, "decoder": tiny_decoder}[model](positions=40)
        arguments = ("--tokenizer", folder, "--max-length", asked, "--json")
        assert json.loads(run(write("in.jsonl", GOOD), *arguments).output)["max_length"] == limit

    def test_a_tokenizer_without_a_model(self, run: Any, tiny_tokenizer: Any) -> None:
        tiny_tokenizer.save_pretrained("tokenizer")
        report = json.loads(run(write("in.jsonl", GOOD), "--tokenizer", "tokenizer", "--json").output)
        assert (report["unit"], report["max_length"]) == ("tokens", None)
