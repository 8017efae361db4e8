"""What another server, serving the same model, applies to the model's output before it answers."""

from __future__ import annotations

from typing import Any

from rm_plugins.provider import Provider
from rm_plugins.server.dialects.dialect import Activation

_BY_MODULE: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "sigmoid"}


def activation_of(reward: Provider) -> Activation:
    """What vLLM applies to the output of a reward that is one model, by the model's configuration; a sigmoid for any other reward.

    Seen in vLLM 0.32.0: ``problem_type`` counts first, then the activation that sentence-transformers has written for a cross-encoder.
    """
    models = [*reward.models.values()]
    if len(models) != 1 or reward.children or reward.transforms:
        return "sigmoid"
    return _activation(models[0].model.config)


def _activation(config: Any) -> Activation:
    problem = getattr(config, "problem_type", None)
    if problem:
        return "identity" if problem == "regression" else "sigmoid"
    written = getattr(config, "sentence_transformers", None) or {}
    module = written.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return "sigmoid" if module is None else _BY_MODULE.get(str(module).rpartition(".")[2], "unknown")
