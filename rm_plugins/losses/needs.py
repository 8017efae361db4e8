"""What a loss needs of its data: one object for each, from the dataset's column to the batch of all processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rm_plugins.data.judged_values import numbers_of
from rm_plugins.data.judgements import Judgement
from rm_plugins.losses.batch import RewardBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NeedName: TypeAlias = Literal["pairs", "ties", "ranks", "labels", "margins", "weights", "lengths", "logprobs"]
"""The needs that every loss may name."""

Each: TypeAlias = Literal["judgement", "row", "pair", "tie"]
"""What has one value: a row of the dataset; each of its texts (a row of the batch); each of its pairs; or each of its ties."""


@dataclass(frozen=True)
class Need:
    """Numbers of the dataset that a loss needs, and their way into the batch.

    A loss of a plug-in brings its own, in its ``needs``, and finds the numbers in ``batch.extras[name]``. Subclasses override
    `read` to check values or to take them from elsewhere, and `collate` for another shape.

    Args:
        name: The dataset's column, and the name in ``batch.extras``.
        each: The items that have a number. The number of a dataset row (``judgement``) is repeated for each of its texts in the batch.
        missing: The number for items without one, in a batch where others have one.
        complete: Whether a dataset is refused if any item lacks a number; otherwise only if all do.
        comes_of: A sentence for the error message: where in the data the numbers come from.

    >>> confidence = Need("confidence", each="pair")
    >>> row = {"prompt": "2+2?", "chosen": "4", "rejected": "5", "confidence": 0.9}
    >>> from rm_plugins.data.judgements import judgement
    >>> confidence.read(row, judgement(row))
    (0.9,)
    """

    name: str
    each: Each = "row"
    missing: float = math.nan
    complete: bool = False
    comes_of: str = ""

    dtype: ClassVar[Literal["float32", "int32"]] = "float32"
    """The type of the numbers in a tokenized dataset."""
    depth: ClassVar[int] = 1
    """How deeply the column of a tokenized dataset nests the numbers: 0 for a number, 1 for a list, 2 for a list of lists."""
    from_data: ClassVar[bool] = True
    """Whether the numbers are read from the dataset; otherwise `collate` makes them from the token ids, or the model does."""

    @property
    def column(self) -> str:
        """The column of a tokenized dataset."""
        return self.name

    def read(self, row: Mapping[str, Any], judgement: Judgement) -> Any:
        """The numbers of a dataset row, one for each text, pair or tie in the order of the judgement; empty where it has none.

        A row with one text, pair or tie may have a number in place of a list.

        Args:
            row: The row's columns.
            judgement: What the row says of its texts.

        Raises:
            DataError: A value is not allowed.
        """
        items = {"judgement": (row,), "row": judgement.samples, "pair": judgement.pairs, "tie": judgement.ties}
        count = len(items[self.each])
        return tuple(self.missing if value is None else value for value in numbers_of(row, self.name, count))

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """The numbers of tokenized dataset rows as a tensor of the batch, or None where no row has any.

        Args:
            examples: The rows: ``rows`` has the token ids of each text, ``pairs`` and ``ties`` the texts' positions, and
                ``[column]`` what `read` gave.
        """
        import torch

        if not any(example[self.column] for example in examples):
            return None
        values: list[Any] = []
        for example in examples:
            given = example[self.column]
            size = len(example[_COUNTED.get(self.each, "rows")])
            if self.each == "judgement":
                given = [*given] * size
            values += given or [self.missing] * size
        return torch.tensor(values, dtype=torch.float32)

    def gather(self, shares: Sequence[RewardBatch], device: torch.device) -> Tensor | None:
        """The numbers of all processes, or None where no process has any.

        Args:
            shares: The batches of all processes in their order.
            device: Where the result is put.
        """
        sizes = [_size(share, self.each) for share in shares]
        return joined([self.of(share) for share in shares], sizes, self.missing, device)

    def of(self, batch: RewardBatch) -> Tensor | None:
        """What a batch has of it, None where it has nothing."""
        return getattr(batch, self.name) if self.name in _FIELDS else batch.extras.get(self.name)


_FIELDS = {field.name for field in fields(RewardBatch)}
_COUNTED = {"pair": "pairs", "tie": "ties"}
"""The field with the items, in a tokenized dataset row and in a batch, where the items are not the rows."""


def _size(batch: RewardBatch, each: Each) -> int:
    """How many numbers a batch has."""
    items = getattr(batch, _COUNTED.get(each, "rewards"))
    return 0 if items is None else len(items)


def joined(
    values: Sequence[Tensor | None],
    sizes: Sequence[int],
    missing: float,
    device: torch.device,
    shifts: Sequence[int] | None = None,
) -> Tensor | None:
    """The tensors, concatenated; None if all are None.

    Args:
        values: The tensors.
        sizes: The length of each, also of those that are None.
        missing: What fills those that are None while others are not.
        device: Where the result is put.
        shifts: What is added to the values of each tensor; None for nothing.
    """
    import torch

    given = next((value for value in values if value is not None), None)
    if given is None:
        return None
    whole = [
        torch.full((size, *given.shape[1:]), missing, dtype=given.dtype) if value is None else value
        for value, size in zip(values, sizes, strict=True)
    ]
    if shifts is not None:
        whole = [value + shift for value, shift in zip(whole, shifts, strict=True)]
    return torch.cat([value.to(device) for value in whole])


# --- The built-in needs ---------------------------------------------------------------------------------------------------


class _Judged(Need):
    """A value of the row's judgement."""

    def read(self, row: Mapping[str, Any], judgement: Judgement) -> Any:
        return list(getattr(judgement, self.name) or ())


