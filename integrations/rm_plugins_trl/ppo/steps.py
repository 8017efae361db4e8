"""Rewards of steps: which token each belongs to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.scores import StepReward
from rm_plugins_trl.reward_function import RewardFunction

if TYPE_CHECKING:
    from rm_plugins_trl.ppo.rollout import Generation


@dataclass(eq=False)
class StepRewards:
    """Collects the steps that rewards give while they score completions.

    Args:
        functions: The reward functions of the training.
    """

    functions: Sequence[Any]
    _seen: dict[int, list[tuple[Sequence[rm.Sample], rm.Scores]]] = field(default_factory=dict)
    _has_warned: bool = False

    def __post_init__(self) -> None:
        for number, function in enumerate(self.functions):
            if isinstance(function, RewardFunction):
                function.watchers.append(self._watcher(number))

    def _watcher(self, number: int) -> Callable[[Sequence[rm.Sample], rm.Scores, Any], None]:
        def see(samples: Sequence[rm.Sample], scores: rm.Scores, state: Any) -> None:
            if scores.steps is not None:
                self._seen[number] = [(samples, scores)]
            elif scores.lost_steps and not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"A part of the reward {self.functions[number].__name__!r} gives rewards of steps, but their combination does not, so "
                    "PPO gives the whole reward at the end of a completion. Hand the rewards over one by one (reward_funcs=[...], "
                    "reward_weights=[...]) to keep their steps.",
                    stacklevel=2,
                )

        return see

    def of_tokens(self, generation: Generation, weights: Tensor, decode: Callable[[Sequence[int]], str]) -> Tensor | None:
        """What of the weighted rewards belongs to which token, float32 [N, L]; None if no reward has steps. Forgets what it has seen.

        Args:
            generation: The completions that were scored.
            weights: The weight of each reward function, [F].
            decode: The text of a completion's first tokens.

        Raises:
            ScoringError: Steps do not add up to their score, or a completion's text is not that of its tokens.
        """
        seen, self._seen = self._seen, {}
        if not seen:
            return None
        found = torch.zeros(generation.chosen.shape, device=generation.chosen.device)
        for number, batches in seen.items():
            (samples, scores), *_ = batches
            name = self.functions[number].__name__
            for row, steps in enumerate(scores.steps or ()):
                if not steps or math.isnan(scores.values[row]):
                    continue
                _check(steps, float(scores.values[row]), name, row)
                tokens = generation.rows[row][generation.starts[row] :]
                places = _token_ends(tokens, samples[row].completion_text, [step.end for step in steps], decode, name, row)
                for step, place in zip(steps, places, strict=True):
                    found[row, place] += float(weights[number]) * step.reward
        return found


def _check(steps: Sequence[StepReward], score: float, name: str, row: int) -> None:
    total = math.fsum(step.reward for step in steps)
    if not math.isclose(total, score, rel_tol=1e-5, abs_tol=1e-6):
        raise ScoringError(
            f"The reward {name!r} gives completion {row} (counted from 0) steps that add up to {total:g}, and the score {score:g}. Steps "
            "must add up to the score; a transform changes the score alone, so leave it out for PPO.",
            rows=[row],
        )


def _token_ends(
    tokens: Sequence[int], text: str, ends: Sequence[int], decode: Callable[[Sequence[int]], str], name: str, row: int
) -> list[int]:
    """The token with which each step ends."""
    lengths = [len(decode(tokens[: count + 1])) for count in range(len(tokens))]
    if not tokens or decode(tokens) != text:
        raise ScoringError(
            f"The reward {name!r} gives completion {row} (counted from 0) rewards of steps, but the text that it scored is not that of the "
            "completion's tokens. Tools and templates that take reasoning out change the text. Give the reward of the whole completion.",
            rows=[row],
        )
    return [next((place for place, length in enumerate(lengths) if length >= end), len(tokens) - 1) for end in ends]
