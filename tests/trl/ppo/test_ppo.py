"""PPO with providers: what the reward sees, what is logged, what has a default, and what is refused."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

import rm_plugins as rm
from rm_plugins.errors import MissingDependencyError, ScoringError
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.reward_model import RewardModel
from tests.trl.conftest import TRL_WARNINGS
from tests.trl.ppo.conftest import (
    CONVERSATIONS,
    TEXTS,
    Recording,
    policy_ids,
    policy_in,
    text_of,
)
from tests.warm_process import run_warm_group

pytestmark = TRL_WARNINGS


def steps_of(trainer: Any) -> list[dict[str, Any]]:
    """What was logged with the rewards of a rollout."""
    return [entry for entry in trainer.state.log_history if "objective/scores" in entry]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch, trl_s_ppo: ModuleType) -> list[tuple[list[int], list[int]]]:
    """The token ids that TRL hands to the reward model: query and response of each row."""
    module = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    rows: list[tuple[list[int], list[int]]] = []
    get_reward = module.get_reward

    def spy(model: Any, query_responses: torch.Tensor, pad_token_id: int, context_length: int) -> Any:
        if isinstance(model, RewardModel):
            rows.extend((row[:context_length], row[context_length:]) for row in query_responses.tolist())
        return get_reward(model, query_responses, pad_token_id, context_length)

    monkeypatch.setattr(module, "get_reward", spy)
    return rows


def without_left_padding(ids: Sequence[int], pad: int) -> list[int]:
    kept = list(ids)
    while kept and kept[0] == pad:
        kept.pop(0)
    return kept


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"], ids=["own padding token", "padding is EOS"])
@pytest.mark.parametrize("rows", [TEXTS, CONVERSATIONS], ids=["text", "conversations"])
def test_the_reward_sees_the_true_prompt_the_columns_and_the_decoded_completion(
    ppo: ModuleType, settings: Any, handed: Any, tiny_decoder: Any, rows: list[dict[str, Any]], pad: str
) -> None:
    folder = tiny_decoder(pad=pad)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(folder, end=0.15), args=settings(), reward_model=reward, train_dataset=[dict(row) for row in rows]
    )
    trainer.train()

    by_ids = {tuple(policy_ids(row, tokenizer)): row for row in rows}
    assert len(by_ids) == len(rows)
    expected = []
    for query, response in handed:
        row = by_ids[tuple(without_left_padding(query, tokenizer.pad_token_id))]
        ended = response[: response.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in response else response
        text = tokenizer.decode(ended, skip_special_tokens=True)
        columns = {name: value for name, value in row.items() if name != "prompt"}
        expected.append(rm.Sample(row["prompt"], text, columns))
    assert reward.seen == expected
    assert len(reward.seen) == 8  # two passes over the rows
    for row in rows:
        assert sum(sample.columns["answer"] == row["answer"] for sample in reward.seen) == 2
    lengths = {len(response) - response.count(tokenizer.pad_token_id) for _, response in handed}
    assert len(lengths) > 1, "some completions end before the others"


def test_a_completion_ends_at_the_padding_token_where_ppo_stops_learning_from_it(
    ppo: ModuleType, settings: Any, handed: Any, tiny_decoder: Any
) -> None:
    folder = tiny_decoder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(folder, pad=0.2), args=settings(stop_token=None), reward_model=reward, train_dataset=TEXTS
    )
    trainer.train()
    pad = tokenizer.pad_token_id
    ended = [response[: response.index(pad)] if pad in response else response for _, response in handed]
    assert [sample.completion for sample in reward.seen] == tokenizer.batch_decode(ended, skip_special_tokens=True)
    assert any(set(response[response.index(pad) :]) != {pad} for _, response in handed if pad in response), "text after padding"


@pytest.mark.parametrize("with_prompt", [False, True])
def test_datasets_of_token_ids_still_work(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, tiny_tokenizer: Any, with_prompt: bool
) -> None:
    rows = [{"input_ids": tiny_tokenizer(row["prompt"]).input_ids, "answer": row["answer"]} for row in TEXTS]
    if with_prompt:
        rows = [{**row, "prompt": [{"role": "user", "content": row["answer"]}]} for row in rows]
    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()), args=settings(), reward_model=reward, train_dataset=Dataset.from_list(rows)
    )
    trainer.train()
    assert len(reward.seen) == 8
    prompts = {row["answer"]: row["prompt"] for row in TEXTS}
    for sample in reward.seen:
        answer = sample.columns["answer"]
        assert {**sample.columns, "completion_ids": None} == {"answer": answer, "completion_ids": None}
        assert sample.prompt == ([{"role": "user", "content": answer}] if with_prompt else prompts[answer])


def test_rows_reach_the_reward_in_the_order_of_the_loader(
    ppo: ModuleType, trl_s_ppo: ModuleType, settings: Any, tiny_decoder: Any
) -> None:
    collated: list[int] = []

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        collated.extend(item["tag"] for item in items)
        return {"input_ids": torch.tensor([item["input_ids"] for item in items])}

    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()),
        args=settings(total_episodes=24),
        reward_model=reward,
        train_dataset=Dataset.from_list([{"prompt": "one, two,", "tag": tag} for tag in range(9)]),
        data_collator=collate,
    )
    trainer.train()
    seen = [sample.columns["tag"] for sample in reward.seen]
    assert seen == collated[: len(seen)]
    assert len(seen) == 24


def test_rows_that_share_a_prompt_keep_their_own_columns_over_epochs(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()),
        args=settings(total_episodes=24),
        reward_model=reward,
        train_dataset=Dataset.from_list([{"prompt": "one, two,", "tag": tag} for tag in range(9)]),
    )
    trainer.train()
    seen = [sample.columns["tag"] for sample in reward.seen]
    assert len(seen) == 24
    epochs = [seen[start : start + 8] for start in (0, 8, 16)]
    assert all(len(set(epoch)) == 8 for epoch in epochs), "the ninth row of an epoch does not fill a batch"
    assert epochs[0] != epochs[1]


def test_completions_sampled_for_evaluation_are_scored_with_their_own_prompts_and_not_logged(
    ppo: ModuleType, trl_s_ppo: ModuleType, settings: Any, tiny_decoder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = Recording()
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()),
        args=settings(num_sample_generations=2, per_device_eval_batch_size=2, total_episodes=8),
        reward_model=reward,
        train_dataset=[{"prompt": "one", "split": "train"}] * 8,
        eval_dataset=[{"prompt": f"count {number}", "split": "eval"} for number in range(4)],
    )
    trainer.train()
    assert [sample.columns["split"] for sample in reward.seen] == 2 * (["train"] * 4 + ["eval"] * 2)
    assert [sample.prompt for sample in reward.seen[4:6]] == ["count 0", "count 1"]
    logged = [entry["rewards/recording/mean"] for entry in trainer.state.log_history]
    lengths = [len(text_of(sample.completion)) for sample in reward.seen]
    assert logged == [pytest.approx(np.mean(lengths[:4])), pytest.approx(np.mean(lengths[6:10]))]

    reward.seen.clear()
    trainer.generate_completions()
    assert [sample.prompt for sample in reward.seen] == [f"count {number}" for number in range(4)]
    assert trainer.reward_model.announced is None
    assert "model response" in capsys.readouterr().out


def test_each_log_has_the_statistics_since_the_last_one(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    reward = Recording()
    reward.label = "length"
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder(), end=0.2), args=settings(), reward_model=reward, train_dataset=TEXTS
    )
    trainer.train()
    assert len(steps_of(trainer)) == 2
    for step, entry in enumerate(steps_of(trainer)):
        lengths = [len(text_of(sample.completion)) for sample in reward.seen[4 * step : 4 * step + 4]]
        assert entry["rewards/length/mean"] == pytest.approx(np.mean(lengths))
        assert entry["rewards/length/mean"] == pytest.approx(entry["objective/scores"])
        assert entry["rewards/length/std"] == pytest.approx(np.std(lengths, ddof=1))
        if TRL_HAS_PPO:
            assert (entry["rewards/length/min"], entry["rewards/length/max"]) == (min(lengths), max(lengths))
        assert entry["rewards/length/halved"] == pytest.approx(np.mean(lengths) / 2)
        assert entry["rewards/length/std/mean"] == 7.0
    trainer.log({"other": 1.0})
    assert not any(name.startswith("rewards/") for name in trainer.state.log_history[-1])


def test_a_trained_model_gives_ppo_the_number_that_it_gives_everywhere(
    ppo: ModuleType, settings: Any, tiny_decoder: Any
) -> None:
    folder = tiny_decoder()
    trainer = ppo.PPOTrainer(
        model=policy_in(folder, end=0.15),
        args=settings(reward_model_path=str(folder)),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in CONVERSATIONS[:2]] * 2),
    )
    seen: list[rm.Sample] = []
    trainer.reward_model.provider.observer = lambda provider, samples, scores: seen.extend(samples)
    trainer.train()
    expected = rm.load(str(folder)).score(seen).values
    for step, entry in enumerate(steps_of(trainer)):
        assert entry["objective/scores"] == pytest.approx(np.mean(expected[4 * step : 4 * step + 4]), abs=1e-4)
    assert len(set(np.round(expected, 4))) > 4


TWO_PROCESSES = """
import json, os, sys
import torch
from datasets import Dataset
import rm_plugins as rm
from rm_plugins_trl.ppo import PPOConfig, PPOTrainer

