"""Everything that can be PPO's reward, and what reaches it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import trl
from transformers import Qwen2ForSequenceClassification

import rm_plugins as rm
from rm_plugins.training.reward_state import reward_state
from rm_plugins_trl import RewardFunction, RewardWatch, reward_func
from rm_plugins_trl.reward_model import RewardModel
from tests.conftest import make_tokenizer
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.ppo.conftest import policy_in
from tests.trl.ppo.worlds import VOCABULARY, count_a, letters_policy, letters_tokenizer, logged, same, trainer, weights

pytestmark = [newest_trl, *TRL_WARNINGS]

A = VOCABULARY.index("a")


def trl_count(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


async def awaited_count(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return trl_count(prompts, completions)


class Counting(rm.Provider):
    """The number of a, with the number of b as a detail; abstains on completions without either."""

    name = "counting"

    def __init__(self) -> None:
        self.seen: list[rm.Sample] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.seen += samples
        texts = [str(sample.completion) for sample in samples]
        a, b = (np.array([text.count(letter) for text in texts], dtype=float) for letter in "ab")
        return rm.Scores(np.where(a + b > 0, a, np.nan), {"b": b})


KINDS: dict[str, Callable[[], Any]] = {
    "function of samples": lambda: count_a,
    "function as in TRL": lambda: trl_count,
    "coroutine function": lambda: awaited_count,
    "provider": Counting,
    "spec": lambda: f"{__name__}:count_a",
    "mapping": lambda: {"provider": "function", "function": f"{__name__}:count_a"},
    "RewardModel": lambda: RewardModel(count_a, letters_tokenizer()),
    "RewardFunction": lambda: reward_func(count_a, name="mine"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path: Path) -> None:
    trained = trainer(tmp_path, reward_model=KINDS[kind](), total_episodes=8, log_completions=True)
    trained.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    counts = [float(text.count("a")) for text in table["completion"]]
    name = trained.reward_func_names[0]
    found = table[name].to_numpy(dtype=float)
    np.testing.assert_array_equal(np.where(np.isnan(found), 0.0, found), counts)
    assert logged(trained, f"rewards/{name}/mean")[0] == pytest.approx(np.nanmean(found))


def test_a_classifier_is_called_as_in_grpo(tiny_decoder: Any, tmp_path: Path) -> None:
    folder = tiny_decoder()
    classifier = Qwen2ForSequenceClassification.from_pretrained(folder)
    trained = trainer(tmp_path, model=policy_in(folder), processing_class=..., reward_model=classifier, total_episodes=8)
    assert trained.reward_model is classifier
    trained.train()
    assert np.isfinite(logged(trained, f"rewards/{folder.name}/mean")).all()


def test_several_are_weighed(tmp_path: Path) -> None:
    rewards = [reward_func(count_a, name="one"), trl_count, awaited_count]
    trained = trainer(tmp_path, reward_funcs=rewards, reward_weights=[1.0, 0.5, -0.25], total_episodes=8)
    trained.train()
    parts = [logged(trained, f"rewards/{name}/mean")[0] for name in ("one", "trl_count", "awaited_count")]
    assert len(set(parts)) == 1
    assert logged(trained, "objective/scores")[0] == pytest.approx(1.25 * parts[0])


def test_coroutines_wait_together(tmp_path: Path) -> None:
    spans = []

    def slow(name: str) -> Any:
        async def wait(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
            begun = time.perf_counter()
            await asyncio.sleep(0.3)
            spans.append((begun, time.perf_counter()))
            return trl_count(prompts, completions)

        wait.__name__ = name
        return wait

    trainer(tmp_path, reward_funcs=[slow("one"), slow("other")], total_episodes=8).train()
    assert len(spans) == 2
    assert max(begun for begun, _ in spans) < min(end for _, end in spans)


class TestAbstentions:
    def test_are_logged_and_learned_from_in_no_way(self, tmp_path: Path) -> None:
        provider = Counting()
        trained = trainer(tmp_path, reward_model=provider, total_episodes=8)
        trained.train()
        texts = [str(sample.completion) for sample in provider.seen]
        abstains = [not {"a", "b"} & set(text) for text in texts]
        assert 0 < sum(abstains) < 8
        assert (
            logged(trained, "rewards/counting/abstained")[0] == logged(trained, "objective/abstained")[0] == sum(abstains) / 8
        )
        assert logged(trained, "rewards/counting/b")[0] == np.mean([text.count("b") for text in texts])
        rollout = trained.progress.rollout
        assert rollout is not None
        assert (~rollout.mask.any(1)).tolist() == abstains

    def test_their_row_changes_no_gradient(self, tmp_path: Path) -> None:
        trained = trainer(
            tmp_path, reward_model=Counting(), total_episodes=8, num_mini_batches=1, per_device_train_batch_size=8
        )
        trained.train()
        rollout = trained.progress.rollout
        assert rollout is not None
        is_kept = rollout.mask.any(1)
        junk = torch.where(is_kept[:, None], 0.0, 1e3)
        changed = replace(
            rollout,
            advantages=rollout.advantages + junk,
            returns=rollout.returns - junk,
            log_probs=rollout.log_probs - junk / 100,
        )
        without = rollout.part(is_kept.nonzero()[:, 0].tolist())

        def gradients(part: Any) -> list[torch.Tensor]:
            trained.model.zero_grad()
            trained.critic.zero_grad()
            loss: Any = trained.compute_loss(trained.model, part)
            loss.backward()
            return [
                one.grad.clone() for one in [*trained.model.parameters(), *trained.critic.parameters()] if one.grad is not None
            ]

        trained.progress.tokens = [float(rollout.mask.sum())]
        trained.progress.place = 0
        plain = gradients(rollout)
        assert any(one.abs().max() > 0 for one in plain)
        assert all(map(torch.equal, plain, gradients(changed)))
        for one, other in zip(plain, gradients(without), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_watch_sees_them(tmp_path: Path) -> None:
    trained = trainer(tmp_path, logging_steps=4)
    assert isinstance(trained.reward_model, RewardFunction)
    RewardWatch(trained.reward_model, journal=tmp_path / "journal").attach(trained)
    trained.train()
    assert len(logged(trained, "watch/count_a/warnings")) == 2
    assert any((tmp_path / "journal").iterdir())


def scaled_count() -> dict[str, Any]:
    transform = {"name": "zscore", "running": True, "mean": 0.0, "std": 1.0}
    return {"provider": "function", "function": f"{__name__}:count_a", "label": "scaled", "transform": transform}


def test_running_statistics_are_in_checkpoints(tmp_path: Path) -> None:
    spec = scaled_count()
    trained = trainer(tmp_path, reward_model=spec, save_strategy="steps", save_steps=4)
    trained.train()
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert "rm_plugins/scaled" in state["stateful_callbacks"]
    evaluating = {"eval_dataset": [{"prompt": "e"}] * 2, "eval_strategy": "steps", "eval_steps": 100, "eval_on_start": True}
    again = trainer(
        tmp_path, reward_model=spec, save_strategy="steps", save_steps=4, per_device_eval_batch_size=2, **evaluating
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    other = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["rm_plugins/scaled"] == other["stateful_callbacks"]["rm_plugins/scaled"]


def test_an_evaluation_teaches_a_reward_nothing(tmp_path: Path) -> None:
    spec = scaled_count()
    held_out = [{"prompt": "e"}, {"prompt": "f"}]
    states = []
    for strategy in ("no", "steps"):
        folder = tmp_path / strategy
        settings = {"eval_dataset": held_out, "eval_strategy": strategy, "eval_steps": 1, "per_device_eval_batch_size": 2}
        trained = trainer(folder, reward_model=spec, save_strategy="steps", save_steps=8, **settings)
        trained.train()
        states.append((weights(trained.model), reward_state(trained.reward_model.provider)))
        kept = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["stateful_callbacks"]
        assert kept["rm_plugins/scaled"] == states[-1][1]
    assert same(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


class TestRows:
    def seen(self, rows: list[dict[str, Any]], tmp_path: Path, **changes: Any) -> tuple[list[rm.Sample], Any]:
        provider = Counting()
        trained = trainer(tmp_path, reward_model=provider, train_dataset=rows, total_episodes=8, **changes)
        trained.train()
        return provider.seen, trained.progress.rollout

    def prompts(self, rollout: Any) -> set[str]:
        tokens = [row[:start] for row, start in zip(rollout.rows, rollout.starts, strict=True)]
        return {" ".join(VOCABULARY[token] for token in row) for row in tokens}

    def test_columns_reach_the_reward(self, tmp_path: Path) -> None:
        rows = [{"prompt": letter, "answer": letter.upper()} for letter in "abcd"] * 2
        samples, rollout = self.seen(rows, tmp_path)
        assert all(sample.columns["answer"] == str(sample.prompt).upper() for sample in samples)
        assert self.prompts(rollout) == set("abcd")

    def test_conversations(self, tmp_path: Path) -> None:
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("a b", "c")] * 4
        samples, rollout = self.seen(rows, tmp_path)
        assert {json.dumps(sample.prompt) for sample in samples} == {json.dumps(row["prompt"]) for row in rows}
        assert all('"role": "assistant"' in json.dumps(sample.completion) for sample in samples)
        assert self.prompts(rollout) == {"a b", "c"}

    def test_token_ids(self, tmp_path: Path) -> None:
        rows = [{"input_ids": letters_tokenizer()(text).input_ids} for text in ("a b", "c")] * 4
        samples, rollout = self.seen(rows, tmp_path)
        assert {str(sample.prompt) for sample in samples} == {"a b", "c"}
        assert self.prompts(rollout) == {"a b", "c"}

    def test_tools_and_template_arguments_of_a_row(self, tmp_path: Path) -> None:
        tools = json.dumps([{"type": "function", "function": {"name": "paint"}}])
        conversation = [{"role": "user", "content": "a"}]
        rows: list[dict[str, Any]] = [
            {"prompt": conversation, "tools": tools, "chat_template_kwargs": None},
            {"prompt": conversation, "tools": None, "chat_template_kwargs": {"closing": "d"}},
        ] * 4
        samples, rollout = self.seen(rows, tmp_path)
        assert self.prompts(rollout) == {"f a", "a d"}
        assert {sample.columns.get("tools") for sample in samples} == {tools, None}


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_rollout_of_ones_own(tmp_path: Path) -> None:
    """The tokens of its environment are read, and not learned from."""
    tokenizer = letters_tokenizer()

    def roll(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        rows = tokenizer(prompts).input_ids
        return {
            "prompt_ids": rows,
            "completion_ids": [[A, A + 1, A + 2, A]] * len(rows),
            "logprobs": None,
            "env_mask": [[1, 0, 0, 1]] * len(rows),
            "bonus": [float(place) for place in range(len(rows))],
        }

    def bonus_of(prompts: list[Any], completions: list[Any], bonus: list[float], **columns: Any) -> list[float]:
        return bonus

    trained = trainer(tmp_path, rollout_func=roll, reward_model=bonus_of, total_episodes=8)
    before = weights(trained.model)
    trained.train()
    rollout = trained.progress.rollout
    assert rollout is not None
    assert rollout.mask.tolist() == [[True, False, False, True]] * 8
    assert logged(trained, "objective/scores")[0] == 3.5
    assert any(not torch.equal(before[name], now) for name, now in weights(trained.model).items())


QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
CALL = '<tool_call>\n{"name": "multiply", "arguments": {"a": 3, "b": 4}}\n</tool_call>'


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: One.
        b: The other.
    """
    return a * b


