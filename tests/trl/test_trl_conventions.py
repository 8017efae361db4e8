"""What scripts written for TRL's RewardTrainer touch: the same call has the same outcome with ours."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from rm_plugins_trl import RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" It is {name}.", "rejected": " two" * (1 + number)}
    for number, name in enumerate(("blue", "salty blue", "rain", "four", "sea"))
]


def evaluated(trainer_class: Any, model: Path, folder: Path, **settings: Any) -> Any:
    """What ``compute_metrics`` is given."""
    seen: list[Any] = []
    args = TrlRewardConfig(
        str(folder), per_device_eval_batch_size=2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **settings
    )
    data = Dataset.from_list(PAIRS)

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"x": 1.0}

    trainer = trainer_class(
        str(model),
        args,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=metrics,
    )
    assert trainer.evaluate()["eval_x"] == 1.0
    return seen[-1].predictions, trainer.predict(trainer.eval_dataset).predictions


def note_length(lengths: list[int], module: Any, given: Any, _: Any) -> None:
    if module.training and torch.is_grad_enabled():
        lengths.append(given[0].shape[1])


@pytest.mark.parametrize("batch_size", [2, 8])
def test_neftune_noise_is_as_loud_as_trls(batch_size: int, tiny_decoder: Any, tmp_path: Path) -> None:
    """Whatever the batch: its scale is the length of the rows that run at once."""
    model, heard = tiny_decoder(), {}
    data = Dataset.from_list(PAIRS[:batch_size])
    for kind in (RewardTrainer, TrlRewardTrainer):
        lengths: list[int] = []
        args = TrlRewardConfig(
            *(str(tmp_path),),
            **{"neftune_noise_alpha": 5, "per_device_train_batch_size": batch_size, "max_steps": 1, "report_to": "none"},
            **{"use_cpu": True, "bf16": False, "disable_tqdm": True, "gradient_checkpointing": False, "save_strategy": "no"},
        )
        trainer = kind(str(model), args, train_dataset=data)
        embeddings = trainer.model.get_input_embeddings()
        embeddings.register_forward_hook(partial(note_length, lengths))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer.train()
        heard[kind] = {*lengths}
        if kind is RewardTrainer:
            assert any("NEFTune" in str(warning.message) for warning in told)
    assert heard[RewardTrainer] == heard[TrlRewardTrainer]


def test_compute_metrics_and_predict_get_the_chosen_rewards_first(tiny_decoder: Any, tmp_path: Path) -> None:
    model = tiny_decoder()
    ours, theirs = (evaluated(kind, model, tmp_path) for kind in (RewardTrainer, TrlRewardTrainer))
    for mine, other in zip(ours, theirs, strict=True):
        assert np.asarray(mine).reshape(-1) == pytest.approx(np.asarray(other).reshape(-1), abs=1e-5)
