"""The layer of a classifier's outputs: loaded with as many as the loss trains, and reduced to those that are deployed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed

from rm_plugins.errors import ModelError, SpecError
from rm_plugins.models.checkpoint import module_of
from rm_plugins.models.heads import Heads
from rm_plugins.models.model_folder import reason_in_short
from rm_plugins.models.own_weights import own_weights
from rm_plugins_trl.reward_training.base_model import model_config, trusts_code
from rm_plugins_trl.reward_training.quiet import without_noise
from rm_plugins_trl.trl_internals import create_model_from_path, suppress_seqcls_warning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.losses import Loss

logger = logging.getLogger(__name__)

HEADS = ("score", "classifier")


def load_classifier(
    source: str, args: Any, heads: Heads, quantization_config: Any = None
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A sequence classifier from a path or hub id, as TRL's RewardTrainer loads it, and its modules that are not in the checkpoint.

    It has the outputs that the loss trains. A head of another size, as in a trained reward model, is replaced by a new one.

    Raises:
        ModelError: The quantization is given twice, or the model cannot be loaded, or its code may not run.
    """
    settings = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in settings:
            raise ModelError("Give quantization_config once: to the trainer or in model_init_kwargs.")
        settings["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        settings["device_map"] = None
    settings["trust_remote_code"] = trusts_code(args)
    settings["num_labels"] = len(heads)
    if len(heads) > 1:
        settings |= {**_labels(heads), "ignore_mismatched_sizes": True}
    missing: list[str] = []
    resized: list[str] = []

    class Classifier:
        @staticmethod
        def from_pretrained(source: str, **settings: Any) -> PreTrainedModel:
            loaded, info = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True, **settings)
            missing.extend(info["missing_keys"])
            resized.extend(str(key[0]) for key in info["mismatched_keys"])
            return loaded

    model_config(source, args)
    set_seed(args.seed)  # the new head is random
    with suppress_seqcls_warning(), without_noise(disable_bars=args.disable_tqdm):
        try:
            model = create_model_from_path(source, Classifier, **settings)
        except OSError as error:
            raise ModelError(f"{source!r} cannot be loaded: {reason_in_short(error)}") from error
    if random := sorted({*missing, *resized} - {key for key in (*missing, *resized) if key.split(".")[0] in HEADS}):
        logger.warning(
            "%d weights beside the score head are not in the checkpoint %s in this shape and start at random: %s%s.",
            *(len(random), source, ", ".join(random[:5]), ", ..." if len(random) > 5 else ""),
        )
    return own_weights(model), frozenset(module_of(model, key) for key in missing)


def trained_heads(loss: Loss, attributes: tuple[str, ...], reward: Any, members: int) -> tuple[Heads, dict[str, float] | None]:
    """The outputs that a loss trains, and the weight of each attribute in the reward, by which rated texts are compared.

    `attributes` are what the data is rated on; `reward` is the weight of each as the user has set it, or None for the loss's own.

    Raises:
        SpecError: A weight names something that is not an attribute, or the loss cannot be trained on the attributes.
    """
    heads = loss.heads(attributes)
    if reward is not None and (unknown := reward.keys() - {*attributes}):
        raise SpecError(
            f"reward: {', '.join(sorted(unknown))} is not an attribute of the data, which has {', '.join(attributes)}."
        )
    weights = heads.weights
    if attributes and heads.names == attributes:
        if reward is not None:
            weights = tuple(float(reward.get(name, 0.0)) for name in attributes)
        reward = dict(zip(attributes, weights, strict=True))
    return Heads(heads.names, weights, members), reward


def check_outputs(model: PreTrainedModel, heads: Heads) -> None:
    """Check that a given model has the outputs that the loss trains.

    Raises:
        ModelError: It has another number.
    """
    if model.config.num_labels != len(heads):
        raise ModelError(
            f"The model has num_labels={model.config.num_labels}, and the loss trains {len(heads)} outputs "
            f"({', '.join(heads.labels)}). Load it with num_labels={len(heads)}, or give its path."
        )


def head_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The linear layer whose outputs are the model's; None where there is no such layer."""
    outputs = model.config.num_labels
    layers = [
        module
        for name, module in model.named_modules()
        if name.partition(".")[0] in HEADS
        and "original_module" not in name  # peft keeps the untrained head beside the trained one
        and isinstance(module, nn.Linear)
        and module.out_features == outputs
    ]
    return layers[-1] if layers else None


def name_outputs(model: PreTrainedModel, heads: Heads) -> None:
    """Write the names of a model's outputs into its configuration."""
    model.config.num_labels = len(heads)
    if len(heads) > 1:
        model.config.update(_labels(heads))


def _labels(heads: Heads) -> dict[str, Any]:
    labels = dict(enumerate(heads.labels))
    return {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}


@contextmanager
def deployed_head(
    model: PreTrainedModel,
    heads: Heads,
    kept: Sequence[int],
    wrapper: nn.Module | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Iterator[Heads]:
    """Within it, a model has only some of its outputs, which are returned.

    Args:
        model: The model.
        heads: Its outputs.
        kept: The positions of a member's outputs to keep.
        wrapper: The module around the model in which `weights` are named.
        weights: The whole weights of a sharded model, which lose the outputs in place of the model's own.

    Raises:
        ModelError: The model's outputs are not those of one linear layer.
    """
    width = len(heads.names)
    if len(kept) == width:
        yield heads
        return
    layer = head_layer(model)
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no linear layer 'score' or 'classifier' to take outputs from.")
    outputs = [member * width + number for member in range(heads.members) for number in kept]
    whole = dict(layer.named_parameters(recurse=False))
    if weights is None:
        for name, parameter in whole.items():
            setattr(layer, name, nn.Parameter(parameter.detach()[outputs].clone()))
    else:
        for name, parameter in (wrapper or model).named_parameters():
            if any(parameter is one for one in whole.values()):
                weights[name] = weights[name][outputs]
    deployed = Heads(
        tuple(heads.names[number] for number in kept), tuple(heads.weights[number] for number in kept), heads.members
    )
    _resize(model, layer, deployed)
    try:
        yield deployed
    finally:
        if weights is None:
            for name, parameter in whole.items():
                setattr(layer, name, parameter)
        _resize(model, layer, heads)


def _resize(model: PreTrainedModel, layer: nn.Linear, heads: Heads) -> None:
    layer.out_features = model.num_labels = len(heads)
    name_outputs(model, heads)


def trains_head(model: nn.Module) -> bool:
    """Whether a model with an adapter trains its head."""
    return any(
        parameter.requires_grad and any(f"{head}." in name for head in HEADS) for name, parameter in model.named_parameters()
    )
