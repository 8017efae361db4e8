"""What PPO cannot train with: each is refused with a message of its own, before the training where that is possible."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import ProcessorMixin, Qwen2Config, Qwen2ForSequenceClassification
from trl import GRPOConfig

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError, RmPluginsError, ScoringError, SpecError, TrainingError, UnsupportedError
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.worlds import PROMPTS, config, count_a, letters_policy, same, trainer, weights

pytestmark = [newest_trl, *TRL_WARNINGS]


def value_model(**changes: Any) -> Any:
    settings = letters_policy().config.to_dict() | {"num_labels": 1, **changes}
    settings.pop("id2label", None)
    settings.pop("label2id", None)
    return Qwen2ForSequenceClassification(Qwen2Config(**settings))


POLICY = letters_policy()
BEFORE_TRAINING: dict[str, tuple[Callable[[], dict[str, Any]], type[RmPluginsError], str]] = {
    "no reward": (lambda: {"reward_model": ...}, UnsupportedError, "PPO needs a reward"),
    "both rewards": (
        lambda: {"reward_funcs": [count_a], "reward_model": count_a},
        UnsupportedError,
        "replaces `reward_model`; give one",
    ),
    "no rewards in a list": (lambda: {"reward_model": ..., "reward_funcs": []}, UnsupportedError, "PPO needs a reward"),
    "value model with two labels": (lambda: {"value_model": value_model(num_labels=2)}, ModelError, "2 labels"),
    "value model with other tokens": (
        lambda: {"value_model": value_model(vocab_size=11)},
        ModelError,
        "embeddings of 11 token ids",
    ),
    "a loaded reward with two labels": (
        lambda: {"reward_model": value_model(num_labels=2)},
        UnsupportedError,
        "has 2 labels. Give a spec with its folder",
    ),
    "a module that is no classifier": (
        lambda: {"reward_model": torch.nn.Linear(1, 1)},
        UnsupportedError,
        "The reward is a Linear, which is not a sequence classifier",
    ),
    "unknown critic": (lambda: {"critic": "polcy"}, SpecError, "critic must be 'policy' or 'reward' or 'head'"),
    "indivisible": (lambda: {"num_generations": 3}, SpecError, "num_generations=3 does not divide"),
    "GRPO's configuration": (
        lambda: {"args": GRPOConfig(output_dir="x", bf16=False)},
        UnsupportedError,
        "needs a PPOConfig of rm_plugins_trl.*GRPOConfig",
    ),
    "arguments as a mapping": (lambda: {"args": {"output_dir": "x"}}, UnsupportedError, "needs a PPOConfig"),
    "data_collator": (lambda: {"data_collator": list}, UnsupportedError, "no use for a `data_collator`"),
    "no rows": (lambda: {"train_dataset": []}, DataError, "train_dataset has no rows"),
    "no rows to evaluate": (lambda: {"eval_dataset": {"easy": []}}, DataError, r"eval_dataset\['easy'\] has no rows"),
    "no prompt": (
        lambda: {"train_dataset": [{"question": "a"}] * 8},
        DataError,
        r"Row 0 .* of train_dataset has no 'prompt'.*'question'",
    ),
    "mistyped column": (
        lambda: {"train_dataset": [{"promt": "a"}] * 8},
        DataError,
        "no column 'prompt'. Did you mean 'promt'",
    ),
    "a file for a dataset": (
        lambda: {"train_dataset": "prompts.jsonl"},
        UnsupportedError,
        "must be a dataset of rows with a 'prompt' column, not str",
    ),
    "the policy as its reference": (
        lambda: {"model": POLICY, "ref_model": POLICY},
        UnsupportedError,
        "`ref_model` is the policy itself",
    ),
    "no policy": (lambda: {"model": ...}, UnsupportedError, "PPO needs a policy"),
    "FSDP": (lambda: {"fsdp": "full_shard"}, UnsupportedError, "does not run under FSDP or DeepSpeed"),
    "an unknown adapter": (lambda: {"model_adapter_name": "mine"}, UnsupportedError, "model_adapter_name='mine'"),
    "an unknown reference adapter": (
        lambda: {"model": get_peft_model(letters_policy(), LoraConfig(target_modules=["q_proj"])), "ref_adapter_name": "mine"},
        UnsupportedError,
        "ref_adapter_name='mine'",
    ),
    "a reference of fewer tokens": (
        lambda: {"ref_model": letters_policy(vocab_size=5)},
        ModelError,
        "`ref_model` has embeddings of 5 token ids, and the policy writes 8",
    ),
}


def test_a_reward_that_the_critic_s_training_would_change(tmp_path: Path) -> None:
    shared = value_model()
    with pytest.raises(UnsupportedError, match="`value_model` shares weights with the reward model"):
        trainer(tmp_path, reward_model=shared, value_model=shared)


@pytest.mark.parametrize("case", BEFORE_TRAINING)
def test_before_the_training(case: str, tmp_path: Path) -> None:
    changes, error, message = BEFORE_TRAINING[case]
    with pytest.raises(error, match=message):
        trainer(tmp_path, **changes())


def test_vllm_that_is_not_installed(tmp_path: Path) -> None:
    if find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(ImportError, match="vLLM is not available"):
        trainer(tmp_path, use_vllm=True)


def test_processors_of_images(tmp_path: Path) -> None:
    class Processor(ProcessorMixin):  # type: ignore[misc]  # transformers is untyped here
        def __init__(self) -> None:
            pass

    with pytest.raises(UnsupportedError, match=r"PPO trains on text alone.*processing_class=PROCESSOR.tokenizer"):
        trainer(tmp_path, processing_class=Processor())


def test_another_launcher_s_sharding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UnsupportedError, match="does not run under FSDP or DeepSpeed"):
        trainer(tmp_path, args=args)


def test_too_few_rows(tmp_path: Path) -> None:
    trained = trainer(tmp_path, train_dataset=PROMPTS[:7])
    with pytest.raises(DataError, match="train_dataset has 7 rows, fewer than the 8 prompts of one rollout"):
        trained.train()


def test_a_stream_of_too_few_rows(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield from PROMPTS[:7]

    with pytest.raises(DataError, match="a stream that ends before the 8 prompts of one rollout"):
        trainer(tmp_path, train_dataset=IterableDataset.from_generator(rows)).train()


def test_a_stream_of_texts_and_messages(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for row in PROMPTS * 4:
            yield {"prompt": row["prompt"]}
            yield {"prompt": [{"role": "user", "content": row["prompt"]}]}

    with pytest.raises(DataError, match="Some prompts of train_dataset are text and others are messages"):
        trainer(tmp_path, train_dataset=IterableDataset.from_generator(rows)).train()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(None, "A row of train_dataset has no 'prompt'"), ("", "A row of train_dataset has a prompt of 0 tokens")],
)
def test_a_prompt_in_the_middle_is_missing(prompt: str | None, message: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a"}] * 7 + [{"prompt": prompt}]
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, train_dataset=rows).train()


def test_prompts_longer_than_the_policy(tmp_path: Path) -> None:
    rows = [{"prompt": "a " * 61}] * 8
    with pytest.raises(DataError, match=r"A prompt of 61 tokens and a completion of up to 5 .* longer than the 64 positions"):
        trainer(tmp_path, train_dataset=rows).train()


def failing(samples: Sequence[rm.Sample]) -> list[float]:
    raise RuntimeError("the judge is on holiday")


REWARDS: dict[str, tuple[Any, type[RmPluginsError], str]] = {
    "raises": (failing, ScoringError, "the judge is on holiday"),
    "abstains on everything": (lambda samples: [math.nan] * len(samples), ScoringError, "abstained on all 8 completions"),
    "is infinite": (lambda samples: [math.inf] + [0.0] * (len(samples) - 1), ScoringError, "infinite"),
}


@pytest.mark.parametrize("case", REWARDS)
def test_rewards(case: str, tmp_path: Path) -> None:
    reward, error, message = REWARDS[case]
    trained = trainer(tmp_path, reward_model=reward)
    before = weights(trained.model)
    with pytest.raises(error, match=message):
        trained.train()
    assert same(before, weights(trained.model))


class TestDivergence:
    def test_a_rate_that_is_far_too_high(self, tmp_path: Path) -> None:
        trained = trainer(tmp_path, learning_rate=1e30, total_episodes=800, lr_scheduler_type="constant")
        with pytest.raises(TrainingError, match=r"Step \d+: .*(is nan|not finite|is inf).*Before: step"):
            trained.train()
        assert all(not tensor.isnan().any() for tensor in weights(trained.model).values())

    @pytest.mark.parametrize("which", ["policy", "critic"])
    def test_a_gradient_that_is_not_finite(self, which: str, tmp_path: Path) -> None:
        trained = trainer(tmp_path)
        parameter = next(iter((trained.model if which == "policy" else trained.critic).parameters()))
        parameter.register_hook(lambda gradient: gradient * math.nan)
        before = weights(trained.model), weights(trained.critic)
        with pytest.raises(TrainingError, match=f"the norm of the {which}'s gradient is nan"):
            trained.train()
        assert same(before[0], weights(trained.model))
        assert same(before[1], weights(trained.critic))

    def test_a_policy_that_is_not_finite(self, tmp_path: Path) -> None:
        policy = letters_policy()
        policy.lm_head.weight.data[2] = math.nan
        with pytest.raises(TrainingError, match="probabilities are not finite"):
            trainer(tmp_path, model=policy).train()


def endless(folder: Path, **changes: Any) -> list[str]:
    policy = letters_policy(tie_word_embeddings=False)
    policy.lm_head = torch.nn.Linear(16, 8)
    policy.lm_head.bias.data[:2] = -1e4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(
            folder,
            model=policy,
            total_episodes=8 * 12,
            num_ppo_epochs=1,
            num_mini_batches=1,
            per_device_train_batch_size=8,
            **changes,
        ).train()
    return [str(one.message) for one in caught if "cut off" in str(one.message)]


def test_a_policy_that_never_ends_is_warned_of_once(tmp_path: Path) -> None:
    (message,) = endless(tmp_path)
    assert "All completions of the last 5 rollouts were cut off at response_length=5" in message
    assert "missing_eos_penalty" in message
    assert not endless(tmp_path, response_length=1)


def test_a_training_prints_nothing_of_no_use(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    trained = trainer(tmp_path, gradient_checkpointing=True, eval_dataset=PROMPTS[:4], eval_strategy="steps", eval_steps=4)
    trained.train()
    trained.save_model()
    assert [str(one.message) for one in recwarn] == []
    assert caplog.messages == []
