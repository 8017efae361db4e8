"""What PPO is refused before it trains."""

from __future__ import annotations

import builtins
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset
from packaging.version import Version
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rm_plugins.errors import DataError, ModelError, ScoringError, UnsupportedError
from rm_plugins_trl.ppo import TRL_HAS_PPO
from tests.coded_checkpoints import with_model_code, with_tokenizer_code
from tests.trl.conftest import TRL_WARNINGS, last_trl_with_ppo, newest_trl
from tests.trl.ppo.conftest import CONVERSATIONS, TEXTS, Recording, policy_ids, policy_in

pytestmark = TRL_WARNINGS


def test_a_policy_without_a_classifier_class_needs_a_value_model(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    policy = policy_in(tiny_decoder())
    policy.config = AutoConfig.for_model("speecht5")
    with pytest.raises(ModelError, match="Give a sequence classifier with one label as `value_model`"):
        ppo.PPOTrainer(
            model=policy,
            args=settings(),
            processing_class=AutoTokenizer.from_pretrained(tiny_decoder()),
            reward_model=Recording(),
            train_dataset=TEXTS,
        )


def test_a_policy_from_nowhere_needs_a_tokenizer(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    policy = policy_in(tiny_decoder())
    policy.config._name_or_path = ""
    with pytest.raises(ModelError, match="`processing_class`"):
        ppo.PPOTrainer(model=policy, args=settings(), reward_model=Recording(), train_dataset=TEXTS)


def test_a_policy_with_code_of_its_own_is_refused(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    folder, ran = with_model_code(tiny_decoder(), tmp_path / "ran"), tmp_path / "ran"
    with pytest.raises(ModelError, match=r"PPOConfig\(trust_remote_code=True\)"):
        ppo.PPOTrainer(model=str(folder), args=settings(), reward_model=Recording(), train_dataset=TEXTS)
    policy = policy_in(tiny_decoder())
    policy.config._name_or_path = str(with_tokenizer_code(tiny_decoder(), ran))
    with pytest.raises(ModelError, match=r"PPOConfig\(trust_remote_code=True\)"):
        ppo.PPOTrainer(model=policy, args=settings(), reward_model=Recording(), train_dataset=TEXTS)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"question": "a"}], DataError, r"Row 0 \(counted from 0\) of train_dataset has no 'prompt'.*'question'"),
        ([], DataError, "train_dataset has no rows"),
        ([{"prompt": ""}], DataError, r"Row 0 \(counted from 0\) of train_dataset has a prompt of 0 tokens"),
        ([{"prompt": 3}], DataError, r"Row 0 \(counted from 0\) of train_dataset: .*text or a list of messages"),
        ({"train": []}, UnsupportedError, "train_dataset must be .* of rows with a 'prompt' column, not dict"),
        (iter(()), UnsupportedError, "train_dataset must be .* of rows with a 'prompt' column, not tuple_iterator"),
    ],
)
def test_a_dataset_that_ppo_cannot_use_is_refused_before_training(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, rows: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ppo.PPOTrainer(model=policy_in(tiny_decoder()), args=settings(), reward_model=Recording(), train_dataset=rows)


def test_a_later_row_without_a_prompt_is_named(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    rows = [*TEXTS, {"prompt": None, "answer": "x"}]
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()),
        args=settings(per_device_train_batch_size=5),
        reward_model=Recording(),
        train_dataset=Dataset.from_list(rows),
    )
    with pytest.raises(
        DataError, match=r"(Row 4 \(counted from 0\)|A row) of train_dataset has no 'prompt'.*'prompt', 'answer'"
    ):
        trainer.train()


def test_a_conversation_needs_a_chat_template(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    with pytest.raises(
        DataError, match=r"Row 0 \(counted from 0\) of train_dataset: the policy's chat template refused the prompt"
    ):
        ppo.PPOTrainer(
            model=policy_in(tiny_decoder(chat_template=None)),
            args=settings(),
            reward_model=Recording(),
            train_dataset=CONVERSATIONS,
        )


def test_token_ids_of_conversations_need_their_messages_beside_them(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, tiny_tokenizer: Any
) -> None:
    rows = [{"input_ids": policy_ids(row, tiny_tokenizer)} for row in CONVERSATIONS[:2] * 2]
    policy = policy_in(tiny_decoder())
    with pytest.raises(UnsupportedError, match="a `prompt` column beside `input_ids`"):
        ppo.PPOTrainer(model=policy, args=settings(), reward_model=Recording(), train_dataset=rows)
    if not TRL_HAS_PPO:
        return
    classifier = AutoModelForSequenceClassification.from_config(policy.config)
    ppo.PPOTrainer(model=policy, args=settings(), reward_model=classifier, train_dataset=rows)


def test_fewer_rows_than_a_batch_are_refused_instead_of_waited_for(ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    trainer = ppo.PPOTrainer(
        model=policy_in(tiny_decoder()), args=settings(), reward_model=Recording(), train_dataset=TEXTS[:3]
    )
    with pytest.raises(DataError, match=r"train_dataset has 3 rows, fewer than the 4 prompts of one rollout"):
        trainer.train()


def test_rows_scored_out_of_turn_are_refused(ppo: ModuleType, trl_s_ppo: ModuleType, settings: Any, tiny_decoder: Any) -> None:
    trainer = ppo.PPOTrainer(model=policy_in(tiny_decoder()), args=settings(), reward_model=Recording(), train_dataset=TEXTS)
    loader = trainer.get_train_dataloader()
    assert len(loader) == 1
    assert loader.batch_sampler.drop_last
    reward_model = trainer.reward_model
    pad = trainer.processing_class.pad_token_id
    for batch in loader:
        ids = batch["input_ids"]
        reward_model(ids[:2], ids[:2] != pad)
        with pytest.raises(ScoringError, match="passed 2 rows to score, but they are not rows 2 to 3 of the last batch of 4"):
            reward_model(ids[:2], ids[:2] != pad)
        reward_model(ids[2:], ids[2:] != pad)
        with pytest.raises(ScoringError, match="Score each batch of the data loader once"):
            reward_model(ids[2:], ids[2:] != pad)
    assert reward_model.announced is None


@last_trl_with_ppo  # with a newer one, what `rm-plugins ppo` prints is looked at
def test_the_import_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "always", "-c", "from rm_plugins_trl import PPOTrainer"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "TRLExperimentalWarning" not in ended.stderr


@newest_trl
def test_a_stop_token_that_this_trl_does_not_stop_at_is_refused(
    ppo: ModuleType, settings: Any, tiny_decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TRL 1.15, completions end at the tokenizer's EOS token alone."""
    given = {"reward_model": Recording(), "train_dataset": TEXTS, "args": settings(stop_token=None, stop_token_id=5)}
    trainer_class = ppo.PPOTrainer
    if Version(version("trl")) >= Version("1.15"):
        assert 5 in trainer_class(model=policy_in(tiny_decoder()), **given).end_tokens
        monkeypatch.setattr(trainer_class, "end_tokens", property(lambda self: [self.processing_class.eos_token_id]))
    with pytest.raises(UnsupportedError, match=rf"stop_token_id needs TRL 1\.15 or later, and TRL {version('trl')} is"):
        trainer_class(model=policy_in(tiny_decoder()), **given)
