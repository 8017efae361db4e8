"""What a training of a reward writes next to the model."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import rm_plugins
from rm_plugins.engine.partitioned import held_part
from rm_plugins.engine.shards import shards_of
from rm_plugins.errors import TrainingError
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import GoldenScore, Manifest, file_digests
from rm_plugins.rendering.render import Renderer
from rm_plugins_trl.reward_training.checkpoints import last_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)


def write_trained_manifest(trainer: Any, folder: Path, model: PreTrainedModel | None) -> None:
    """Write the manifest of the model that was just saved into `folder`, if one was saved: with sharded weights, perhaps none was.

    Args:
        trainer: The `RewardTrainer`, which has rendered data.
        folder: The folder.
        model: Gives the golden scores; None if it cannot score in this process.
    """
    renderer: Renderer | None = trainer.renderer
    heads: Heads = trainer.heads
    files = file_digests(folder)
    if not files or renderer is None:
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
        statistics=trainer.score_statistics,
        training=training_facts(trainer),
        trained_on=trainer.trained_on,
        files=files,
        golden=golden,
    ).write(folder)


def _golden(model: PreTrainedModel | None, renderer: Renderer, heads: Heads) -> tuple[list[GoldenScore], str]:
    """The golden scores of the model in memory, or why it has none."""
    if model is None:
        return [], _shards_without_scores()
    if getattr(model, "is_quantized", False):
        # Some kernels change the weights' format for good when they are first run in evaluation.
        return [], "it is quantized while it trains, and scores differently when its base model is loaded unquantized."
    try:
        return golden_scores(model, renderer, heads), ""
    except RuntimeError as error:  # a failure here must not lose the training
        return [], f"it cannot score in its own precision ({error})."


@cache
def _shards_without_scores() -> str:
    """Told once in a process, of its first checkpoint."""
    logger.warning(
        "Checkpoints whose weights are saved as shards have no golden scores to verify them by; the final model has some."
    )
    return ""


@contextmanager
def pickled_by_name(args: Any) -> Iterator[None]:
    """Within it, a trainer's arguments can be pickled for a checkpoint: a loss that cannot, such as a closure, is replaced by its name."""
    loss = getattr(args, "loss", None)
    try:
        pickle.dumps(loss)
    except Exception:  # pickle and what it pickles each have their own
        args.loss = args.to_dict()["loss"]
    try:
        yield
    finally:
        if hasattr(args, "loss"):
            args.loss = loss


def training_facts(trainer: Any) -> dict[str, Any]:
    """What the manifest and the model card record about the training of a `RewardTrainer`."""
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
        "learning_rate": _learning_rate(trainer),
        "rows_per_step": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "seed": trainer.args.seed,
        "metrics": {name: value for name, value in trainer.last_metrics.items() if math.isfinite(value)},
        **({"resumed": trainer.resumed} if trainer.resumed else {}),
        **quantized,
    }


def _learning_rate(trainer: Any) -> float:
    """The highest learning rate: the scheduler's, which comes from the checkpoint when a training is resumed."""
    rates = getattr(getattr(trainer, "lr_scheduler", None), "base_lrs", None)
    return float(rates[0] if rates else trainer.args.learning_rate)


def check_weights(model: torch.nn.Module, step: int, checkpoints: str) -> None:
    """Refuse to save a model with a weight that is NaN or infinite.

    Args:
        model: The model.
        step: The step after which it is saved.
        checkpoints: The folder of the checkpoints.

    Raises:
        TrainingError: A trained weight is NaN or infinite, in all processes if the weights are sharded.
    """
    broken = next(
        (name for name, parameter in model.named_parameters() if parameter.requires_grad and not _is_finite(parameter)), None
    )
    shards = shards_of(model)
    if shards is not None:  # each process has looked at another part
        broken = next((name for name in shards.gathered(broken, "which weight is not finite") if name is not None), None)
    if broken is not None:
        raise TrainingError(
            f"After step {step} the weight {broken} is not finite, so the model is not saved. {how_to_go_on(checkpoints)}"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    """Whether this process's part of a weight is finite."""
    part = held_part(weight)
    return not part.is_floating_point() or bool(torch.isfinite(part).all())


def how_to_go_on(output_dir: str) -> str:
    """What to do after a training has diverged."""
    remedy = "a smaller learning_rate, bf16 instead of fp16, or max_grad_norm below 1"
    if last_checkpoint(Path(output_dir)) is not None:
        return f"The checkpoints in {output_dir} are from before it. Resume from the last one, or start again, with {remedy}."
    return f"Nothing was saved. Start again with {remedy}."


def locate_base(model: PreTrainedModel) -> None:
    """Make an adapter's configuration name a local base model by its absolute path, which is valid in every working directory.

    Args:
        model: The model; without adapters, nothing happens.
    """
    for config in getattr(model, "peft_config", {}).values():
        if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
            config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
