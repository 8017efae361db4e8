"""Code and pickles in a checkpoint that is trained are used where a setting allows it."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from rm_plugins.errors import ModelError, UnsupportedError
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.demo.policies import load_policy
from rm_plugins_trl.reward_training.language_model_head import language_model_head
from tests.coded_checkpoints import with_model_code
from tests.conftest import MakeFolder

ROWS = [{"prompt": "Q", "chosen": " four", "rejected": " two"}]


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who says yes to whatever is asked."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def made(model: Path, output: Path, **settings: Any) -> RewardTrainer:
    args = RewardConfig(output_dir=str(output), report_to="none", **settings)
    return RewardTrainer(model=str(model), args=args, train_dataset=Dataset.from_list(ROWS))


@pytest.mark.parametrize("settings", [{}, {"model_init_kwargs": {"trust_remote_code": None}}, {"learning_rate": 1e-3}])
def test_a_model_with_code_is_not_trained_unasked(settings: Any, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = with_model_code(tiny_decoder(), tmp_path / "ran")
    with pytest.raises(ModelError, match=r"RewardConfig\(trust_remote_code=True\)"):
        made(folder, tmp_path / "out", **settings)
    assert not (tmp_path / "ran").exists()


def test_tensors_in_a_pickle_are_trained_and_objects_are_not(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    """As TRL's trainer takes them: torch unpickles nothing but tensors."""
    folder = tiny_decoder()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    made(folder, tmp_path / "out", learning_rate=1e-3)
    torch.save({"model.norm.weight": Written(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl"):
        made(folder, tmp_path / "out", learning_rate=1e-3)
    assert not (tmp_path / "ran").exists()


class Written:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_head_from_a_checkpoint_with_code_is_refused(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = tiny_decoder()
    model: Any = Qwen2ForCausalLM.from_pretrained(folder)
    model.config._name_or_path = str(with_model_code(folder, tmp_path / "ran"))
    with pytest.raises(UnsupportedError, match="cannot be loaded"):
        language_model_head(model)
    assert not (tmp_path / "ran").exists()


def test_a_policy_of_the_demonstration_with_code_is_refused(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    folder = tiny_decoder()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(ModelError, match="custom code"):
        load_policy(str(with_model_code(folder, tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
