"""Checkpoints to go on from."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from rm_plugins.errors import DataError

__all__ = ["checked_checkpoint", "last_checkpoint"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_WRITTEN_LAST = "trainer_state.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None if there is none.

    A process that is killed while it saves leaves a folder behind that transformers would take for a checkpoint. Its trainer
    writes the state last, so a checkpoint without a readable one is not whole.
    """
    found = sorted(
        (int(name[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (name := _NAME.fullmatch(path.name)) and path.is_dir()
    )
    for _, path in reversed(found):
        if _is_whole(path):
            return path
        logger.warning("%s was not saved to its end and is passed over.", path)
    return None


def checked_checkpoint(folder: Path) -> Path:
    """The folder itself.

    Raises:
        DataError: It is no checkpoint, or was not saved to its end.
    """
    if not _is_whole(folder):
        raise DataError(
            f"{folder} is no checkpoint to go on from: it has no readable {_WRITTEN_LAST}, which is written last. Name another, "
            "or let resume_from_checkpoint=True find the last whole one."
        )
    return folder


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _WRITTEN_LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