class _Comparisons(_Judged):
    """int64 [M, 2], positions of rows of the batch."""

    dtype = "int32"
    depth = 2

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Tensor:
        import torch

        placed: list[tuple[int, int]] = []
        offset = 0
        for example in examples:
            placed += [(offset + one, offset + other) for one, other in example[self.name]]
            offset += len(example["rows"])
        return torch.tensor(placed, dtype=torch.int64).reshape(-1, 2)

    def gather(self, shares: Sequence[RewardBatch], device: torch.device) -> Tensor | None:
        rows = [len(share.rewards) for share in shares]
        shifts = [sum(rows[:number]) for number in range(len(shares))]
        return joined([self.of(share) for share in shares], [_size(share, self.each) for share in shares], 0, device, shifts)


class _Labels(_Judged):
    """float [N, attributes]."""

    depth = 2

    def read(self, row: Mapping[str, Any], judgement: Judgement) -> Any:
        return [[math.nan if label is None else label for label in labels] for labels in judgement.labels or ()]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Tensor | None:
        import torch

        if not any(example["labels"] for example in examples):
            return None
        width = max(len(labels) for example in examples for labels in example["labels"])
        unknown = [math.nan] * width
        return torch.tensor(
            [labels for example in examples for labels in example["labels"] or [unknown] * len(example["rows"])]
        )


class _Weights(Need):
    """float [N], the weight of the row's judgement."""

    depth = 0

    @property
    def column(self) -> str:
        return "weight"

    def read(self, row: Mapping[str, Any], judgement: Judgement) -> float:
        return judgement.weight

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Tensor:
        import torch

        sizes = torch.tensor([len(example["rows"]) for example in examples])
        return torch.tensor([example["weight"] for example in examples]).repeat_interleave(sizes)


class _Lengths(Need):
    """int64 [N], counted from the token ids."""

    from_data = False

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Tensor:
        import torch

        return torch.tensor(
            [
                len(row) - start
                for example in examples
                for row, start in zip(example["rows"], example["completion_starts"], strict=True)
            ]
        )


class _OfModel(Need):
    """What the model gives with the rewards."""

    from_data = False

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> None:
        return None


_PAIRS = _Comparisons(
    "pairs",
    "pair",
    comes_of="Pairs come from 'chosen' and 'rejected', or from 'completions' with 'ranks', 'scores', 'best' or 'labels' that differ.",
)
_TIES = _Comparisons(
    "ties",
    "tie",
    comes_of="Ties come from 'chosen' and 'rejected' with 'tie', or from 'completions' with equal 'ranks' or 'scores'.",
)
_RANKS = _Judged("ranks", comes_of="Ranks come from 'completions' with 'ranks' or 'scores', or from preference pairs.")
_LABELS = _Labels(
    "labels", comes_of="Labels come from 'score', 'scores', 'label' or 'labels' with 'completion' or 'completions'."
)
_MARGINS = _Judged(
    "margins",
    "pair",
    missing=0.0,
    complete=True,
    comes_of="Margins come from a column 'margin' with 'chosen' and 'rejected'.",
)

BATCH_NEEDS: Mapping[str, Need] = {
    "pairs": _PAIRS,
    "ties": _TIES,
    "ranks": _RANKS,
    "labels": _LABELS,
    "margins": _MARGINS,
    "weights": _Weights("weights", "judgement", missing=1.0),
    "lengths": _Lengths("lengths", missing=0.0),
    "logprobs": _OfModel("logprobs"),
}
"""The needs that are fields of `RewardBatch`, by their names there."""

DATA_NEEDS = tuple(need for need in BATCH_NEEDS.values() if need.from_data)
"""Those of `BATCH_NEEDS` that are read from datasets."""
