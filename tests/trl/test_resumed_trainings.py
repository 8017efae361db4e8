"""A training goes on as itself, or says what is different; one that has diverged ends and keeps its last good checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from rm_plugins.errors import DataError, ModelError, OutputError, TrainingError
from rm_plugins.losses import RewardBatch
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training.checkpoints import checkpoint_to_resume, complete_checkpoints, last_checkpoint
from rm_plugins_trl.reward_training.resuming import data_digest
from rm_plugins_trl.reward_training.saving import how_to_go_on
from rm_plugins_trl.reward_training.started_folder import check_folder
from rm_plugins_trl.trl_command import how_to_resume
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PAIRS = [
    {"prompt": "Name a colour.", "chosen": f" It is {name}.", "rejected": " two" * (1 + number)}
    for number, name in enumerate(("blue", "salty blue", "rain", "four", "sea", "the sea", "two", "salt"))
]
SETTINGS: dict[str, Any] = {
    **{"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1, "save_steps": 2},
    **{
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "warmup_steps": 0,
        "save_total_limit": 2,
    },
}


def trainer_of(model: Path, folder: Path, data: Any = None, adapter: Any = None, **settings: Any) -> RewardTrainer:
    data = Dataset.from_list(PAIRS) if data is None else data
    args = RewardConfig(str(folder), **{**SETTINGS, **settings})
    return RewardTrainer(str(model), args, train_dataset=data, peft_config=adapter)


def changed_copy(model: Path, folder: Path) -> Path:
    """A model with one other weight."""
    classifier = AutoModelForSequenceClassification.from_pretrained(shutil.copytree(model, folder))
    with torch.no_grad():
        classifier.model.norm.weight.mul_(1.5)
    classifier.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and a folder with the checkpoint of four of its eight steps."""
    model, folder = tiny_decoder(), tmp_path_factory.mktemp("stopped")
    trainer_of(model, folder).train()
    for path in folder.iterdir():
        if path.name != "checkpoint-6":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return model, folder


