"""The data arguments of ``rm-plugins train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, load_dataset
from trl import ScriptArguments, get_dataset

from rm_plugins.data.rows import is_data_file, read_rows
from rm_plugins.errors import DataError


@dataclass
class TrainScriptArguments(ScriptArguments):
    """TRL's script arguments; a data set may also be a JSON Lines or Parquet file."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset or file to evaluate on at the end of training, and during it where eval_strategy says so; the "
            "test split of the training dataset if unset and eval_strategy is not 'no'."
        },
    )


def training_data(script: Any, args: Any, mixture: Any) -> tuple[Any, Any]:
    """The training and the evaluation dataset; the latter is None where nothing asks for one.

    Raises:
        DataError: No dataset is named, or a split is missing.
    """
    train, test = script.dataset_train_split, script.dataset_test_split
    evaluates = args.eval_strategy != "no"
    evaluation = None if script.eval_dataset_name is None else _loaded(script.eval_dataset_name, script, test)
    if mixture.datasets:
        splits = get_dataset(mixture)
        training, held_out = splits[train], splits.get(test)
    elif script.dataset_name:
        training = _loaded(script.dataset_name, script, train)
        splits_itself = evaluates and evaluation is None and not is_data_file(script.dataset_name)
        held_out = _loaded(script.dataset_name, script, test) if splits_itself else None
    else:
        raise DataError("Name the training data: --dataset_name NAME_OR_FILE, or `datasets:` in the configuration file.")
    if evaluates and evaluation is None and held_out is None:
        raise DataError(
            f"eval_strategy is {args.eval_strategy.value!r}, but there is nothing to evaluate on: --eval_dataset_name."
        )
    return training, held_out if evaluates and evaluation is None else evaluation


def _loaded(name: str, script: Any, split: str) -> Any:
    if is_data_file(name):
        return Dataset.from_list(list(read_rows(name)))
    return load_dataset(name, name=script.dataset_config, split=split, streaming=script.dataset_streaming)
