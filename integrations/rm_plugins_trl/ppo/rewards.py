"""The reward of each completion, from what the reward functions said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Any

import torch
from torch import Tensor, nn

import rm_plugins as rm
from rm_plugins.errors import ScoringError, UnsupportedError
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from rm_plugins_trl.reward_function import RewardFunction
from rm_plugins_trl.reward_model import RewardModel


@dataclass(frozen=True)
class Rewards:
    """The reward functions of a training, as TRL takes them."""

    functions: list[Any]

    @property
    def provider(self) -> rm.Provider | None:
        """The provider, if there is one reward and it has one."""
        first = self.functions[0] if len(self.functions) == 1 else None
        return first.provider if isinstance(first, RewardFunction) else None

    def check_not_trained(self, value_model: Any) -> None:
        """Check that no reward is a model that the critic's training changes.

        Raises:
            UnsupportedError: One shares weights with the value model.
        """
        trained = {id(one) for one in value_model.parameters()} if isinstance(value_model, nn.Module) else set()
        if any(id(one) in trained for function in self.functions if is_module(function) for one in function.parameters()):
            raise UnsupportedError(
                "`value_model` shares weights with the reward model, which training the critic would change. Load it a second time, give a "
                "copy, or set critic='reward' and give the reward model's folder."
            )


def reward_functions(reward: Any, several: Any, path: str | None, *, is_optional: bool = False) -> Rewards:
    """The reward functions of a training.

    Args:
        reward: A reward.
        several: One or several rewards in place of it.
        path: The spec to load if there is neither.
        is_optional: Whether there may be none, because an environment may have its own.

    Raises:
        UnsupportedError: There is none, or there are both.
        SpecError: A spec is wrong.
    """
    if reward is not None and several is not None:
        raise UnsupportedError("`reward_funcs` replaces `reward_model`; give one of them.")
    given = several if several is not None else reward if reward is not None else path
    each = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    if not each and not is_optional:
        given_reward(None, None)
    return Rewards([_function(one) for one in each])


def given_reward(reward: Any, path: str | None) -> Any:
    """The reward, or else the spec to load.

    Raises:
        UnsupportedError: There is neither.
    """
    if reward is None and path is None:
        raise UnsupportedError("PPO needs a reward: PPOTrainer(..., reward_model=SPEC), or PPOConfig(reward_model_path=SPEC).")
    return path if reward is None else reward


def is_module(reward: Any) -> bool:
    """Whether TRL calls it with token ids by itself."""
    return isinstance(reward, nn.Module) and not isinstance(reward, rm.Provider)


def _check_module(reward: nn.Module) -> None:
    """Check that TRL can call a module, and reads the right one of its numbers."""
    labels = getattr(getattr(reward, "config", None), "num_labels", None)
    if labels is None:
        raise UnsupportedError(
            f"The reward is a {type(reward).__name__}, which is not a sequence classifier of transformers. Give a function that calls it: "
            "reward_model=FUNCTION, of samples or with TRL's signature."
        )
    if labels != 1:
        raise UnsupportedError(
            f"The reward, a {type(reward).__name__}, has {labels} labels. Give a spec with its folder and the label to use: "
            "{provider: sequence-classifier, model: FOLDER, head: LABEL_0}."
        )


def _function(reward: Any) -> Any:
    if is_module(reward) and not isinstance(reward, RewardModel):
        _check_module(reward)
    if isinstance(reward, RewardModel):
        return RewardFunction(reward.provider)
    if isinstance(reward, RewardFunction) or is_module(reward) or iscoroutinefunction(reward):
        return reward  # TRL runs a coroutine function beside the others
    return RewardFunction(reward)


@contextmanager
def unlearned(functions: Iterable[Any], kept: MutableMapping[str, Any]) -> Iterator[None]:
    """Within it, rewards that learn from what they score learn as usual; afterwards, they are as they were before.

    Args:
        functions: The reward functions of a trainer.
        kept: What the trainer's checkpoints keep.
    """
    own = [one for one in functions if isinstance(one, RewardFunction)]
    before, kept_before = [deepcopy(reward_state(one.provider)) for one in own], dict(kept)
    yield
    for one, state in zip(own, before, strict=True):
        restore_reward_state(one.provider, kept_before.get(one.key, state))  # a resumed one, too
    kept.clear()
    kept.update(kept_before)


@dataclass
class RunningScale:
    """The standard deviation of all numbers so far (Chan et al. 1979, for batches)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, numbers: Tensor) -> None:
        """Take in numbers, [N]."""
        if not len(numbers):
            return
        numbers = numbers.double()
        count, mean = float(len(numbers)), float(numbers.mean())
        shift, total = mean - self.mean, self.count + count
        self.squares += float((numbers - mean).square().sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 1 as long as it is not defined or 0."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return variance**0.5 if variance > 0 else 1.0


@dataclass
class CompletionRewards:
    """Makes one number of what the reward functions said about a completion; NaN if the policy does not learn from it.

    Args:
        args: The configuration of PPO.
        scale: The rewards so far, for ``reward_scaling="running"``.
    """

    args: Any
    scale: RunningScale = field(default_factory=RunningScale)

    def __call__(self, rewards: Tensor, weights: Tensor, has_ended: Tensor, *, learns: bool) -> Tensor:
        """The reward of each completion of all processes, float32 [N].

        Args:
            rewards: What each function said, [N, F]; NaN where it abstained.
            weights: The weight of each function, [F].
            has_ended: Whether the completion ended by itself, bool [N].
            learns: Whether the running scale takes these rewards in.

        Raises:
            ScoringError: All functions abstained on all completions, or a reward is infinite.
        """
        if rewards.isinf().any():
            raise ScoringError(
                f"A reward is infinite: {rewards[rewards.isinf().any(1)][0].tolist()}. PPO needs finite rewards."
            )
        abstained = rewards.isnan().all(1)
        if abstained.all():
            raise ScoringError(
                f"The reward abstained on all {len(rewards)} completions of a rollout, so there is nothing to learn from. Look at "
                "the completions (log_completions=True) and at why the reward abstains (`rm-plugins score`)."
            )
        scores = (rewards * weights.to(rewards.device)).nansum(1)
        scores[abstained] = torch.nan
        if self.args.reward_scaling == "running":
            if learns:
                self.scale.add(scores[~abstained])
            scores = scores / self.divisor
        if self.args.reward_clip is not None:
            scores = scores.clamp(-self.args.reward_clip, self.args.reward_clip)
        return self._of_unfinished(scores, ~has_ended)

    @property
    def divisor(self) -> float:
        """What scores are divided by now."""
        return self.scale.std if self.args.reward_scaling == "running" else 1.0

    def _of_unfinished(self, scores: Tensor, is_cut: Tensor) -> Tensor:
        """The rewards, with those of completions that were cut off at the longest length as the configuration says."""
        if self.args.truncated_completions == "mask":
            return scores.masked_fill(is_cut, torch.nan)
        return scores - (self.args.missing_eos_penalty or 0.0) * is_cut
