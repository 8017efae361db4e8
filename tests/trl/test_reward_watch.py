"""The watch in real trainings: what it sees, logs, writes and remembers."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import DataError, OutputError, SpecError
from rm_plugins.training.journal import JournalStep, read_journal
from rm_plugins_trl import RewardWatch, reward_func
from tests.trl.conftest import grpo_config

pytestmark = [
    # TRL's, accelerate's and transformers' own, on a machine without an accelerator.
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
]

PROMPTS = Dataset.from_list([{"prompt": prompt} for prompt in ("Name a colour.", "Count.", "Say one.", "Say two.")])


class Council(rm.Provider):
    """An ensemble of two: the completion's length, and half of it."""

    name = "council"

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        lengths = np.array([len(str(sample.completion)) for sample in samples], dtype=float)
        members = {str(number): rm.Scores(lengths / (number + 1), kind="member") for number in range(2)}
        return rm.Scores(0.75 * lengths, {"std": lengths / 4}, parts=members)


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Stands where wandb's callback does, before those that are given to the trainer."""

    def __init__(self) -> None:
        self.reported: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.reported.append(dict(logs or {}))


def trainer_of(policy: Path, folder: Path, rewards: list[Any], callbacks: list[Any], **more: Any) -> Any:
    return GRPOTrainer(
        model=str(policy),
        reward_funcs=rewards,
        args=grpo_config(folder, **{"max_steps": 4, "seed": 0, **more}),
        train_dataset=PROMPTS,
        eval_dataset=PROMPTS,
        callbacks=callbacks,
    )


def steps_of(journal: Path) -> list[JournalStep]:
    return list(read_journal(journal))


