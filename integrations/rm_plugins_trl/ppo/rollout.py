"""What PPO learns from: the completions of one batch, with their log-probabilities, values, advantages and returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """N completions of at most L tokens.

    Args:
        rows: The token ids of each prompt and its completion, without padding.
        starts: The number of prompt tokens of each row.
        mask: The tokens that the policy learns from, bool [N, L]: chosen by it, of a completion with a reward.
        log_probs: Log-probabilities under the policy that chose them, [N, L].
        values: The critic's estimates then, [N, L].
        advantages: [N, L].
        returns: [N, L].
        weights: Importance weights of the tokens, [N, L], where another engine chose them; None for 1.
    """

    rows: Sequence[Sequence[int]]
    starts: Sequence[int]
    mask: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_token(self) -> Tensor:
        """The places in [N, L] that hold a token, bool."""
        return token_places(self.rows, self.starts, self.mask.shape[1], self.mask.device)

    def part(self, places: Sequence[int]) -> Self:
        """The completions at these places, in this order."""
        chosen = torch.tensor(list(places), dtype=torch.long, device=self.mask.device)
        tensors: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _TENSORS if getattr(self, name) is not None}
        return replace(
            self, rows=[self.rows[place] for place in places], starts=[self.starts[place] for place in places], **tensors
        )

    def state(self) -> dict[str, Any]:
        """Everything, as lists and tensors on the CPU."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return {
            "rows": [list(row) for row in self.rows],
            "starts": list(self.starts),
            **{name: None if values is None else values.cpu() for name, values in tensors.items()},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], device: torch.device) -> Self:
        """The inverse of `state`."""
        placed: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        return cls(**placed)


_TENSORS = ("mask", "log_probs", "values", "advantages", "returns", "weights")


@dataclass(frozen=True)
class Reading:
    """What policy and critic say of the T tokens of some completions, completion by completion; float32.

    Args:
        values: The critic's estimates, [T].
        log_probs: Log-probabilities under the policy, [T]; None if only the critic was asked.
        entropy: The entropy of the policy's distribution at each token, in nats, [T]; None if only the critic was asked.
    """

    values: Tensor
    log_probs: Tensor | None = None
    entropy: Tensor | None = None


@dataclass
class Generation:
    """N completions that were just generated, and what is being found out about them.

    Args:
        rows: The token ids of each prompt and its completion.
        starts: The number of prompt tokens of each row.
        chosen: The tokens that the policy chose, bool [N, L]; the others are padding, or of tools.
        log_probs: Log-probabilities under the policy, [N, L].
        ref_log_probs: Those under the reference, [N, L].
        values: The critic's estimates, [N, L].
        rewards: What each reward function said about the completions of all processes, [N of all, F].
    """

    rows: list[list[int]]
    starts: list[int]
    chosen: Tensor
    log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    values: Tensor | None = None
    rewards: Any = None

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        tool_mask: Sequence[Sequence[int]] | None,
        device: torch.device,
    ) -> Self:
        """Token ids per prompt and per completion; the mask is 1 for what the policy chose, and None means everything."""
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        masks = tool_mask if tool_mask is not None else [[1] * len(completion) for completion in completion_ids]
        chosen = torch.zeros(len(rows), max(map(len, completion_ids), default=0), dtype=torch.bool)
        for row, mask in enumerate(masks):
            chosen[row, : len(mask)] = torch.tensor(list(mask), dtype=torch.bool)
        return cls(rows, list(map(len, prompt_ids)), chosen.to(device))

    @property
    def is_token(self) -> Tensor:
        """The places in [N, L] that hold a token, bool."""
        return token_places(self.rows, self.starts, self.chosen.shape[1], self.chosen.device)

    def chunks(self, size: int) -> Iterator[tuple[list[list[int]], list[int]]]:
        """Rows and starts of at most `size` completions at a time, in order."""
        for first in range(0, len(self.rows), size):
            yield self.rows[first : first + size], self.starts[first : first + size]

    def has_ended(self, end_tokens: Sequence[int]) -> Tensor:
        """Whether each completion ended with one of these tokens, bool [N]."""
        ends = [row[-1] in end_tokens for row in self.rows]
        return torch.tensor(ends, device=self.chosen.device)


def token_places(rows: Sequence[Sequence[int]], starts: Sequence[int], width: int, device: torch.device | str) -> Tensor:
    """The places of [N, width] that hold a completion's token, bool."""
    lengths = torch.tensor([len(row) - start for row, start in zip(rows, starts, strict=True)], device=device)
    return torch.arange(width, device=device)[None, :] < lengths[:, None]


def by_completion(tokens: Tensor, is_token: Tensor) -> Tensor:
    """The values [T] of all tokens, completion by completion, as [N, L] with 0 elsewhere."""
    return torch.zeros(is_token.shape, dtype=tokens.dtype, device=tokens.device).masked_scatter(is_token, tokens)
