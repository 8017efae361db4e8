"""``rm-plugins train``: the flags and the YAML configuration of ``trl reward``, and ours. Importing it imports no trl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.printed import say
from rm_plugins_trl.reward_training.train_options import GROUPS
from rm_plugins_trl.training_run import (
    check_has_rows,
    check_trackers,
    leave_together,
    published_name,
    run_training,
    set_loading,
)
from rm_plugins_trl.trl_command import TrlCommand, TrlProgram

if TYPE_CHECKING:
    from rm_plugins_trl.launching import Launch


def _configurations() -> tuple[type[Any], ...]:
    from trl import DatasetMixtureConfig, ModelConfig

    from rm_plugins_trl.reward_training.plan import PlanArguments
    from rm_plugins_trl.reward_training.reward_config import RewardConfig
    from rm_plugins_trl.reward_training.train_data import TrainScriptArguments

    return TrainScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig, PlanArguments


def _plan(arguments: Sequence[str], asked: Launch, *parsed: Any) -> bool:
    from rm_plugins_trl.reward_training.plan import print_plan

    return print_plan(arguments, asked, *parsed)


def _train(arguments: Sequence[str], script: Any, args: Any, model: Any, mixture: Any, _plan: Any) -> None:
    from rm_plugins_trl.reward_training.adapters import adapter_and_quantization
    from rm_plugins_trl.reward_training.base_model import check_model_named
    from rm_plugins_trl.reward_training.reward_trainer import RewardTrainer
    from rm_plugins_trl.reward_training.started_folder import check_folder
    from rm_plugins_trl.reward_training.train_data import training_data
    from rm_plugins_trl.reward_training.training_output import TrainingOutput

    check_model_named(model.model_name_or_path)
    if finished := check_folder(args, arguments):
        if args.should_log:
            say(finished)
        return
    check_trackers(args)
    adapter = adapter_and_quantization(model)
    train_dataset, eval_dataset = training_data(script, args, mixture)
    check_has_rows(script.dataset_name, train_dataset)
    check_has_rows(script.eval_dataset_name, eval_dataset)
    set_loading(args, model)
    trainer = RewardTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        **adapter,
    )
    run_training(trainer, TrainingOutput(trainer), args.resume_from_checkpoint)
    if "eval_accuracy" in trainer.last_metrics:
        trainer.accelerator.print(f"Accuracy on the evaluation data: {trainer.last_metrics['eval_accuracy']:.4f}")
    if args.save_strategy == "no":
        trainer.save_model()  # the trainer has not
    dataset_name = published_name(script.dataset_name)
    trainer.create_model_card(dataset_name=dataset_name)
    if trainer.accelerator.is_main_process:
        say(
            f"Saved the reward model to {args.output_dir}.\n"
            f"  rm-plugins verify {args.output_dir}          checks that it loads and gives the recorded scores\n"
            f"  rm-plugins evaluate {args.output_dir} DATA   measures it on judged answers\n"
            f"  rm-plugins serve {args.output_dir}           serves it over HTTP"
        )
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    leave_together(trainer)


PROGRAM = TrlProgram(
    name="train",
    module="rm_plugins_trl.reward_training.train",
    groups=GROUPS,
    configurations=_configurations,
    train=_train,
    plan=_plan,
)


@click.command("train", cls=TrlCommand, program=PROGRAM)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train a reward model on pairs, rankings, ratings or labels.

    Takes the options of `trl reward`, and those of rm-plugins. `rm-plugins data check` checks the data before a training.
    """
    PROGRAM.run(arguments)


if __name__ == "__main__":
    PROGRAM.run_as_one_of_several()
