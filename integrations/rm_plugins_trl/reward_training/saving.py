"""What a training of a reward writes beside the model, and the checkpoints that it resumes from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rm_plugins
from rm_plugins.errors import DataError
from rm_plugins.files import write_atomically
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import GoldenScore, Manifest, ScoreStatistics, file_digests
from rm_plugins.rendering.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.losses import Loss

logger = logging.getLogger(__name__)

_LOSS_STATE = "loss_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WRITTEN_LAST = "trainer_state.json"


def write_trained_manifest(
    folder: Path,
    model: PreTrainedModel | None,
    renderer: Renderer,
    *,
    heads: Heads,
    statistics: ScoreStatistics | None,
    training: dict[str, Any],
) -> None:
    """Write the manifest of the model that was just saved into `folder`, if one was: of sharded weights, none may be.

    The model in memory gives golden scores; it is None where it cannot score by itself.
    """
    files = file_digests(folder)
    if not files:
        return
    packages = ("torch", "transformers", "trl", "datasets")
    golden, problem = _golden(model, renderer, heads)
    if problem:
        logger.warning("The manifest in %s has no golden scores to verify the model by: %s", folder, problem)
    Manifest(
        created_by={"rm-plugins": rm_plugins.__version__, **{name: version(name) for name in packages}},
        rendering=renderer.rendering,
        dtype="float32" if model is None else str(model.dtype).removeprefix("torch."),
        heads=heads if len(heads) > 1 else None,
        statistics=statistics,
        training=training,
        files=files,
        golden=golden,
    ).write(folder)


def _golden(model: PreTrainedModel | None, renderer: Renderer, heads: Heads) -> tuple[list[GoldenScore], str]:
    """The golden scores of the model in memory, or why it has none."""
    if model is None:
        return [], "its weights are sharded."
    if getattr(model, "is_quantized", False):
        # Some kernels change the weights' format for good when they are first run in evaluation.
        return [], "it is quantized while it trains, and scores differently when its base model is loaded unquantized."
    try:
        return golden_scores(model, renderer, heads), ""
    except RuntimeError as error:  # a training is not lost because of what verifies it
        return [], f"it cannot score in its own precision ({error})."


def training_facts(trainer: Any) -> dict[str, Any]:
    """What the manifest and the model card say of the training of a `RewardTrainer`."""
    quantization = getattr(trainer.model.config, "quantization_config", None)
    quantized = {} if quantization is None else {"quantization": quantization.quant_method.value}
    return {
        "base_model": trainer.model.config.name_or_path,
        "loss": trainer.args.to_dict().get("loss", "bradley-terry"),
        "formula": trainer.losses[0].formula,
        "regularizers": {name: weight for name, (weight, _) in trainer.regularizers.items()},
        "preset": trainer.preset,
        "rows": trainer.rows,
        "overlong": trainer.overlong,
        "equal_pairs": trainer.equal_pairs,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "learning_rate": trainer.args.learning_rate,
        "rows_per_step": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "seed": trainer.args.seed,
        "metrics": trainer.last_metrics,
        **quantized,
    }


def locate_base(model: PreTrainedModel) -> None:
    """Have an adapter's configuration name a local base model by its whole path, which is right in every working directory.

    Args:
        model: A model with adapters, or any other, to which nothing happens.
    """
    for config in getattr(model, "peft_config", {}).values():
        if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
            config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())


def save_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Write what losses remember, if they do, into a checkpoint's folder."""
    states = [dict(loss.state()) for loss in losses]
    if any(states):
        write_atomically(checkpoint / _LOSS_STATE, json.dumps(states))


def load_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Have losses go on from what `save_loss_states` wrote."""
    path = checkpoint / _LOSS_STATE
    if path.is_file():
        for loss, state in zip(losses, json.loads(path.read_text(encoding="utf-8")), strict=True):
            loss.load_state(state)


def checkpoint_to_resume(asked: str | Path | bool | None, output_dir: Path) -> Path | None:
    """The checkpoint that is asked for: a folder, or with True (or ``"true"``) the newest whole one in `output_dir`.

    A process that is killed while it saves leaves a folder that transformers would take for a checkpoint. Its trainer
    writes the state last, so a checkpoint without a readable one is not whole.

    Returns:
        None where none is asked for, or none is there.

    Raises:
        DataError: The folder is not a checkpoint, or was not saved to its end.
    """
    if str(asked).lower() != "true":
        if not isinstance(asked, (str, Path)):
            return None
        if not _is_whole(Path(asked)):
            raise DataError(
                f"{asked} is no checkpoint to go on from: it has no readable {_WRITTEN_LAST}, which is written last. Name another, "
                "or let resume_from_checkpoint=True find the last whole one."
            )
        return Path(asked)
    names = ((path, _CHECKPOINT.fullmatch(path.name)) for path in (output_dir.iterdir() if output_dir.is_dir() else ()))
    for _, path in sorted(((int(name[1]), path) for path, name in names if name and path.is_dir()), reverse=True):
        if _is_whole(path):
            return path
        logger.warning("%s was not saved to its end and is passed over.", path)
    logger.warning("There is no checkpoint in %s, so training starts from the beginning.", output_dir)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _WRITTEN_LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
