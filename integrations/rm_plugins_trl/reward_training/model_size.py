"""The sizes of a model to train, from its configuration: no weight is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from rm_plugins.engine.prefix_cache import is_decoder
from rm_plugins.engine.transformers_internals import loads_whole
from rm_plugins.errors import MissingDependencyError, ModelError
from rm_plugins_trl.memory_estimate import ModelSize
from rm_plugins_trl.reward_training.base_model import model_config, trusts_code
from rm_plugins_trl.reward_training.score_head import HEADS


def model_size(source: str, args: Any, peft_config: Any = None) -> ModelSize:
    """The sizes of a model and of its adapter.

    Args:
        source: Its folder or hub id, of which the configuration is read.
        args: The trainer's arguments.
        peft_config: The adapter that is trained, if any.

    Raises:
        ModelError: There is no such model.
        MissingDependencyError: The adapter needs peft, which is not installed.
    """
    return size_of(model_config(source, args), members=args.members, trusted=trusts_code(args), peft_config=peft_config)


def size_of(config: Any, *, members: int = 1, trusted: bool = False, peft_config: Any = None) -> ModelSize:
    """The sizes of a model with a configuration.

    Args:
        config: The model's configuration; its number of labels changes.
        members: The outputs of its head.
        trusted: Whether code of its own may run.
        peft_config: The adapter that is trained, if any.

    Raises:
        ModelError: No model of it can be made.
        MissingDependencyError: The adapter needs peft, which is not installed.
    """
    config.num_labels = members
    try:
        with loads_whole(), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusted)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(f"No sequence classifier can be made of this {type(config).__name__}: {error}") from error
    parameters = _count(model)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name.partition(".")[0] not in HEADS
    )
    layers = [child for stack in model.modules() if isinstance(stack, nn.ModuleList) for child in stack]
    named = [module for module in model.modules() if type(module).__name__ in (getattr(model, "_no_split_modules", None) or ())]
    largest = max(named or layers or [model], key=_count)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    hidden = text.hidden_size
    of_head = getattr(text, "head_dim", None) or hidden // heads
    embedding = model.get_input_embeddings()
    width = next(
        (value for name in ("intermediate_size", "ffn_dim", "n_inner") if (value := getattr(text, name, None))), 4 * hidden
    )
    gated = any("gate" in name for name, _ in largest.named_modules())
    is_encoder = not is_decoder(model)  # an adapter wraps it
    trained = parameters if peft_config is None else _trained_with(model, peft_config)
    return ModelSize(
        parameters=parameters,
        linear=linear,
        layer=_count(largest),
        embedding=_count(embedding),
        trained=trained,
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        queries=heads * of_head,
        intermediate=int(width),
        gated=gated,
        vocabulary=int(text.vocab_size),
        outputs=members,
        is_encoder=is_encoder,
        kept_keys=(getattr(text, "num_key_value_heads", None) or heads) * of_head,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained_with(model: nn.Module, peft_config: Any) -> int:
    """The trained parameters of a model with an adapter and its score head; the model is changed."""
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise MissingDependencyError("--use_peft needs the package peft: pip install 'rm-plugins[peft]'") from error
    peft_config.task_type = "SEQ_CLS"
    try:
        adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        raise ModelError(f"The adapter does not fit this {type(model).__name__}: {error}") from error
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