torch.set_num_threads(1)
folder, out = sys.argv[1:]
seen = []

def reward(samples):
    seen.extend(samples)
    return rm.Scores([float(sample.columns["tag"]) for sample in samples], {"double": [2.0 * s.columns["tag"] for s in samples]})

trainer = PPOTrainer(
    model=folder,
    args=PPOConfig(
        output_dir=out, per_device_train_batch_size=2, local_rollout_forward_batch_size=1, num_ppo_epochs=1, response_length=3,
        total_episodes=16, num_sample_generations=1, per_device_eval_batch_size=2, report_to="none", logging_steps=1,
        save_strategy="no", disable_tqdm=True,
    ),
    reward_model=reward,
    train_dataset=Dataset.from_list([{"prompt": f"count {tag}", "tag": tag} for tag in range(8)]),
    eval_dataset=Dataset.from_list([{"prompt": f"evaluate {tag}", "tag": tag} for tag in range(100, 104)]),
)
trainer.train()
record = {
    "seen": [[sample.prompt, sample.columns["tag"]] for sample in seen],
    "logs": [{k: v for k, v in log.items() if k.startswith(("rewards/", "objective/scores"))} for log in trainer.state.log_history],
}
with open(f"{out}-{trainer.accelerator.process_index}.json", "w") as file:
    json.dump(record, file)
