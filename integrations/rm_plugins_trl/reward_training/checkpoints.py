"""The complete checkpoints in an output folder. Importing it imports neither torch nor trl: Ctrl-C may need it at any moment."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rm_plugins.errors import DataError, ManifestError
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest, file_digests
from rm_plugins_trl.reward_training.deepspeed_files import problem_of_deepspeed
from rm_plugins_trl.reward_training.shard_files import problem_of_shards, remove_shards

logger = logging.getLogger(__name__)

LOSS_STATE = "loss_state.json"
MADE_WITH = "made_with.json"
_TRAINER_STATE = "trainer_state.json"  # the trainer writes it last
_NAME = re.compile(r"checkpoint-(\d+)")
_SCHEDULER = "scheduler.pt"
_ARCHIVES = (
    *("optimizer.pt", _SCHEDULER, "scaler.pt", "rng_state*.pth", "training_args.bin", "pytorch_model.bin"),
    *("optimizer.bin", "pytorch_model_fsdp.bin"),  # whole, of sharded weights
)


class Checkpoint(NamedTuple):
    """A checkpoint, and the step after which it was saved."""

    step: int
    path: Path

    def trainer_state(self) -> dict[str, Any]:
        """The trainer's state when it saved this checkpoint, which must be complete."""
        state: dict[str, Any] = json.loads((self.path / _TRAINER_STATE).read_text(encoding="utf-8"))
        return state


def begin_checkpoint(folder: Path) -> None:
    """Mark a checkpoint's folder as incomplete until the trainer's state is written again, because a training overwrites its files."""
    (folder / _TRAINER_STATE).unlink(missing_ok=True)
    remove_shards(folder)


def complete_checkpoints(output_dir: Path) -> Iterator[Checkpoint]:
    """The complete checkpoints in a folder, the last step first.

    A process that is killed while it saves leaves a folder that transformers would use as a checkpoint. A checkpoint is incomplete if the
    trainer's state, which is written last, cannot be read, or if a file is truncated or changed. Each one is checked when it is reached,
    because the check reads all of its files.
    """
    return (checkpoint for checkpoint, problem in _checked(output_dir) if not problem)


def last_checkpoint(output_dir: Path) -> Checkpoint | None:
    """The last complete checkpoint in a folder; None if there is none."""
    return next(complete_checkpoints(output_dir), None)


def checkpoint_to_resume(asked: str | Path | bool | None, output_dir: Path) -> Path | None:
    """The requested checkpoint: a folder, or with True (or ``"true"``) the last complete one in `output_dir`.

    Returns:
        None if none is requested or there is none.

    Raises:
        DataError: The folder is not a checkpoint, or was not saved completely.
    """
    if not finds_checkpoint(asked):
        if not isinstance(asked, (str, Path)):
            return None
        if problem := _problem(Path(asked)):
            raise DataError(
                f"{asked} is not a checkpoint to resume from: {problem}. Name another, or let resume_from_checkpoint=True find the "
                "last complete one."
            )
        return Path(asked)
    for checkpoint, problem in _checked(output_dir):
        if not problem:
            return checkpoint.path
        logger.warning("%s was not saved completely and is skipped: %s.", checkpoint.path, problem)
    logger.warning("There is no complete checkpoint in %s, so training starts from the beginning.", output_dir)
    return None


def finds_checkpoint(asked: str | Path | bool | None) -> bool:
    """Whether ``resume_from_checkpoint`` asks for the last checkpoint of the output folder."""
    return str(asked).lower() == "true"


def _checked(output_dir: Path) -> Iterator[tuple[Checkpoint, str]]:
    """The folders that are named like checkpoints, the last step first, each with why it is incomplete; empty if it is complete."""
    names = ((path, _NAME.fullmatch(path.name)) for path in (output_dir.iterdir() if output_dir.is_dir() else ()))
    for checkpoint in sorted((Checkpoint(int(name[1]), path) for path, name in names if name and path.is_dir()), reverse=True):
        yield checkpoint, _problem(checkpoint.path)


def _problem(checkpoint: Path) -> str:
    """Why a checkpoint is incomplete; empty if it is complete."""
    for name in (_TRAINER_STATE, LOSS_STATE, MADE_WITH):
        try:
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if name == _TRAINER_STATE:
                return f"it has no {name}, which is written last"
        except (OSError, ValueError):
            return f"{name} cannot be read"
    for path in sorted(path for pattern in _ARCHIVES for path in checkpoint.glob(pattern)):
        if not zipfile.is_zipfile(path):
            return f"{path.name} is truncated or damaged"
    processes = _processes(checkpoint)
    problem = problem_of_deepspeed(checkpoint, processes) or problem_of_shards(checkpoint)
    if problem := problem or _missing_of_processes(checkpoint, processes or 1):
        return problem
    if (checkpoint / MANIFEST_NAME).exists():
        try:
            manifest = Manifest.read(checkpoint / MANIFEST_NAME)
        except ManifestError as error:
            return f"its manifest cannot be read ({error})"
        digests = file_digests(checkpoint, manifest.files)
        for name, expected in manifest.files.items():
            if digests.get(name) != expected:
                return f"{name} is {'missing' if name not in digests else 'not as it was saved'}"
    return ""


def _processes(checkpoint: Path) -> int | None:
    """The number of processes that saved a checkpoint; None if it does not record it."""
    try:
        processes: int | None = json.loads((checkpoint / MADE_WITH).read_text(encoding="utf-8")).get("world_size")
    except FileNotFoundError:
        return None
    return processes


def _missing_of_processes(checkpoint: Path, processes: int) -> str:
    """Which file of a process is missing: process 0 does not wait for the others before it writes the trainer's state."""
    if processes == 1 or not (checkpoint / _SCHEDULER).is_file():
        return ""
    names = [f"rng_state_{process}.pth" for process in range(processes)]
    missing = next((name for name in names if not (checkpoint / name).is_file()), None)
    return "" if missing is None else f"it has no {missing}, which each of its {processes} processes writes"
