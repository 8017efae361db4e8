"""Resuming from a checkpoint: what it was made with, and what losses remember."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers.integrations.fsdp import is_fsdp_enabled

from rm_plugins.engine.partitioned import gathered
from rm_plugins.engine.shards import shards_of
from rm_plugins.errors import DataError
from rm_plugins.files import write_atomically
from rm_plugins.processes import all_gathered, is_first_process
from rm_plugins_trl.reward_training.checkpoints import LOSS_STATE, MADE_WITH, checkpoint_to_resume
from rm_plugins_trl.reward_training.failing_together import failing_together
from rm_plugins_trl.reward_training.fsdp_settings import sharding
from rm_plugins_trl.reward_training.global_batch import whole_weight
from rm_plugins_trl.reward_training.score_head import HEADS

if TYPE_CHECKING:
    from rm_plugins.losses import Loss

logger = logging.getLogger(__name__)

_SAMPLED = 4_096  # elements of a weight that its digest is over
_ROWS_AT_A_TIME = 10_000

_ONCE_UNSAID = {"read": "before-padding", "pair": False, "convention": "trl"}
"""The values of renderings from before these fields existed."""
_WHAT = ("base_model", "outputs", "loss", "regularizers", "rendering", "train_data")
"""What is trained, on what and towards what; if one differs, the checkpoint is of another training."""

_OF_THE_CHECKPOINT = ("learning_rate", "weight_decay")
"""What the optimizer's state contains, so a changed argument has no effect."""

_HOW = (
    *_OF_THE_CHECKPOINT,
    *("optim", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "max_grad_norm", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "seed", "data_seed", "bf16", "fp16"),
    *("neftune_noise_alpha", "members", "bootstrap", "overlong", "weight_column", "disable_dropout"),
)
"""How it is trained; changes are logged and recorded."""


# --- What a checkpoint was made with --------------------------------------------------------------------------------------


def made_with(trainer: Any) -> dict[str, Any]:
    """What determines the results of a `RewardTrainer`'s training, as JSON."""
    args = trainer.args
    settings = {name: getattr(args, name) for name in _HOW if hasattr(args, name)}
    facts = {
        "base_model": trainer.base_digest,
        "outputs": trainer.heads.labels,
        "loss": trainer.loss_facts,
        "regularizers": {name: weight for name, (weight, _) in trainer.regularizers.items()},
        "rendering": None if trainer.renderer is None else asdict(trainer.renderer.rendering),
        "train_data": data_digest(trainer.train_dataset),
        "sharding": sharding(trainer),
        **settings,
    }
    known: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return known


def save_made_with(now: Mapping[str, Any], checkpoint: Path) -> None:
    """Write what `made_with` gave into a checkpoint's folder."""
    write_atomically(checkpoint / MADE_WITH, json.dumps(now, indent=1))


