"""Datasets to train on: files and published datasets; and the data arguments of ``rm-plugins train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from trl import ScriptArguments, get_dataset

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import is_data_file, load_rows, mapped_rows, read_rows
from rm_plugins.data.written_mapping import mapping_beside, mapping_of
from rm_plugins.errors import DataError
from rm_plugins_trl.reward_training.training_rows import stored_rows, stored_stream

_SPLITS = ("train", "test", "validation")
"""The names of whole splits. TRL's arguments always name a split; for a file, these names mean the whole file."""


@dataclass
class TrainScriptArguments(ScriptArguments):
    """TRL's script arguments; a dataset may also be a file or folder of rows, as `rm-plugins score` takes them."""

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset or file to evaluate on: at the end of training, and during training as eval_strategy sets it. If "
            "unset and eval_strategy is not 'no', the test split of the training dataset is used."
        },
    )
    map: list[str] | None = field(
        default=None,
        metadata={
            "help": "Renames or converts the columns of the datasets: the name of a published format, OLD=NEW, or a YAML file."
        },
    )


def training_data(script: Any, args: Any, mixture: Any) -> tuple[Any, Any]:
    """The training and the evaluation dataset, or None if no evaluation is asked for.

    Raises:
        DataError: No dataset is named, or a split is missing.
    """
    train, test = script.dataset_train_split, script.dataset_test_split
    evaluates = args.eval_strategy != "no"

    def loaded(name: str, split: str) -> Any:
        return reward_dataset(
            name, split, map=script.map or (), config=script.dataset_config, streaming=script.dataset_streaming
        )

    evaluation = None if script.eval_dataset_name is None else loaded(script.eval_dataset_name, test)
    if mixture.datasets:
        mapping = mapping_of(script.map or ())
        splits = {name: _mapped(split, mapping, f"the mixture's {name} split") for name, split in _mixed(mixture).items()}
        if train not in splits:
            raise DataError(
                f"The mixture has no split {train!r}; it has {', '.join(splits)}. Set dataset_train_split to one of them."
            )
        training, held_out = splits[train], splits.get(test)
    elif script.dataset_name:
        training = loaded(script.dataset_name, train)
        splits_itself = evaluates and evaluation is None and not is_data_file(script.dataset_name)
        held_out = loaded(script.dataset_name, test) if splits_itself else None
    else:
        raise DataError("Name the training data: --dataset_name NAME_OR_FILE, or `datasets:` in the configuration file.")
    if evaluates and evaluation is None and held_out is None:
        raise DataError(
            f"eval_strategy is {args.eval_strategy.value!r}, but there is nothing to evaluate on. "
            "Name it: --eval_dataset_name NAME_OR_FILE."
        )
    return training, held_out if evaluates and evaluation is None else evaluation


def reward_dataset(
    source: str,
    split: str = "train",
    *,
    map: str | Sequence[str] = (),  # as the command line calls it
    config: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """The rows of files or of a dataset as `RewardTrainer` trains on them, exactly as ``rm-plugins data check`` reads them.

    The rows of a file are kept as JSON in one column. `datasets.load_dataset` would give every row the keys of all
    others, with nulls even in tool calls, and refuse columns whose type changes.

    Args:
        source: A file or folder (`rm_plugins.data.row_files.read_rows`), or the name of a dataset.
        split: The split of a dataset or folder.
        map: Renames or converts its columns, like ``--map`` on the command line.
        config: The dataset's configuration.
        streaming: Whether rows are read only when needed.

    Raises:
        DataError: It cannot be read, or a row cannot be mapped.
        SpecError: `map` is not a mapping.
    """
    mapping = mapping_of([map] if isinstance(map, str) else map)
    rows: Callable[[], Iterator[Mapping[str, Any]]]
    if is_data_file(source):
        _check_has_no_parts(source, split, config)
    if is_data_file(source) or (Path(source).is_dir() and config is None):
        rows = partial(read_rows, source, split, mapping=mapping)
    else:
        dataset: Dataset | IterableDataset = load_rows(source, split, config=config, streaming=streaming)
        return _mapped(dataset, mapping or mapping_beside(source), source)
    return stored_stream(rows) if streaming else stored_rows(rows())


def _mixed(mixture: Any) -> Any:
    try:
        return get_dataset(mixture)
    except Exception as error:  # any error of the hub, the disk or a loading script
        names = ", ".join(str(getattr(one, "path", one)) for one in mixture.datasets)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"The datasets of the mixture ({names}) cannot be loaded: {reason}") from error


def _check_has_no_parts(source: str, split: str, config: str | None) -> None:
    """Refuse a split or a configuration for a single file, because all of its rows would be read in any case."""
    if config is not None:
        raise DataError(f"{source!r} is a file and has no configurations. Leave out dataset_config ({config!r}).")
    if split not in _SPLITS:
        raise DataError(
            f"{source!r} is a file and has no splits, so {split!r} would read all of its rows. Put the rows to use into a separate file, "
            "or name a folder whose files are named after their splits (train.jsonl, test.jsonl)."
        )


def _mapped(dataset: Any, mapping: RowMapping | None, name: str) -> Any:
    if mapping is None:
        return dataset

    rows = partial(mapped_rows, lambda _: iter(dataset), name, mapping, None)
    return stored_rows(rows()) if isinstance(dataset, Dataset) else stored_stream(rows)
