"""How other servers of the same model present its output."""

from __future__ import annotations

from typing import Any

from rm_plugins.provider import Provider
from rm_plugins.server.dialects.dialect import Activation, Output

_BY_MODULE: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "sigmoid"}


def output_of(reward: Provider) -> Output:
    """The output of a reward, from the model's configuration if the reward is a single model, otherwise with default values.

    If the model has several labels and the reward uses one, the output has its name; a combination of labels is named ``reward``.
    """
    models = [*reward.models.values()]
    if len(models) != 1 or reward.children or reward.transforms:
        return Output()
    config, heads = models[0].model.config, models[0].heads
    labels = getattr(config, "id2label", None) or {}
    activation = _activation(config)
    if len(labels) <= 1:
        return Output(str(labels.get(0, Output.label)), activation)
    used = [label for label, weight in zip(heads.labels, heads.reward_weights, strict=True) if weight]
    label = used[0] if len(used) == 1 else "reward"
    return Output(label, "identity" if activation == "identity" else "softmax", is_only=False)


def _activation(config: Any) -> Activation:
    """The activation as in vLLM 0.32.0: from ``problem_type``, else from the settings of sentence-transformers for a cross-encoder."""
    problem = getattr(config, "problem_type", None)
    if problem:
        return "identity" if problem == "regression" else "sigmoid"
    written = getattr(config, "sentence_transformers", None) or {}
    module = written.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return "sigmoid" if module is None else _BY_MODULE.get(str(module).rpartition(".")[2], "unknown")
