"""What a training's output folder holds already, which a new training would overwrite. Importing it imports neither torch nor trl."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_plugins.errors import OutputError
from rm_plugins.files import check_output

logger = logging.getLogger(__name__)

_MODEL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "reward_manifest.json",
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_ADVICE = "train into another output_dir, or set overwrite_output_dir to overwrite it"


def checkpoints_in(output_dir: Path) -> list[tuple[int, Path]]:
    """The steps and folders of the checkpoints in a folder, the last step first, whole or not."""
    names = ((path, _CHECKPOINT.fullmatch(path.name)) for path in (output_dir.iterdir() if output_dir.is_dir() else ()))
    return sorted(((int(name[1]), path) for path, name in names if name and path.is_dir()), reverse=True)


def held_already(folder: Path) -> str:
    """What a folder holds of an earlier training, in words; empty if nothing."""
    parts = ["a finished model"] if any((folder / name).is_file() for name in _MODEL) else []
    if checkpoints := checkpoints_in(folder):
        parts.append(
            f"{len(checkpoints)} checkpoint{'s' if len(checkpoints) > 1 else ''}, the last after step {checkpoints[0][0]}"
        )
    return " and ".join(parts)


def check_folder(args: Any, arguments: Sequence[str]) -> None:
    """Refuse a training on the command line that would overwrite an earlier model or checkpoints without consent.

    Args:
        args: The trainer's arguments.
        arguments: Those of the command line.

    Raises:
        OutputError: The folder holds a model or checkpoints, or cannot be written.
    """
    folder = Path(args.output_dir)
    check_output(folder, is_folder=True)
    held = held_already(folder)
    if not held or args.overwrite_output_dir:
        return
    checkpoints = checkpoints_in(folder)
    if args.resume_from_checkpoint and (checkpoints or str(args.resume_from_checkpoint).lower() != "true"):
        return
    resume = shlex.join(["rm-plugins", "train", *arguments, "--resume_from_checkpoint", "true"])
    choices = f"Resume it: {resume}\nOr {_ADVICE}" if checkpoints else f"{_ADVICE[0].upper()}{_ADVICE[1:]}"
    raise OutputError(f"{folder} holds {held}, which this training would overwrite. {choices} (--overwrite_output_dir true).")


def warn_of_overwriting(args: Any, *, resumes: bool) -> None:
    """Warn that a training from the beginning overwrites an earlier model or checkpoints.

    Args:
        args: The trainer's arguments.
        resumes: Whether the training resumes from a checkpoint.
    """
    held = "" if resumes or getattr(args, "overwrite_output_dir", False) else held_already(Path(args.output_dir))
    if held and args.should_log:
        logger.warning(
            "%s holds %s. This training starts from the beginning and overwrites it; trainer.train(resume_from_checkpoint=True) resumes "
            "the earlier one, and RewardConfig(overwrite_output_dir=True) turns this warning off.",
            *(args.output_dir, held),
        )