def test_in_grpo(tiny_policy: Path, tmp_path: Path) -> None:
    helpful = reward_func(Council(), name="helpful")
    watch = RewardWatch(helpful, journal=tmp_path / "journal")
    trainer = trainer_of(tiny_policy, tmp_path, [helpful], [watch], beta=0.1, eval_strategy="steps", eval_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 4
    for entry in logged:
        assert entry["watch/helpful/reward"] == pytest.approx(entry["rewards/helpful/mean"], rel=1e-5)
        assert entry["watch/helpful/disagreement"] == pytest.approx(entry["watch/helpful/length"] / 4)
        assert entry["watch/helpful/member/1"] == pytest.approx(entry["watch/helpful/length"] / 2)
        assert entry["watch/helpful/warnings"] == 0
    steps = steps_of(tmp_path / "journal")
    assert [step.step for step in steps] == [1, 2, 3, 4]
    for step, entry in zip(steps, logged, strict=True):
        (figures,) = step.figures["helpful"]
        assert figures["samples"] == len(step.samples["helpful"]) == 4, "what an evaluation scored is left out"
        assert figures["reward"] == entry["watch/helpful/reward"]
        assert step.trainer["kl"] == pytest.approx(entry["kl"])
        assert step.trainer["completion_tokens"] == entry["completions/mean_length"]
        assert all(row.score == pytest.approx(0.75 * row.length) for row in step.samples["helpful"])
    assert not any("watch/helpful/reward" in entry for entry in trainer.state.log_history if "eval_reward" in entry)
    assert helpful.watchers == []


def test_steps_between_logs_and_generations(tiny_policy: Path, tmp_path: Path) -> None:
    """A batch of completions serves two steps, and each log is of four; two rewards see the same."""
    rewards = [reward_func(Council(), name="one"), reward_func(Council(), name="other")]
    watch = RewardWatch(*rewards, journal=tmp_path / "journal", samples_per_step=4)
    trainer = trainer_of(tiny_policy, tmp_path, rewards, [watch], steps_per_generation=2, logging_steps=4)
    trainer.train()
    steps = steps_of(tmp_path / "journal")
    of_rewards = [step for step in steps if step.figures]
    assert [step.step for step in of_rewards] == [1, 3]
    for step in of_rewards:
        assert step.figures["one"] == step.figures["other"]
        assert step.figures["one"][0]["samples"] == 8
        assert len(step.samples["one"]) == 4
    (logged,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    mean = np.mean([step.figures["one"][0]["reward"] for step in of_rewards])
    assert logged["watch/one/reward"] == logged["watch/other/reward"] == pytest.approx(mean)


def test_an_ensemble_of_models(tiny_policy: Path, tiny_decoder: Any, tmp_path: Path) -> None:
    members = [
        {"provider": "sequence-classifier", "model": str(tiny_decoder(num_labels=1)), "transform": transform}
        for transform in ({"name": "scale", "factor": 1.0}, {"name": "scale", "factor": -2.0})
    ]
    helpful = reward_func({"provider": "ensemble", "aggregate": {"name": "lcb", "k": 1.0}, "members": members}, name="helpful")
    watch = RewardWatch(helpful, journal=tmp_path / "journal")
    trainer = trainer_of(tiny_policy, tmp_path, [helpful], [watch], max_steps=2)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert entry["watch/helpful/member/1"] == pytest.approx(-2 * entry["watch/helpful/member/0"])
    assert entry["watch/helpful/disagreement"] == pytest.approx(entry["rewards/helpful/std/mean"])
    assert entry["watch/helpful/disagreement"] > 0 <= entry["watch/helpful/rank_disagreement"]
    assert "watch/helpful/member/0/raw" not in entry
    (row, *_) = steps_of(tmp_path / "journal")[0].samples["helpful"]
    assert {"member/0", "member/1", "member/0/raw", "std", "rank_disagreement"} <= set(row.details)


def test_attached_it_reaches_what_reports(tiny_policy: Path, tmp_path: Path) -> None:
    helpful = reward_func(Council(), name="helpful")
    reporter = Reporter()
    trainer = trainer_of(tiny_policy, tmp_path, [helpful], [reporter], max_steps=1)
    watch = RewardWatch(helpful)
    assert watch.attach(trainer).attach(trainer) is watch
    trainer.train()
    assert "watch/helpful/length" in reporter.reported[0]
    assert sum(callback is watch for callback in trainer.callback_handler.callbacks) == 1


def test_a_resumed_training_goes_on(tiny_policy: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for resume in (False, True):
        helpful = reward_func(Council(), name="helpful")
        watch = RewardWatch(helpful, journal=journal)
        trainer = trainer_of(
            tiny_policy, tmp_path, [helpful], [watch], max_steps=5 if resume else 3, save_strategy="steps", save_steps=2
        )
        if resume:  # three steps are done, of which the checkpoint has two
            assert [step.step for step in steps_of(journal)] == [1, 2, 3]
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2") if resume else None)
    steps = steps_of(journal)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert all(len(step.figures["helpful"]) == 1 and len(step.samples["helpful"]) == 4 for step in steps)
    assert [step.step for step in watch.histories["helpful"].recent] == [4, 5]
    assert [step.step for step in watch.histories["helpful"].early] == [1, 2]
    json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())

    helpful = reward_func(Council(), name="helpful")
    trainer = trainer_of(tiny_policy, tmp_path, [helpful], [RewardWatch(helpful, journal=journal)], max_steps=1)
    with pytest.raises(DataError, match=r"has samples of an earlier training.*resume_from_checkpoint=True"):
        trainer.train()


# --- Without a trainer: the calls that trainers make ----------------------------------------------------------------------


class Calls:
    """Makes a trainer's calls: what a training of hundreds of steps would tell the watch."""

    def __init__(self, watch: RewardWatch, *, logs_first: bool = False) -> None:
        self.watch = watch
        self.logs_first = logs_first
        self.state = TrainerState()
        self.arguments = (SimpleNamespace(process_index=0, world_size=1), self.state, TrainerControl())

    def __enter__(self) -> Calls:
        self.watch.on_train_begin(*self.arguments)
        return self

    def __exit__(self, *found: object) -> None:
        self.watch.on_train_end(*self.arguments)

    def step(self, reward: Any, samples: Sequence[rm.Sample], scores: rm.Scores, **logs: float) -> dict[str, float]:
        for watcher in reward.watchers:
            watcher(samples, scores, self.state)
        self.state.global_step += 1
        entry: dict[str, float] = dict(logs)
        if not self.logs_first:
            self.watch.on_step_end(*self.arguments)
        self.watch.on_log(*self.arguments, logs=entry)
        if self.logs_first:
            self.watch.on_step_end(*self.arguments)
        return entry


def exploited(step: int) -> tuple[list[rm.Sample], rm.Scores]:
    """A step of a training in which everything goes wrong: from step 60 on, long praise is ever better paid."""
    rng = np.random.default_rng(step)
    amount = max(0, step - 60) / 60
    values, samples = [], []
    for row in range(16):
        words = " ".join(rng.choice([f"word{number}" for number in range(50)], rng.integers(10, 30)))
        praised = rng.random() < amount
        samples.append(rm.Sample(f"prompt {step} {row // 4}", f"What a great question this is! {words}" if praised else words))
        values.append(rng.standard_normal() + 2 * amount * (praised + len(words) / 100))
    spread = np.abs(rng.standard_normal(16)) * (1 + amount)
    scores = np.array(values)
    members = {str(number): rm.Scores(scores + sign * spread, kind="member") for number, sign in enumerate((-1, 1))}
    return samples, rm.Scores(scores, {"std": spread}, parts=members)


@pytest.mark.parametrize("logs_first", [False, True])
def test_it_warns_with_numbers(logs_first: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    helpful = reward_func(Council(), name="helpful")
    watch = RewardWatch(helpful, journal=tmp_path)
    with caplog.at_level(logging.WARNING), Calls(watch, logs_first=logs_first) as calls:
        for step in range(1, 181):
            entry = calls.step(helpful, *exploited(step), **{"objective/kl" if logs_first else "kl": step / 100})  # type: ignore[arg-type]
    assert {found.kind for found in watch.warnings} == {"disagreement", "length", "phrase"}
    assert all(60 < found.step <= 180 and 0 < found.numbers["kl_recent"] < 1.8 for found in watch.warnings)
    assert entry["watch/helpful/warnings"] == len(watch.warnings) < 10
    assert [record.getMessage() for record in caplog.records] == [
        f"Step {found.step}: {found.message}" for found in watch.warnings
    ]
    assert "great question this is" in next(found.phrase for found in watch.warnings if found.kind == "phrase")

    again = RewardWatch(helpful, journal=tmp_path)
    calls = Calls(again)
    calls.state.global_step = 180
    with calls:
        assert [found.message for found in again.warnings] == [found.message for found in watch.warnings], (
            "a resume forgets none"
        )

    out = tmp_path / "report.html"
    told = CliRunner().invoke(main, ["report", str(tmp_path), "-o", str(out)])
    assert told.exit_code == 0, told.output
    for found in watch.warnings:
        assert found.message.partition(":")[0].replace("'", "&#x27;") in out.read_text()
        assert f"step {found.step}:" in told.output


def test_a_journal_that_cannot_be_written_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    for folder in (tmp_path / "a file", tmp_path / "a file" / "journal", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match=r"not a folder|cannot be written"):
            Calls(RewardWatch(reward_func(Council(), name="helpful"), journal=folder)).__enter__()


def test_a_full_disk_ends_the_journal_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    helpful = reward_func(Council(), name="helpful")
    with Calls(RewardWatch(helpful, journal=tmp_path / "journal")) as calls:
        (tmp_path / "journal").write_text("where the folder should be")
        calls.step(helpful, [rm.Sample("p", "c")], rm.Scores(np.ones(1)))
        calls.watch.on_save(*calls.arguments)
        assert calls.step(helpful, [rm.Sample("p", "c")], rm.Scores(np.ones(1)))["watch/helpful/reward"] == 1
    assert "cannot be written and ends here" in caplog.text


def test_other_processes_only_write(tmp_path: Path) -> None:
    helpful = reward_func(Council(), name="helpful")
    calls = Calls(RewardWatch(helpful, journal=tmp_path))
    calls.arguments[0].process_index, calls.state.is_world_process_zero = 3, False
    with calls:
        calls.step(helpful, [rm.Sample("p", "c")], rm.Scores(np.ones(1)), kl=1.0)
    assert sorted(os.listdir(tmp_path)) == ["figures-rank3-00000.parquet", "samples-rank3-00000.parquet"]
    assert steps_of(tmp_path)[0].trainer == {}
    assert calls.watch.histories["helpful"].count == 0


class TestErrors:
    def test_what_cannot_be_watched(self) -> None:
        with pytest.raises(SpecError, match="needs the rewards to watch"):
            RewardWatch()
        with pytest.raises(SpecError, match=r"cannot be watched. Make it a reward with rm_plugins_trl\.reward_func"):
            RewardWatch(len)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="Two rewards are called 'council'"):
            RewardWatch(reward_func(Council()), reward_func(Council()))

    def test_numbers_out_of_bounds(self) -> None:
        reward = reward_func(Council())
        for settings in ({"window": 3}, {"samples_per_step": 1}, {"journal": "j", "max_journal_mb": 0}):
            with pytest.raises(DataError, match="allowed"):
                RewardWatch(reward, **settings)


def test_ppo_is_watched(tiny_policy: Path, tmp_path: Path) -> None:
    from rm_plugins_trl import PPOConfig, PPOTrainer

    arguments = PPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_mini_batches=1,
        total_episodes=8,
        response_length=4,
        logging_steps=1,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
    )
    trainer = PPOTrainer(model=str(tiny_policy), args=arguments, reward_model=Council(), train_dataset=PROMPTS)
    watch = RewardWatch(trainer.reward_model, journal=tmp_path / "journal")
    watch.attach(trainer)
    trainer.train()
    steps = [step for step in read_journal(tmp_path / "journal") if step.samples]
    assert [len(step.samples["council"]) for step in steps] == [4, 4]
    assert all("kl" in step.trainer for step in steps)
