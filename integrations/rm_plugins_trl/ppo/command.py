"""``rm-plugins ppo``: the arguments of `PPOConfig` and of TRL's scripts, and ours. Importing it imports no trl."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.printed import say
from rm_plugins.errors import MissingDependencyError, SpecError, UnsupportedError
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.ppo.command_options import GROUPS
from rm_plugins_trl.ppo.presets import preset
from rm_plugins_trl.training_run import (
    check_has_rows,
    check_trackers,
    leave_together,
    published_name,
    run_training,
    set_loading,
)
from rm_plugins_trl.trl_command import OF_LAUNCHER, TrainOption, TrlCommand, TrlProgram, value_of

if TYPE_CHECKING:
    from rm_plugins_trl.launching import Launch


def _configurations() -> tuple[type[Any], ...]:
    if TRL_HAS_PPO:
        raise MissingDependencyError(
            f"`rm-plugins ppo` trains on TRL 1.13 or later, and TRL {version('trl')} is installed: pip install -U trl. With this "
            "TRL, train in Python, with rm_plugins_trl.PPOTrainer."
        )
    from trl import DatasetMixtureConfig, ModelConfig

    from rm_plugins_trl.ppo.config import PPOConfig
    from rm_plugins_trl.ppo.script_arguments import PPOScriptArguments

    return PPOScriptArguments, PPOConfig, ModelConfig, DatasetMixtureConfig


def _take_preset(parser: Any, arguments: Sequence[str]) -> None:
    name = value_of("preset", arguments)
    if name is None and (file := value_of("config", arguments)):
        from rm_plugins.written_settings import read_settings

        name = read_settings(Path(file)).get("preset")
    parser.set_defaults(**preset("trl" if name is None else str(name)))


def _advice(option: str) -> str:
    from rm_plugins_trl.ppo.other_names import OTHER_NAMES

    return OTHER_NAMES.get(option, "")


def _train(arguments: Sequence[str], script: Any, args: Any, model: Any, mixture: Any) -> None:
    from rm_plugins_trl import PPOTrainer
    from rm_plugins_trl.ppo.command_output import PPOOutput
    from rm_plugins_trl.ppo.script_arguments import loaded_rewards, prompt_rows
    from rm_plugins_trl.reward_training.adapters import adapter_and_quantization
    from rm_plugins_trl.reward_training.checkpoints import checkpoint_to_resume
    from rm_plugins_trl.reward_training.train_data import training_data

    policy = model.model_name_or_path or args.sft_model_path
    if policy is None:
        raise SpecError(
            "Name the policy to train: --model_name_or_path FOLDER_OR_ID (or model_name_or_path in the --config file)."
        )
    if finished := _check_folder(arguments, script, args):
        if args.should_log:
            say(finished)
        return
    check_trackers(args)
    adapter = adapter_and_quantization(model)
    rewards = loaded_rewards(script, args)
    train_dataset, eval_dataset = training_data(script, args, mixture)
    check_has_rows(script.dataset_name, train_dataset)
    check_has_rows(script.eval_dataset_name, eval_dataset)
    set_loading(args, model)
    trainer = PPOTrainer(
        model=policy,
        args=args,
        train_dataset=prompt_rows(train_dataset, script.dataset_name),
        eval_dataset=prompt_rows(eval_dataset, script.eval_dataset_name),
        reward_funcs=rewards,
        value_model=script.value_model,
        **adapter,
    )
    checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, Path(args.output_dir))
    run_training(trainer, PPOOutput(trainer), None if checkpoint is None else str(checkpoint))
    if eval_dataset is not None and args.eval_strategy == "no":
        metrics = trainer.evaluate()
        if "eval_objective/scores" in metrics:
            trainer.accelerator.print(f"Score on the evaluation prompts: {metrics['eval_objective/scores']:.4f}")
    trainer.save_model()
    dataset_name = published_name(script.dataset_name)
    trainer.create_model_card(dataset_name=dataset_name)
    if trainer.accelerator.is_main_process:
        _tell(script, args)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    leave_together(trainer)


def _check_folder(arguments: Sequence[str], script: Any, args: Any) -> str:
    from rm_plugins_trl.reward_training.started_folder import check_folder

    asked = SimpleNamespace(
        output_dir=args.output_dir,
        overwrite_output_dir=script.overwrite_output_dir,
        resume_from_checkpoint=args.resume_from_checkpoint,
        max_steps=args.episode_steps or args.max_steps,
        num_train_epochs=args.num_train_epochs,
        unset=(),
    )
    return check_folder(asked, arguments, command="ppo")


def _tell(script: Any, args: Any) -> None:
    """Say what was made, and what to do with it."""
    first = script.reward[0] if isinstance(script.reward, list) else script.reward or args.reward_model_path
    reward = shlex.quote(first) if isinstance(first, str) else "SPEC"
    prompts = shlex.quote(script.eval_dataset_name or script.dataset_name or "PROMPTS")
    folder = shlex.quote(str(args.output_dir))
    say(
        f"Saved the policy to {args.output_dir}, and its critic to {Path(args.output_dir) / 'critic'}.\n"
        f"  rm-plugins rank {reward} {prompts} --generate {folder} --n 4   shows what it answers, best first\n"
        f"  rm-plugins ppo --model_name_or_path {folder} --value_model {folder}/critic ...   trains it further"
    )


def _check_launch(asked: Launch) -> None:
    from rm_plugins_trl.ppo.trainer import SHARDED

    if asked.settings.is_sharded:
        raise UnsupportedError(SHARDED)


PROGRAM = TrlProgram(
    name="ppo",
    module="rm_plugins_trl.ppo.command",
    groups=GROUPS,
    configurations=_configurations,
    train=_train,
    set_defaults=_take_preset,
    advice=_advice,
    check_launch=_check_launch,
    launcher=(
        TrainOption("--accelerate", "ddp", "Several devices share the training."),
        OF_LAUNCHER[1],
        TrainOption("--accelerate_config", "NAME|FILE", "Such as multi_gpu; as in TRL."),
    ),
)


@click.command("ppo", cls=TrlCommand, program=PROGRAM)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ppo(arguments: tuple[str, ...]) -> None:
    """Train a policy with PPO against any reward.

    Takes the arguments of PPOConfig and of TRL's scripts. Rows have a `prompt`, text or messages; the reward sees all of their columns.
    """
    PROGRAM.run(arguments)


if __name__ == "__main__":
    PROGRAM.run_as_one_of_several()
