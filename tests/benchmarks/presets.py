"""Which learning rate suits a kind and size of model: real models trained with several, all other settings from the preset.

Run it with ``make bench-presets``; it writes a section of ``docs/training.md``. Finished trainings are kept in a file, so an interrupted
run resumes. Needs the real models and data that the tests use.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub, which reads it once: nothing here needs a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
from datasets import Dataset
from transformers.utils import logging

from rm_plugins.files import write_atomically
from tests.benchmarks.losses import FOLDER, ROOT, append_line, read_results
from tests.benchmarks.losses_data import Sizes, load
from tests.benchmarks.losses_runs import minilm
from tests.benchmarks.page import machine, table, with_section
from tests.conftest import converted_smollm2

PAGE = ROOT / "docs" / "training.md"
RESULTS = ROOT / "build" / "preset-results.jsonl"
MODULE = "tests.benchmarks.presets"
HEADING = "Measured learning rates"
PRESET = "8 rows per step, a warm-up of 5% of the steps, then a linear fall"


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table: a model, how it is trained, and on what.

    Args:
        title: What the table calls it.
        model: ``minilm`` or ``smollm2``.
        lora: Whether a LoRA adapter is trained instead of the whole model.
        data: A data set of `tests.benchmarks.losses_data.DATA_SETS`.
        pairs: Pairs to train on.
        held_out: Pairs to measure the accuracy on.
        max_length: Tokens of the longest text.
        rates: The learning rates that are compared.
        seeds: How often each is trained.
    """

    title: str
    model: str
    lora: bool
    data: str
    pairs: int
    held_out: int
    max_length: int
    rates: tuple[float, ...]
    seeds: int

    @property
    def sizes(self) -> Sizes:
        """How much of the data set is used."""
        return Sizes(self.pairs, self.held_out, max_length=self.max_length)

    @property
    def key(self) -> list[Any]:
        """What tells its trainings from those of other settings."""
        return [self.model, self.lora, self.data, self.pairs, self.held_out, self.max_length]

    def small(self) -> Setting:
        """The same on a few rows, to check that it runs."""
        return Setting(self.title, self.model, self.lora, self.data, 8, 8, self.max_length, self.rates[:1], 1)


SETTINGS: tuple[Setting, ...] = (
    Setting("MiniLM", "minilm", False, "sentences", 500, 400, 32, (2e-5, 5e-5, 1e-4, 2e-4, 5e-4), 2),
    Setting("MiniLM, LoRA", "minilm", True, "sentences", 500, 400, 32, (2e-4, 5e-4, 1e-3, 2e-3), 2),
    Setting("SmolLM2-135M, LoRA", "smollm2", True, "sentences", 160, 200, 32, (2e-4, 5e-4, 1e-3), 1),
    Setting("SmolLM2-135M", "smollm2", False, "sentences", 160, 200, 32, (2e-5, 5e-5, 1e-4), 1),
    Setting("MiniLM", "minilm", False, "arguments", 300, 300, 64, (2e-5, 1e-4, 2e-4, 5e-4), 1),
)
"""The settings, in the order in which they are trained: the most needed ones first."""

DATA_TITLES = {"sentences": "film-review sentences", "arguments": "arguments, debates unseen"}


def train(setting: Setting, rate: float, seed: int, folder: Path) -> dict[str, float]:
    """Train one model; returns its accuracy on the held-out pairs and the CPU seconds that it took.

    Args:
        setting: What is trained.
        rate: The learning rate.
        seed: The seed of the model's head and of the order of the rows.
        folder: Where the data is.
    """
    from rm_plugins_trl import RewardConfig, RewardTrainer

    started = time.process_time()
    train_rows, held_out = load(setting.data, setting.sizes, folder, minilm())
    adapter = None
    if setting.lora:
        from trl import ModelConfig, get_peft_config

        adapter = get_peft_config(ModelConfig(use_peft=True))  # as the command line makes it
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            scratch,
            learning_rate=rate,
            per_device_eval_batch_size=64,
            max_length=setting.max_length,
            overlong="truncate",
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # it saves memory, of which there is enough, for time
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            str(minilm() if setting.model == "minilm" else converted_smollm2()),
            arguments,
            train_dataset=Dataset.from_list(train_rows),
            eval_dataset=Dataset.from_list(held_out),
            peft_config=adapter,
        )
        trainer.train()
    return {"accuracy": trainer.last_metrics["eval_accuracy"], "seconds": round(time.process_time() - started, 1)}


