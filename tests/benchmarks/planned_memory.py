"""Compares the estimated memory of trainings with what processes on a CPU really take, and writes a section of docs/training.md.

Run it with ``make bench-plan``. Finished trainings are kept in a file, so an interrupted run resumes.

Every training is a process of its own, or two that exchange gradients or shards. Its memory is what the kernel counts: the most that the
process held in its second step, less what it held before the model was loaded. A small model is trained before, so that
libraries have been loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rm_plugins.files import write_atomically
from rm_plugins_trl.accelerate_settings import Strategy
from rm_plugins_trl.memory_estimate import GIB, ModelSize, Precision, TrainingSetting, estimate
from tests.benchmarks.models import DecoderSize, save_decoder, train_tokenizer
from tests.benchmarks.page import machine, table, with_section

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
MODULE = "tests.benchmarks.planned_memory"
RESULTS = ROOT / "build" / "planned-memory-results.jsonl"
HEADING = "Estimated beside measured memory"
STEPS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A training that is measured.

    Args:
        title: What is special about it.
        strategy: How processes share it.
        processes: The number of processes.
        checkpointing: Whether activations are computed again.
        precision: What it computes in.
        adapter: Whether an adapter is trained.
        rows: Pairs for each process and step.
        at_once: The most tokens computed at a time.
        accumulation: Batches for each step.
    """

    title: str
    strategy: Strategy = "single"
    processes: int = 1
    checkpointing: bool = False
    precision: Precision = "no"
    adapter: bool = False
    rows: int = 4
    at_once: int = 2_048
    accumulation: int = 1


CASES = {
    "plain": Case("one process"),
    "checkpointing": Case("one process, gradient checkpointing", checkpointing=True),
    "accumulation": Case("one process, two batches per step", accumulation=2),
    "bf16": Case("one process, bf16", precision="bf16"),
    "lora": Case("one process, LoRA", adapter=True),
    "ddp": Case("two processes, DDP", "ddp", 2),
    "fsdp2": Case("two processes, FSDP2", "fsdp", 2),
    "fsdp2-checkpointing": Case("two processes, FSDP2, gradient checkpointing", "fsdp", 2, checkpointing=True),
    "fsdp2-lora": Case("two processes, FSDP2, LoRA", "fsdp", 2, adapter=True),
}

SIZE = DecoderSize(vocabulary=65_536, hidden=512, intermediate=1_408, layers=8, heads=8, key_value_heads=4)
SMALL = DecoderSize(vocabulary=1_024, hidden=64, intermediate=128, layers=2, heads=4)


def status(name: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith(f"{name}:"))


def rows(count: int) -> list[dict[str, str]]:
    """Pairs without common beginnings, all texts equally long."""
    return [{"chosen": f"{number} a" + " colour" * 250, "rejected": f"{number} b" + " number" * 250} for number in range(count)]


def train(case: Case, model: Path, out: Path) -> dict[str, Any]:
    """Train in this process; returns its peak, its tokens per step and the model's sizes."""
    from accelerate import PartialState
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, TrainerCallback

    from rm_plugins_trl import RewardConfig, RewardTrainer
    from rm_plugins_trl.reward_training.model_size import size_of
    from tests.sharded.training import shard

    class Peak(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far

    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS") if case.adapter else None
    before = status("VmRSS")
    processes = PartialState().num_processes
    trainer = RewardTrainer(
        str(model),
        RewardConfig(
            output_dir=str(out),
            max_steps=STEPS,
            per_device_train_batch_size=case.rows,
            gradient_accumulation_steps=case.accumulation,
            max_batch_tokens=case.at_once,
            gradient_checkpointing=case.checkpointing,
            bf16=case.precision == "bf16",
            preset="none",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            share_prompts=False,
        ),
        train_dataset=Dataset.from_list(rows(case.rows * case.accumulation * processes * STEPS)),
        peft_config=adapter,
        callbacks=[Peak()],
    )
    if case.strategy == "fsdp":
        shard(trainer, {})
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = sum(len(row) for row in batch["rows"])
    trainer.train()
    size = size_of(AutoConfig.from_pretrained(model), peft_config=adapter)
    return {"peak": status("VmHWM") - before, "tokens": tokens, "size": {name: getattr(size, name) for name in size.__slots__}}


def measured(name: str, model: Path, small: Path, scratch: Path) -> dict[str, Any]:
    """What the first process of a training took."""
    result = scratch / f"{name}.json"
    arguments = ["-m", MODULE, "--case", name, str(model), str(small), str(result)]
    case = CASES[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.processes)]
    command = [sys.executable, *(launcher if case.processes > 1 else []), *arguments]
    # The C library returns what is freed at once, so that the kernel counts what is in use.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "131072", "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if not result.is_file():
        raise SystemExit(f"The training {name!r} ended with {found.returncode}:\n{found.stderr[-2_000:]}")
    values: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return values


