"""Arguments of GRPO, and of PPO in TRL up to 1.12, that PPO here does not have, and what replaces each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from trl import GRPOConfig

from rm_plugins.errors import UnsupportedError

Config = TypeVar("Config")

_ROLLOUT = "Set per_device_train_batch_size, gradient_accumulation_steps (completions of an optimizer step on a process)"
_CLIPPED = "PPO limits its steps with cliprange"
_ENTROPY = "The entropy's weight is constant here: set entropy_coef"

OTHER_NAMES: Mapping[str, str] = {
    "beta": "Set kl_coef",
    "epsilon": "Set cliprange",
    "num_iterations": "Set num_ppo_epochs",
    "max_completion_length": "Set response_length",
    "steps_per_generation": "Set num_mini_batches, which counts optimizer steps",
    "generation_batch_size": f"{_ROLLOUT} and num_mini_batches (optimizer steps of a rollout)",
    "batch_size": f"{_ROLLOUT} and num_mini_batches (optimizer steps of a rollout)",
    "local_batch_size": f"{_ROLLOUT} and num_mini_batches (optimizer steps of a rollout)",
    "mini_batch_size": _ROLLOUT,
    "local_mini_batch_size": _ROLLOUT,
    "micro_batch_size": "Set per_device_train_batch_size",
    "num_total_batches": "Set total_episodes",
    "world_size": "It is the number of processes of the launcher: set --num_processes of `accelerate launch`",
}
"""The arguments that are derived from others or have no meaning, and what to do instead."""

_OF_GRPO: Mapping[str, str] = {
    "loss_type": "PPO has one loss; cliprange, cliprange_value and vf_coef set it",
    "scale_rewards": "PPO has no groups of completions to scale in: set reward_scaling, whiten_rewards or whiten_advantages",
    "multi_objective_aggregation": "The rewards are summed with reward_weights, as PPO has no groups of completions",
    "importance_sampling_level": f"PPO's ratios are ratios of tokens' probabilities. {_CLIPPED}",
    "delta": f"{_CLIPPED} on both sides",
    "epsilon_high": f"{_CLIPPED} on both sides",
    "mask_truncated_completions": "Set truncated_completions='mask'",
    "top_entropy_quantile": "PPO learns from every token of a completion. Set entropy_coef to keep the entropy up",
    "use_adaptive_entropy": _ENTROPY,
    "entropy_coef_min": _ENTROPY,
    "entropy_coef_max": _ENTROPY,
    "entropy_coef_delta": _ENTROPY,
    "entropy_target": _ENTROPY,
    "off_policy_mask_threshold": "Set target_kl, which ends the passes over a rollout that the policy has moved away from",
    "use_bias_correction_kl": "The KL divergence is a part of the reward here: set kl_coef and kl_estimator",
}
_FAMILIES = {"sapo_": f"SAPO's loss is not PPO's. {_CLIPPED}", "vespo_": f"VESPO's loss is not PPO's. {_CLIPPED}"}

_OF_GENERATION: Mapping[str, str] = {
    "eos_token_id": "Set stop_token_id: what follows another token would be trained on, padding included",
    "max_length": "Set response_length",
    "max_new_tokens": "Set response_length",
    "max_tokens": "Set response_length",
    "n": "Set num_generations",
    "num_return_sequences": "Set num_generations",
    "stop_strings": "Set stop_token_id, the token that ends a completion",
    "temperature": "Set temperature, which holds for the log-probabilities, too",
}
_STOPS = ("stop", "stop_token_ids")
"""What vLLM stops at: TRL counts a completion that ends there as one without an end."""


def takes_other_names(config: type[Config]) -> type[Config]:
    """A configuration that also takes the names of `OTHER_NAMES`, and hands them to its ``check_other_names`` once it is made."""
    make = config.__init__

    @wraps(make)
    def make_and_check(self: Any, *args: Any, **given: Any) -> None:
        others = {name: given.pop(name) for name in OTHER_NAMES if name in given}
        make(self, *args, **given)
        self.check_other_names(others)

    config.__init__ = make_and_check  # type: ignore[method-assign]
    return config


def check_other_names(config: Any, given: Mapping[str, Any]) -> None:
    """Refuse a value that is not the one that the argument is derived to have here.

    Raises:
        UnsupportedError: It is another one; the message names the argument to set instead.
    """
    for name, value in given.items():
        derived = getattr(config, name, None)
        if value is not None and value != derived:
            is_now = "" if derived is None else f" and is {derived} with these arguments"
            raise UnsupportedError(f"{name}={value!r} is not an argument of PPO{is_now}. {OTHER_NAMES[name]}.")


def check_grpo_arguments(config: Any) -> None:
    """Refuse arguments of GRPO that are not at their defaults and have no meaning in PPO.

    Raises:
        UnsupportedError: There is one; the message names the argument of PPO to set instead.
    """
    for one in fields(GRPOConfig):
        family = next((advice for start, advice in _FAMILIES.items() if one.name.startswith(start)), None)
        advice = _OF_GRPO.get(one.name, family)
        value = getattr(config, one.name)
        if (
            advice is not None and value != one.default and not (one.name == "scale_rewards" and value is True)
        ):  # "group", its default
            raise UnsupportedError(f"{one.name}={value!r} is an argument of GRPO that PPO does not have. {advice}.")


def check_generation(config: Any) -> None:
    """Refuse settings in ``generation_kwargs`` that the training would not follow.

    Raises:
        UnsupportedError: There is one; the message names the argument of PPO to set instead.
    """
    given = config.generation_kwargs or {}
    for name, advice in _OF_GENERATION.items():
        if name in given:
            raise UnsupportedError(f"generation_kwargs sets {name}, which the training would not follow. {advice}.")
    counts = config.truncated_completions != "score" or config.missing_eos_penalty is not None
    for name in _STOPS:
        if counts and name in given:
            raise UnsupportedError(
                f"generation_kwargs sets {name}, and a completion that ends there counts as one without an end. Set stop_token_id, or "
                "leave out truncated_completions and missing_eos_penalty."
            )
