"""What is refused before a training starts, and what is said where it starts."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import (
    DataError,
    MissingDependencyError,
    ModelError,
    OutputError,
    SpecError,
    TrainingError,
    UnsupportedError,
)
from rm_plugins.losses import Loss, RewardBatch
from rm_plugins_trl import RewardConfig, RewardTrainer, reward_dataset
from rm_plugins_trl.reward_training import adapters
from tests.conftest import MakeFolder
from tests.trl.conftest import TRL_WARNINGS, write_jsonl
from tests.warm_process import run_warm

pytestmark = TRL_WARNINGS

ROWS = [{"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}] * 8


def config(folder: Path, **settings: Any) -> RewardConfig:
    return RewardConfig(str(folder), **{"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, **settings})


def trainer_of(model: Any, args: RewardConfig, rows: Any = ROWS, **more: Any) -> RewardTrainer:
    return RewardTrainer(model, args, train_dataset=Dataset.from_list(rows), **more)


def without_tokenizer(folder: Path, out: Path) -> str:
    shutil.copytree(folder, out)
    for file in out.glob("*token*"):
        file.unlink()
    return str(out)


class TestTokenizers:
    @pytest.mark.parametrize("loaded", [False, True])
    def test_none(self, tiny_decoder: MakeFolder, tmp_path: Path, loaded: bool) -> None:
        source: Any = without_tokenizer(tiny_decoder(), tmp_path / "bare")
        model = AutoModelForSequenceClassification.from_pretrained(source) if loaded else source
        with pytest.raises(
            ModelError, match=r"No tokenizer could be loaded for .*bare.* Save the tokenizer of its base model beside it"
        ):
            trainer_of(model, config(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_without_a_vocabulary(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = tiny_decoder()
        empty = AutoTokenizer.from_pretrained(without_tokenizer(folder, tmp_path / "bare"))
        with pytest.raises(ModelError, match="all of them special: it has no vocabulary"):
            trainer_of(str(folder), config(tmp_path), processing_class=empty)

    @pytest.mark.parametrize("streams", [False, True])
    def test_of_another_model(self, tiny_decoder: MakeFolder, minilm_path: Path, tmp_path: Path, streams: bool) -> None:
        tokenizer = AutoTokenizer.from_pretrained(minilm_path)
        data = Dataset.from_list(ROWS)
        with pytest.raises(
            ModelError, match=r"The model has embeddings of \d+ tokens, and the tokenizer \(30522 tokens\) gives a text"
        ):
            RewardTrainer(
                str(tiny_decoder()),
                config(tmp_path),
                train_dataset=data.to_iterable_dataset() if streams else data,
                processing_class=tokenizer,
            ).train()

    def test_a_token_more_that_no_text_has_is_no_reason_to_refuse(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = str(tiny_decoder())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<|unused-{number}|>" for number in range(500)])
        trainer_of(folder, config(tmp_path / "out"), processing_class=tokenizer).train()
        assert rm.load(str(tmp_path / "out")).verify() == []  # type: ignore[attr-defined]

    @pytest.mark.filterwarnings("ignore:`eos_token` is deprecated:FutureWarning")
    def test_nothing_to_pad_with(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = str(tiny_decoder())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.eos_token = None
        with pytest.raises(ModelError, match="neither a padding token nor an EOS token"):
            trainer_of(folder, config(tmp_path), processing_class=tokenizer)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with pytest.raises(ModelError, match="The eos_token '<nowhere>' is not in the vocabulary"):
            trainer_of(folder, config(tmp_path, eos_token="<nowhere>"), processing_class=tokenizer)


class TestModels:
    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="Name the model to train: --model_name_or_path"):
            trainer_of(None, config(tmp_path))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            (
                "./nowhere",
                r"There is no folder '\./nowhere' \(looked for /.*/nowhere\)\. Check the path\. A model id of the hub has",
            ),
            ("./adaptr", r"There is no folder '\./adaptr' \(looked for /.*/adaptr\)\. Did you mean 'adapter'\?"),
            ("adaptr", r"no model of that id could be read from the hub\. Did you mean 'adapter'\? HF_HUB_OFFLINE is set"),
            ("nowhere", r"no model of that id could be read from the hub\. HF_HUB_OFFLINE is set"),
            ("empty", r"The folder 'empty' has no config\.json, so it holds no model to train\. It holds checkpoint-3"),
            ("adapter", r"'adapter' holds an adapter without its base model"),
        ],
    )
    def test_not_there(
        self, name: str, said: str, tiny_decoder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        shutil.copytree(tiny_decoder(), "empty/checkpoint-3")
        Path("empty/checkpoint-3/trainer_state.json").write_text("{}")
        Path("adapter").mkdir()
        Path("adapter/adapter_config.json").write_text("{}")
        for settings in ({}, {"preset": "none"}):
            with pytest.raises(ModelError, match=said):
                trainer_of(name, config(tmp_path / "out", **settings))


class TestData:
    def test_no_rows(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        empty = write_jsonl(tmp_path / "empty.jsonl", [])
        with pytest.raises(DataError, match="The train dataset has no rows"):
            RewardTrainer(str(tiny_decoder()), config(tmp_path), train_dataset=reward_dataset(str(empty)))
        with pytest.raises(DataError, match="The eval dataset has no rows"):
            trainer_of(str(tiny_decoder()), config(tmp_path), eval_dataset=reward_dataset(str(empty)))

    def test_of_other_kinds(self, tmp_path: Path) -> None:
        text = tmp_path / "pairs.txt"
        with pytest.raises(
            DataError, match=r"There is no file or folder '.*pairs\.txt'\. Check the path\. Files of rows end in \.jsonl"
        ):
            reward_dataset(str(text))
        text.write_text("hello\n")
        with pytest.raises(DataError, match=r"pairs\.txt' is not a file of rows: its name must end in \.jsonl"):
            reward_dataset(str(text))

    def test_parts_of_a_file(self, tmp_path: Path) -> None:
        file = str(write_jsonl(tmp_path / "pairs.jsonl", ROWS))
        with pytest.raises(DataError, match=r"is a file and has no splits, so 'train\[:2\]' would read all of its rows"):
            reward_dataset(file, "train[:2]")
        with pytest.raises(DataError, match="is a file and has no configurations"):
            reward_dataset(file, config="small")

    def test_a_split_that_a_saved_dataset_does_not_have(self, tmp_path: Path) -> None:
        from datasets import DatasetDict

        DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
        with pytest.raises(DataError, match=r"the split 'test' cannot be read: It has the splits train\."):
            reward_dataset(str(tmp_path / "saved"), "test")


class TestFolders:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(main, ["train", *arguments])

    def test_the_command_line_overwrites_nothing_unasked(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        data = write_jsonl(tmp_path / "pairs.jsonl", ROWS)
        out, model = tmp_path / "rm", str(tiny_decoder())
        common = ["--model_name_or_path", model, "--dataset_name", str(data), "--output_dir", str(out)]
        common += ["--max_steps", "2", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"]
        assert self.run(*common).exit_code == 0
        again = self.run(*common)
        assert isinstance(again.exception, OutputError) or again.exit_code == 1
        said = str(again.exception) if isinstance(again.exception, OutputError) else again.output
        assert f"{out} holds a finished model and a checkpoint after step 2" in said
        assert "--resume_from_checkpoint" not in said
        before = (out / "model.safetensors").stat().st_mtime_ns
        finished = self.run(*common, "--resume_from_checkpoint", "true")
        assert finished.exit_code == 0
        assert "it did all of its 2 steps, and nothing is left to train" in finished.stderr
        assert "Saved" not in finished.stderr
        assert (out / "model.safetensors").stat().st_mtime_ns == before
        longer = self.run(*common, "--max_steps", "3", "--resume_from_checkpoint", "true")
        assert longer.exit_code == 0
        assert [line for line in longer.stderr.splitlines() if line.startswith("Resuming after")] == [
            "Resuming after step 2 of 3."
        ]
        assert re.search(r"^Trained 1 step on 8 pairs in [\d.]+ s\. Last loss [\d.]+, accuracy [\d.]+%\.$", longer.stdout, re.M)
        for file in [path for path in out.iterdir() if path.is_file()]:
            file.unlink()
        stopped = self.run(*common)
        said = str(stopped.exception) if isinstance(stopped.exception, OutputError) else stopped.output
        assert f"{out} holds a checkpoint after step 3" in said
        assert f"Resume it: rm-plugins train --model_name_or_path {model}" in said
        assert "--resume_from_checkpoint true" in said
        assert self.run(*common, "--overwrite_output_dir", "true").exit_code == 0
        for checkpoint in out.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        assert self.run(*common, "--resume_from_checkpoint", "true").exit_code == 1

    def test_in_python_it_is_a_warning(
        self, tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        said = "starts from the beginning and overwrites it"
        trainer_of(str(tiny_decoder()), config(tmp_path)).train()
        assert said not in caplog.text
        trainer_of(str(tiny_decoder()), config(tmp_path)).train()
        assert caplog.text.count(said) == 1
        caplog.clear()
        trainer_of(str(tiny_decoder()), config(tmp_path)).train(resume_from_checkpoint=True)
        trainer_of(str(tiny_decoder()), config(tmp_path, overwrite_output_dir=True)).train()
        assert said not in caplog.text


class Softplus(Loss):
    """Formula: softplus(l - w)."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        winners, losers = batch.pairs.T
        return self.scale * torch.nn.functional.softplus(batch.rewards[losers, 0] - batch.rewards[winners, 0]).mean()