@pytest.fixture
def again(stopped: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to change."""
    shutil.copytree(stopped[1], tmp_path / "out")
    return stopped[0], tmp_path / "out"


class TestWhatChanged:
    def test_nothing_is_said_of_the_same(self, again: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
        trainer = trainer_of(*again)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 8
        assert "Resuming from" not in caplog.text
        assert "resumed" not in Manifest.read(again[1] / "reward_manifest.json").training

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"data": Dataset.from_list(PAIRS[::-1])}, "train_data"),
            ({"data": Dataset.from_list(PAIRS[:7])}, "train_data"),
            ({"data": Dataset.from_list([{**PAIRS[0], "margin": 0.5}, *PAIRS[1:]])}, "train_data"),
            ({"loss": "hinge"}, "loss"),
            ({"loss": {"name": "bradley-terry", "label_smoothing": 0.1}}, "loss"),
            ({"regularizers": {"centering": 0.1}}, "regularizers"),
            ({"max_length": 512}, "rendering"),
            ({"loss": "odin"}, "outputs"),
        ],
    )
    def test_another_training_is_refused(self, settings: dict[str, Any], named: str, again: tuple[Path, Path]) -> None:
        with pytest.raises(DataError, match=rf"checkpoint-6 is of another training \(.*{named}: .* then, .* now"):
            trainer_of(*again, **settings).train(resume_from_checkpoint=True)

    def test_another_base_model_is_refused(self, again: tuple[Path, Path]) -> None:
        other = changed_copy(again[0], again[1].parent / "other")
        with pytest.raises(DataError, match="base_model"):
            trainer_of(other, again[1]).train(resume_from_checkpoint=True)

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"learning_rate": 5e-4}, "learning_rate was 0.001 and is now 0.0005. The checkpoint's value is used"),
            ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 2 and is now 4"),
            ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is now 2"),
            ({"seed": 3}, "seed was 42 and is now 3"),
            ({"num_train_epochs": 3}, "num_train_epochs was 2 and is now 3"),
            ({"warmup_steps": 5}, "warmup_steps was 0 and is now 5"),
        ],
    )
    def test_another_way_to_train_is_said_and_recorded(
        self, settings: dict[str, Any], told: str, again: tuple[Path, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer_of(*again, **settings).train(resume_from_checkpoint=True)
        assert told in caplog.text
        training = Manifest.read(again[1] / "reward_manifest.json").training
        ((name, _),) = settings.items()
        assert name in training["resumed"][0]["changed"]
        assert training["learning_rate"] == 1e-3  # which is what it was trained with

    def test_it_may_be_asked_for(self, again: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
        trainer_of(*again, loss="hinge", resume_changed=True).train(resume_from_checkpoint=True)
        assert "Resuming from checkpoint-6: loss was" in caplog.text
        assert "loss" in Manifest.read(again[1] / "reward_manifest.json").training["resumed"][0]["changed"]

    def test_an_older_checkpoint_is_taken_as_it_is(self, again: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
        (again[1] / "checkpoint-6" / "made_with.json").unlink()
        trainer_of(*again, loss="hinge").train(resume_from_checkpoint=True)
        assert "does not record its model and data" in caplog.text

    def test_the_base_of_an_adapter(self, tiny_decoder: Any, tmp_path: Path) -> None:
        """Whose weights are in no checkpoint."""
        model, lora = tiny_decoder(), LoraConfig(r=2, target_modules=["q_proj"])
        trainer_of(model, tmp_path / "out", adapter=lora).train()
        shutil.rmtree(tmp_path / "out" / "checkpoint-8")
        trainer_of(model, tmp_path / "out", adapter=lora).train(resume_from_checkpoint=True)
        shutil.rmtree(tmp_path / "out" / "checkpoint-8")
        other = changed_copy(model, tmp_path / "other")
        with pytest.raises(DataError, match="base_model"):
            trainer_of(other, tmp_path / "out", adapter=lora).train(resume_from_checkpoint=True)


def test_the_digest_of_data_is_of_its_values() -> None:
    data = Dataset.from_list(PAIRS)
    assert data_digest(data) == data_digest(Dataset.from_list([*PAIRS, *PAIRS]).select(range(8)))
    assert data_digest(data) == data_digest(Dataset.from_list(PAIRS[::-1]).select(range(7, -1, -1)))
    assert data_digest(data) != data_digest(data.select([1, 0, *range(2, 8)]))
    assert data_digest(iter(PAIRS)) is None
    lists = [{"a": [1, 2], "b": 1.5}, {"a": [3], "b": None}]
    moved = [{"a": [1], "b": 1.5}, {"a": [2, 3], "b": None}]
    assert data_digest(Dataset.from_list(lists)) != data_digest(Dataset.from_list(moved))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("harm", [cut, zeros, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "reward_manifest.json"]
)
def test_a_checkpoint_with_a_harmed_file_is_passed_over(
    name: str, harm: Callable[[Path], None], again: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    good = shutil.copytree(again[1] / "checkpoint-6", again[1] / "checkpoint-4")
    harm(again[1] / "checkpoint-6" / name)
    if harm is Path.unlink and name in ("optimizer.pt", "scheduler.pt", "reward_manifest.json"):
        return  # a checkpoint of the weights alone is one
    assert checkpoint_to_resume(True, again[1]) == good
    assert "checkpoint-6 was not saved completely and is skipped" in caplog.text
    assert [checkpoint.path for checkpoint in complete_checkpoints(again[1])] == [good]
    with pytest.raises(DataError, match="not a checkpoint to resume from"):
        checkpoint_to_resume(again[1] / "checkpoint-6", again[1])


def test_what_was_not_saved_completely_is_not_a_checkpoint_anywhere(
    again: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = again
    (folder / "checkpoint-6" / "trainer_state.json").unlink()
    assert last_checkpoint(folder) is None
    assert f"There is no complete checkpoint in {folder} yet" in how_to_resume({"arguments": ["--output_dir", str(folder)]})
    assert "Nothing was saved" in how_to_go_on(str(folder))
    with pytest.raises(ModelError) as error:
        trainer_of(folder, folder / "other")
    assert "checkpoint-6" not in str(error.value)
    assert check_folder(RewardConfig(str(folder), use_cpu=True, report_to="none"), []) == ""
    trainer = trainer_of(model, folder, max_steps=1)
    caplog.clear()
    trainer.train(resume_from_checkpoint=True)
    assert [record.getMessage().partition(":")[0] for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{folder / 'checkpoint-6'} was not saved completely and is skipped",
        f"There is no complete checkpoint in {folder}, so training starts from the beginning.",
    ]


def test_a_model_without_a_checkpoint_cannot_be_resumed(again: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    model, folder = again
    shutil.rmtree(folder / "checkpoint-6")
    trainer = trainer_of(model, folder, max_steps=1, save_strategy="no")
    trainer.save_model()
    caplog.clear()
    trainer.train(resume_from_checkpoint=True)
    assert "There is no complete checkpoint" in caplog.text
    assert "holds a finished model. This training starts from the beginning and overwrites it." in caplog.text
    assert "resumes the earlier one" not in caplog.text


@pytest.fixture(scope="module")
def finished(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the folder of a training that did all of its eight steps."""
    model, folder = tiny_decoder(), tmp_path_factory.mktemp("finished")
    trainer_of(model, folder).train()
    return model, folder


class TestFinished:
    @pytest.mark.parametrize(
        ("settings", "is_finished"),
        [
            ({}, True),
            ({"num_train_epochs": None}, True),
            ({"num_train_epochs": 3}, False),
            ({"max_steps": 8}, True),
            ({"max_steps": 9}, False),
        ],
    )
    def test_nothing_is_left_to_train(self, settings: dict[str, Any], is_finished: bool, finished: tuple[Path, Path]) -> None:
        args = RewardConfig(str(finished[1]), **{**SETTINGS, **settings}, resume_from_checkpoint="true")
        told = check_folder(args, [])
        assert ("is already finished: it did all of its 8 steps, and nothing is left to train" in told) == is_finished
        assert bool(told) == is_finished

    def test_the_refusal_does_not_advise_to_resume(self, finished: tuple[Path, Path]) -> None:
        with pytest.raises(OutputError) as error:
            check_folder(RewardConfig(str(finished[1]), **SETTINGS), ["--output_dir", "out"])
        assert "holds a finished model and a checkpoint after step 8" in str(error.value)
        assert "The training in it is finished. Train into another output_dir" in str(error.value)
        assert "esume" not in str(error.value)

    @pytest.mark.parametrize("missing", ["reward_manifest.json", "*.*"])
    def test_a_model_that_was_not_saved_completely_can_be_saved_again(
        self, missing: str, finished: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = shutil.copytree(finished[1], tmp_path / "out")
        for file in out.glob(missing):
            file.unlink()
        args = RewardConfig(str(out), **SETTINGS)
        with pytest.raises(OutputError, match="Resume it: rm-plugins train"):
            check_folder(args, [])
        args.resume_from_checkpoint = "true"
        assert check_folder(args, []) == ""

    def test_in_python_the_log_says_so(
        self, finished: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model, out = finished[0], shutil.copytree(finished[1], tmp_path / "out")
        trainer_of(model, out).train(resume_from_checkpoint=True)
        assert f"{out / 'checkpoint-8'} is the last step of its training, so nothing was left to train." in caplog.text


class TestDivergence:
    def test_a_loss_that_is_no_number_ends_the_training(self, tiny_decoder: Any, tmp_path: Path) -> None:
        calls = []

        def breaking(batch: RewardBatch) -> torch.Tensor:
            calls.append(1)
            loss = (batch.losers - batch.winners).mean()
            return loss * torch.nan if len(calls) == 5 else loss

        trainer = trainer_of(tiny_decoder(), tmp_path, loss=breaking)
        with pytest.raises(
            TrainingError, match=rf"The loss 'breaking' .* is nan in step 5 \(epoch 1.00\).*{tmp_path}.*learning_rate"
        ):
            trainer.train()
        assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
        assert not (tmp_path / "model.safetensors").exists()
        assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())

    def test_a_model_with_a_weight_that_is_no_number_is_not_saved(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trainer_of(tiny_decoder(), tmp_path)
        trainer.train()
        before = (tmp_path / "model.safetensors").read_bytes()
        with torch.no_grad():
            trainer.model.score.weight[0, 0] = torch.inf
        with pytest.raises(TrainingError, match=r"After step 8 the weight score.weight is not finite"):
            trainer.save_model()
        assert (tmp_path / "model.safetensors").read_bytes() == before

    @pytest.mark.filterwarnings("ignore:.*does not compute each row independently")
    def test_a_learning_rate_without_bound(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trainer_of(tiny_decoder(), tmp_path, learning_rate=1e30, max_grad_norm=0.0)
        with pytest.raises(TrainingError):
            trainer.train()
        for manifest in tmp_path.rglob("reward_manifest.json"):
            Manifest.read(manifest)

    def test_figures_that_are_no_numbers_leave_a_manifest_that_can_be_read(
        self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer = trainer_of(tiny_decoder(), tmp_path)
        trainer.train()
        trainer.last_metrics = {"eval_loss": float("nan"), "eval_accuracy": 0.5}
        trainer._reward_log.rewards["train"].append(float("nan"))
        with caplog.at_level(logging.WARNING):
            trainer.save_model()
        manifest = Manifest.read(tmp_path / "reward_manifest.json")
        assert manifest.training["metrics"] == {"eval_accuracy": 0.5}
        assert manifest.statistics is None
        json.loads((tmp_path / "reward_manifest.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_writing_over_the_base_models_file_changes_no_training(tiny_decoder: Any, tmp_path: Path) -> None:
    model = tiny_decoder()
    trainer = trainer_of(model, tmp_path / "out")
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())


def test_the_data_is_read_once_for_all_checkpoints(tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr("rm_plugins_trl.reward_training.resuming.data_digest", lambda dataset: read.append(dataset))
    trainer_of(tiny_decoder(), tmp_path).train()
    assert len([*tmp_path.glob("checkpoint-*/made_with.json")]) == 2
    assert len(read) == 1
