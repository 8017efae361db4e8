"""The files of a checkpoint that was saved under DeepSpeed, and whether they are all there. Importing it imports neither torch nor trl."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

_LATEST = "latest"  # it names the folder of the states, and is written after them
_OPTIMIZER = re.compile(r"(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL_OF_ONE = "zero_pp_rank_0_mp_rank_00_model_states.pt"
_WHOLE_MODEL = "mp_rank_00_model_states.pt"


class DeepSpeedStates(NamedTuple):
    """How the states in a checkpoint are divided.

    Args:
        partitioned: Whether the weights are partitioned too, as under stage 3 of ZeRO.
        processes: The number of processes.
    """

    partitioned: bool
    processes: int

    def __str__(self) -> str:
        """As messages name it."""
        processes = f"{self.processes} process{'' if self.processes == 1 else 'es'}"
        return f"{'stage 3' if self.partitioned else 'stage 1 or 2'} of ZeRO on {processes}"


def deepspeed_states(checkpoint: Path) -> DeepSpeedStates | None:
    """How the states of a complete checkpoint are divided; None if it was saved without DeepSpeed."""
    folder = _folder(checkpoint)
    if folder is None:
        return None
    return DeepSpeedStates((folder / _MODEL_OF_ONE).is_file(), len(_processes(folder)))


def problem_of_deepspeed(checkpoint: Path, processes: int | None) -> str:
    """Why the states that DeepSpeed saved in a checkpoint are incomplete; empty if they are complete, or there are none.

    Args:
        checkpoint: The checkpoint's folder.
        processes: The number of processes that saved it; None if that is unknown.
    """
    folder = _folder(checkpoint)
    if folder is None:
        folders = sorted(path.name for path in checkpoint.glob("global_step*") if path.is_dir())
        return f"it has {folders[-1]}, but no file {_LATEST}, which DeepSpeed writes last" if folders else ""
    if not folder.is_dir():
        return f"it has no folder {folder.name or '(an empty name)'}, in which {_LATEST} places the states of DeepSpeed"
    found = _processes(folder)
    partitioned = not (folder / _WHOLE_MODEL).is_file()
    expected = processes or max(found, default=0) + 1
    if not partitioned and not found:
        expected = 0  # stage 0, whose optimizer state is beside the weights
    for process in range(expected):
        if process not in found:
            return f"{folder.name} has no optimizer state of process {process} of {expected}"
        if partitioned and not (folder / f"zero_pp_rank_{process}_mp_rank_00_model_states.pt").is_file():
            return f"{folder.name} has no weights of process {process} of {expected}"
    for path in sorted(folder.glob("*.pt")):
        if not zipfile.is_zipfile(path):
            return f"{folder.name}/{path.name} is truncated or damaged"
    return ""


def _folder(checkpoint: Path) -> Path | None:
    """The folder of the states; None if nothing names one."""
    try:
        return checkpoint / (checkpoint / _LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _processes(folder: Path) -> set[int]:
    """The processes whose optimizer state is in a folder."""
    names = (_OPTIMIZER.fullmatch(path.name) for path in folder.glob("*_optim_states.pt"))
    return {int(name[1]) for name in names if name}
