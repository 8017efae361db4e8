"""Training an adapter of a quantized model, as TRL's QLoRA scripts do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

import rm_plugins as rm
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
pytestmark = [
    *TRL_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*MatMul8bitLt"),
    pytest.mark.filterwarnings("ignore:.*_check_is_size"),
]

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" It is {name}.", "rejected": " two"} for name in ("blue", "rain", "sea", "salt")
]


@pytest.mark.parametrize("bits", [4, 8])
def test_it_trains_as_trls_and_saves_checkpoints(
    bits: int, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, found = tiny_decoder(), []
    for kind in (TrlRewardTrainer, RewardTrainer):
        args = TrlRewardConfig(
            str(tmp_path / kind.__module__),
            **{"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
            **{"bf16": True, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
        )
        trainer = kind(
            *(str(model), args),
            train_dataset=Dataset.from_list(PAIRS),
            quantization_config=BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8),
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"]),
        )
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert (Path(args.output_dir) / "checkpoint-4" / "adapter_config.json").is_file()
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], abs=0.1)  # in bf16
    saved = Path(trainer.args.output_dir)
    assert Manifest.read(saved / "reward_manifest.json").training["quantization"] == "bitsandbytes"
    assert "no golden scores to verify the model by: it is quantized while it trains" in caplog.text
    scores = rm.load(str(saved)).score([rm.Sample(PAIRS[0]["prompt"], PAIRS[0]["chosen"])])
    assert abs(scores.values[0]) < 100
