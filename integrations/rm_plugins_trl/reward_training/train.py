"""``rm-plugins train``: the flags and the YAML configuration of ``trl reward``, and ours. Importing it imports no trl."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from rm_plugins.cli.command import INTERRUPTED, Command
from rm_plugins.cli.printed import echo, say
from rm_plugins.cli.silence import silenced_libraries
from rm_plugins.errors import DataError, MissingDependencyError, RmPluginsError, nearest_name
from rm_plugins_trl.reward_training.checkpoints import last_checkpoint
from rm_plugins_trl.reward_training.train_options import GROUPS, LAUNCHER, OF_LAUNCHER

_MODULE = "rm_plugins_trl.reward_training.train"
_OF_CLICK = ("-h", "--help", "--help-all", "-q", "--quiet", "-v", "--verbose")
_TRACKERS = {
    "comet_ml": "comet_ml",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""The package of each tracker."""


class _Train(Command):
    """Takes options as TRL writes them, and shows the common ones in its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours = [argument for argument in args if argument in _OF_CLICK]
        return super().parse_args(ctx, [*ours, "--", *(argument for argument in args if argument not in _OF_CLICK)])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "--model_name_or_path MODEL --dataset_name DATA [OPTIONS]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, options in {**GROUPS, LAUNCHER: OF_LAUNCHER}.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (
                            f"{option.flag} {option.metavar}".strip(),
                            f"{option.help}{f' [{option.default}]' * bool(option.default)}",
                        )
                        for option in options
                    ],
                    col_max=34,
                )
        formatter.write_paragraph()
        formatter.write_text(
            "-q prints results, warnings and errors only, and -v also prints tracebacks. --help-all shows all options, ours before TRL's."
        )


def _show_all_options(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if not is_given or ctx.resilient_parsing:
        return
    from rm_plugins_trl.reward_training.reward_config import RewardConfig
    from rm_plugins_trl.reward_training.train_data import TrainScriptArguments

    ours = {*vars(RewardConfig)["__annotations__"], *vars(TrainScriptArguments)["__annotations__"]}
    actions = [action for action in _parser()._actions if action.option_strings and action.dest != "help"]
    formatter = ctx.make_formatter()
    for title, is_ours in (("Options of rm-plugins", True), ("Options of TRL and transformers", False)):
        with formatter.section(title):
            formatter.write_dl([_described(action) for action in actions if (action.dest in ours) == is_ours], col_max=34)
    formatter.write_paragraph()
    formatter.write_text("`accelerate launch --help` shows the options that start several processes.")
    echo(formatter.getvalue().strip())
    ctx.exit()


def _described(action: Any) -> tuple[str, str]:
    """An option of argparse, and its help with its default."""
    text = " ".join((action.help or "").replace("%%", "%").split()).replace("(default: %(default)s)", "").strip()
    default = "" if action.default in (None, "", "==SUPPRESS==") else f" [{action.default}]"
    values = "|".join(map(str, action.choices)) if action.choices and len(action.choices) < 6 else ""
    return f"{action.option_strings[0]} {values}".strip(), f"{text}{default}"


def _how_to_resume(parameters: Mapping[str, Any]) -> str:
    arguments = list(parameters.get("arguments", ()))
    folder = next((value for name, value in pairwise(arguments) if name == "--output_dir"), None)
    again = "run the same command again with --resume_from_checkpoint true"
    if folder is None:
        return f"If checkpoints were saved in the output folder, {again}."
    last = last_checkpoint(Path(folder))
    if last is None:
        return (
            f"There is no complete checkpoint in {folder} yet, so the training starts again from the beginning. --save_steps N saves more "
            "often."
        )
    return f"The last complete checkpoint is {last.path}: {again}."


@click.command("train", cls=_Train, resuming=_how_to_resume)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all_options)
def train(arguments: tuple[str, ...]) -> None:
    """Train a reward model on pairs, rankings, ratings or labels.

    Takes the options of `trl reward`, and those of rm-plugins. `rm-plugins data check` checks the data before a training.
    """
    run(arguments)


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and train, under ``accelerate launch`` if they ask for it."""
    _check_config(arguments)
    _check_paths(arguments)
    parser = _parser()
    try:
        *_, from_config, from_line = parser.parse_args_and_config(
            list(arguments), return_remaining_strings=True, separate_remaining_strings=True
        )
        parsed = () if from_config or from_line else parser.parse_args_and_config(list(arguments))
    except RmPluginsError:
        raise
    except (ValueError, TypeError, ImportError) as error:  # of the dataclasses, about values that do not fit together
        raise click.UsageError(str(error)) from error
    if parsed:
        _train(arguments, *parsed)
    else:
        _launch([*from_config, *from_line], _without(list(arguments), from_line))


def _check_config(arguments: Sequence[str]) -> None:
    """Refuse a configuration file that is not there, or not a YAML mapping.

    Raises:
        SpecError: It cannot be read.
        UsageError: ``--config`` has no value.
    """
    if "--config" not in arguments:
        return
    place = list(arguments).index("--config") + 1
    if place == len(arguments):
        raise click.UsageError("--config needs a file: --config FILE.yaml.")
    from rm_plugins.written_settings import read_settings

    read_settings(Path(arguments[place]))


