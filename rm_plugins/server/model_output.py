"""What another server, serving the same model, makes of the model's output."""

from __future__ import annotations

from typing import Any

from rm_plugins.provider import Provider
from rm_plugins.server.dialects.dialect import Activation, Output

_BY_MODULE: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "sigmoid"}


def output_of(reward: Provider) -> Output:
    """The output of a reward that is one model, by the model's configuration; of any other reward, as if nothing was said."""
    models = [*reward.models.values()]
    if len(models) != 1 or reward.children or reward.transforms:
        return Output()
    config = models[0].model.config
    labels = getattr(config, "id2label", None) or {}
    return Output(str(labels.get(0, Output.label)) if len(labels) == 1 else Output.label, _activation(config))


def _activation(config: Any) -> Activation:
    """As seen in vLLM 0.32.0: ``problem_type`` counts first, then what sentence-transformers has written for a cross-encoder."""
    problem = getattr(config, "problem_type", None)
    if problem:
        return "identity" if problem == "regression" else "sigmoid"
    written = getattr(config, "sentence_transformers", None) or {}
    module = written.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return "sigmoid" if module is None else _BY_MODULE.get(str(module).rpartition(".")[2], "unknown")
