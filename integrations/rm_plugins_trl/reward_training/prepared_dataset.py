"""A dataset as a trainer needs it: tokenized, short enough, and with what the loss looks at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as compute
from accelerate import PartialState
from datasets import Dataset, List

from rm_plugins.errors import DataError
from rm_plugins.losses.loss import needs_of
from rm_plugins_trl.reward_training.training_rows import Tokenization, features, is_tokenized

if TYPE_CHECKING:
    from datasets import IterableDataset

    from rm_plugins.losses import Loss, Need, RewardBatch

logger = logging.getLogger(__name__)


def prepared_dataset(
    dataset: Dataset | IterableDataset,
    tokenization: Tokenization,
    overlong: MutableMapping[str, int],
    *,
    num_proc: int | None = None,
    reports: bool = True,
) -> Dataset | IterableDataset:
    """The columns of `rm_plugins_trl.reward_training.training_rows.features`, without rows that are too long.

    How many rows have a text that is too long is put into `overlong` by the dataset's name, and logged if `reports`. Those of a
    stream, whose number is not known before it ends, are counted as they pass. What is tokenized already is returned as it is.

    Raises:
        DataError: A row is in none of the formats, or every row is too long.
    """
    columns = dataset.column_names or list(next(iter(dataset)))  # which a stream may not know
    if is_tokenized(columns):
        return dataset
    name, limit = tokenization.name, tokenization.renderer.rendering.max_length
    settings = {"batched": True, "with_indices": True, "features": features(tokenization.own), "remove_columns": columns}
    if not isinstance(dataset, Dataset):
        stream = dataset.map(tokenization, **settings)
        if limit is None or tokenization.truncate:
            return stream

        def fits(longest: int) -> bool:
            overlong[name] = overlong.get(name, 0) + (longest > limit)
            return longest <= limit

        return stream.filter(fits, input_columns="longest")
    with PartialState().local_main_process_first():
        tokenized = dataset.map(tokenization, **settings, num_proc=num_proc, desc=f"Tokenizing {name} dataset")
        total, long = len(tokenized), 0 if limit is None else int((np.asarray(tokenized["longest"]) > limit).sum())
        if long and not tokenization.truncate:
            description = f"Filtering {name} >{limit} tokens"
            tokenized = tokenized.filter(
                lambda longest: longest <= limit, input_columns="longest", num_proc=num_proc, desc=description
            )
    overlong[name] = long
    if long:
        message = f"{long} of {total} rows of the {name} dataset ({long / total:.1%}) are longer than {limit} tokens"
        if not len(tokenized):
            raise DataError(f"{message}, so none is left. Raise max_length, or set overlong='truncate'.")
        if reports:
            logger.warning("%s and were %s.", message, "truncated" if tokenization.truncate else "dropped")
    return tokenized


def _counts(dataset: Dataset, columns: set[str]) -> dict[str, int]:
    """How many values the lists of each column hold; 0 for a column that is not there, the rows for one without lists."""
    counts: dict[str, int] = dict.fromkeys(columns, 0)
    lists = [column for column in columns if isinstance(dataset.features.get(column), List)]
    counts |= {column: len(dataset) for column in columns & set(dataset.column_names) - set(lists)}
    for table in dataset.select_columns(lists).with_format("arrow").iter(batch_size=10_000):
        for column in lists:
            counts[column] += compute.sum(compute.list_value_length(table[column])).as_py() or 0
    return counts


def _items(dataset: Dataset, counts: Mapping[str, int], need: Need) -> tuple[int, str]:
    """How many of a dataset should have what is needed, and what these are called."""
    match need.each:
        case "pair" | "tie":
            return counts[f"{need.each}s"], f"{need.each}s"
        case "row":
            return _counts(dataset, {"completion_starts"})["completion_starts"], "texts"
        case "judgement":
            return len(dataset), "rows"


def check_needs(dataset: Dataset, loss: Loss, name: str, *, reports: bool = True) -> None:
    """Refuse a dataset without what the loss needs, and say what the loss does not look at.

    Raises:
        DataError: The dataset has nothing of it, or only some have what all must have.
    """
    needs = [need for need in needs_of(loss) if need.from_data]
    counts = _counts(dataset, {"pairs", "ties", *(need.column for need in needs)})
    for need in needs:
        if not counts[need.column]:
            raise DataError(f"The loss {_name(loss)!r} needs {need.name}, and the {name} dataset has none.{_comes_of(need)}")
    for need in needs:
        total, items = _items(dataset, counts, need)
        if need.complete and counts[need.column] < total:
            missing = f"{total - counts[need.column]} of {total} {items} of the {name} dataset have none"
            raise DataError(f"The loss {_name(loss)!r} needs {need.name}, and {missing}.")
    if counts["ties"] and loss.mean_over == "pairs" and reports:
        logger.warning(
            "The %s dataset has %d ties, of which the loss %r learns nothing; 'rao-kupper' and 'davidson' do.",
            *(name, counts["ties"], _name(loss)),
        )


def check_batch(batch: RewardBatch, loss: Loss) -> None:
    """Refuse a batch without what the loss needs, which a stream shows only when it comes.

    Raises:
        DataError: It is missing.
    """
    for need in needs_of(loss):
        if need.of(batch) is None:
            raise DataError(f"The loss {_name(loss)!r} needs {need.name}, and a batch of the data has none.{_comes_of(need)}")


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", type(loss).__name__))


def _comes_of(need: Need) -> str:
    return f" {need.comes_of}" if need.comes_of else f" It is the column {need.name!r}."