def train_all(settings: Sequence[Setting], arguments: argparse.Namespace) -> None:
    """Train what is not among the results yet: every learning rate of every setting with one seed, then with the next."""
    done = {json.dumps(line["run"]) for line in read_results(arguments.results)}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(max(setting.seeds for setting in settings)):
        for setting in settings:
            for rate in setting.rates if seed < setting.seeds else ():
                run = [*setting.key, rate, seed]
                if json.dumps(run) in done:
                    continue
                measured = train(setting, rate, seed, arguments.folder)
                append_line(arguments.results, json.dumps({"run": run, **measured}) + "\n")
                print(
                    f"{setting.title}, {setting.pairs} pairs of {setting.data}, {rate:g}, seed {seed}: accuracy "
                    f"{measured['accuracy']:.3f} in {measured['seconds']:.0f} s",
                    flush=True,
                )


def section(settings: Iterable[Setting], results: Iterable[Mapping[str, Any]]) -> str:
    """The section of the page: one table for each setting that has results."""
    accuracies: dict[str, float] = {json.dumps(line["run"]): line["accuracy"] for line in results}
    parts = [INTRODUCTION, f"Measured on: {machine()}"]
    missing = []
    for setting in settings:
        rows = []
        for rate in setting.rates:
            keys = [json.dumps([*setting.key, rate, seed]) for seed in range(setting.seeds)]
            seeds = {str(seed): accuracies[key] for seed, key in enumerate(keys) if key in accuracies}
            if seeds:
                rows.append((f"{rate:g}", statistics.fmean(seeds.values()), seeds))
        title = f"{setting.title}: {setting.pairs:,} pairs of {DATA_TITLES[setting.data]}"
        if not rows:
            missing.append(title)
            continue
        best = max(mean for _, mean, _ in rows)
        error = math.sqrt(best * (1 - best) / setting.held_out)
        shown = [
            (
                rate,
                f"**{mean:.3f}**" if mean == best else f"{mean:.3f}",
                ", ".join(f"{value:.3f}" for value in seeds.values()),
                _listed(seeds),
            )
            for rate, mean, seeds in rows
        ]
        parts.append(
            f"### {title}\n\nAt most {setting.max_length} tokens per text; {setting.held_out} pairs held out, standard error {error:.3f}."
            "\n\n"
            f"{table(('learning rate', 'accuracy', 'of each seed', 'seeds'), shown)}"
        )
    if missing:
        parts.append(
            "The command also measures these settings, which have no result here yet:\n\n"
            + "\n".join(f"- {one}" for one in missing)
        )
    return "\n\n".join(parts)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


INTRODUCTION = f"""Made by `make bench-presets` (`python -m {MODULE}`): real models are trained with several learning rates for one
epoch, with all other settings from the preset ({PRESET}).
A seed draws the head's first weights and the order of the rows. The best mean accuracy on held-out pairs is bold; differences of less
than about three standard errors mean nothing."""


def main() -> None:
    """Train what is missing, and write the section."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    titles = list(dict.fromkeys(setting.title for setting in SETTINGS))
    parser.add_argument("--only", nargs="+", choices=titles, default=titles, help="models to train (default: all)")
    parser.add_argument(
        "--results", type=Path, help=f"the file of the finished trainings (default: {RESULTS.relative_to(ROOT)})"
    )
    parser.add_argument("--page", action="store_true", help="train nothing; write the section from the results that are there")
    parser.add_argument("--output", type=Path, help=f"the page that is written (default: {PAGE.relative_to(ROOT)})")
    parser.add_argument("--small", action="store_true", help="check this script with tiny sizes; writes no page but --output")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of the data (default: ../shared/data)")
    arguments = parser.parse_args()
    if arguments.results is None:
        arguments.results = RESULTS.with_stem(f"{RESULTS.stem}-small") if arguments.small else RESULTS
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    settings = [setting.small() if arguments.small else setting for setting in SETTINGS]
    if not arguments.page:
        train_all([setting for setting in settings if setting.title in arguments.only], arguments)
    output = arguments.output or (None if arguments.small else PAGE)
    if output is not None:
        page = output.read_text(encoding="utf-8") if output.is_file() else "# Training a reward model\n"
        write_atomically(output, with_section(page, HEADING, section(settings, read_results(arguments.results))))
        print(f"wrote the section {HEADING!r} of {output}", flush=True)


if __name__ == "__main__":
    main()
