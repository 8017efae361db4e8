"""What the commands that train do around the training itself. Importing it imports neither torch nor trl."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from typing import Any

from rm_plugins.errors import DataError, MissingDependencyError

_TRACKERS = {
    "comet_ml": "comet_ml",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""The package of each tracker."""


def check_trackers(args: Any) -> None:
    """Refuse a tracker without its package, before data and model are loaded.

    Raises:
        MissingDependencyError: One is not installed.
    """
    trackers = args.report_to if isinstance(args.report_to, (list, tuple)) else [args.report_to]
    for tracker in trackers:
        package = _TRACKERS.get(tracker)
        if package is not None and find_spec(package) is None:
            raise MissingDependencyError(f"--report_to {tracker} needs the package {package}: pip install {package}.")


def check_has_rows(name: str | None, dataset: Any) -> None:
    """Refuse a dataset without rows.

    Raises:
        DataError: It has none.
    """
    if getattr(dataset, "num_rows", None) == 0:
        raise DataError(f"{name or 'The dataset'} has no rows.")


def set_loading(args: Any, model: Any) -> None:
    """Let the trainer load its model as TRL's ``ModelConfig`` says; ``args.model_init_kwargs`` wins."""
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }


def run_training(trainer: Any, output: Any, resume_from: Any) -> None:
    """Train, and remove the output's bar also where the training fails."""
    if trainer.args.dataloader_num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each forked worker warns of it
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    finally:
        output.close()


def published_name(name: str | None) -> str | None:
    """The dataset's name if a model card may have it: a local path means nothing to others."""
    from rm_plugins.data.row_files import is_data_file

    return name if name is not None and not is_data_file(name) and not os.path.exists(name) else None


def leave_together(trainer: Any) -> None:
    """End at the same time as the other processes of the training.

    They do not end before gloo's threads have let go of their tensors, which takes them a moment of Python's lock: where they still
    wait for it when Python ends, the process aborts or blocks.
    """
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        time.sleep(1)
