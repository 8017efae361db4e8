"""The snippets of a widely used guide to reward modeling with TRL run as they stand.

Only the imports and the names of model and data set differ from the guide's.
"""

# ruff: noqa: I001 - the snippets keep their own order

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rm_plugins.data.rows import preference_samples
from tests.trl.conftest import HELD_OUT, newest_trl, write_jsonl

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_then_pipeline(tiny_decoder: Any, working_directory: Path) -> None:
    row = {"prompt": "Question or instruction", "chosen": "Better response", "rejected": "Worse response"}
    write_jsonl(working_directory / "train.jsonl", [row] * 8)
    model_name, dataset_name = str(tiny_decoder()), str(working_directory)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from rm_plugins_trl import RewardTrainer, RewardConfig
    from datasets import load_dataset

    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    dataset = load_dataset(dataset_name, split="train")
    config = RewardConfig(output_dir="Qwen2.5-Reward", per_device_train_batch_size=2, num_train_epochs=1, learning_rate=1e-5)
    trainer = RewardTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=dataset)
    trainer.train()

    from transformers import pipeline

    reward_pipe = pipeline("text-classification", model="Qwen2.5-Reward")
    texts = ["Good answer", "Bad answer"]
    scores = reward_pipe(texts)
    print(scores)

    # The guide promises a reward; TRL's own model would give a sigmoid of one.
    inputs = tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        assert scores[0]["score"] == pytest.approx(trainer.model.eval()(**inputs).logits.item(), abs=1e-5)


def test_ppo(tiny_decoder: Any, tiny_policy: Path, working_directory: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from rm_plugins_trl import RewardConfig, RewardTrainer

    row = {"prompt": "Q", "chosen": "Better response", "rejected": "Worse response"}
    arguments = RewardConfig(output_dir="Qwen2.5-Reward", max_steps=1, report_to="none")
    RewardTrainer(str(tiny_decoder()), arguments, train_dataset=Dataset.from_list([row] * 8)).train()
    policy_model = AutoModelForCausalLM.from_pretrained(tiny_policy)

    from rm_plugins_trl import PPOTrainer, PPOConfig

    config = PPOConfig(
        reward_model_path="Qwen2.5-Reward"  # Use trained reward model
    )
    trainer = PPOTrainer(
        model=policy_model,
        config=config,
        # Reward model loaded automatically
    )

    assert trainer.reward_model.provider.trained.source.endswith("Qwen2.5-Reward")


@pytest.mark.parametrize(
    ("learning_rate", "batch_sizes", "epochs"),
    [(2e-5, (4, 8), (1, 2)), (1e-5, (2, 4), (1, 1)), (5e-6, (1, 2), (1, 1))],
    ids=["<1B", "1-7B", "7-13B"],
)
def test_hyperparameter_table(
    learning_rate: float,
    batch_sizes: tuple[int, int],
    epochs: tuple[int, int],
    tiny_decoder: Any,
    working_directory: Path,
) -> None:
    from datasets import Dataset
    from rm_plugins_trl import RewardConfig, RewardTrainer

    dataset = Dataset.from_list([{"prompt": "Q", "chosen": "Better response", "rejected": "Worse response"}] * 8)
    for batch_size in batch_sizes:
        for num_epochs in epochs:
            config = RewardConfig(
                output_dir="Qwen2.5-Reward",
                per_device_train_batch_size=batch_size,
                num_train_epochs=num_epochs,
                learning_rate=learning_rate,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = RewardTrainer(model=str(tiny_decoder()), args=config, train_dataset=dataset)
            trainer.train()
            assert trainer.state.global_step == 8 // batch_size * num_epochs
            assert trainer.optimizer.defaults["lr"] == learning_rate


@newest_trl  # the snippet is transformers alone
def test_accuracy_check(polarity_model: Path, polarity_pairs: list[dict[str, Any]]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    import rm_plugins as rm

    model = AutoModelForSequenceClassification.from_pretrained(polarity_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(polarity_model)
    rewards = rm.load(polarity_model)
    pairs = [preference_samples(row) for row in polarity_pairs[-HELD_OUT:][:200]]
    chosen_inputs = tokenizer([rewards.render(pair[0]) for pair in pairs], return_tensors="pt", padding=True)
    rejected_inputs = tokenizer([rewards.render(pair[1]) for pair in pairs], return_tensors="pt", padding=True)

    with torch.no_grad():
        # Chosen should score higher than rejected
        chosen_rewards = model(**chosen_inputs).logits
        rejected_rewards = model(**rejected_inputs).logits

        accuracy = (chosen_rewards > rejected_rewards).float().mean()
        print(f"Accuracy: {accuracy:.2%}")  # Target: >80%

    assert accuracy > 0.8