class Calculator:
    """An environment with one tool, and a reward of its own."""

    def reset(self, **columns: Any) -> str | None:
        self.calls = 0
        return columns.get("question")

    def multiply(self, a: int, b: int) -> int:
        """Multiply two numbers.

        Args:
            a: One.
            b: The other.
        """
        self.calls += 1
        return a * b

    def get_reward(self) -> float:
        return float(self.calls)


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")
@pytest.mark.parametrize("kind", ["tools", "environment", "environment's own reward", "environment's own prompt"])
def test_the_tokens_of_tools_are_read_and_not_learned_from(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(start="<|im_start|>", end="<|im_end|>")
    tokenizer.chat_template = QWEN3.read_text(encoding="utf-8")
    policy = letters_policy(vocab_size=len(tokenizer), max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id)

    def generate(input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        texts = tokenizer.batch_decode(input_ids)
        rows = [tokenizer(("Done" if "<tool_response>" in text else CALL) + "<|im_end|>").input_ids for text in texts]
        width = max(map(len, rows))
        written = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        return torch.cat([input_ids, torch.tensor(written)], 1)

    def calls(completions: list[Any], environments: Any = None, **columns: Any) -> list[float]:
        return [float(sum(message["role"] == "tool" for message in completion)) for completion in completions]

    policy.generate = generate
    question = "What is 3 times 4?"
    offered: dict[str, Any] = {"tools": [multiply]} if kind == "tools" else {"environment_factory": Calculator}
    trained = trainer(
        tmp_path,
        model=policy,
        processing_class=tokenizer,
        train_dataset=[
            {"question": question}
            if kind == "environment's own prompt"
            else {"prompt": [{"role": "user", "content": question}]}
        ]
        * 8,
        reward_model=calls if kind in ("tools", "environment") else ...,
        response_length=300,
        total_episodes=8,
        **offered,
    )
    before = weights(trained.model)
    trained.train()
    rollout = trained.progress.rollout
    assert rollout is not None
    for row, start, mask in zip(rollout.rows, rollout.starts, rollout.mask, strict=True):
        written = [token for token, is_own in zip(row[start:], mask.tolist(), strict=False) if is_own]
        assert tokenizer.decode(written) == f"{CALL}<|im_end|>Done<|im_end|>"
        assert "<tool_response>" in tokenizer.decode(row[start:])
        assert question in tokenizer.decode(row[:start])
        assert "12" in tokenizer.decode(row[start:])
    assert logged(trained, "tools/call_frequency")[0] == 1.0
    assert logged(trained, "objective/scores")[0] == (1.0 if kind != "environment" else 2.0)
    assert not same(before, weights(trained.model))
