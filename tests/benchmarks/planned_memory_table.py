"""Writes the table of docs/training.md that says how much memory each device needs, by size of the model and setting.

Nothing is measured: all figures are estimates of `rm_plugins_trl.memory_estimate`, as ``rm-plugins train --plan`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig
from transformers import Qwen2Config

from rm_plugins.files import write_atomically
from rm_plugins_trl.memory_estimate import GIB, ModelSize, TrainingSetting, estimate
from rm_plugins_trl.reward_training.model_size import size_of
from rm_plugins_trl.reward_training.plan import TIGHT
from rm_plugins_trl.reward_training.presets import preset
from tests.benchmarks.page import table, with_section

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
MODULE = "tests.benchmarks.planned_memory_table"
HEADING = "Memory by size and setting"
DEVICE = 80 * GIB
MOST_TOKENS = 1_024

MODELS = {
    "Qwen2.5-0.5B": (896, 4_864, 24, 14, 2, 151_936),
    "Qwen2.5-1.5B": (1_536, 8_960, 28, 12, 2, 151_936),
    "Qwen2.5-7B": (3_584, 18_944, 28, 28, 4, 152_064),
    "Qwen2.5-32B": (5_120, 27_648, 64, 40, 8, 152_064),
    "Qwen2.5-72B": (8_192, 29_568, 80, 64, 8, 152_064),
}
"""Hidden and intermediate size, layers, heads, key-value heads and tokens of the published configurations."""

SETTINGS = {
    "1 device": (TrainingSetting(), False),
    "1 device, LoRA": (TrainingSetting(weight_bytes=2), True),
    "1 device, QLoRA": (TrainingSetting(weight_bytes=2, quantized=4), True),
    "2, `ddp`": (TrainingSetting("ddp", 2), False),
    "8, `zero2`": (TrainingSetting("zero", 8, 2), False),
    "8, `zero3`": (TrainingSetting("zero", 8, 3), False),
    "8, `fsdp2`": (TrainingSetting("fsdp", 8, 2), False),
    "8, `fsdp2`, LoRA": (TrainingSetting("fsdp", 8, 2, weight_bytes=2), True),
    "32, `fsdp2`": (TrainingSetting("fsdp", 32, 2), False),
}


def sizes() -> Iterator[tuple[str, ModelSize, ModelSize]]:
    """Each model's name, its sizes, and those with an adapter of rank 32 on all linear layers."""
    adapter = LoraConfig(r=32, target_modules="all-linear")
    for name, (_, _, layers, *_) in MODELS.items():
        # All layers are alike, so those of two small models tell those of a large one.
        whole, adapted = (
            _extrapolated(size_of(_config(name, 1), peft_config=peft), size_of(_config(name, 2), peft_config=peft), layers)
            for peft in (None, adapter)
        )
        yield name, whole, adapted


def _config(name: str, layers: int) -> Qwen2Config:
    hidden, intermediate, _, heads, keys, vocabulary = MODELS[name]
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
    )


def _extrapolated(one: ModelSize, two: ModelSize, layers: int) -> ModelSize:
    """The sizes of a model with many layers, from those of models with one and two."""
    grown = {
        name: getattr(one, name) + (layers - 1) * (getattr(two, name) - getattr(one, name))
        for name in ("parameters", "linear", "trained")
    }
    return replace(one, layers=layers, **grown)


def section() -> str:
    """The section of the page."""
    rows = []
    for name, whole, adapted in sizes():
        batch = preset(whole.parameters, adapter=False).per_device_train_batch_size
        cells = []
        for setting, has_adapter in SETTINGS.values():
            # A row is a pair.
            with_rows = replace(setting, tokens=2 * batch * MOST_TOKENS)
            peak = estimate(adapted if has_adapter else whole, with_rows).peak
            cells.append(f"**{peak / GIB:.0f}**" if peak <= TIGHT * DEVICE else f"{peak / GIB:,.0f}")
        rows.append((name, f"{batch}", *cells))
    head = ("model", "pairs per device", *SETTINGS)
    return (
        f"Made by `python -m {MODULE}` from the estimate: GiB on each device at the peak of a step.\n"
        "Trainings are in bf16 with gradient checkpointing and AdamW, on pairs of two texts "
        f"of {MOST_TOKENS:,} tokens. The preset gives the\nnumber of pairs per device.\n"
        f"Bold figures fit into devices of {DEVICE // GIB} GiB. LoRA has rank 32 on all linear layers, and its base model is loaded with\n"
        f"`--dtype bfloat16`; QLoRA loads it in 4 bits.\n\n{table(head, rows)}\n\n"
        "With DDP, every device also holds buckets for exchanging gradients, so two devices need more memory each than one."
    )


def main() -> None:
    """Write the section."""
    write_atomically(PAGE, with_section(PAGE.read_text(encoding="utf-8"), HEADING, section()))


if __name__ == "__main__":
    main()
