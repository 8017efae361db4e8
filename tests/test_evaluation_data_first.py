"""An evaluation checks the data before it loads a model or scores a row, and offers the mapping where columns do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.data.mapping import RowMapping
from rm_plugins.errors import DataError
from rm_plugins.evaluation import evaluate
from tests.test_evaluation import LENGTH, made_pairs

MAPPING = "{answers: [response_a, response_b], winner: winner, rename: {question: prompt}}"
ROW = {"question": "2+2?", "response_a": "4", "response_b": "5", "winner": "model_a"}


class Unused(rm.Provider):
    """A reward that no test lets score."""

    name = "unused"

    def score_batch(self, samples: Any) -> Any:
        raise AssertionError("The data is at fault, and was not looked at before.")


@pytest.mark.parametrize("command", ["evaluate", "diff"])
def test_the_command_line_says_what_to_paste_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    specs = ["./no-model"] * (1 if command == "evaluate" else 2)
    result = CliRunner().invoke(main, [command, *specs, str(path)])
    assert result.exit_code != 0
    assert f"--map '{MAPPING}'" in result.output and "no-model" not in result.output
    mapped = CliRunner().invoke(main, [command, *specs, str(path), "--map", MAPPING])
    assert "no-model" in mapped.output, "the rows are judged with the mapping, and the model is looked for"


def test_a_fault_in_the_last_row_is_told_before_the_first_is_scored() -> None:
    rows = [*made_pairs(20, longer=0.5), {"prompt": "p", "chosen": "a"}]
    with pytest.raises(DataError, match="row 21: there is no 'rejected'"):
        evaluate(Unused(), rows)


def test_no_row_is_told_first() -> None:
    with pytest.raises(DataError, match="no rows to evaluate in empty"):
        evaluate(Unused(), [], source="empty")


def test_in_python_the_mapping_is_offered_and_taken() -> None:
    with pytest.raises(DataError, match="In Python: evaluate") as caught:
        evaluate(Unused(), [ROW])
    assert f"mapping={MAPPING!r}" in str(caught.value)
    for mapping in (MAPPING, RowMapping(answers=("response_a", "response_b"), winner="winner", rename={"question": "prompt"})):
        result = evaluate(LENGTH, [ROW, {**ROW, "response_b": "five"}], mapping=mapping, resamples=2)
        assert result.rewards[0].figures["accuracy"].value == 0.0
