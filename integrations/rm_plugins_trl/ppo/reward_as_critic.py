"""A value model that starts from the weights of the reward model, as in InstructGPT (arXiv 2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rm_plugins.component import Transform
from rm_plugins.errors import ModelError, UnsupportedError
from rm_plugins.models.adapters import without_adapter
from rm_plugins.provider import Provider
from rm_plugins.providers.models.model_in_memory import ModelInMemory
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.transforms import Chain, Clip, MinMax, Scale, ZScore
from rm_plugins_trl.ppo.value_models import check_value_model, check_vocabulary, empty_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INSTEAD = (
    "Use critic='policy' (a copy of the policy) or critic='head' (a head on the policy), or give the value model itself: "
    "PPOTrainer(..., value_model=FOLDER)."
)


def reward_as_value_model(
    reward: Provider | None, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, float]:
    """A copy of the reward's model as a classifier with one label, and what is added to its score.

    Several labels with fixed weights, and members that are averaged, become one label: the head is linear. A transform must be linear where
    it does not clip, because values predict the transformed reward: its factor is in the copy's head, and its summand is returned. The
    reward's `read` plays no role, as a value is read at every token.

    Args:
        reward: The reward; only a `SequenceClassifier` or `ModelInMemory` works.
        policy: The policy, whose architecture family the model must have.
        tokenizer: The policy's tokenizer, whose vocabulary the model must have.

    Returns:
        The copy, on the CPU and in the policy's dtype, which shares no weight with the reward; and the summand.

    Raises:
        UnsupportedError: The reward is not a plain sequence classifier, or its transform or members are not linear.
        ModelError: Its model has another architecture or vocabulary than the policy, or no causal attention.
    """
    if not isinstance(reward, (SequenceClassifier, ModelInMemory)):
        what = "there is none" if reward is None else f"{reward.label!r} is a {reward.name}"
        raise UnsupportedError(f"critic='reward' needs a reward that is one `sequence-classifier`, but {what}. {_INSTEAD}")
    name = f"The model of the reward {reward.label!r}"
    try:
        scale, shift = _as_line(reward)
        model, bias = _copy(reward, policy, name, scale)
        check_vocabulary(model, name, policy, tokenizer, reward.renderer.tokenizer)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"critic='reward' cannot start from the reward: {error} {_INSTEAD}") from error.__cause__
    return model, shift + bias


def _as_line(reward: SequenceClassifier | ModelInMemory) -> tuple[float, float]:
    if not reward.is_weighted_sum:
        raise UnsupportedError(
            f"The rewards of the {reward.trained.heads.members} members of {reward.label!r} are not simply averaged (`aggregate`, "
            "`member_transforms`), so no single head gives them."
        )
    line = transform_as_line(reward.transform)
    if line is None:
        raise UnsupportedError(
            f"The transform {getattr(reward.transform, 'name', None)!r} of {reward.label!r} is not linear with fixed numbers, so the "
            "model's scores are not on the scale of the rewards that values predict."
        )
    return line


def transform_as_line(transform: Transform | None) -> tuple[float, float] | None:
    """Factor and summand of a transform that is linear where it does not clip; None for any other, and for running statistics.

    >>> transform_as_line(Chain(transforms=[Scale(shift=1.0), Scale(factor=2.0), Clip(low=-5)]))
    (2.0, -2.0)
    """
    match transform:
        case None | Clip():
            return 1.0, 0.0
        case Scale():
            return transform.factor, -transform.factor * transform.shift
        case ZScore(running=None):
            transform.settle()
            return _line(1.0 / (transform.std or 1.0), transform.mean or 0.0)
        case MinMax():
            transform.settle()
            low, high = transform.low or 0.0, transform.high or 0.0
            return _line(1.0 / (high - low), low)
        case Chain():
            return _composed(transform.transforms)
        case _:
            return None


def _line(factor: float, zero: float) -> tuple[float, float]:
    return factor, -factor * zero


def _composed(transforms: Sequence[Transform]) -> tuple[float, float] | None:
    scale, shift = 1.0, 0.0
    for transform in transforms:
        line = transform_as_line(transform)
        if line is None:
            return None
        scale, shift = scale * line[0], shift * line[0] + line[1]
    return scale, shift


def _copy(reward: SequenceClassifier | ModelInMemory, policy: Any, name: str, scale: float) -> tuple[PreTrainedModel, float]:
    """The copy, and the bias of its only label, which transformers' head has no place for."""
    original = reward.model
    family, wanted = (model.config.get_text_config().model_type for model in (original, policy))
    if family != wanted:
        raise ModelError(f"{name} is a {family}, and the policy is a {wanted}; both must be of one architecture family.")
    if not isinstance(head := getattr(original, "score", None), nn.Linear) and not hasattr(original, "peft_config"):
        raise ModelError(f"{name} ({type(original).__name__}) has no linear head named `score`, but {type(head).__name__}.")
    plain = without_adapter(deepcopy(original), reward.label) if hasattr(original, "peft_config") else original
    weights = {key: value.detach() for key, value in plain.state_dict().items()}
    mix = scale * torch.tensor(reward.trained.heads.reward_weights, dtype=torch.float64)
    matrix, bias = weights.pop("score.weight").double().cpu(), weights.pop("score.bias", None)
    weights["score.weight"] = (mix @ matrix)[None]
    trusted = type(original).__module__.startswith("transformers_modules.")  # it was allowed when the reward was loaded
    copy = empty_classifier(original.config, policy.dtype, trust_remote_code=trusted)
    check_value_model(copy, name)
    copy.load_state_dict(weights)
    return copy, 0.0 if bias is None else float(mix @ bias.double().cpu())