def estimated(case: Case, tokens: int, size: ModelSize) -> int:
    """The estimate of the same training."""
    setting = TrainingSetting(
        strategy=case.strategy,
        devices=case.processes,
        stage=2 if case.strategy == "fsdp" else 0,
        precision=case.precision,
        checkpointing=case.checkpointing,
        tokens=tokens,
        tokens_at_a_time=case.at_once,
        accumulation=case.accumulation,
        on_cpu=True,
    )
    return estimate(size, setting).peak


def _work(name: str, model: str, small: str, result: str) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    scratch = Path(result).parent
    train(Case("warm-up", rows=1), Path(small), scratch / "warm-up")
    values = train(CASES[name], Path(model), scratch / "out")
    if int(os.environ.get("RANK", "0")) == 0:
        write_atomically(Path(result), json.dumps(values))
    os._exit(0)  # where gloo's threads still hold a tensor, Python's tearing down blocks the process


def section(lines: list[tuple[str, int, int]], parameters: int) -> str:
    """The section of the page."""
    cells = [(title, f"{peak / GIB:.2f}", f"{guess / GIB:.2f}", f"{guess / peak - 1:+.0%}") for title, peak, guess in lines]
    worst = max(abs(guess / peak - 1) for _, peak, guess in lines)
    return (
        f"Made by `make bench-plan` (`python -m {MODULE}`): {machine()}\n\nThe estimate is compared with trainings of a Qwen2 decoder "
        f"with {parameters / 1e6:.0f} million parameters and random weights on\nCPU processes, in float32 except for bf16. Measured is "
        "the most memory that the first process held in its second step, less what it\nheld before the model was loaded.\n\n"
        f"{table(('training', 'measured, GiB', 'estimated, GiB', 'difference'), cells)}\n\n"
        f"The largest difference is {worst:.0%}. On a CPU, matrix products and the optimizer use other buffers than on a GPU. Not measured "
        "here:\nGPUs, where the estimate adds 1.5 GiB for CUDA, DeepSpeed, quantized weights, and larger models."
    )


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what is measured (default: all)")
    parser.add_argument("--small", action="store_true", help="check this script with a tiny model; writes no page")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        _work(*arguments.case)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tokenizer = train_tokenizer([text for row in rows(2) for text in row.values()], 1_024)
        small = save_decoder(scratch / "small", SMALL, tokenizer)
        model = small if arguments.small else _whole(scratch / "model", tokenizer)
        results = scratch / RESULTS.name if arguments.small else RESULTS
        for name in [name for name in arguments.cases if name not in _finished(results)]:
            values = measured(name, model, small, scratch)
            results.parent.mkdir(exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": name, **values}) + "\n")
            print(_line(name, values), flush=True)
        finished = _finished(results)
    if not arguments.small and finished.keys() >= {"ddp"}:
        lines = [_line(name, finished[name]) for name in CASES if name in finished]
        written = section(lines, finished["ddp"]["size"]["parameters"])
        write_atomically(PAGE, with_section(PAGE.read_text(encoding="utf-8"), HEADING, written))


def _finished(results: Path) -> dict[str, Any]:
    """The values of the trainings that were measured, by case."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    return {values.pop("case"): values for values in map(json.loads, lines)}


def _line(name: str, values: dict[str, Any]) -> tuple[str, int, int]:
    """What was trained, and the measured and the estimated bytes."""
    size = ModelSize(**values["size"])
    size = replace(size, kept_keys=size.queries)  # a CPU's attention repeats keys for all heads
    return CASES[name].title, values["peak"], estimated(CASES[name], values["tokens"], size)


def _whole(folder: Path, tokenizer: Any) -> Path:
    """The model with all of its embeddings, of which the tokenizer uses a few."""
    import torch
    from transformers import Qwen2ForSequenceClassification

    torch.manual_seed(0)
    config = SIZE.config(tokenizer, num_labels=1)
    config.vocab_size = SIZE.vocabulary
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
