"""Subclasses, collators and metrics that read batches: they get TRL's, and everything comes out as with TRL's own class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.nn.functional import logsigmoid
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from rm_plugins.errors import DataError, SpecError
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" It is {name}.", "rejected": " two" * (1 + number), "margin": 0.1 * number}
    for number, name in enumerate(("blue", "salty blue", "rain", "four", "sea", "the sea", "two", "salt"))
]
QUIET: dict[str, Any] = {
    **{"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1},
    **{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "max_steps": 3, "learning_rate": 1e-3},
}


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def with_loss(base: Any) -> Any:
    """As public subclasses are written: the batch is taken apart."""

    class Hinge(base):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            rewards = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.squeeze(-1)
            chosen, rejected = rewards.chunk(2)
            loss = torch.relu(1.0 + inputs["margin"] - chosen + rejected).mean()
            return (loss, {"rewards_chosen": chosen, "rewards_rejected": rejected}) if return_outputs else loss

    return Hinge


def with_step(base: Any) -> Any:
    class Step(base):  # type: ignore[misc]
        def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad():
                logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            chosen, rejected = logits.squeeze(-1).chunk(2)
            pairs = torch.stack([chosen, rejected], 1)
            return -logsigmoid(chosen - rejected).mean(), pairs, torch.zeros(len(pairs))

    return Step


def with_rows(base: Any) -> Any:
    class Rows(base):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
            prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
            return prepared.map(lambda row: {"chosen_ids": row["chosen_ids"][-6:], "rejected_ids": row["rejected_ids"][-6:]})

    return Rows


@pytest.mark.parametrize("make", [with_loss, with_step, with_rows])
def test_a_subclass_comes_out_as_of_trls(
    make: Any, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, data, found = tiny_decoder(), Dataset.from_list(PAIRS), []
    for base in (TrlRewardTrainer, RewardTrainer):
        args = TrlRewardConfig(str(tmp_path), **QUIET)
        with caplog.at_level(logging.WARNING, "rm_plugins_trl"):
            trainer = make(base)(str(model), args, train_dataset=data, eval_dataset=data)
        losses = losses_of(trainer)
        predicted = trainer.predict(trainer.eval_dataset).predictions
        found.append((losses, trainer.evaluate()["eval_loss"], [np.asarray(one).tolist() for one in predicted]))
    assert len(found[0][0]) == 3
    for theirs, ours in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5) if not isinstance(ours, list) else True
        np.testing.assert_allclose(np.asarray(ours, float), np.asarray(theirs, float), atol=1e-5)
    told = [record.getMessage() for record in caplog.records if "TRL's batches are used" in record.getMessage()]
    assert len(told) == 1
    assert make(RewardTrainer).__name__ in told[0]


class Noting:
    """A collator that drops the last token of every row, and keeps what it was given."""

    def __init__(self) -> None:
        self.inner = DataCollatorForPreference(pad_token_id=0)
        self.columns: set[str] = set()

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        self.columns |= {*examples[0]}
        cut = [{**row, "chosen_ids": row["chosen_ids"][:-1], "rejected_ids": row["rejected_ids"][:-1]} for row in examples]
        batch: dict[str, Any] = self.inner(cut)
        return batch


@pytest.mark.parametrize("unused", [True, False])
def test_a_collator_comes_out_as_with_trls(unused: bool, tiny_decoder: Any, tmp_path: Path) -> None:
    model, data, found = tiny_decoder(), Dataset.from_list(PAIRS), []
    for kind in (TrlRewardTrainer, RewardTrainer):
        collator = Noting()
        args = TrlRewardConfig(str(tmp_path), **QUIET, remove_unused_columns=unused)
        trainer = kind(str(model), args, data_collator=collator, train_dataset=data, eval_dataset=data)
        found.append((losses_of(trainer), trainer.evaluate()["eval_accuracy"], collator.columns - {"longest"}))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert found[1][1:] == found[0][1:]


def test_metrics_of_inputs_come_out_as_of_trls(tiny_decoder: Any, tmp_path: Path) -> None:
    model, data, seen = tiny_decoder(), Dataset.from_list(PAIRS), []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append((np.asarray(prediction.inputs).tolist(), np.asarray(prediction.predictions).ravel()))
        return {"tokens": float((np.asarray(prediction.inputs) >= 0).sum())}

    for kind in (TrlRewardTrainer, RewardTrainer):
        args = TrlRewardConfig(str(tmp_path), **QUIET, include_for_metrics=["inputs"])
        trainer = kind(str(model), args, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
        trainer.evaluate()
    assert seen[0][0] == seen[1][0]
    np.testing.assert_allclose(seen[1][1], seen[0][1], atol=1e-5)


class TestOurs:
    """What is ours goes on with TRL's batches."""

    class Watching(RewardTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            assert inputs["input_ids"].shape == inputs["attention_mask"].shape
            return super().compute_loss(model, inputs, *args, **settings)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"loss": "hinge"}, {"regularizers": {"centering": 0.1}}, {"loss": {"name": "bradley-terry"}, "members": 2}],
    )
    def test_losses_by_name(self, settings: dict[str, Any], tiny_decoder: Any, tmp_path: Path) -> None:
        model, data, found = tiny_decoder(), Dataset.from_list(PAIRS), []
        for kind in (RewardTrainer, self.Watching):
            args = RewardConfig(str(tmp_path), **QUIET, **settings)
            trainer = kind(str(model), args, train_dataset=data, eval_dataset=data)
            losses = losses_of(trainer)
            metrics = trainer.evaluate()
            found.append((losses, [metrics[f"eval_{name}"] for name in ("loss", "accuracy", "margin", "mean_reward", "ece")]))
        for packed, padded in zip(*found, strict=True):
            assert padded == pytest.approx(packed, abs=1e-4)

    def test_a_subclass_may_want_ours(self, tiny_decoder: Any, tmp_path: Path) -> None:
        class Ours(RewardTrainer):
            uses_trl_batches = False

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
                assert len(inputs["rows"]) == 4
                return super().compute_loss(model, inputs, *args, **settings)

        trainer = Ours(str(tiny_decoder()), RewardConfig(str(tmp_path), **QUIET), train_dataset=Dataset.from_list(PAIRS))
        assert len(losses_of(trainer)) == 3

    def test_other_rows_than_pairs_are_for_ours(self, tiny_decoder: Any, tmp_path: Path) -> None:
        ranked = [{"prompt": "Name a colour.", "completions": [" blue", " two", " four"], "ranks": [0, 1, 2]}] * 4

        class Counting(RewardTrainer):
            rows_seen = 0

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
                type(self).rows_seen += len(inputs["rows"])
                return super().compute_loss(model, inputs, *args, **settings)

        args = RewardConfig(str(tmp_path), **{**QUIET, "max_steps": 1})
        losses_of(Counting(str(tiny_decoder()), args, train_dataset=Dataset.from_list(ranked)))
        assert Counting.rows_seen == 6
        with pytest.raises(SpecError, match=r"hold only preference pairs.*Noting"):
            RewardTrainer(str(tiny_decoder()), args, data_collator=Noting(), train_dataset=Dataset.from_list(ranked))

    def test_what_the_batches_do_not_carry_is_refused(self, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list(PAIRS)
        with pytest.raises(
            SpecError,
            match="needs ranks, which TRL's batches do not have, and they are used because Watching has its own compute_loss",
        ):
            self.Watching(str(tiny_decoder()), RewardConfig(str(tmp_path), **QUIET, loss="listnet"), train_dataset=data)
        with pytest.raises(SpecError, match="bootstrap=True"):
            settings = RewardConfig(str(tmp_path), **QUIET, members=2, bootstrap=True)
            self.Watching(str(tiny_decoder()), settings, train_dataset=data)
        tie = Dataset.from_list([{**row, "tie": False} for row in PAIRS] + [{**PAIRS[0], "margin": None, "tie": True}])
        with pytest.raises(
            DataError, match=r"Row 8 \(counted from 0\) of the train dataset is not a preference pair with a winner"
        ):
            self.Watching(str(tiny_decoder()), RewardConfig(str(tmp_path), **QUIET), train_dataset=tie)

    def test_long_rows_are_counted(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        args = RewardConfig(str(tmp_path), **QUIET, max_length=16)
        trainer = self.Watching(str(tiny_decoder()), args, train_dataset=Dataset.from_list(PAIRS))
        assert trainer.overlong["train"] == 8 - trainer.rows["train"] > 0
        assert "tokens and were dropped" in caplog.text

    def test_streams(self, tiny_decoder: Any, tmp_path: Path) -> None:
        data = Dataset.from_list(PAIRS)
        found = []
        for given in (data, IterableDataset.from_generator(lambda: iter(PAIRS))):
            args = RewardConfig(
                str(tmp_path), **{**QUIET, "shuffle_dataset": False} if hasattr(RewardConfig, "shuffle_dataset") else QUIET
            )
            trainer = self.Watching(str(tiny_decoder()), args, train_dataset=given, eval_dataset=given)
            found.append((len(losses_of(trainer)), trainer.evaluate()["eval_accuracy"] >= 0))
        assert found[0] == found[1]