def _check_paths(arguments: Sequence[str]) -> None:
    """Refuse a used output folder, or a data file that is not there, before the imports that the parser needs, which take seconds.

    The settings of a configuration file are checked after them.

    Raises:
        OutputError: The folder holds an earlier training, and no option asks to resume or overwrite it.
        DataError: A data file is not there.
    """
    from rm_plugins.data.row_files import check_source
    from rm_plugins_trl.reward_training.started_folder import check_folder

    options: dict[str, str] = {}
    for argument, following in pairwise([*arguments, ""]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following
    # Only the start of a name is compared, because argparse takes shortened names.
    is_settled = any(name.startswith(("config", "overwrite", "resume")) for name in options)
    if options.get("output_dir") and not is_settled:
        unset = {"overwrite_output_dir": False, "resume_from_checkpoint": None}
        check_folder(SimpleNamespace(output_dir=options["output_dir"], **unset), arguments)
    for name in ("dataset_name", "eval_dataset_name"):
        if options.get(name):
            check_source(options[name])


def _refuse(message: str) -> None:
    """The error of the parser, without the usage of all options, which is hundreds of lines."""
    told = re.sub(r"^argument (--\w+)[^:]*: ", r"\1: ", message)
    raise click.UsageError(f"{told}. `rm-plugins train --help-all` describes the options.")


def _parser() -> Any:
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from rm_plugins_trl.reward_training.reward_config import RewardConfig
    from rm_plugins_trl.reward_training.train_data import TrainScriptArguments

    parser = TrlParser((TrainScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig), prog="rm-plugins train")
    parser.error = _refuse
    return parser


def _launch(launcher: list[str], own: list[str]) -> None:
    """Start this module on several processes."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    from rm_plugins_trl.trl_internals import resolve_accelerate_config_argument

    known = [option for action in launch_command_parser()._actions for option in action.option_strings]
    for argument in launcher:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in (*known, "--accelerate_config"):
            own_names = [option for action in _parser()._actions for option in action.option_strings]
            nearest = nearest_name(name, [*own_names, *known])
            listed = "`rm-plugins train --help-all` lists ours, `accelerate launch --help` the others."
            raise click.UsageError(f"There is no option {name}. {f'Did you mean {nearest}?' if nearest else listed}")
        if not name.startswith("-") and argument == launcher[0]:
            raise click.UsageError(f"{argument!r} is not an option. `rm-plugins train --help` shows the options.")
    options = launch_command_parser().parse_args([*resolve_accelerate_config_argument(launcher), "--module", _MODULE, *own])
    if options.cpu and (options.num_processes or 1) > 1 and options.mpirun_hostfile is None:
        # Without MPI, accelerate's launcher starts one process on a CPU however many it is asked for.
        from torch.distributed.run import main

        os.environ["ACCELERATE_USE_CPU"] = "true"
        with _failures_of_processes():
            main(["--standalone", "--nproc_per_node", str(options.num_processes), "--module", _MODULE, *own])
    else:
        with _failures_of_processes():
            launch_command(options)


@contextmanager
def _failures_of_processes() -> Iterator[None]:
    """Raise what launchers say of failed processes, which have printed their own errors, as one line."""
    from subprocess import CalledProcessError

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        yield
    except SignalException as error:
        raise KeyboardInterrupt from error
    except (ChildFailedError, CalledProcessError) as error:
        raise click.ClickException("The training failed; the errors of its processes are above.") from error


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
    from rm_plugins_trl.reward_training.training_output import TrainingOutput

    check_model_named(model.model_name_or_path)
    if finished := check_folder(args, arguments):
        if args.should_log:
            say(finished)
        return
    _check_trackers(args)
    adapter = adapter_and_quantization(model)
    train_dataset, eval_dataset = training_data(script, args, mixture)
    for name, dataset in ((script.dataset_name, train_dataset), (script.eval_dataset_name, eval_dataset)):
        if getattr(dataset, "num_rows", None) == 0:
            raise DataError(f"{name or 'The dataset'} has no rows.")
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
        **adapter,
    )
    output = TrainingOutput(trainer)
    if args.dataloader_num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked worker warns of it
    try:
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    finally:
        output.close()
    if "eval_accuracy" in trainer.last_metrics:
        trainer.accelerator.print(f"Accuracy on the evaluation data: {trainer.last_metrics['eval_accuracy']:.4f}")
    if args.save_strategy == "no":
        trainer.save_model()  # the trainer has not
    dataset_name = script.dataset_name if _is_hub_id(script.dataset_name) else None
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
    if trainer.accelerator.num_processes > 1:
        # Leave together, and not before gloo's threads have let go of their tensors, which takes them a moment of Python's
        # lock: where they still wait for it when Python ends, the process aborts or blocks.
        trainer.accelerator.wait_for_everyone()
        time.sleep(1)


def _check_trackers(args: Any) -> None:
    """Refuse a tracker without its package, before data and model are loaded.

    Raises:
        MissingDependencyError: One is not installed.
    """
    trackers = args.report_to if isinstance(args.report_to, (list, tuple)) else [args.report_to]
    for tracker in trackers:
        package = _TRACKERS.get(tracker)
        if package is not None and find_spec(package) is None:
            raise MissingDependencyError(f"--report_to {tracker} needs the package {package}: pip install {package}.")


def _is_hub_id(name: str | None) -> bool:
    """Whether a model card may name this dataset: a local path means nothing to others."""
    from rm_plugins.data.row_files import is_data_file

    return name is not None and not is_data_file(name) and not os.path.exists(name)


def _run_as_one_of_several() -> None:
    """What each process of a launcher does: a failure is a message and an exit code, and the launcher ends the others."""
    with silenced_libraries():
        try:
            run(sys.argv[1:])
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (RmPluginsError, click.ClickException, OSError) as error:
            echo(f"Error: {error}", err=True)
            sys.exit(1)


if __name__ == "__main__":
    _run_as_one_of_several()