class ManyNumbers(Softplus):
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        return super().__call__(batch).repeat(3)


class NoTensor(Softplus):
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        return 1.0  # type: ignore[return-value]


class NoGradient(Softplus):
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        return super().__call__(batch).detach()


class Raises(Softplus):
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        raise KeyError("nothing")


class NotANumber(Softplus):
    def __call__(self, batch: RewardBatch) -> torch.Tensor:
        return super().__call__(batch) * torch.nan


def softplus(batch: RewardBatch) -> torch.Tensor:
    return Softplus()(batch)


_MINE = """from torch.nn.functional import softplus

from rm_plugins.losses import Loss


class Mine(Loss):
    def __call__(self, batch):
        winners, losers = batch.pairs.T
        return softplus(batch.rewards[losers, 0] - batch.rewards[winners, 0]).mean()
"""


class TestLosses:
    HERE = "tests.trl.test_training_starts"

    @pytest.mark.parametrize(
        "loss",
        [f"{HERE}:Softplus", f"{HERE}:softplus", {"name": f"{HERE}:Softplus", "scale": 1.0}, Softplus, Softplus(), softplus],
    )
    def test_a_loss_by_its_path_is_the_loss(self, tiny_decoder: MakeFolder, tmp_path: Path, loss: Any) -> None:
        trainer = trainer_of(str(tiny_decoder()), config(tmp_path, loss=loss))
        known = trainer_of(str(tiny_decoder()), config(tmp_path))
        assert trainer.train().training_loss == pytest.approx(known.train().training_loss, abs=1e-6)

    def test_on_the_command_line(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(_MINE)
        data = write_jsonl(tmp_path / "pairs.jsonl", ROWS)
        printed = run_warm(
            *("rm_plugins", "train", "--model_name_or_path", tiny_decoder(), "--loss", "mine:Mine", "--dataset_name", data),
            *("--output_dir", "rm", "--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
            cwd=tmp_path,
        )
        for noise in (
            "Warning",
            "LOAD REPORT",
            "bitsandbytes",
            "Failed to load",
            "PAD/BOS/EOS",
            "Loading weights",
            "model shards",
        ):
            assert noise not in printed

    @pytest.mark.parametrize(
        ("cls", "said"),
        [
            (ManyNumbers, r"returned a tensor of shape \[3\]\. It must return a tensor with one number"),
            (NoTensor, r"returned 1\.0\. It must return a tensor with one number"),
            (NoGradient, r"returned a number without a gradient"),
            (Raises, r"raised KeyError: 'nothing'\. It was given a RewardBatch with rewards of shape \[\d+, 1\]"),
        ],
    )
    def test_one_that_cannot_be_trained_is_named(
        self, tiny_decoder: MakeFolder, tmp_path: Path, cls: type[Loss], said: str
    ) -> None:
        trainer = trainer_of(str(tiny_decoder()), config(tmp_path, loss=cls()))
        place = rf"The loss '{cls.__name__}' \({self.HERE}:{cls.__name__}, test_training_starts\.py, line \d+\) "
        with pytest.raises(UnsupportedError, match=place + said):
            trainer.train()

    def test_one_that_is_not_a_number(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        trainer = trainer_of(str(tiny_decoder()), config(tmp_path, loss=NotANumber()))
        said = r"(?s)The loss 'NotANumber' \(.*\) is nan in step 1 .*The rewards of the batch are finite\. Nothing was saved"
        with pytest.raises(TrainingError, match=said):
            trainer.train()

    @pytest.mark.parametrize(
        ("loss", "said"),
        [
            (f"{HERE}:nothing", r"loss: '.*:nothing' cannot be imported: AttributeError"),
            (f"{HERE}:ROWS", r"loss: '.*:ROWS' is list, not a function"),
            ({"name": f"{HERE}:softplus", "scale": 2.0}, r"is a function, which takes only the batch, not 'scale'"),
            ({"name": f"{HERE}:Softplus", "scales": 2.0}, r"'Softplus' .* could not be made: TypeError"),
            ("pathlib:Path", r"the class Path cannot be called with a batch"),
        ],
    )
    def test_one_that_cannot_be_made(self, tiny_decoder: MakeFolder, tmp_path: Path, loss: Any, said: str) -> None:
        with pytest.raises(SpecError, match=said):
            trainer_of(str(tiny_decoder()), config(tmp_path, loss=loss))


class TestPreset:
    def test_one_line_says_what_it_set_and_what_was_given(
        self, tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer_of(str(tiny_decoder()), config(tmp_path, learning_rate=3e-5))
        assert (
            "The preset '<1B' sets per_device_train_batch_size 8, num_train_epochs 1, warmup_steps 0.05. You set learning_rate 3e-05. "
            "Set preset='none' for TRL's defaults."
        ) in caplog.text

    def test_none_is_what_trl_takes(self, tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        from trl import RewardConfig as TrlRewardConfig

        trainer = trainer_of(str(tiny_decoder()), config(tmp_path, preset="none"))
        theirs = TrlRewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none")
        for name in ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "warmup_steps"):
            assert getattr(trainer.args, name) == getattr(theirs, name)
        assert "The preset" not in caplog.text
        with pytest.raises(SpecError, match="preset must be 'auto' or 'none', not 'small'"):
            config(tmp_path, preset="small")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_peft": True}, "--use_peft needs the package peft: pip install"),
        ({"load_in_4bit": True}, "--load_in_4bit needs the package bitsandbytes"),
        ({"load_in_8bit": True}, "--load_in_8bit needs the package bitsandbytes"),
    ],
)
def test_missing_packages(settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import ModelConfig

    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=said):
        adapters.adapter_and_quantization(ModelConfig("tiny", **settings))


def test_weights_at_random_beside_the_head_are_named(
    minilm_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(minilm_path, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "layer.5.output.dense.weight" in name))
    save_file(weights, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        trainer_of(str(tmp_path / "cut"), config(tmp_path / "out"))
    assert "1 weights beside the score head are not in the checkpoint" in caplog.text
    assert "layer.5.output.dense.weight" in caplog.text
