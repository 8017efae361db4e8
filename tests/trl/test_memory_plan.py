"""The estimate of a training's memory, and ``rm-plugins train --plan``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, BertForSequenceClassification, Qwen2Config, Qwen2ForSequenceClassification

from rm_plugins.cli import main
from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins_trl.memory_estimate import ModelSize, TrainingSetting, estimate, layer_bytes
from rm_plugins_trl.reward_training.model_size import size_of
from rm_plugins_trl.reward_training.plan import changes, parts_table

WIDTHS: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 96,
    "intermediate_size": 320,
    "num_attention_heads": 6,
    "pad_token_id": 0,
}
SEVEN = ModelSize(7_000_000_000, 6_500_000_000, 220_000_000, 500_000_000, 7_000_000_000, 28, 3584, 3584, 18944)


def saved_bytes(model: Any, *, autocast: bool) -> float:
    """Bytes that the backward pass of a model keeps for each token, without weights and their copies."""
    rows = [[5 + (row + place) % 50 for place in range(64)] for row in range(4)]
    forward = BatchForward(model, share_prefixes=False)
    model.train()

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(rows=rows)

    with torch.no_grad():
        run()  # the first call also compares
    assert forward.packs or isinstance(model, BertForSequenceClassification)
    shapes = {tuple(weight.shape) for weight in model.parameters()} | {
        tuple(weight.shape)[::-1] for weight in model.parameters()
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / sum(map(len, rows))


@pytest.mark.parametrize("family", ["qwen2", "bert"])
@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)])
def test_a_layers_activations_are_what_autograd_keeps(family: str, autocast: bool, dtype: torch.dtype) -> None:
    def model(layers: int) -> Any:
        torch.manual_seed(0)
        if family == "qwen2":
            config = Qwen2Config(**WIDTHS, num_hidden_layers=layers, num_key_value_heads=2, num_labels=1)
            return Qwen2ForSequenceClassification(config).to(dtype)
        dropout = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(**WIDTHS, **dropout, num_hidden_layers=layers, num_labels=1)).to(dtype)

    measured = (saved_bytes(model(3), autocast=autocast) - saved_bytes(model(1), autocast=autocast)) / 2
    size = ModelSize(1, 1, 1, 1, 1, 1, 96, 96, 320, gated=family == "qwen2")
    half = autocast or dtype == torch.bfloat16
    setting = TrainingSetting(precision="bf16" if half else "no", weight_bytes=dtype.itemsize)
    assert layer_bytes(size, setting) == pytest.approx(measured, rel=0.07)


class TestStates:
    """Weights, gradients and optimizer states, in bytes per parameter."""

    @pytest.mark.parametrize(
        ("setting", "weights", "gradients", "optimizer"),
        [
            (TrainingSetting(), 4, 4, 8),
            (TrainingSetting(weight_bytes=2), 2, 2, 4),
            (TrainingSetting("ddp", 8), 4, 4, 8),
            (TrainingSetting("fsdp", 8, 2), 0.5, 0.5, 1),
            (TrainingSetting("fsdp", 8, 2, weight_bytes=2), 0.5, 0.5, 1),  # accelerate trains float32 weights
            (TrainingSetting("zero", 8, 2), 2, 0.75, 1.5),  # with the master copy: 2 + 18 / 8
            (TrainingSetting("zero", 8, 3), 0.25, 0.75, 1.5),
            (TrainingSetting("zero", 8, 2, offloads_optimizer=True), 2, 0.75, 0),
            (TrainingSetting(optimizer="adamw_bnb_8bit"), 4, 4, 2),
            (TrainingSetting(optimizer="adafactor"), 4, 4, 0),
        ],
    )
    def test_of_a_whole_model(self, setting: TrainingSetting, weights: float, gradients: float, optimizer: float) -> None:
        found = estimate(SEVEN, setting)
        parts = (found.weights, found.gradients, found.optimizer)
        assert [part / 7e9 for part in parts] == pytest.approx([weights, gradients, optimizer], rel=0.01)

    def test_of_an_adapter(self) -> None:
        adapted = replace(SEVEN, trained=50_000_000)
        found = estimate(adapted, TrainingSetting(weight_bytes=2))
        assert (found.weights, found.gradients, found.optimizer) == (14_200_000_000, 200_000_000, 400_000_000)
        quantized = estimate(adapted, TrainingSetting(weight_bytes=2, quantized=4))
        assert quantized.weights == int(6.5e9 * 0.5625 + 0.5e9 * 2 + 0.2e9)


def test_each_of_these_saves_memory() -> None:
    plain = TrainingSetting("ddp", 8, checkpointing=False)
    peak = estimate(SEVEN, plain).peak
    for change in (
        {"checkpointing": True},
        {"tokens": 8_192},
        {"strategy": "fsdp", "stage": 2},
        {"strategy": "zero", "stage": 2},
        {"strategy": "zero", "stage": 3},
        {"optimizer": "adamw_bnb_8bit"},
    ):
        assert estimate(SEVEN, replace(plain, **change)).peak < peak, change
    assert estimate(SEVEN, replace(plain, accumulation=4)).peak > peak
    assert estimate(SEVEN, replace(plain, optimizer="adamw_torch")).peak > estimate(SEVEN, plain).peak - 1
    assert estimate(replace(SEVEN, vocabulary=150_000), replace(plain, logprob_tokens=1_024)).heads > 1e9


def test_the_peak_is_in_the_table() -> None:
    found = estimate(SEVEN, TrainingSetting("fsdp", 8, 2))
    parts = [float(re.search(r"([\d.,]+) GiB", line)[1].replace(",", "")) for line in parts_table(found)]  # type: ignore[index]
    assert parts[-1] <= sum(parts[:-1])
    assert parts[-1] == round(found.peak / 2**30, 2)


def test_sizes_are_those_of_the_model() -> None:
    config = Qwen2Config(**WIDTHS, num_hidden_layers=3, num_key_value_heads=2)
    model = Qwen2ForSequenceClassification(config)
    size = size_of(config, members=2)
    head = 96 * 2
    assert size.parameters == model.num_parameters() - model.score.weight.numel() + head == size.trained
    assert size.layer == sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert (size.embedding, size.layers, size.hidden, size.queries, size.intermediate) == (9_600, 3, 96, 96, 320)
    assert (size.kept_keys, size.gated, size.vocabulary, size.outputs) == (32, True, 100, 2)
    norms = 3 * 2 * 96 + 96
    biases = 3 * (96 + 32 + 32)
    assert size.linear == size.parameters - 9_600 - norms - biases - head
    assert not size_of(BertConfig(**WIDTHS, num_hidden_layers=1)).gated


def test_an_adapters_size() -> None:
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    size = size_of(Qwen2Config(**WIDTHS, num_hidden_layers=3, num_key_value_heads=2), peft_config=adapter)
    assert size.trained == 3 * 4 * ((96 + 96) + (96 + 32)) + 96  # and the head
    assert size.has_adapter


def test_changes_that_are_proposed() -> None:
    proposed = [change.options for change in changes(SEVEN, TrainingSetting("ddp", 2, checkpointing=False), rows=4)]
    assert proposed[:2] == [
        "--gradient_checkpointing true",
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 2",
    ]
    assert "--accelerate fsdp2" in proposed
    assert any("--load_in_4bit" in options for options in proposed)
    assert not [
        change.options
        for change in changes(SEVEN, TrainingSetting(on_cpu=True), rows=1)
        if "--accelerate" in change.options or "4bit" in change.options
    ]


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """The folder of a 7B decoder without weights and without a tokenizer."""
    folder = tmp_path / "seven"
    Qwen2Config(
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_hidden_layers=4,
        num_attention_heads=28,
        num_key_value_heads=4,
    ).save_pretrained(folder)
    return folder


class TestCommand:
    def plan(self, model: Path, *arguments: str, code: int = 0) -> str:
        told = CliRunner().invoke(main, ["train", "--model_name_or_path", str(model), "--plan", *arguments])
        assert told.exit_code == code, told.output
        return told.output

    def test_no_weight_is_needed(self, config_only: Path, tmp_path: Path) -> None:
        told = self.plan(config_only, "--device_memory", "80", "--output_dir", str(tmp_path / "rm"))
        assert "1 device, bf16, gradient checkpointing, adamw_torch" in told
        assert re.search(r"weights +\d+\.\d\d GiB\n", told)
        assert "It fits:" in told
        assert not (tmp_path / "rm").exists()

    def test_what_to_change(self, config_only: Path) -> None:
        told = self.plan(config_only, "--device_memory", "24", "--num_processes", "2", "--bf16", "false")
        assert "2 devices, data parallelism, float32" in told
        assert "It does not fit" in told
        options = re.findall(r"^  (--.+?)   ([\d.]+) GiB$", told, re.MULTILINE)
        assert options
        assert all(float(peak) <= 0.9 * 24 for _, peak in options)
        # What is proposed is what the plan then finds.
        change, peak = next(one for one in options if "--accelerate fsdp2" in one[0])
        again = self.plan(
            config_only,
            "--device_memory",
            "24",
            "--bf16",
            "false",
            *("--num_processes 2 " * ("processes" not in change)).split(),
            *change.split(),
        )
        assert float(re.search(r"at the peak +([\d.]+) GiB", again)[1]) == pytest.approx(float(peak), abs=0.06)  # type: ignore[index]

    def test_shares_and_offloads(self, config_only: Path) -> None:
        eight = self.plan(config_only, "--device_memory", "80", "--accelerate", "zero3", "--num_processes", "8")
        assert "8 devices, ZeRO-3" in eight
        off = self.plan(
            config_only,
            "--device_memory",
            "80",
            "--accelerate",
            "zero3",
            "--num_processes",
            "8",
            "--offload_optimizer_device",
            "cpu",
        )
        assert "optimizer states" in eight
        assert "optimizer states" not in off

    def test_a_machine_without_gpus(self, config_only: Path) -> None:
        if not torch.cuda.is_available():
            assert "--device_memory 80 (GiB)" in self.plan(config_only, code=1)
        assert "float32" in self.plan(config_only, "--use_cpu", "true")
        assert "more than 0 GiB" in self.plan(config_only, "--device_memory", "0", code=1)

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        assert "There is no folder" in self.plan(tmp_path / "none", "--device_memory", "80", code=1)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
        assert "No sequence classifier can be made" in self.plan(tmp_path, "--device_memory", "80", code=1)


def test_the_pages_table_is_current() -> None:
    pytest.importorskip("peft")
    from tests.benchmarks.planned_memory_table import HEADING, PAGE, section

    page = PAGE.read_text(encoding="utf-8")
    written = page.partition(f"\n## {HEADING}\n")[2].partition("\n## ")[0]
    assert written.strip() == section().strip(), "run `python -m tests.benchmarks.planned_memory_table`"
