"""A model is trained, evaluated, saved and loaded with the token it is read at, and with pairs where it takes pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.providers.models.model_provider import ModelProvider
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PAIRS = [
    {"prompt": f"Name a colour{'.' * n}", "chosen": " It is blue" + "." * (n % 3), "rejected": " two" * (1 + n % 4)}
    for n in range(8)
]
SAMPLES = [rm.Sample(row["prompt"], row[side]) for row in PAIRS for side in ("chosen", "rejected")]


def trained(model: Path, folder: Path, **settings: Any) -> RewardTrainer:
    data = Dataset.from_list(PAIRS)
    args = RewardConfig(
        str(folder), max_steps=3, learning_rate=1e-2, report_to="none", eval_strategy="no", disable_dropout=True, **settings
    )
    trainer = RewardTrainer(model=str(model), args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("read", ["last", "before-padding"])
def test_the_token_that_is_read(read: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    trainer = trained(tiny_decoder(pad="<|end|>"), tmp_path, read=read)
    assert json.loads((tmp_path / "reward_manifest.json").read_text())["rendering"]["read"] == read
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    for sample in SAMPLES:
        ids = tokenizer(f"{sample.prompt}{sample.completion}{tokenizer.eos_token}")["input_ids"]
        assert ids[-1] == model.config.pad_token_id
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
            expected.append(float(model.score(hidden[-1 if read == "last" else -2])))
    reward = rm.load(tmp_path)
    np.testing.assert_allclose(reward.score(SAMPLES).values, expected, atol=1e-4)
    assert isinstance(reward, ModelProvider) and reward.verify() == []
    figures = trainer.evaluate()
    assert figures["eval_mean_reward"] == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "qwen2"])
def test_pairs(family: str, tiny_encoder: Any, tiny_decoder: Any, tmp_path: Path) -> None:
    model = tiny_decoder() if family == "qwen2" else tiny_encoder(family=family, pairs=True)
    trainer = trained(model, tmp_path, pair=True, max_length=64)
    assert json.loads((tmp_path / "reward_manifest.json").read_text())["rendering"]["pair"] is True
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = [
            float(model(**tokenizer([sample.prompt], [sample.completion], return_tensors="pt")).logits) for sample in SAMPLES
        ]
    reward = rm.load(tmp_path)
    np.testing.assert_allclose(reward.score(SAMPLES).values, expected, atol=1e-4)
    assert isinstance(reward, ModelProvider) and reward.verify() == []
    assert trainer.evaluate()["eval_mean_reward"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_long_pairs_are_truncated_as_they_are_scored(tiny_encoder: Any, tmp_path: Path) -> None:
    trainer = trained(tiny_encoder(pairs=True), tmp_path, pair=True, max_length=12, overlong="truncate")
    reward = rm.load(tmp_path)
    assert trainer.overlong["train"] > 0
    assert trainer.evaluate()["eval_mean_reward"] == pytest.approx(reward.score(SAMPLES).values.mean(), abs=1e-4)


class TestRefused:
    @pytest.mark.parametrize("settings", [{"pair": True}, {"read": "last"}], ids=str)
    def test_what_trls_batches_are_not_made_for(self, settings: dict[str, Any], tiny_encoder: Any, tmp_path: Path) -> None:
        class Subclass(RewardTrainer):
            uses_trl_batches = True

        args = RewardConfig(str(tmp_path), report_to="none", **settings)
        with pytest.raises(SpecError, match="do not work with TRL's batches"):
            Subclass(model=str(tiny_encoder(pairs=True)), args=args, train_dataset=Dataset.from_list(PAIRS))

    def test_another_word(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"read.*'before-padding' or 'last'"):
            RewardConfig(str(tmp_path), read="first")  # type: ignore[arg-type]
