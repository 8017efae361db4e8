"""``rm-plugins train``: the flags and the YAML configuration of ``trl reward``, and ours. Importing it imports no trl."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from rm_plugins.data.row_files import is_data_file

_MODULE = "rm_plugins_trl.reward_training.train"


@click.command(
    "train",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train a reward model on pairs, rankings, ratings or labels.

    Takes the flags of `trl reward` and its --config FILE.yaml, plus those of RewardConfig (--loss, --regularizers, --members and
    so on) and --eval_dataset_name; --dataset_name may be a file or folder of rows, which --map maps and `rm-plugins data check` looks at.
    --resume_from_checkpoint true goes on where a training was stopped. Arguments of `accelerate launch` (--num_processes 2,
    --accelerate_config fsdp2) start it on several processes.
    """
    run(arguments)


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and train, under ``accelerate launch`` if they ask for it."""
    parser = _parser()
    *_, from_config, from_line = parser.parse_args_and_config(
        list(arguments), return_remaining_strings=True, separate_remaining_strings=True
    )
    if from_config or from_line:
        _launch([*from_config, *from_line], _without(list(arguments), from_line))
    else:
        _train(arguments, *parser.parse_args_and_config(list(arguments)))


def _parser() -> Any:
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from rm_plugins_trl.reward_training.reward_config import RewardConfig
    from rm_plugins_trl.reward_training.train_data import TrainScriptArguments

    return TrlParser((TrainScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig), prog="rm-plugins train")


def _launch(launcher: list[str], own: list[str]) -> None:
    """Start this module on several processes."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    from rm_plugins_trl.trl_internals import resolve_accelerate_config_argument

    known = [option for action in launch_command_parser()._actions for option in action.option_strings]
    for argument in launcher:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in (*known, "--accelerate_config"):
            own_names = [option for action in _parser()._actions for option in action.option_strings]
            nearest = [f"Did you mean {option}?" for option in get_close_matches(name, [*own_names, *known], n=1)]
            listed = "`rm-plugins train --help` lists ours, `accelerate launch --help` the others."
            raise click.UsageError(f"There is no argument {name}. {(nearest or [listed])[0]}")
    options = launch_command_parser().parse_args([*resolve_accelerate_config_argument(launcher), "--module", _MODULE, *own])
    if options.cpu and (options.num_processes or 1) > 1 and options.mpirun_hostfile is None:
        # Without MPI, accelerate's launcher starts one process on a CPU however many it is asked for.
        from torch.distributed.run import main

        os.environ["ACCELERATE_USE_CPU"] = "true"
        main(["--standalone", "--nproc_per_node", str(options.num_processes), "--module", _MODULE, *own])
    else:
        launch_command(options)


def _without(arguments: list[str], taken: list[str]) -> list[str]:
    """The arguments without those that the launcher takes, which are an ordered part of them."""
    kept = []
    for argument in arguments:
        if taken and argument == taken[0]:
            taken = taken[1:]
        else:
            kept.append(argument)
    return kept


def _train(arguments: Sequence[str], script: Any, args: Any, model: Any, mixture: Any) -> None:
    from rm_plugins_trl.reward_training.adapters import adapter_and_quantization
    from rm_plugins_trl.reward_training.base_model import check_model_named
    from rm_plugins_trl.reward_training.reward_trainer import RewardTrainer
    from rm_plugins_trl.reward_training.started_folder import check_folder
    from rm_plugins_trl.reward_training.train_data import training_data

    check_model_named(model.model_name_or_path)
    check_folder(args, arguments)
    train_dataset, eval_dataset = training_data(script, args, mixture)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = RewardTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        **adapter_and_quantization(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if "eval_accuracy" in trainer.last_metrics:
        trainer.accelerator.print(f"Accuracy on the evaluation data: {trainer.last_metrics['eval_accuracy']:.4f}")
    if args.save_strategy == "no":
        trainer.save_model()  # the trainer has not
    dataset_name = script.dataset_name if _is_hub_id(script.dataset_name) else None
    trainer.create_model_card(dataset_name=dataset_name)
    trainer.accelerator.print(f"Saved to {args.output_dir}; `rm-plugins verify {args.output_dir}` checks it.")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    if trainer.accelerator.num_processes > 1:
        # Leave together, and not before gloo's threads have let go of their tensors, which takes them a moment of Python's
        # lock: where they still wait for it when Python ends, the process aborts or blocks.
        trainer.accelerator.wait_for_everyone()
        time.sleep(1)


def _is_hub_id(name: str | None) -> bool:
    """Whether a model card may name this dataset: a local path means nothing to others."""
    return name is not None and not is_data_file(name) and not os.path.exists(name)


if __name__ == "__main__":
    run(sys.argv[1:])
