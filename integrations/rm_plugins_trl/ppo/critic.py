"""Makes the critic of PPO: from the policy, the reward, a folder or a model that is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn
from transformers import PreTrainedModel

from rm_plugins.errors import ModelError, UnsupportedError, did_you_mean
from rm_plugins_trl.ppo.reward_as_critic import reward_as_value_model
from rm_plugins_trl.ppo.value_functions import Critic, ValueHead, ValueModel, read_settings, saved_critic
from rm_plugins_trl.ppo.value_models import (
    check_value_model,
    check_vocabulary,
    load_value_model,
    policy_as_value_model,
    policy_vocabulary,
    vocabulary_digest,
    zero_head,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rm_plugins.provider import Provider

__all__ = ["Critic", "CriticKind", "ValueHead", "ValueModel", "add_group", "checkpointing", "make_critic", "trained_groups"]

CriticKind: TypeAlias = Literal["policy", "reward", "head"]

_ADVICE = "Give a sequence classifier with one label as `value_model`, or set critic='head'."


def make_critic(
    kind_or_model: CriticKind | PreTrainedModel | Critic | str | Path,
    policy: PreTrainedModel,
    reward: Provider | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> Critic:
    """The critic of a policy, in its dtype.

    ``policy`` is a copy of the policy's backbone with a head of zeros; the adapters of a PEFT policy are merged in the copy, which is a
    whole model and is trained whole. ``reward`` is a copy of the reward's model, which the training of the critic does not change.
    ``head`` is a `ValueHead`, which takes no memory: the choice for a policy with LoRA on a small device.

    Args:
        kind_or_model: ``policy``, ``reward`` or ``head``; a sequence classifier with one label, which is trained itself; its folder or hub
            id; a folder that `Critic.save` wrote; or a critic, which is returned. A language model's folder gets a head of zeros. A folder
            named like a kind is ``./policy``.
        policy: The policy, which stays as it is.
        reward: The reward, where there is one, for ``reward``.
        tokenizer: The policy's tokenizer.
        max_tokens: The token budget of a value model's micro-batch.
        trust_remote_code: Whether code in a checkpoint may run.

    Raises:
        ModelError: The model is not a causal decoder with one label, has another vocabulary than the policy, or cannot be loaded or made of
            the policy.
        UnsupportedError: The reward is not a plain sequence classifier, or `kind_or_model` is something else.
    """
    if isinstance(kind_or_model, Critic):
        return kind_or_model
    if kind_or_model == "head":
        return ValueHead.of(policy)
    digest = vocabulary_digest(policy_vocabulary(policy, tokenizer))
    if kind_or_model == "policy":
        model = policy_as_value_model(policy, trust_remote_code=trust_remote_code, advice=_ADVICE)
        check_value_model(model, "The value model of the policy")
        return ValueModel(zero_head(model), max_tokens, vocabulary=digest)
    if kind_or_model == "reward":
        model, shift = reward_as_value_model(reward, policy, tokenizer)
        return ValueModel(model, max_tokens, shift=shift, vocabulary=digest)
    if isinstance(kind_or_model, PreTrainedModel) or hasattr(kind_or_model, "peft_config"):
        model = kind_or_model
        check_value_model(model, "The value model")
        check_vocabulary(model, "The value model", policy, tokenizer, None)
        return ValueModel(model, max_tokens, vocabulary=digest)
    if isinstance(kind_or_model, (str, Path)):
        return _from_folder(str(kind_or_model), policy, tokenizer, digest, max_tokens, trust_remote_code)
    raise UnsupportedError(
        f"A critic is 'policy', 'reward', 'head', a sequence classifier, or its folder or hub id, not a {type(kind_or_model).__name__}."
    )


def _from_folder(
    source: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    digest: str,
    max_tokens: int | None,
    trust_remote_code: bool,
) -> Critic:
    place = saved_critic(Path(source))
    settings = {} if place is None else read_settings(place)[1]
    if place is not None and settings["kind"] == ValueHead.kind:
        head = ValueHead.of(policy, detach=bool(settings.get("detach")))
        head.load(place)
        return head
    name = f"The value model {source}"
    try:
        model, own = load_value_model(str(place or source), policy.dtype, trust_remote_code=trust_remote_code)
    except ModelError as error:
        is_word = place is None and "/" not in source and not Path(source).exists()
        hint = f" {did_you_mean(source, ['policy', 'reward', 'head'])}" if is_word else ""
        raise ModelError(f"{error}{hint}") from error.__cause__
    check_value_model(model, name)
    saved = settings.get("vocabulary")
    if saved is None:
        check_vocabulary(model, name, policy, tokenizer, own)
    elif saved != digest:
        raise ModelError(
            f"{name} was trained as the critic of a policy with another vocabulary, so it would read this policy's token ids as other text."
        )
    return ValueModel(model, max_tokens, shift=float(settings.get("shift", 0.0)), vocabulary=digest)


def trained_groups(critic: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The critic's groups of parameters for an optimizer: matrices with weight decay; biases and norms, of one dimension, without.

    Args:
        critic: The critic, also inside a wrapper such as DDP.
        learning_rate: Their learning rate.
        weight_decay: The weight decay of matrices.
    """
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [{**group, "lr": learning_rate} for group in groups if group["params"]]


def add_group(optimizer: Any, scheduler: Any, group: dict[str, Any]) -> None:
    """Add a group to an optimizer, and to the scheduler that was made for it before, if there is one."""
    rate = group["lr"]
    if (rates := getattr(scheduler, "base_lrs", None)) is not None:
        rates.append(rate)
        group["initial_lr"] = rate
        if (schedules := getattr(scheduler, "lr_lambdas", None)) is not None:
            schedules.append(schedules[0])
            group["lr"] = rate * schedules[0](scheduler.last_epoch)
    optimizer.add_param_group(group)


def checkpointing(args: Any) -> dict[str, Any] | None:
    """How activations are computed again, without what transformers' trainer takes for itself."""
    given = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs or {}
    return {name: value for name, value in given.items() if name not in ("every_n_layers", "offload")} or None
