"""Saves a model whose weights are sharded, by FSDP or stage 3 of ZeRO: as a whole model, or in a checkpoint of FSDP as its shards."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rm_plugins.files import scratch_folder
from rm_plugins.models.adapters import without_adapter
from rm_plugins.models.checkpoint import load_model
from rm_plugins.models.settings import ModelSettings
from rm_plugins_trl.reward_training.base_model import trusts_code
from rm_plugins_trl.reward_training.failing_together import failing_together
from rm_plugins_trl.reward_training.score_head import deployed_head
from rm_plugins_trl.trl_internals import fsdp_plugin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

Weights: TypeAlias = dict[str, "Tensor"]
WriteManifest: TypeAlias = Callable[["PreTrainedModel | None"], None]


def save_sharded(trainer: Any, folder: Path, write_manifest: WriteManifest, *, checkpoint: bool) -> None:
    """Save the model of a `RewardTrainer` whose weights are sharded, in all processes together.

    Process 0 gathers the weights and writes them as those of a whole model. The golden scores are those of the model that it then loads
    from the folder, so this takes the memory of one more model. A checkpoint of SHARDED_STATE_DICT gets only the configuration and the
    tokenizer here; accelerate writes its shards.

    Args:
        trainer: The trainer.
        folder: The folder.
        write_manifest: Writes the manifest beside the model, given the model that was saved, or None if no whole model was.
        checkpoint: Whether the folder is a checkpoint's, which keeps all outputs and the adapter.
    """
    plugin = fsdp_plugin(trainer)
    is_full = plugin is None or plugin.state_dict_type.name == "FULL_STATE_DICT"
    is_whole = is_full or not checkpoint or folder == Path(trainer.args.output_dir)  # which is pushed to the hub
    weights = trainer.whole_weights() if is_whole else None  # of process 0; empty in the others
    with failing_together():
        if trainer.is_world_process_zero():
            _write(trainer, folder, write_manifest, weights, checkpoint=checkpoint)
    if not checkpoint:
        trainer.publish()


def _write(trainer: Any, folder: Path, write_manifest: WriteManifest, weights: Weights | None, *, checkpoint: bool) -> None:
    if weights is None:
        trainer.save_configuration(folder)
        write_manifest(None)
        return
    heads = trainer.heads
    merges = not checkpoint and getattr(trainer.args, "merge_adapter", False) and hasattr(trainer.model, "peft_config")
    with _merged(trainer, folder, weights) if merges else nullcontext(weights) as given:
        kept = range(len(heads.names)) if checkpoint else trainer.losses[0].deployed(heads)
        try:
            with deployed_head(trainer.plain_model(), heads, kept, trainer.model, given) as trainer.heads:
                trainer.save_weights(folder, given)
                write_manifest(_saved(folder, trainer))
        finally:
            trainer.heads = heads


@contextmanager
def _merged(trainer: Any, folder: Path, weights: Weights) -> Iterator[None]:
    """Within it, the trainer's model is a whole one, in which the adapter of these weights is merged."""
    trained, plain = trainer.model, trainer.plain_model()
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "adapter") as adapter:
        trainer.save_weights(adapter, weights)
        merged = without_adapter(_loaded(adapter, trainer), str(adapter))
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(plain.dtype)
    merged.config = copy.deepcopy(plain.config)
    trainer.model = merged
    try:
        yield
    finally:
        trainer.model = trained


def _saved(folder: Path, trainer: Any) -> PreTrainedModel | None:
    """The model that was just saved, which gives the golden scores; None if it cannot be loaded."""
    try:
        return _loaded(folder, trainer)
    except Exception as error:  # a failure here must not lose the training
        logger.warning("The manifest in %s has no golden scores: the saved model cannot be loaded. %s", folder, error)
        return None


def _loaded(folder: Path, trainer: Any) -> PreTrainedModel:
    """The model in a folder, on the CPU."""
    settings = ModelSettings(device="cpu", dtype="auto", trust_remote_code=trusts_code(trainer.args))
    return load_model(str(folder), settings)[0]
