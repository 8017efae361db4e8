"""The manifest of a trained model says whether it was trained on text or conversations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

import rm_plugins as rm
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training.training_rows import sample_format, stored_rows
from tests.conftest import MakeFolder

ASKED = [{"role": "user", "content": "Name a colour."}]
TEXT = {"prompt": "Name a colour.", "chosen": " blue", "rejected": " two"}
CONVERSATION = {
    "prompt": ASKED,
    "chosen": [{"role": "assistant", "content": "blue"}],
    "rejected": [{"role": "assistant", "content": "two"}],
}


def stream(*rows: dict[str, Any]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Dataset.from_list([TEXT] * 3), "text"),
        (Dataset.from_list([CONVERSATION] * 3), "conversations"),
        (stored_rows([TEXT, CONVERSATION]), None),
        (stored_rows([CONVERSATION, CONVERSATION]), "conversations"),
        (stream(CONVERSATION), "conversations"),
        (Dataset.from_list([{"chosen_ids": [1], "rejected_ids": [2]}]), None),
        (Dataset.from_list([{"prompt": "Q", "completion": "a", "label": True}]), "text"),
        (Dataset.from_list([{"colour": "blue"}]), None),
        (Dataset.from_list([]), None),
    ],
)
def test_what_a_dataset_is(dataset: Any, expected: str | None) -> None:
    assert sample_format(dataset) == expected


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize(("row", "expected"), [(TEXT, "text"), (CONVERSATION, "conversations")])
def test_a_training_writes_it_down(
    tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], expected: str
) -> None:
    args = RewardConfig(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, gradient_checkpointing=False, disable_tqdm=True
    )
    RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list([row] * 8)).train()
    assert Manifest.read(tmp_path / MANIFEST_NAME).trained_on == expected
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rewards = rm.load(tmp_path)
        rewards.score([rm.Sample("Name a colour.", " blue"), rm.Sample(ASKED, "blue")])
    assert [f"was trained on {expected}, and 1 of 2" in record.getMessage() for record in caplog.records] == [True]
