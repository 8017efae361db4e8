"""Where PPO is in a rollout, and what a checkpoint keeps of it so that a resumed training continues exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rm_plugins.errors import DataError
from rm_plugins_trl.ppo.kl import AdaptiveKl
from rm_plugins_trl.ppo.rewards import RunningScale
from rm_plugins_trl.ppo.rollout import Rollout

_FILE = "ppo_state-{}.pt"


@dataclass
class Progress:
    """The rollout that is being learned from, and the order of its completions in this epoch.

    Args:
        kl: The weight of the KL penalty.
        scale: The rewards so far.
        settings: What must be the same in a resumed training, by name.
    """

    kl: AdaptiveKl
    scale: RunningScale
    settings: Mapping[str, Any] = field(default_factory=dict)
    rollout: Rollout | None = None
    order: list[int] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    has_ended: bool = False
    approximate_kl: list[float] = field(default_factory=list)
    place: int = 0
    _step: int = -1
    _micro_step: int = 0

    def begin(self) -> None:
        """Begin a training."""
        self.rollout, self._step = None, -1

    def advance(self, step: int, accumulation: int, cycle: int) -> int:
        """The number of the next forward pass since the rollout; 0 begins a new one.

        Args:
            step: The number of optimizer steps so far.
            accumulation: How many forward passes an optimizer step takes.
            cycle: How many forward passes learn from one rollout.
        """
        self._micro_step = self._micro_step + 1 if step == self._step else 0
        self._step = step
        self.place = (step * accumulation + self._micro_step) % cycle
        return self.place

    @property
    def begins_step(self) -> bool:
        """Whether the next forward pass is the first of its optimizer step."""
        return self._micro_step == 0

    def start(self, rollout: Rollout) -> None:
        """Learn from a new rollout."""
        self.rollout, self.order, self.has_ended = rollout, [], False

    def shuffle(self, passes: int, accumulation: int, total: Callable[[Tensor], Tensor]) -> None:
        """Begin an epoch: draw a new order, unless one forward pass takes all completions, and count the tokens of each minibatch.

        Args:
            passes: How many forward passes an epoch takes.
            accumulation: How many of them are one minibatch.
            total: Adds up over processes, whose minibatches are one.
        """
        assert self.rollout is not None
        self.order = torch.randperm(len(self.rollout)).tolist() if passes > 1 else [*range(len(self.rollout))]
        minibatches = passes // accumulation
        size = len(self.rollout) // minibatches
        counts = [self.rollout.mask[self.order[start : start + size]].sum() for start in range(0, size * minibatches, size)]
        self.tokens = total(torch.stack(counts).double()).tolist()

    def part(self, passes: int) -> Rollout:
        """The completions of the next forward pass, of as many as an epoch takes."""
        assert self.rollout is not None
        size = len(self.rollout) // passes
        start = self.place % passes * size
        return self.rollout.part(self.order[start : start + size])

    def minibatch_tokens(self, passes: int, accumulation: int) -> float:
        """The number of tokens that the current minibatch learns from in all processes, at least 1."""
        return max(self.tokens[self.place % passes // accumulation], 1.0)

    def see_kl(self, kl: float, limit: float | None, *, ends_step: bool) -> None:
        """Take in the KL divergence from the policy of the rollout in a forward pass; a step above the limit ends the rollout's updates.

        Args:
            kl: The approximate divergence of a token.
            limit: The most; None for no limit.
            ends_step: Whether it was the last forward pass of its optimizer step.
        """
        self.approximate_kl.append(kl)
        if ends_step:
            mean = sum(self.approximate_kl) / len(self.approximate_kl)
            self.has_ended = limit is not None and mean > limit
            self.approximate_kl = []

    def save(self, folder: Path, rank: int) -> None:
        """Write what this process needs into a checkpoint, whose folder another process may not have made yet."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "settings": dict(self.settings),
                "kl_weight": self.kl.weight,
                "scale": asdict(self.scale),
                "rollout": None if self.rollout is None else self.rollout.state(),
                "order": self.order,
                "tokens": self.tokens,
                "has_ended": self.has_ended,
            },
            folder / _FILE.format(rank),
        )

    def load(self, folder: Path, rank: int, device: torch.device) -> list[str]:
        """Continue from a checkpoint; returns the settings that differ, as text.

        Raises:
            DataError: The checkpoint has no state for this process.
        """
        file = folder / _FILE.format(rank)
        if not file.is_file():
            raise DataError(
                f"{folder} has no {file.name}. It is not a checkpoint of PPOTrainer on this TRL, or was written by fewer processes. "
                "Resume with as many processes as before, or start again."
            )
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.kl.weight = state["kl_weight"]
        for name, value in state["scale"].items():
            setattr(self.scale, name, value)
        self.rollout = None if state["rollout"] is None else Rollout.of_state(state["rollout"], device)
        self.order, self.tokens, self.has_ended = state["order"], state["tokens"], state["has_ended"]
        before = state["settings"]
        names = sorted({*before, *self.settings})
        return [
            f"{name}: {before.get(name)!r} before, {self.settings.get(name)!r} now"
            for name in names
            if before.get(name) != self.settings.get(name)
        ]
