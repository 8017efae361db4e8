"""What TRL's own RewardTrainer leaves beside a model, and that such a model scores here as it did there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

import rm_plugins as rm
from rm_plugins.models.trained_elsewhere import TrainedElsewhere, trained_elsewhere
from tests.conftest import MakeFolder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:`logging_dir` is deprecated"),
]

TRL = TrainedElsewhere(by="TRL", read="before-padding", pair=False, append_eos=True)


USER = [{"role": "user", "content": "Name a colour."}]
ROWS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"},
    "conversation": {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": "It is blue."}],
        "rejected": [{"role": "assistant", "content": "two"}],
    },
}


def trained(model: Path, folder: Path, row: dict[str, Any], **settings: Any) -> Any:
    """A trainer of TRL's after two steps, whose model and checkpoints are in the folder."""
    steps: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2, "bf16": False}
    arguments = TrlRewardConfig(output_dir=str(folder), report_to="none", disable_tqdm=True, **steps)
    trainer = TrlRewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=Dataset.from_list([row] * 4),
        **settings,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def check_scores(trainer: Any, folder: Path, row: dict[str, Any]) -> None:
    """That a folder scores as the model in the trainer does, on the trainer's own rows of a batch with padding."""
    batch = trainer.data_collator([dict(trainer.train_dataset[0])])
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    scores = rm.load(folder).score([rm.Sample(row["prompt"], row[name]) for name in ("chosen", "rejected")])
    np.testing.assert_allclose(scores.values, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ROWS)
def test_whole_model(kind: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    trainer = trained(tiny_decoder(pad="<|end|>"), tmp_path / "model", ROWS[kind])
    check_scores(trainer, tmp_path / "model", ROWS[kind])
    for folder in (tmp_path / "model", tmp_path / "model" / "checkpoint-1"):
        assert trained_elsewhere(str(folder), AutoConfig.from_pretrained(folder)) == TRL


@pytest.mark.parametrize("kind", ROWS)
def test_adapter(kind: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    base = tiny_decoder(pad="<|end|>")
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS")
    trainer = trained(base, tmp_path / "adapter", ROWS[kind], peft_config=lora)
    check_scores(trainer, tmp_path / "adapter", ROWS[kind])
    for folder in (tmp_path / "adapter", tmp_path / "adapter" / "checkpoint-1"):
        assert (folder / "adapter_config.json").is_file()
        assert trained_elsewhere(str(folder), AutoConfig.from_pretrained(base)) == TRL
