"""The same samples get the same number on every path, within 1e-4 in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline

import rm_plugins as rm
from rm_plugins.data.rows import preference_samples
from rm_plugins_trl import RewardConfig, RewardModel, RewardTrainer, reward_func
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.ppo.rewards import reward_functions
from rm_plugins_trl.reward_model import AnnouncedPrompts
from tests.trl.conftest import newest_trl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

PAIRS = {"encoder": 16, "decoder": 4}


def in_text(row: dict[str, Any]) -> dict[str, Any]:
    """A conversational preference row as text."""
    return {name: row[name][0]["content"] + ("\n" if name == "prompt" else "") for name in ("prompt", "chosen", "rejected")}


def by_ppo(provider: rm.Provider, samples: list[rm.Sample], tokenizer: Any) -> list[float]:
    """The rewards that PPO on TRL's GRPO trainer gets for completions that it decodes from the policy's token ids."""
    texts = [sample.completion[0]["content"] if sample.is_conversational else sample.completion for sample in samples]  # type: ignore[index]
    decoded = tokenizer.batch_decode(tokenizer(texts)["input_ids"], skip_special_tokens=True)
    completions = [
        [{"role": "assistant", "content": text}] if sample.is_conversational else text
        for sample, text in zip(samples, decoded, strict=True)
    ]
    (function,) = reward_functions(provider, None, None).functions
    values: list[float] = function([sample.prompt for sample in samples], completions)
    return values


def by_trl_s_ppo(provider: rm.Provider, samples: list[rm.Sample], tokenizer: Any) -> list[float]:
    """The rewards that TRL's PPO reads off our module, one policy's token ids a sample."""
    from trl.experimental.utils import get_reward

    model = RewardModel(provider, tokenizer)
    values = []
    for sample in samples:
        if sample.is_conversational:
            query = tokenizer.apply_chat_template(sample.prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            response = tokenizer(sample.completion[0]["content"])["input_ids"]  # type: ignore[index]
        else:
            query, response = tokenizer(sample.prompt)["input_ids"], tokenizer(sample.completion)["input_ids"]
        pad = [tokenizer.pad_token_id] * 3
        ids = torch.tensor([[*pad, *query, *response, *pad]])
        context = len(pad) + len(query)
        # As PPOTrainer announces each batch that it hands out.
        model.announced = AnnouncedPrompts(ids[:, :context], [replace(sample, completion="")], lambda scores: None)
        _, reward, _ = get_reward(model, ids, tokenizer.pad_token_id, context)
        values.append(reward.item())
    return values


@pytest.mark.parametrize("form", ["text", "conversation"])
@pytest.mark.parametrize("kind", ["encoder", pytest.param("decoder", marks=newest_trl)])
def test_every_path_agrees(
    kind: str,
    form: str,
    minilm_path: Path,
    smollm2_path: Path,
    polarity_pairs: list[dict[str, Any]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in polarity_pairs[: PAIRS[kind]]]
    rows = [in_text(row) for row in rows] if form == "text" else rows
    data = Dataset.from_list(rows)
    trainer = RewardTrainer(
        str(minilm_path if kind == "encoder" else smollm2_path),
        RewardConfig(
            output_dir=str(tmp_path), report_to="none", disable_tqdm=True, per_device_eval_batch_size=PAIRS[kind], use_cpu=True
        ),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.save_model()
    chosen_first = trainer.predict(trainer.eval_dataset).predictions  # as TRL gives them, in one batch
    in_training = chosen_first.reshape(2, -1).T.reshape(-1)

    provider = rm.load(tmp_path)
    samples = [sample for row in rows for sample in preference_samples(row)]
    values = provider.score(samples).values
    prompts, completions = [sample.prompt for sample in samples], [sample.completion for sample in samples]
    classify = pipeline("text-classification", model=str(tmp_path), dtype=torch.float32)
    paths = {
        "reward_func": reward_func(provider)(prompts, completions),
        "RewardTrainer's evaluation": in_training,
        "pipeline": [found["score"] for found in classify([provider.render(sample) for sample in samples], batch_size=1)],
    }
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    paths["PPO"] = (by_trl_s_ppo if TRL_HAS_PPO else by_ppo)(provider, samples, tokenizer)
    differences = {name: float(np.abs(np.asarray(found, dtype=float) - values).max()) for name, found in paths.items()}
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    record_property("measured", f"{kind}, {form}: largest difference from the provider on {len(samples)} samples: {shown}")
    assert max(differences.values()) < 1e-4
    assert values.std() > 1e-3