def changed_since(now: Mapping[str, Any], checkpoint: Path, *, allowed: bool) -> dict[str, Any]:
    """The changes of a training since its checkpoint, which are logged: each name with its values then and now.

    A checkpoint without a record of what it was made with is accepted.

    Args:
        now: What `made_with` gives for the trainer that resumes.
        checkpoint: The checkpoint's folder.
        allowed: Whether it may be of another base model, other data, another loss or rendering.

    Raises:
        DataError: It is of another training, which is not allowed.
    """
    try:
        then: Mapping[str, Any] = json.loads((checkpoint / MADE_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        logger.warning("%s does not record its model and data, so it is not compared with this training.", checkpoint)
        return {}
    if isinstance(then.get("rendering"), dict):
        then = {**then, "rendering": {**_ONCE_UNSAID, **then["rendering"]}}
    changed = {name: [then[name], now.get(name)] for name in then if then[name] != now.get(name)}
    if others := [name for name in _WHAT if name in changed and None not in changed[name]]:
        differences = "; ".join(f"{name}: {_shown(changed[name][0])} then, {_shown(changed[name][1])} now" for name in others)
        if not allowed:
            raise DataError(
                f"{checkpoint} is of another training ({differences}). Start this one in another output_dir, or without "
                "resume_from_checkpoint. RewardConfig(resume_changed=True) resumes in spite of that, and the manifest records it."
            )
    for name, (before, after) in changed.items():
        stands = (
            " The checkpoint's value is used, because it is in the optimizer's state." if name in _OF_THE_CHECKPOINT else ""
        )
        logger.warning(
            "Resuming from %s: %s was %s and is now %s.%s", checkpoint.name, name, _shown(before), _shown(after), stands
        )
    return changed


def _shown(value: Any) -> str:
    return f"{json.dumps(value):.120}"


def loss_facts(loss: Loss) -> list[Any]:
    """What identifies a loss before training: its name, formula and plain arguments."""
    plain = {name: value for name, value in vars(loss).items() if isinstance(value, (bool, int, float, str))}
    return [str(getattr(loss, "name", type(loss).__name__)), loss.formula, plain]


def base_digest(model: torch.nn.Module) -> str:
    """The `weights_digest` of the model that a training starts from. All processes call it together.

    With FSDP's ``cpu_ram_efficient_loading``, only the first process of a machine has weights before they are sharded; the others take the
    digest of process 0.
    """
    has_weights = shards_of(model) is not None or not is_fsdp_enabled() or PartialState().is_local_main_process
    own = weights_digest(model) if has_weights else ""
    first = all_gathered(own, "the digest of the base model")[0]
    return own or first


def weights_digest(model: torch.nn.Module) -> str:
    """A SHA-256 over names, shapes and evenly spread elements of a model's weights, without its head, which starts at random.

    If the weights are sharded, all processes call it together.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name.partition(".")[0] in HEADS or any(f".{head}." in name for head in HEADS) or "lora_" in name:
            continue
        with gathered([parameter]):
            flat = whole_weight(parameter.detach()).flatten()
            sample = flat[:: max(1, flat.numel() // _SAMPLED)][: 2 * _SAMPLED].clone().cpu()
            digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()


def data_digest(dataset: Any) -> str | None:
    """A SHA-256 over the values of a dataset; None for a stream, whose values are not known in advance."""
    if not isinstance(dataset, Dataset):
        return None
    digest = hashlib.sha256(json.dumps(sorted(dataset.column_names)).encode())
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        for name in sorted(dataset.column_names):
            _add_values(digest, table[name].combine_chunks())
    return digest.hexdigest()


def _add_values(digest: Any, values: Any) -> None:
    """Add an Arrow array's values, regardless of their memory layout."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        digest.update(
            np.ascontiguousarray(compute.fill_null(compute.list_value_length(values), -1).to_numpy(zero_copy_only=False))
        )
        _add_values(digest, compute.list_flatten(values))
    elif pa.types.is_primitive(values.type) and not values.null_count and not pa.types.is_boolean(values.type):
        digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
    else:
        digest.update(json.dumps(values.to_pylist(), default=str).encode())


def checkpoint_of_all(asked: str | Path | bool | None, output_dir: Path) -> Path | None:
    """The checkpoint that all processes resume from: the one that process 0 finds. All processes call it together.

    Args:
        asked: As for `rm_plugins_trl.reward_training.checkpoints.checkpoint_to_resume`.
        output_dir: Likewise.

    Raises:
        DataError: The folder is not a checkpoint, or was not saved completely, or a process does not see it.
    """
    checkpoint = None
    with failing_together():
        if is_first_process():
            checkpoint = checkpoint_to_resume(asked, output_dir)
    checkpoint = all_gathered(checkpoint, "the checkpoint to resume from")[0]
    sees = all_gathered(checkpoint is None or checkpoint.is_dir(), "whether they see the checkpoint")
    if not all(sees):
        raise DataError(
            f"Process {sees.index(False)} does not see {checkpoint}, from which process 0 would resume. All processes need the same "
            "output_dir, on a file system that all machines share."
        )
    return checkpoint


# --- What losses remember -------------------------------------------------------------------------------------------------


def save_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Write the state of losses, if they have one, into a checkpoint's folder."""
    states = [dict(loss.state()) for loss in losses]
    if any(states):
        write_atomically(checkpoint / LOSS_STATE, json.dumps(states))


def load_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Restore the states that `save_loss_states` wrote."""
    path = checkpoint / LOSS_STATE
    if path.is_file():
        for loss, state in zip(losses, json.loads(path.read_text(encoding="utf-8")), strict=True):
            loss.load_state(state)
