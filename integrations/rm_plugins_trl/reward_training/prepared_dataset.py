"""A dataset as a trainer needs it: tokenized, short enough, and with the columns that the loss needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as compute
from accelerate import PartialState
from datasets import Dataset, IterableDataset, List
from numpy.typing import NDArray

from rm_plugins.errors import DataError
from rm_plugins.losses.loss import needs_of
from rm_plugins_trl.reward_training.training_rows import Tokenization, features, is_tokenized, is_tokenized_by_trl
from rm_plugins_trl.reward_training.trl_batches import TrlTokenization

if TYPE_CHECKING:
    from rm_plugins.losses import Loss, Need, RewardBatch

logger = logging.getLogger(__name__)


def unformatted(dataset: Any) -> Any:
    """A dataset with plain Python values and current column names.

    ``with_format`` would give tensors, arrays or tables. ``chosen_input_ids`` and ``rejected_input_ids`` are TRL's former names of the
    token ids of a pair.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        return dataset
    dataset = dataset.with_format(None)
    columns = set(dataset.column_names or ())
    old = {f"{side}_input_ids": f"{side}_ids" for side in ("chosen", "rejected")}
    if columns >= old.keys() and not is_tokenized_by_trl(columns):
        warnings.warn(
            "The columns `chosen_input_ids` and `rejected_input_ids` are now called `chosen_ids` and `rejected_ids`; rename them.",
            FutureWarning,
            stacklevel=2,
        )
        dataset = dataset.rename_columns(old)
    return dataset


def prepared_dataset(
    dataset: Dataset | IterableDataset,
    tokenization: Tokenization,
    overlong: MutableMapping[str, int],
    *,
    for_trl: bool = False,
    usual_length: int | None = None,
    num_proc: int | None = None,
    reports: bool = True,
) -> Dataset | IterableDataset:
    """A dataset from which batches are made, without rows that are too long.

    The number of rows with a text that is too long is put into `overlong` by the dataset's name, and logged if `reports`. In a stream they
    are counted as they pass. A tokenized dataset is not tokenized again.

    Args:
        dataset: What `unformatted` gave.
        tokenization: Makes the token ids; its renderer knows how many a text may have.
        overlong: Counts by the dataset's name.
        for_trl: Whether to add TRL's columns to the dataset's own, in place of those of
            `rm_plugins_trl.reward_training.training_rows.features`.
        usual_length: The most tokens that the tokenizer or the model is made for; a warning counts longer texts.
        num_proc: The processes that tokenize.
        reports: Whether this process logs.

    Raises:
        DataError: There is no row, a row is in none of the formats, or every row is too long.
    """
    columns = dataset.column_names or list(next(iter(dataset), {}))  # which a stream may not know
    name, limit = tokenization.name, tokenization.renderer.rendering.max_length
    settings: dict[str, Any] = {"batched": True, "with_indices": True}
    make: Tokenization | TrlTokenization | None = tokenization
    if for_trl:
        make = None if is_tokenized_by_trl(columns) else TrlTokenization(tokenization)
    elif is_tokenized(columns):
        return dataset
    else:
        settings |= {"features": features(tokenization.own), "remove_columns": columns}
    of_length = ["chosen_ids", "rejected_ids"] if make is None else ["longest"]
    if isinstance(dataset, Dataset) and not len(dataset):
        raise DataError(f"The {name} dataset has no rows. Check the file, its split and its filters.")
    if not isinstance(dataset, Dataset):
        stream = dataset if make is None else dataset.map(make, **settings)
        if limit is None or tokenization.truncate:
            return stream

        def fits(*lengths: Any) -> bool:
            longest = _longest(*lengths)
            overlong[name] = overlong.get(name, 0) + (longest > limit)
            return longest <= limit

        return stream.filter(fits, input_columns=of_length)
    with PartialState().local_main_process_first():
        tokenized = (
            dataset if make is None else dataset.map(make, **settings, num_proc=num_proc, desc=f"Tokenizing {name} dataset")
        )
        lengths = _lengths(tokenized, of_length)
        total, long = len(tokenized), 0 if limit is None else int((lengths > limit).sum())
        if long and not tokenization.truncate:
            tokenized = tokenized.filter(
                lambda *lengths: _longest(*lengths) <= (limit or 0),
                input_columns=of_length,
                num_proc=num_proc,
                desc=f"Filtering {name} >{limit} tokens",
            )
    overlong[name] = long
    if long:
        message = f"{long} of {total} rows of the {name} dataset ({long / total:.1%}) are longer than {limit} tokens"
        if not len(tokenized):
            raise DataError(f"{message}, so no row is left. Raise max_length, or set overlong='truncate'.")
        if reports:
            logger.warning("%s and were %s.", message, "truncated" if tokenization.truncate else "dropped")
    unusual = 0 if usual_length is None else int(((lengths > usual_length) & (lengths <= (limit or np.inf))).sum())
    if unusual and reports:
        logger.warning(
            "%d of %d rows of the %s dataset are longer than the %d tokens that the tokenizer or the model is made for; "
            "max_length allows them, so they are used.",
            *(unusual, total, name, usual_length),
        )
    return tokenized


