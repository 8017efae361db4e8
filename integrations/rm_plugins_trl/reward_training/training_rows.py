"""Datasets as rows of token ids, and batches of them: what `RewardTrainer` trains on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from datasets import Features, List, Value

from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.errors import DataError
from rm_plugins.losses.batch import Item
from rm_plugins.rendering.render import Renderer
from rm_plugins.samples import Sample

__all__ = ["COLUMNS", "FEATURES", "Collator", "Tokenization", "bootstrap_repeats", "is_tokenized", "rated_attributes"]

FEATURES = Features(
    {
        "number": Value("int64"),
        "rows": List(List(Value("int32"))),
        "length": Value("int32"),
        "longest": Value("int32"),
        "completion_starts": List(Value("int32")),
        "pairs": List(List(Value("int32"))),
        "ties": List(List(Value("int32"))),
        "ranks": List(Value("float32")),
        "labels": List(List(Value("float32"))),
        "margins": List(Value("float32")),
        "weight": Value("float32"),
        "section": Value("string"),
    }
)
"""The columns of a tokenized dataset; an empty list stands for what a row does not have.

``length`` is of all texts of a row together, ``longest`` of its longest one before truncation.
"""

COLUMNS = tuple(FEATURES)


def is_tokenized(columns: Iterable[str]) -> bool:
    """Whether a dataset has been tokenized already, by us."""
    return set(COLUMNS) <= set(columns)


def rated_attributes(dataset: Any) -> tuple[str, ...]:
    """The names of what the first row of a training dataset is rated on; empty where it has no ratings, or is tokenized.

    Raises:
        DataError: The row is in none of the formats.
    """
    first = next(iter(dataset), None)
    if first is None or is_tokenized(first) or _tokenized_judgement(first):
        return ()
    try:
        return attribute_names(first)
    except DataError as error:
        raise DataError(f"Row 0 of the train dataset: {error}") from error


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Turns dataset rows into the columns of `FEATURES`; pickled into the processes of ``Dataset.map``.

    Args:
        renderer: What makes token ids of samples.
        name: What an error calls the dataset.
        attributes: The attributes that samples are rated on, in the order of the labels.
        reward: The weight of each attribute in the reward, by which rated samples are compared; None for equal ones.
        section: The column with the section that a row belongs to; None for none.
        truncate: Whether rows longer than the rendering's ``max_length`` are truncated.
    """

    renderer: Renderer
    name: str
    attributes: tuple[str, ...] = ()
    reward: Mapping[str, float] | None = None
    section: str | None = None
    truncate: bool = False

    def __call__(self, columns: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of a batch of rows.

        Raises:
            DataError: A row is in none of the formats; the message names it.
        """
        found: list[Judgement] = []
        sections: list[str | None] = []
        for place, number in enumerate(numbers):
            row = {column: values[place] for column, values in columns.items()}
            try:
                found.append(_tokenized_judgement(row) or judgement(row, self.attributes, self.reward))
            except DataError as error:
                raise DataError(f"Row {number} of the {self.name} dataset: {error}") from error
            section = row.get(self.section) if self.section is not None else None
            sections.append(None if section is None else str(section))
        if "chosen_ids" in columns:
            ids = [list(side) for pair in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True) for side in pair]
            starts = [0] * len(ids)
        else:
            samples = [sample for each in found for sample in each.samples]
            ids = self.renderer.untruncated_ids(samples)
            starts = self.renderer.completion_starts(samples, ids)
        limit = self.renderer.rendering.max_length
        longest = [len(row) for row in ids]
        if self.truncate and limit is not None:
            starts = [max(start - max(len(row) - limit, 0), 0) for row, start in zip(ids, starts, strict=True)]
            ids = [self.renderer.truncated(row, limit) for row in ids]
        bounds = [0, *accumulate(len(each.samples) for each in found)]
        rows = [ids[start:stop] for start, stop in pairwise(bounds)]
        return {
            "number": list(numbers),
            "rows": rows,
            "length": [sum(map(len, each)) for each in rows],
            "longest": [max(longest[start:stop], default=0) for start, stop in pairwise(bounds)],
            "completion_starts": [starts[start:stop] for start, stop in pairwise(bounds)],
            "pairs": [[list(pair) for pair in each.pairs] for each in found],
            "ties": [[list(pair) for pair in each.ties] for each in found],
            "ranks": [list(each.ranks or ()) for each in found],
            "labels": [_numbers(each.labels) for each in found],
            "margins": [list(each.margins or ()) for each in found],
            "weight": [each.weight for each in found],
            "section": sections,
        }


def _numbers(labels: Sequence[Sequence[float | None]] | None) -> list[list[float]]:
    return [[math.nan if label is None else label for label in row] for row in labels or ()]


def _tokenized_judgement(row: Mapping[str, Any]) -> Judgement | None:
    """A preference row that TRL has tokenized."""
    if "chosen_ids" not in row or "rejected_ids" not in row:
        return None
    margin = row.get("margin")
    nothing = Sample("", "")
    return Judgement(
        "preference",
        (nothing, nothing),
        pairs=((0, 1),),
        ranks=(0.0, 1.0),
        margins=None if margin is None else (float(margin),),
        weight=float(row.get("weight") or 1.0) if row.get("weight") != 0 else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Collator:
    """Batches of tokenized rows, with everything that a loss may ask for.

    Args:
        item: What the loss is a mean over; ``items`` of a batch is their number.
    """

    item: Item

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of G judgements with N rows: tensors, and ``rows``, the token ids as arrays."""
        sizes = [len(example["rows"]) for example in examples]
        offsets = [0, *accumulate(sizes)]
        rows = [np.asarray(row, dtype=np.int64) for example in examples for row in example["rows"]]
        starts = [start for example in examples for start in example["completion_starts"]]
        batch: dict[str, Any] = {
            "number": torch.tensor([example["number"] for example in examples]),
            "groups": torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
            "lengths": torch.tensor([len(row) - start for row, start in zip(rows, starts, strict=True)]),
            "weights": torch.tensor([example["weight"] for example in examples]).repeat_interleave(torch.tensor(sizes)),
            "rows": rows,
            "completion_starts": starts,
            "sections": [example["section"] for example in examples],
        }
        for name in ("pairs", "ties"):
            placed = [
                (offset + one, offset + other)
                for example, offset in zip(examples, offsets, strict=False)
                for one, other in example[name]
            ]
            batch[name] = torch.tensor(placed, dtype=torch.int64).reshape(-1, 2)
        if any(example["ranks"] for example in examples):
            batch["ranks"] = torch.tensor(
                [rank for example, size in zip(examples, sizes, strict=True) for rank in example["ranks"] or [math.nan] * size]
            )
        if any(example["labels"] for example in examples):
            width = max(len(row) for example in examples for row in example["labels"])
            batch["labels"] = torch.tensor(
                [
                    row
                    for example, size in zip(examples, sizes, strict=True)
                    for row in example["labels"] or [[math.nan] * width] * size
                ]
            )
        if any(example["margins"] for example in examples):
            batch["margins"] = torch.tensor(
                [margin for example in examples for margin in example["margins"] or [0.0] * len(example["pairs"])]
            )
        batch["items"] = torch.tensor(self._items(batch))
        return batch

    def _items(self, batch: Mapping[str, Any]) -> int:
        match self.item:
            case "pairs":
                return len(batch["pairs"])
            case "comparisons":
                return len(batch["pairs"]) + len(batch["ties"])
            case "groups":
                return len(batch["number"])
            case "rows":
                return len(batch["rows"])
            case "labels":
                return int((~batch["labels"].isnan()).sum()) if "labels" in batch else 0


def bootstrap_repeats(seed: int, member: int, numbers: Sequence[int]) -> list[int]:
    """How often each dataset row is in a member's sample: Poisson with mean 1, the same whenever the row comes."""
    return [int(np.random.Generator(np.random.Philox(key=[seed, (member << 40) + number])).poisson()) for number in numbers]