trainer.accelerator.wait_for_everyone()
# Not the usual end: where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process.
os._exit(0)
"""


def test_two_processes_score_their_own_rows_and_log_the_same(
    ppo: ModuleType, trl_s_ppo: ModuleType, tiny_decoder: Any, tmp_path: Path
) -> None:
    folder, script = tiny_decoder(), tmp_path / "two_processes.py"
    policy_in(folder).save_pretrained(folder / "policy")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "policy")
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    run_warm_group(2, script, folder / "policy", tmp_path / "out", ACCELERATE_USE_CPU="true")
    records = [json.loads((tmp_path / f"out-{process}.json").read_text()) for process in (0, 1)]

    for record in records:
        for prompt, tag in record["seen"]:
            assert prompt == f"{'evaluate' if tag >= 100 else 'count'} {tag}"
    training = [[tag for _, tag in record["seen"] if tag < 100] for record in records]
    for epoch in (slice(0, 4), slice(4, 8)):
        assert sorted(training[0][epoch] + training[1][epoch]) == list(range(8))
    evaluation = [[tag for _, tag in record["seen"] if tag >= 100] for record in records]
    assert sorted(evaluation[0] + evaluation[1]) == [100, 101, 102, 103]
    assert records[0]["logs"] == records[1]["logs"]
    for step, log in enumerate(records[0]["logs"]):
        tags = [tag for process in training for tag in process[2 * step : 2 * step + 2]]
        assert log["rewards/reward/mean"] == pytest.approx(np.mean(tags)) == pytest.approx(log["objective/scores"])
        assert (log["rewards/reward/min"], log["rewards/reward/max"]) == (min(tags), max(tags))
        assert log["rewards/reward/double"] == pytest.approx(2 * np.mean(tags))


def test_an_abstention_is_an_error_that_says_what_to_do(
    ppo: ModuleType, trl_s_ppo: ModuleType, settings: Any, tiny_decoder: Any
) -> None:
    def abstains(samples: list[rm.Sample]) -> list[float | None]:
        return [None if sample.prompt == "a" else 1.0 for sample in samples]

    trainer = ppo.PPOTrainer(model=policy_in(tiny_decoder()), args=settings(), reward_model=abstains, train_dataset=TEXTS)
    with pytest.raises(ScoringError, match=r"'abstains' abstained on 1 of \d samples.*on_error: \{fallback: SPEC\}"):
        trainer.train()


def test_a_fallback_scores_what_failed(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    def fails(samples: list[rm.Sample]) -> list[float]:
        raise ScoringError("no answer", rows=[row for row, sample in enumerate(samples) if sample.prompt == "a"] or None)

    def constant(samples: list[rm.Sample]) -> list[float]:
        return [3.0] * len(samples)

    spec = {"provider": "function", "function": fails, "on_error": {"fallback": constant}}
    trainer = ppo.PPOTrainer(model=policy_in(tiny_decoder()), args=settings(), reward_model=spec, train_dataset=TEXTS)
    trainer.train()
    assert [entry["rewards/fails/mean"] for entry in steps_of(trainer)] == [3.0, 3.0]


def test_bf16_follows_the_machine_unless_it_was_said(ppo: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules[ppo.PPOConfig.__module__], "bf16_by_default", lambda fp16: False)
    assert ppo.PPOConfig(output_dir=str(tmp_path)).bf16 is False
    assert ppo.PPOConfig(output_dir=str(tmp_path), bf16=True, use_cpu=True).bf16 is True


def test_a_checkpoint_is_written_and_holds_the_policy(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, tmp_path: Path
) -> None:
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()),
        args=settings(save_strategy="steps", save_steps=1, total_episodes=4),
        reward_model=Recording(),
        train_dataset=TEXTS,
    )
    trainer.train()
    saved = sorted(path.name for path in (tmp_path / "out" / "checkpoint-1").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"} <= set(saved)


def test_a_package_that_trl_s_ppo_needs_is_named(
    ppo: ModuleType, trl_s_ppo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails:
        @staticmethod
        def find_spec(name: str, path: Any, target: Any = None) -> Any:
            return spec_from_loader(name, Fails()) if name == "trl.experimental.ppo" else None  # type: ignore[arg-type]

        def create_module(self, spec: Any) -> None:
            raise ModuleNotFoundError("No module named 'requests'", name="requests")

        def exec_module(self, module: Any) -> None: ...

    for name in [name for name in sys.modules if name.startswith(("trl.experimental.ppo", "rm_plugins_trl.ppo.trl_1_12"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Fails, *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=r"its PPO needs the package 'requests', .*`pip install requests`"):
        ppo.PPOTrainer  # noqa: B018 - the attribute is what fails
