"""The allowed values of PPO's arguments."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal, NamedTuple

from rm_plugins.errors import SpecError


class _Range(NamedTuple):
    allows: Callable[[Any], bool]
    said: str
    example: str


_NUMBER_FROM_0 = "a number of 0 or more"
_RANGES: Mapping[str, _Range] = {
    **{
        name: _Range(lambda value: 0 <= value <= 1, "a number from 0 to 1", example)
        for name, example in (("gamma", "1.0"), ("lam", "0.95"))
    },
    **{
        name: _Range(lambda value: value > 0, "a number above 0", example)
        for name, example in (
            ("adaptive_kl_target", "6.0"),
            ("cliprange", "0.2"),
            ("cliprange_value", "0.2"),
            ("max_kl", "50.0"),
            ("missing_eos_penalty", "1.0"),
            ("reward_clip", "5.0"),
            ("target_kl", "0.1"),
            ("temperature", "0.7"),
        )
    },
    **{
        name: _Range(lambda value: value >= 0, _NUMBER_FROM_0, example)
        for name, example in (
            ("critic_learning_rate", "1e-5"),
            ("kl_coef", "0.05"),
            ("learning_rate", "3e-6"),
            ("vf_coef", "0.1"),
        )
    },
    **{
        name: _Range(lambda value: isinstance(value, int) and value >= 1, "a whole number of 1 or more", example)
        for name, example in (
            ("adaptive_kl_horizon", "10000"),
            ("gradient_accumulation_steps", "1"),
            ("local_rollout_forward_batch_size", "64"),
            ("max_batch_tokens", "16384"),
            ("num_generations", "1"),
            ("num_generations_eval", "1"),
            ("num_mini_batches", "1"),
            ("num_ppo_epochs", "4"),
            ("per_device_eval_batch_size", "8"),
            ("per_device_train_batch_size", "8"),
            ("response_length", "53"),
            ("total_episodes", "10000"),
        )
    },
    **{
        name: _Range(lambda value: isinstance(value, int) and value >= 0, "a whole number of 0 or more", example)
        for name, example in (("critic_warmup_steps", "0"), ("num_sample_generations", "0"), ("stop_token_id", "2"))
    },
}
_MAY_BE_NONE = (
    "adaptive_kl_target",
    "critic_learning_rate",
    "max_batch_tokens",
    "max_kl",
    "missing_eos_penalty",
    "num_generations_eval",
    "reward_clip",
    "stop_token_id",
    "target_kl",
    "total_episodes",
)


def check_ranges(config: Any) -> None:
    """Refuse numbers out of their ranges.

    Raises:
        SpecError: One is; the message says what is allowed, with an example.
    """
    for name, allowed in _RANGES.items():
        value = getattr(config, name)
        if value is None and name in _MAY_BE_NONE:
            continue
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_number and allowed.allows(value)):
            none = ", or None" if name in _MAY_BE_NONE else ""
            raise SpecError(f"{name} must be {allowed.said}{none}, not {value!r}: for example {name}={allowed.example}.")


def check_choices(config: Any) -> None:
    """Refuse a text where only some are allowed.

    Raises:
        SpecError: It is another one; the message lists those that are allowed.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        options = [one for one in (kind, *typing.get_args(kind)) if typing.get_origin(one) is Literal]
        if not options or name not in vars(config):
            continue
        allowed = [*typing.get_args(options[0]), *([None] if type(None) in typing.get_args(kind) else [])]
        if getattr(config, name) not in allowed:
            raise SpecError(f"{name} must be {' or '.join(map(repr, allowed))}, not {getattr(config, name)!r}.")
