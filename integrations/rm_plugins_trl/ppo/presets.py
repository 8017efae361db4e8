"""Defaults of ``rm-plugins ppo`` to start from. Importing it imports neither torch nor trl."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rm_plugins.errors import SpecError, did_you_mean

_WARMUP = "warmup_steps" if int(version("transformers").partition(".")[0]) >= 5 else "warmup_ratio"  # a share of the steps

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "trl": {},
    "openrlhf": {
        "adam_beta2": 0.95,
        "cliprange_value": 0.5,
        "critic_learning_rate": 9e-6,
        "kl_coef": 0.01,
        "lam": 1.0,
        "learning_rate": 1e-6,
        "num_mini_batches": 8,
        "num_ppo_epochs": 1,
        "response_length": 1024,
        "reward_clip": 10.0,
        "temperature": 1.0,
        _WARMUP: 0.03,
    },
}
"""Arguments of `PPOConfig` by preset.

``trl`` are its own defaults, those of TRL 1.12: four passes over each rollout, and short completions, as for summaries (Huang et al.
2024, arXiv:2403.17031). ``openrlhf`` are the defaults of OpenRLHF's PPO: one pass in eight minibatches, and long completions, as for
chats. OpenRLHF takes 128 completions for a minibatch, which depends on the devices and is left to the user.
"""


def preset(name: str) -> Mapping[str, Any]:
    """The arguments of a preset.

    Raises:
        SpecError: There is no such preset.

    >>> preset("openrlhf")["kl_coef"]
    0.01
    """
    if name not in PRESETS:
        raise SpecError(f"--preset: there is no preset {name!r}. {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
