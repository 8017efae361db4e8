"""Compares a model with the golden scores in its manifests, and says what its quantization costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from rm_plugins.labels import counted
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import GoldenScore, Manifest, token_digest
from rm_plugins.rendering.render import Renderer
from rm_plugins.scores import FloatArray


@dataclass(frozen=True, slots=True)
class Origin:
    """A folder or hub id that a model, or one of its variants, was loaded from, and its manifest."""

    source: str
    manifest: Manifest | None = None

    def problems_of(self, check: Callable[[Manifest, Path], list[str]]) -> list[str]:
        """The problems that a check of the manifest's files reports; empty if there is no manifest or no local folder."""
        folder = Path(self.source)
        return check(self.manifest, folder) if self.manifest is not None and folder.is_dir() else []


@dataclass(frozen=True, slots=True)
class GoldenAgain:
    """A golden sample that was scored again.

    Args:
        row: Its number in the manifest.
        recorded: The golden sample.
        token_ids: The digest of its token ids now.
        score: Its score now.
        tolerance: How much the scores may differ.
    """

    row: int
    recorded: GoldenScore
    token_ids: str
    score: float
    tolerance: float

    @property
    def problems(self) -> list[str]:
        """The differences, one line each; empty if there are none."""
        problems = []
        if self.token_ids != self.recorded.token_ids:
            problems.append(f"golden[{self.row}].token_ids: the tokenizer or the rendering gives other token ids")
        if not abs(self.score - self.recorded.score) <= self.tolerance:
            problems.append(f"golden[{self.row}].score: {self.recorded.score:.6g} was recorded, {self.score:.6g} is computed")
        return problems


def golden_again(
    origins: Sequence[Origin],
    rows: Sequence[Sequence[int]],
    *,
    renderer: Renderer,
    outputs: Callable[[Sequence[Sequence[int]]], FloatArray],
    heads: Callable[[Manifest], Heads],
    dtype: str,
    quantization: str | None,
) -> list[list[GoldenAgain]]:
    """Score golden samples again: for each origin of a reward, those with the given numbers.

    Args:
        origins: The origins of the reward's variants.
        rows: The numbers of golden samples, one list per origin.
        renderer: The model's renderer.
        outputs: Gives the outputs of token ids, [N, variants * outputs].
        heads: Gives the meaning of a variant's outputs.
        dtype: The dtype that the model runs in.
        quantization: The scheme of its quantization, if it has one.
    """
    chosen = [
        (variant, row, origin.manifest.golden[row], origin.manifest)
        for variant, (origin, numbers) in enumerate(zip(origins, rows, strict=True))
        if origin.manifest is not None
        for row in numbers
    ]
    again: list[list[GoldenAgain]] = [[] for _ in rows]
    if not chosen:
        return again
    ids, _ = renderer.token_ids([golden.as_sample() for _, _, golden, _ in chosen])
    scored = outputs(ids).reshape(len(chosen), len(rows), -1)
    for (variant, row, golden, manifest), row_ids, of_variants in zip(chosen, ids, scored, strict=True):
        score = float(of_variants[variant] @ np.array(heads(manifest).reward_weights))
        # Rounding weights moves small scores as much as large ones.
        size = golden.score if quantization is None else max(abs(one.score) for one in manifest.golden)
        tolerance = manifest.tolerance(size, dtype, *filter(None, (quantization,)))
        again[variant].append(GoldenAgain(row, golden, token_digest(row_ids), score, tolerance))
    return again


@dataclass(frozen=True, slots=True)
class QuantizationCost:
    """How the scores of a quantized model differ from the golden scores, which the model gave before it was quantized.

    Args:
        samples: The number of golden samples that were compared.
        largest_difference: The largest difference between a score and its golden score.
        pairs: The number of pairs of golden samples with different golden scores.
        changed_pairs: How many of these pairs have another order.
    """

    samples: int
    largest_difference: float
    pairs: int
    changed_pairs: int

    @classmethod
    def of(cls, scored: Iterable[Sequence[GoldenAgain]]) -> QuantizationCost | None:
        """The cost over the golden samples of all origins; None if there are none with the same token ids."""
        same = [[golden for golden in of_origin if golden.token_ids == golden.recorded.token_ids] for of_origin in scored]
        differences = [abs(golden.score - golden.recorded.score) for of_origin in same for golden in of_origin]
        if not differences:
            return None
        pairs = [
            (first.recorded.score - second.recorded.score, first.score - second.score)
            for of_origin in same
            for first, second in combinations(of_origin, 2)
        ]
        ordered = [(before, after) for before, after in pairs if before]
        changed = sum(before * after <= 0 for before, after in ordered)
        return cls(len(differences), max(differences), len(ordered), changed)

    @property
    def changed_share(self) -> float:
        """The share of pairs that have another order; 0 without pairs."""
        return self.changed_pairs / self.pairs if self.pairs else 0.0

    def __str__(self) -> str:
        return (
            f"{counted(self.samples, 'golden score')} differ by at most {self.largest_difference:.3g}, and {self.changed_pairs} of "
            f"{counted(self.pairs, 'pair')} ({self.changed_share:.1%}) change their order"
        )
