"""A dataset as a trainer needs it: tokenized, short enough, and with what the loss looks at."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as compute
from accelerate import PartialState
from datasets import Dataset
from trl.data_utils import get_dataset_column_names

from rm_plugins.errors import DataError
from rm_plugins_trl.reward_training.training_rows import FEATURES, Tokenization, is_tokenized

if TYPE_CHECKING:
    from datasets import IterableDataset

    from rm_plugins.losses import Loss, RewardBatch

__all__ = ["check_batch", "check_needs", "prepared_dataset"]

logger = logging.getLogger(__name__)

_HAVE = {
    "pairs": "Pairs come of 'chosen' and 'rejected', or of 'completions' with 'ranks', 'scores', 'best' or 'labels' that differ.",
    "ranks": "Ranks come of 'completions' with 'ranks' or 'scores', or of preference pairs.",
    "margins": "Margins are a column 'margin' beside 'chosen' and 'rejected'.",
    "labels": "Labels are 'score', 'scores', 'label' or 'labels' beside 'completion' or 'completions'.",
}
"""Where each of what a loss may need comes from."""


def prepared_dataset(
    dataset: Dataset | IterableDataset,
    tokenization: Tokenization,
    overlong: MutableMapping[str, int],
    *,
    num_proc: int | None = None,
    reports: bool = True,
) -> Dataset | IterableDataset:
    """The columns of `rm_plugins_trl.reward_training.training_rows.FEATURES`, without rows that are too long.

    Args:
        dataset: A dataset or stream, which may be tokenized already.
        tokenization: What makes the columns.
        overlong: Where the number of rows with a text that is too long is put, by the dataset's name. How many of a stream are
            is not known before it ends: they are counted as they pass.
        num_proc: Processes that tokenize.
        reports: Whether to log how many rows were dropped or truncated.

    Raises:
        DataError: A row is in none of the formats, or every row is too long.
    """
    columns = get_dataset_column_names(dataset)
    if is_tokenized(columns):
        return dataset
    name, limit = tokenization.name, tokenization.renderer.rendering.max_length
    settings = {"batched": True, "with_indices": True, "features": FEATURES, "remove_columns": columns}
    if not isinstance(dataset, Dataset):
        stream = dataset.map(tokenization, **settings)
        if limit is None or tokenization.truncate:
            return stream

        def fits(longest: int) -> bool:
            overlong[name] = overlong.get(name, 0) + (longest > limit)
            return longest <= limit

        return stream.filter(fits, input_columns="longest")
    with PartialState().local_main_process_first():
        found = dataset.map(tokenization, **settings, num_proc=num_proc, desc=f"Tokenizing {name} dataset")
        total, long = len(found), 0 if limit is None else int((np.asarray(found["longest"]) > limit).sum())
        if long and not tokenization.truncate:
            description = f"Filtering {name} >{limit} tokens"
            found = found.filter(lambda longest: longest <= limit, input_columns="longest", num_proc=num_proc, desc=description)
    overlong[name] = long
    if long:
        message = f"{long} of {total} rows of the {name} dataset ({long / total:.1%}) are longer than {limit} tokens"
        if not len(found):
            raise DataError(f"{message}, so none is left. Raise max_length, or set overlong='truncate'.")
        if reports:
            logger.warning("%s and were %s.", message, "truncated" if tokenization.truncate else "dropped")
    return found


def check_needs(dataset: Dataset, loss: Loss, name: str, *, reports: bool = True) -> None:
    """Refuse a dataset without what the loss needs, and say what the loss does not look at.

    Raises:
        DataError: The dataset has nothing of it, or margins for some pairs only.
    """
    counts = dict.fromkeys((*_HAVE, "ties"), 0)
    for table in dataset.select_columns(list(counts)).with_format("arrow").iter(batch_size=10_000):
        for column in counts:
            counts[column] += compute.sum(compute.list_value_length(table[column])).as_py() or 0
    for column in sorted(loss.needs & _HAVE.keys()):
        if not counts[column]:
            raise DataError(f"The loss {_name(loss)!r} needs {column}, and the {name} dataset has none. {_HAVE[column]}")
    if "margins" in loss.needs and counts["margins"] < counts["pairs"]:
        missing = f"{counts['pairs'] - counts['margins']} of {counts['pairs']} pairs of the {name} dataset have none"
        raise DataError(f"The loss {_name(loss)!r} needs margins, and {missing}.")
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
    for needed in sorted(loss.needs & {"labels", "ranks", "margins"}):
        if getattr(batch, needed) is None:
            raise DataError(f"The loss {_name(loss)!r} needs {needed}, and a batch of the data has none. {_HAVE[needed]}")


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", type(loss).__name__))
