"""The data arguments of ``rm-plugins train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, load_dataset
from trl import ScriptArguments, get_dataset

from rm_plugins.data.rows import is_data_file, read_rows
from rm_plugins.errors import DataError

__all__ = ["TrainScriptArguments", "training_data"]


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
    wants_evaluation = args.eval_strategy != "no"
    if script.eval_dataset_name is not None:
        evaluation = _loaded(script.eval_dataset_name, script, script.dataset_test_split)
    if mixture.datasets:
        found = get_dataset(mixture)
        train = found[script.dataset_train_split]
        test = found.get(script.dataset_test_split)
    elif script.dataset_name:
        train = _loaded(script.dataset_name, script, script.dataset_train_split)
        test = None
        if wants_evaluation and script.eval_dataset_name is None and not is_data_file(script.dataset_name):
            test = _loaded(script.dataset_name, script, script.dataset_test_split)
    else:
        raise DataError("Name the training data: --dataset_name NAME_OR_FILE, or `datasets:` in the configuration file.")
    if script.eval_dataset_name is not None:
        return train, evaluation
    if wants_evaluation and test is None:
        raise DataError(
            f"eval_strategy is {args.eval_strategy.value!r}, but there is nothing to evaluate on: --eval_dataset_name."
        )
    return train, test if wants_evaluation else None


def _loaded(name: str, script: Any, split: str) -> Any:
    if is_data_file(name):
        return Dataset.from_list(list(read_rows(name)))
    return load_dataset(name, name=script.dataset_config, split=split, streaming=script.dataset_streaming)
