"""Ways to score the same texts with the same model, and how fast that model can be at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import rm_plugins as rm
from rm_plugins.scores import FloatArray

OURS = "rm-plugins"
HALF = "rm-plugins with `dtype: bfloat16`"
TRL = "one padded batch (TRL's own path)"
PIPELINE = "pipeline(batch_size=32)"
CROSS_ENCODER = "CrossEncoder.predict"

TOLERANCE = 1e-4
"""Of every contender that computes in float32."""

Score: TypeAlias = Callable[[], Any]
"""Scores all texts of a shape, [N]."""


def contenders(folder: Path, rewards: rm.Provider, samples: Sequence[rm.Sample]) -> dict[str, Score]:
    """Name to a function that scores all samples; each has loaded the model in the folder for itself, ours as `rewards`."""
    texts = [rewards.render(sample) for sample in samples]
    classify = pipeline("text-classification", model=str(folder))
    encoder = cross_encoder(folder)
    half = rm.load(folder, dtype="bfloat16")
    return {
        OURS: lambda: rewards.score(samples),
        HALF: lambda: half.score(samples),
        TRL: padded_batch(*loaded(folder), texts),
        PIPELINE: lambda: [found["score"] for found in classify(texts, batch_size=32, truncation=True)],
        CROSS_ENCODER: lambda: encoder.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False),
    }


def loaded(folder: Path) -> tuple[Any, Any]:
    """The model in a folder and its tokenizer."""
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def padded_batch(model: Any, tokenizer: Any, texts: Sequence[str]) -> Score:
    """What GRPO and RLOO do with a model: one forward over the whole batch, padded to its longest row.

    TRL leaves special tokens out and cannot truncate; both are changed here, for the scores to be comparable and an encoder
    to run at all.
    """

    @torch.inference_mode()
    def score() -> Any:
        inputs = tokenizer(text=list(texts), return_tensors="pt", padding=True, padding_side="right", truncation=True)
        return model(**inputs.to(model.device)).logits[:, 0].float().cpu().numpy()

    return score


def cross_encoder(folder: Path) -> Any:
    """A CrossEncoder that takes single texts."""
    if find_spec("sentence_transformers") is None:
        raise SystemExit("sentence-transformers, which is measured beside ours, is not installed: run this with `make bench`.")
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    # It takes a list of texts for one pair, and offers nothing that says otherwise.
    encoder.is_singular_input = lambda inputs: False
    return encoder


def dense_forwards(folder: Path, shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Score]:
    """(rows, tokens) to a forward of the bare model over as many random token ids, without any padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.manual_seed(0)

    def forward(rows: int, tokens: int) -> Callable[[], Any]:
        ids = torch.randint(5, model.config.vocab_size, (rows, tokens))
        return torch.inference_mode()(lambda: model(input_ids=ids))

    return {shape: forward(*shape) for shape in shapes}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one shape's measurement found.

    Args:
        samples: Texts scored at a time.
        parameters: Parameters of the model.
        seconds: Every contender's median.
        differences: Largest difference of each contender's scores from ours.
        deviation: Standard deviation of our scores.
        tokens: Tokens of all texts.
        computed_tokens: Those that our engine ran the model over.
        least_tokens: Those that have to be computed, as `least_tokens` counts them.
        best_shape: The (rows, tokens) of the fastest dense forward.
        best_throughput: Its tokens per second.
        peaks: Peak memory in bytes by contender, where it was measured.
    """

    samples: int
    parameters: int
    seconds: Mapping[str, float]
    differences: Mapping[str, float]
    deviation: float
    tokens: int
    computed_tokens: int
    least_tokens: int
    best_shape: tuple[int, int]
    best_throughput: float
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The seconds that the least tokens take at the best throughput."""
        return self.least_tokens / self.best_throughput

    @property
    def throughput(self) -> float:
        """The tokens per second that our engine computes."""
        return self.computed_tokens / self.seconds[OURS]

    def times_ours(self, name: str) -> float:
        """A contender's median as a multiple of ours."""
        return self.seconds[name] / self.seconds[OURS]


def measure(label: str, folder: Path, samples: Sequence[rm.Sample], rounds: int, shapes: Sequence[tuple[int, int]]) -> Measured:
    """Score the samples in every way, in turn, `rounds` times.

    Raises:
        SystemExit: A contender's scores differ from ours by more than `TOLERANCE`.
    """
    rewards: Any = rm.load(folder)
    runs, dense = contenders(folder, rewards, samples), dense_forwards(folder, shapes)
    first = {name: run() for name, run in runs.items()}
    for forward in dense.values():
        forward()
    ours: rm.Scores = runs[OURS]()  # the first call also compared a few shared rows with whole ones
    differences = {name: _difference(label, name, scores, ours.values) for name, scores in first.items()}
    timed: dict[Any, Score] = {**runs, **dense}
    times: dict[Any, list[float]] = {key: [] for key in timed}
    for number in range(rounds):
        for key, run in timed.items():
            started = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - started)
        found = ", ".join(f"{name} {times[name][-1]:.2f} s" for name in runs)
        print(f"({label}) round {number + 1} of {rounds}: {found}", flush=True)
    medians = {key: statistics.median(found) for key, found in times.items()}
    throughputs = {(rows, tokens): rows * tokens / medians[rows, tokens] for rows, tokens in dense}
    best = max(throughputs, key=lambda shape: throughputs[shape])
    return Measured(
        samples=len(samples),
        parameters=AutoModelForSequenceClassification.from_pretrained(folder).num_parameters(),
        seconds={name: medians[name] for name in runs},
        differences=differences,
        deviation=float(ours.values.std()),
        tokens=ours.metadata["tokens"],
        computed_tokens=ours.metadata["unique_tokens"],
        least_tokens=least_tokens(rewards.renderer.token_ids(samples)[0], shared=rewards.trained.engine.shares_prefixes),
        best_shape=best,
        best_throughput=throughputs[best],
    )


def least_tokens(rows: Sequence[Sequence[int]], *, shared: bool) -> int:
    """Tokens of the different rows; where beginnings can be shared, each beginning counts once.

    >>> least_tokens([[1, 2, 3], [1, 2, 4], [1, 2, 3]], shared=True), least_tokens([[1, 2], [1, 3]], shared=False)
    (4, 4)
    """
    different = sorted({tuple(row) for row in rows})
    tokens = sum(map(len, different))
    return tokens - (sum(_shared_tokens(*pair) for pair in pairwise(different)) if shared else 0)


def _shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (position for position, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _difference(label: str, name: str, scores: Any, ours: FloatArray) -> float:
    values = scores.values if isinstance(scores, rm.Scores) else np.asarray(scores, dtype=np.float64)
    difference = float(np.abs(values - ours).max())
    if name != HALF and not difference <= TOLERANCE:
        raise SystemExit(f"({label}) The scores of {name} differ from ours by {difference:.1e}; {TOLERANCE} is allowed.")
    return difference
