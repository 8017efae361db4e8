"""Rewards for NeMo-RL: an environment that ends the episode after one turn and returns the reward.

NeMo-RL hands over message logs, whose completions it has decoded without special tokens. Its data processors put the prompt there after the
chat template has rendered it. Then the row's ``extra_env_info`` must have the messages, or the text is scored unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_row
from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.samples import Message, Sample, message_text
from rm_plugins.server.dialects.queries import has_special_tokens
from rm_plugins_engines.engine_reward import NO_REWARD, EngineReward, NoReward
from rm_plugins_engines.prompts import AUTO, COLUMN, RENDERED, TEXT, PromptSource
from rm_plugins_engines.shared_reward import Spec

ENGINE = "NeMo-RL"
FACTS = "rm_plugins"
"""Where the facts about a reward are kept, in a sample's metadata."""

_ROLES = {"environment": "user"}


def environment(spec: Spec, *, no_reward: NoReward = "raise", prompt: str = AUTO, details: Sequence[str] = ()) -> type[Any]:
    """An environment class. Make it an actor (``ray.remote``) in a module that NeMo-RL's processes import, and call `register`.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: ``"raise"``, which ends the training, or a number.
        prompt: Where the prompt is: ``auto``, the message log unless it is rendered; ``text``; ``rendered``; ``none``; or
            ``column:PATH`` in ``extra_env_info``.
        details: The details of the reward to keep in the metadata, such as ``member/0``.

    Raises:
        MissingDependencyError: NeMo-RL is not installed.
        SpecError: An argument is wrong.
    """
    try:
        from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
    except ImportError as error:
        raise MissingDependencyError(
            f"An environment for NeMo-RL needs NeMo-RL, which cannot be imported here ({error})."
        ) from error
    reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details)
    source = PromptSource(prompt, ENGINE, "extra_env_info", has_eos=False)

    class RMPluginsEnvironment(EnvironmentInterface):
        """Scores each conversation, and ends it."""

        def __init__(self, config: Any = None) -> None:
            self.config = config

        def step(self, message_log_batch: Sequence[Any], metadata: Sequence[Any]) -> Any:
            import torch

            logs = list(message_log_batch)
            outcomes = reward.score([sample_of(log, info, source) for log, info in zip(logs, metadata, strict=True)])
            return EnvironmentReturn(
                observations=[{"role": "environment", "content": ""} for _ in logs],
                metadata=[{**(info or {}), FACTS: outcome.facts} for info, outcome in zip(metadata, outcomes, strict=True)],
                next_stop_strings=[None] * len(logs),
                rewards=torch.tensor([outcome.value for outcome in outcomes], dtype=torch.float32),
                terminateds=torch.ones(len(logs), dtype=torch.bool),
                answers=[message_text(log[-1]) for log in logs],
            )

        def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
            facts = [(info or {}).get(FACTS) for info in batch.get("extra_env_info") or ()]
            return batch, metrics_of([fact for fact in facts if fact])

    return RMPluginsEnvironment


def register(name: str, actor: str) -> None:
    """Register an environment's actor in NeMo-RL.

    Args:
        name: The name of the environment in NeMo-RL's configuration, ``env.NAME``.
        actor: The import path of the actor, ``MODULE.CLASS``.

    Raises:
        MissingDependencyError: NeMo-RL is not installed.
    """
    try:
        from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
        from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
        from nemo_rl.environments.utils import ENV_REGISTRY, register_env
    except ImportError as error:
        raise MissingDependencyError(f"NeMo-RL cannot be imported here ({error}).") from error
    ACTOR_ENVIRONMENT_REGISTRY[actor] = PY_EXECUTABLES.SYSTEM  # where rm-plugins is installed
    if ENV_REGISTRY.get(name, {}).get("actor_class_fqn") != actor:
        register_env(name, actor)


def metrics_of(facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every number of a batch's facts, and how many samples had no reward of their own.

    >>> metrics_of([{"rm_no_reward": 0.0, "member/0": 2.0}, {"rm_no_reward": 1.0, "member/0": float("nan")}])
    {'rm_plugins/rm_no_reward': 0.5, 'rm_plugins/member/0': 2.0, 'rm_plugins/samples_without_reward': 1.0}
    """
    metrics: dict[str, float] = {}
    for name in facts[0] if facts else ():
        numbers = [fact[name] for fact in facts if isinstance(fact.get(name), float) and not math.isnan(fact[name])]
        if numbers:
            metrics[f"rm_plugins/{name}"] = sum(numbers) / len(numbers)
    if facts:
        metrics["rm_plugins/samples_without_reward"] = sum(fact[NO_REWARD] for fact in facts)
    return metrics


def sample_of(log: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any] | None, source: PromptSource) -> Sample:
    """The sample of a message log whose last message is the completion.

    Raises:
        DataError: The log does not end with the assistant's message; the prompt is missing, or rendered; or a text has an image.
    """
    if not log or log[-1]["role"] != "assistant":
        raise DataError("A message log of NeMo-RL must end with the assistant's message, which is scored.")
    columns = plain_row({name: value for name, value in (metadata or {}).items() if name != FACTS})
    before, completion = log[:-1], message_text(log[-1], strict=True)
    text = "".join(message_text(message, strict=source.source == RENDERED) for message in before)
    is_messages = source.source == TEXT or (source.source == AUTO and not has_special_tokens(text))
    if not is_messages:
        return source.sample("" if source.source.startswith(COLUMN) else text, completion, columns)
    prompt: list[Message] = [
        {"role": _ROLES.get(message["role"], message["role"]), "content": message["content"]} for message in before
    ]
    return Sample(prompt, completion, columns)