def _lengths(dataset: Dataset, columns: list[str]) -> NDArray[np.int64]:
    """The largest value of a row's columns, [N]: a number itself, or the length of a list."""
    parts = [np.zeros(0, np.int64)]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        sizes = [compute.list_value_length(table[name]) if name != "longest" else table[name] for name in columns]
        parts.append(np.max([size.to_numpy() for size in sizes], axis=0))
    return np.concatenate(parts)


def _longest(*texts: Any) -> int:
    """The length of the longest text; a number is a length already."""
    return max(text if isinstance(text, int) else len(text) for text in texts)


def _counts(dataset: Dataset, columns: set[str]) -> dict[str, int]:
    """The number of values in the lists of each column; 0 for an absent column, the number of rows for one without lists."""
    counts: dict[str, int] = dict.fromkeys(columns, 0)
    lists = [column for column in columns if isinstance(dataset.features.get(column), List)]
    counts |= {column: len(dataset) for column in columns & set(dataset.column_names) - set(lists)}
    for table in dataset.select_columns(lists).with_format("arrow").iter(batch_size=10_000):
        for column in lists:
            counts[column] += compute.sum(compute.list_value_length(table[column])).as_py() or 0
    return counts


def _items(dataset: Dataset, counts: Mapping[str, int], need: Need) -> tuple[int, str]:
    """The number of items of a dataset that should have what is needed, and their name."""
    match need.each:
        case "pair" | "tie":
            return counts[f"{need.each}s"], f"{need.each}s"
        case "row":
            return _counts(dataset, {"completion_starts"})["completion_starts"], "texts"
        case "judgement":
            return len(dataset), "rows"


def check_needs(dataset: Dataset, loss: Loss, name: str, *, reports: bool = True) -> None:
    """Refuse a dataset that lacks what the loss needs, and log what the loss ignores.

    Raises:
        DataError: The dataset lacks it, or only some items have what all must have.
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
            "The %s dataset has %d ties, which the loss %r ignores; 'rao-kupper' and 'davidson' use them.",
            *(name, counts["ties"], _name(loss)),
        )


def check_batch(batch: RewardBatch, loss: Loss) -> None:
    """Refuse a batch that lacks what the loss needs, which a stream shows only batch by batch.

    Raises:
        DataError: It is missing.
    """
    for need in needs_of(loss):
        if need.of(batch) is None:
            raise DataError(
                f"The loss {_name(loss)!r} needs {need.name}, and a batch of the data has no such values.{_comes_of(need)}"
            )


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", type(loss).__name__))


def _comes_of(need: Need) -> str:
    return f" {need.comes_of}" if need.comes_of else f" It is the column {need.name!r}."
