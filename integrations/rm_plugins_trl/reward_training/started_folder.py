"""What a training's output folder holds already, which a new training would overwrite. Importing it imports neither torch nor trl."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_plugins.errors import ManifestError, OutputError
from rm_plugins.files import check_output
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins_trl.reward_training.checkpoints import MADE_WITH, Checkpoint, finds_checkpoint, last_checkpoint

logger = logging.getLogger(__name__)

_MODEL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "reward_manifest.json",
)
_ADVICE = "train into another output_dir, or set overwrite_output_dir to overwrite it"


def check_folder(args: Any, arguments: Sequence[str], *, command: str = "train") -> str:
    """Refuse a training on the command line that would overwrite an earlier model or checkpoints without consent.

    Args:
        args: The trainer's arguments.
        arguments: Those of the command line.
        command: The command that trains.

    Returns:
        Why there is nothing to train, if the training to resume is finished; otherwise empty.

    Raises:
        OutputError: The folder holds a model or checkpoints, or cannot be written.
    """
    folder = Path(args.output_dir)
    check_output(folder, is_folder=True)
    last = last_checkpoint(folder)
    is_finished = last is not None and _is_finished(folder, last)
    if last is not None and finds_checkpoint(args.resume_from_checkpoint):
        if is_finished and not _asks_for_more(args, last):
            other = "reward" if command == "ppo" else "loss"
            return (
                f"The training in {folder} is already finished: it did all of its {last.step} steps, and nothing is left to train. To "
                f"train longer, raise --num_train_epochs or --max_steps. To train on other data or with another {other}, name another "
                "--output_dir."
            )
        return ""
    held = _held(folder, last)
    if (
        not held
        or args.overwrite_output_dir
        or (args.resume_from_checkpoint and not finds_checkpoint(args.resume_from_checkpoint))
    ):
        return ""
    resume = shlex.join(["rm-plugins", command, *arguments, "--resume_from_checkpoint", "true"])
    choices = f"Resume it: {resume}\nOr {_ADVICE}" if last is not None and not is_finished else f"{_ADVICE.capitalize()}"
    finished = " The training in it is finished." if is_finished else ""
    raise OutputError(
        f"{folder} holds {held}, which this training would overwrite.{finished} {choices} (--overwrite_output_dir true)."
    )


def warn_of_overwriting(args: Any, *, resumes: bool) -> None:
    """Warn that a training from the beginning overwrites an earlier model or checkpoints.

    Args:
        args: The trainer's arguments.
        resumes: Whether the training resumes from a checkpoint.
    """
    if resumes or getattr(args, "overwrite_output_dir", False) or not args.should_log:
        return
    folder = Path(args.output_dir)
    last = last_checkpoint(folder)
    if held := _held(folder, last):
        can_resume = last is not None and not _is_finished(folder, last)
        logger.warning(
            "%s holds %s. This training starts from the beginning and overwrites it. %sRewardConfig(overwrite_output_dir=True) turns this "
            "warning off.",
            *(folder, held, "trainer.train(resume_from_checkpoint=True) resumes the earlier one. " if can_resume else ""),
        )


def _has_model(folder: Path) -> bool:
    """Whether a folder holds a finished model."""
    return any((folder / name).is_file() for name in _MODEL)


def _held(folder: Path, last: Checkpoint | None) -> str:
    """What a folder holds of an earlier training; empty if nothing."""
    parts = ["a finished model"] if _has_model(folder) else []
    if last is not None:
        parts.append(f"a checkpoint after step {last.step}")
    return " and ".join(parts)


def _is_finished(folder: Path, last: Checkpoint) -> bool:
    """Whether the training with this last checkpoint did all of its steps and saved its model into the folder."""
    if not _has_model(folder) or not last.step >= int(last.trainer_state().get("max_steps", 0)) > 0:
        return False
    if not (last.path / MANIFEST_NAME).exists():
        return True
    try:  # it is written after the model
        return Manifest.read(folder / MANIFEST_NAME).training.get("steps") == last.step
    except (ManifestError, OSError):
        return False


def _asks_for_more(args: Any, last: Checkpoint) -> bool:
    """Whether arguments ask for more steps or epochs than a finished training did.

    A number of epochs that is not given is the preset's, which is unknown before the model is loaded; it counts as unchanged.
    """
    if args.max_steps > 0:
        return bool(args.max_steps > last.step)
    try:
        then = json.loads((last.path / MADE_WITH).read_text(encoding="utf-8"))
        done = last.trainer_state()["epoch"] if then["max_steps"] > 0 else then["num_train_epochs"]
        return float(then["num_train_epochs"] if "num_train_epochs" in args.unset else args.num_train_epochs) > float(done)
    except (OSError, KeyError):  # a checkpoint that does not record how it was trained
        return True
