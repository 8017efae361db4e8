"""The files of a checkpoint with sharded weights, and whether they are complete. Importing it imports neither torch nor trl."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

_MODEL, _OPTIMIZER = "pytorch_model_fsdp", "optimizer"
_INDEX = ".metadata"  # it names the parts of all shards, and is written after them

StateDictType = Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"]


def state_dict_type(checkpoint: Path) -> StateDictType | None:
    """How a checkpoint was saved under FSDP: ``fsdp_state_dict_type``; None if it was saved without FSDP.

    Args:
        checkpoint: The checkpoint's folder.
    """
    if any(checkpoint.glob(f"{_MODEL}*.bin")):
        return "FULL_STATE_DICT"
    return "SHARDED_STATE_DICT" if [*_shards(checkpoint)] else None


def problem_of_shards(checkpoint: Path) -> str:
    """Why the shards in a checkpoint are incomplete; empty if they are complete, or there are none.

    Each folder of shards has an index with the place of every tensor. A shard that is missing or ends before its last tensor was not
    written completely. Contents are not compared.

    Args:
        checkpoint: The checkpoint's folder.
    """
    folders = [*_shards(checkpoint)]
    for folder in folders:
        try:
            sizes = _sizes(folder / _INDEX)
        except FileNotFoundError:
            return f"its shards are incomplete: {folder.name} has no {_INDEX}, which is written last"
        except Exception:  # a damaged pickle may raise anything
            return f"its shards are incomplete: {folder.name}/{_INDEX} cannot be read"
        for name, size in sorted(sizes.items()):
            path = folder / name
            written = path.stat().st_size if path.is_file() else None
            if written is None:
                return f"its shards are incomplete: {folder.name}/{name} is missing"
            if written < size:
                return f"its shards are incomplete: {folder.name}/{name} has {written} of {size} bytes"
    names = {folder.name.rpartition("_")[0] for folder in folders}
    if names and names != {_MODEL, _OPTIMIZER}:
        return f"its shards are incomplete: those of the {'model' if _MODEL not in names else 'optimizer'} are missing"
    return ""


def remove_shards(checkpoint: Path) -> None:
    """Remove the shards in a folder, of which a training with fewer processes would not overwrite all.

    Args:
        checkpoint: The checkpoint's folder.
    """
    for folder in _shards(checkpoint):
        shutil.rmtree(folder)


def _shards(checkpoint: Path) -> Iterator[Path]:
    """The folders with shards, such as ``pytorch_model_fsdp_0``."""
    for path in sorted(checkpoint.glob("*_[0-9]")):
        if path.is_dir() and path.name.rpartition("_")[0] in (_MODEL, _OPTIMIZER):
            yield path


def _sizes(index: Path) -> Mapping[str, int]:
    """The least size of each shard, by its name."""
    with index.open("rb") as file:
        places = vars(_Inert(file).load())["storage_data"]
    sizes: dict[str, int] = {}
    for place in map(vars, places.values()):
        name = str(place["relative_path"])
        sizes[name] = max(sizes.get(name, 0), int(place["offset"]) + int(place["length"]))
    return sizes


class _Inert(pickle.Unpickler):
    """Reads a pickle without importing or calling anything: every object becomes a bare one with the same attributes."""

    def find_class(self, module: str, name: str) -> Any:
        return _Bare


class _Bare:
    def __init__(self, *arguments: Any) -> None:
        """Any arguments: only the state is read."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)
