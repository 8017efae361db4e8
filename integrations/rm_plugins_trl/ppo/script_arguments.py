"""The arguments of ``rm-plugins ppo`` about data and rewards, and the rows that it trains on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset

from rm_plugins.errors import DataError, SpecError, UnsupportedError
from rm_plugins_trl.reward_function import RewardFunction, reward_func
from rm_plugins_trl.reward_training.train_data import TrainScriptArguments
from rm_plugins_trl.reward_training.training_rows import ROW_JSON


class Repeated(argparse.Action):
    """Collects the values of an option that is given several times; they replace the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add the values of one occurrence."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


@dataclass
class PPOScriptArguments(TrainScriptArguments):
    """Data, rewards and where PPO starts."""

    reward: list[str] | None = field(
        default=None,
        metadata={
            "action": Repeated,
            "help": "The reward: a model folder, a hub id, a URL, module:function, a spec file, or a name of rm_plugins.yaml. May be "
            "repeated; the rewards are added up with reward_weights. By default reward_model_path.",
        },
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "The value model: the folder or hub id of a sequence classifier with one label, or the critic of an earlier "
            "training. By default what critic says."
        },
    )
    preset: str = field(
        default="trl",
        metadata={"help": "The defaults of arguments that are not given: of TRL 1.12 (trl), or of OpenRLHF's PPO (openrlhf)."},
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Whether training may overwrite a finished model or checkpoints in output_dir."},
    )


def loaded_rewards(script: PPOScriptArguments, args: Any) -> list[RewardFunction] | None:
    """The rewards that are named, loaded; None if the trainer is to load ``reward_model_path``.

    Raises:
        SpecError: None is named, or a spec is wrong, or there are more or fewer weights than rewards.
        UnsupportedError: Both options name one.
    """
    specs: Any = script.reward
    if specs is None:
        if args.reward_model_path is None:
            raise SpecError("Name the reward: --reward SPEC (or reward in the --config file).")
        return None
    if args.reward_model_path is not None:
        raise UnsupportedError("--reward and --reward_model_path both name the reward. Give one of them.")
    rewards = [reward_func(spec) for spec in ([specs] if isinstance(specs, (str, Mapping)) else specs)]
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise SpecError(
            f"--reward_weights has {len(args.reward_weights)} numbers for {len(rewards)} rewards. Give one for each."
        )
    return rewards


def prompt_rows(dataset: Any, name: str | None) -> Any:
    """A dataset whose rows are those of the file or dataset that `reward_dataset` has read, with ``prompt`` and all other columns.

    Args:
        dataset: The dataset; None stays None.
        name: What an error calls it.

    Raises:
        DataError: The first row has no ``prompt``.
    """
    if dataset is None:
        return None
    if ROW_JSON in (dataset.column_names or ()):
        dataset = dataset.with_transform(_decoded) if isinstance(dataset, Dataset) else _decoded_stream(dataset)
    first = next(iter(dataset), None)
    if first is not None and first.get("prompt") is None and first.get("input_ids") is None:
        raise DataError(
            f"{name or 'The dataset'} has no 'prompt' in its first row, whose columns are {', '.join(first)}. PPO needs prompts: "
            "--map OLD=prompt renames a column."
        )
    return dataset


def _decoded(batch: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """Rows from their JSON, as columns; a row without a column of another one has None there."""
    rows = [json.loads(text) for text in batch[ROW_JSON]]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _decoded_stream(dataset: IterableDataset) -> IterableDataset:
    return IterableDataset.from_generator(_rows_of, gen_kwargs={"dataset": dataset})


def _rows_of(dataset: IterableDataset) -> Any:
    for columns in dataset:
        yield json.loads(columns[ROW_JSON])
