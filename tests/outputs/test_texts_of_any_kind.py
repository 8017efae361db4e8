"""Half a surrogate pair, which JSON can say and UTF-8 cannot, stops no command and spoils no file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.files import in_utf8, write_atomically
from rm_plugins.training.journal import Journal, read_journal

Run = Callable[..., Result]

HALVES = ["\ud83d", "a\udc00b", "\udcff\ud800", "🙂\ud800", "\\ud83d"]


def halves(number: int) -> str:
    return HALVES[number % len(HALVES)]


PAIRS = [
    {
        "prompt": f"Q{halves(number)}{number}", "chosen": f"yes{halves(number + 1)}", "rejected": f"no, not so{halves(number)}{number}",
        f"c{HALVES[0]}": halves(number), "tags": {"k\udc00": [halves(number)]}, "section": f"s{halves(number % 2)}",
    }
    for number in range(20)
]  # fmt: skip
LISTS = [{"prompt": f"Q{half}", "completions": [f"a{half}", f"bb{half}", "ccc"], "note": half} for half in HALVES]


def write(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def succeeds(told: Result) -> str:
    assert told.exit_code == 0, (told.output, told.exc_info)
    return told.output


def test_every_command_takes_and_writes_them(run: Run) -> None:
    pairs, lists = write("pairs.jsonl", PAIRS), write("lists.jsonl", LISTS)
    succeeds(run("score", "rules:length", pairs, "-o", "scored.jsonl"))
    assert [{name: row[name] for name in PAIRS[0]} for row in read_rows("scored.jsonl")] == PAIRS
    succeeds(run("score", "rules:length", pairs, "-o", "scored.parquet"))
    assert parquet.read_table("scored.parquet")["chosen"][0].as_py() == "yesa\\udc00b"
    for form in ("ranked", "best", "pairs"):
        for ending in ("jsonl", "parquet"):
            succeeds(run("rank", "rules:length", lists, "--format", form, "-o", f"as-{form}.{ending}"))
    assert next(read_rows("as-ranked.jsonl"))["completions"] == ["bb\ud83d", "ccc", "a\ud83d"]
    for ending in ("json", "html", "svg"):
        succeeds(run("rank", "rules:length", lists, "-o", f"{ending}.jsonl", "--curve", f"curve.{ending}"))
    for rewards in (["evaluate", "rules:length"], ["diff", "rules:length", "rules:length"]):
        for flags in ((), ("--json",), ("-o", "out.json", "--report", "out.html", "--scores", "kept")):
            succeeds(run(*rewards, pairs, *flags))
        assert "\\ud83d" in Path("out.html").read_text(encoding="utf-8")
        assert "sa\udc00b" in json.dumps(json.loads(Path("out.json").read_text(encoding="utf-8")), ensure_ascii=False)
    for files in ((pairs,), (pairs, lists)):
        for flags in ((), ("--json",)):
            told = run("data", "check", *files, *flags)
            assert told.exception is None or isinstance(told.exception, SystemExit), told.exc_info
    succeeds(run("calibrate", "rules:length", pairs, "-o", "calibrated.yaml"))
    spec = write("spec.json", [{"provider": "phrases", "forbidden": HALVES, "label": "l\ud83d"}])
    for flags in ((), ("--json",)):
        succeeds(run("show", spec, *flags))


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes")
def test_files_may_be_named_by_any_bytes(run: Run) -> None:
    folder = Path(os.fsdecode(b"na\xffme"))
    folder.mkdir()
    source = write(str(folder / "in.jsonl"), PAIRS)
    succeeds(run("score", "rules:length", source))
    succeeds(run("rank", "rules:length", source))
    succeeds(run("evaluate", "rules:length", source, "-o", folder / "out.json", "--report", folder / "out.html"))
    succeeds(run("calibrate", "rules:length", source, "-o", folder / "out.yaml"))
    assert len(list(folder.iterdir())) == 6


TEXTS = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(HALVES)
VALUES = st.recursive(
    TEXTS | st.none() | st.integers(-(2**53), 2**53),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=3))
def test_rows_in_json_come_back_as_they_were(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_rows(rows, tmp_path / "rows.jsonl")
    assert list(read_rows(str(tmp_path / "rows.jsonl"))) == rows


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_every_text_has_a_form_in_parquet_in_a_journal_and_in_a_file(text: str, tmp_path: Path) -> None:
    write_rows([{"a": text, "b": [text], "c": {text: 1}}], tmp_path / "rows.parquet")
    assert next(read_rows(str(tmp_path / "rows.parquet"))) == {
        "a": in_utf8(text),
        "b": [in_utf8(text)],
        "c": {in_utf8(text): 1},
    }
    folder = tmp_path / f"journal{len(list(tmp_path.iterdir()))}"
    journal = Journal(folder)
    journal.resume(0)
    scores = rm.Scores(np.ones(2), {text: np.ones(2)})
    journal.add_samples(1, "r", [rm.Sample(text, text), rm.Sample([{"role": "user", "content": text}], text)], scores)
    journal.flush()
    (step,) = read_journal(folder)
    assert [sample.sample.completion for sample in step.samples["r"]] == [
        in_utf8(text),
        [{"role": "assistant", "content": text}],  # in JSON, whose escape is read as what it is of
    ]
    write_atomically(tmp_path / "text.html", text)
    assert (tmp_path / "text.html").read_bytes().decode("utf-8") == in_utf8(text)
    assert json.loads(in_utf8(json.dumps(text, ensure_ascii=False))) == text
