"""Pairs that a chat template makes equal: `data check` and the trainer say so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.cli import main
from rm_plugins.data.equal_pairs import equal_pairs
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.conftest import MakeFolder
from tests.trl.conftest import TRL_WARNINGS, write_jsonl

pytestmark = TRL_WARNINGS

STRIPS_REASONING = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{{ message['content'].split('</think>')[-1] }}<|end|>\n{% endfor %}"
)


def answers(reasoning: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"<think>{reasoning}</think>{answer}"}]


def row(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "2+2?"}], "chosen": chosen, "rejected": rejected}


ROWS = [
    row(answers("2 and 2", "4"), answers("2 and 2", "5")),
    row(answers("2 and 2", "4"), answers("a guess", "4")),
    row(answers("it is even", "4"), answers("it is odd", "4")),
    row(answers("2 and 2", "4"), answers("2 and 2", "22")),
]


def test_the_trainer_says_how_many_and_where(
    tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = RewardConfig(str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True)
    with caplog.at_level(logging.WARNING):
        trainer = RewardTrainer(str(tiny_decoder(chat_template=STRIPS_REASONING)), args, train_dataset=Dataset.from_list(ROWS))
    (told,) = [record.getMessage() for record in caplog.records if "equal token ids" in record.getMessage()]
    assert told.startswith("2 pairs of the train dataset have a winner and a loser with equal token ids (rows 1, 2)")
    assert "reasoning" in told
    assert "chat_template_kwargs" in told
    assert trainer.equal_pairs == {"train": 2}
    assert trainer.rows == {"train": 4}
    trainer.train()
    assert Manifest.read(tmp_path / "out" / "reward_manifest.json").training["equal_pairs"] == {"train": 2}
    trainer.create_model_card()
    assert "| Pairs with equal token ids | train 2 |" in (tmp_path / "out" / "README.md").read_text()


def test_it_says_nothing_of_pairs_that_differ(
    tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = RewardConfig(str(tmp_path), report_to="none", use_cpu=True)
    with caplog.at_level(logging.WARNING):
        trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list(ROWS))
    assert trainer.equal_pairs == {"train": 0}
    assert "equal token ids" not in caplog.text


def test_data_check_says_so(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    rows = [*ROWS, row(answers("the same", "4"), answers("the same", "4"))]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    model = tiny_decoder(chat_template=STRIPS_REASONING)
    checked = CliRunner().invoke(main, ["data", "check", str(file), "--tokenizer", str(model)])
    assert "warning: 2 rows whose winner and loser have equal token ids" in checked.output
    assert "pairs.jsonl, row 2: '2+2?'" in checked.output
    as_json = CliRunner().invoke(main, ["data", "check", str(file), "--tokenizer", str(model), "--json"])
    kinds = {problem["kind"]: problem["count"] for problem in json.loads(as_json.stdout)["problems"]}
    assert (kinds["equal-ids"], kinds["identical-pair"]) == (2, 1)
    without = CliRunner().invoke(main, ["data", "check", str(file)])
    assert "equal token ids" not in without.output


@given(st.lists(st.lists(st.integers(0, 1), max_size=2), min_size=2, max_size=5), st.data())
def test_equal_pairs_are_those_with_equal_ids(ids: list[list[int]], data: st.DataObject) -> None:
    places = st.integers(0, len(ids) - 1)
    pairs = data.draw(st.lists(st.tuples(places, places)))
    equal = equal_pairs(ids, pairs)
    assert [pair for pair in pairs if ids[pair[0]] == ids[pair[1]]] == equal
