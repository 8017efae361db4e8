"""What every trainer is measured by: the calls of its policy's `generate`, and the same evaluation between them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rm_plugins_trl.demo.policies import sampled_ids
from rm_plugins_trl.demo.world import Row

__all__ = ["Rollouts", "divergence", "same_random_state"]


class Rollouts:
    """Replaces a policy's `generate`, which every trainer calls once for each rollout.

    It notes when each rollout begins and how much it generates, in every trainer alike. Times are the CPU seconds of this
    process, which another process on the machine does not lengthen.

    Args:
        model: The policy, whose `generate` is replaced.
        tokenizer: Its tokenizer.
        before: Called with the rollout's number, counted from 0, before it begins; its time does not count.
        lengths: The shortest and the longest completion, in tokens. Completions then end with EOS at lengths drawn evenly between
            them, the same in every process. Without it, the policy ends them.

    Attributes:
        starts: The seconds at which each rollout began, since the first one.
        ends: The seconds at which its completions were there.
        tokens: The tokens of its completions, EOS included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        before: Callable[[int], None] | None = None,
        lengths: tuple[int, int] | None = None,
    ) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self._generate = model.generate
        self._eos = int(tokenizer.eos_token_id)
        self._before = before
        self._lengths = lengths
        self._draw = random.Random(0)
        self._zero = time.process_time()
        self._off = False
        model.generate = self

    def __deepcopy__(self, memo: Any) -> Rollouts:
        return self  # a trainer's copy of the policy, its reference, generates nothing

    def seconds(self) -> float:
        """The seconds since the first rollout began, without those of `before`."""
        return time.process_time() - self._zero

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let no time pass, and note nothing of what is generated."""
        before, self._off = self.seconds(), True
        try:
            yield
        finally:
            self._off = False
            self._zero = time.process_time() - before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._off:
            return self._generate(*args, **kwargs)
        if not self.starts:
            self._zero = time.process_time()
        if self._before is not None:
            with self.uncounted():
                self._before(len(self.starts))
        self.starts.append(self.seconds())
        width = kwargs["input_ids"].shape[1]
        if self._lengths is not None:
            drawn = [self._draw.randint(*self._lengths) for _ in kwargs["input_ids"]]
            kwargs["logits_processor"] = LogitsProcessorList([_EndsAt(width, torch.tensor(drawn), self._eos)])
        found = self._generate(*args, **kwargs)
        self.ends.append(self.seconds())
        completions = (found if isinstance(found, torch.Tensor) else found.sequences)[:, width:]
        self.tokens.append(int(_until_end(completions, self._eos).sum()))
        return found


class _EndsAt(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Lets every row end with EOS at its length, and nowhere else."""

    def __init__(self, width: int, lengths: torch.Tensor, eos: int) -> None:
        self._width = width
        self._lengths = lengths
        self._eos = eos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self._lengths == input_ids.shape[1] - self._width + 1
        changed = scores.clone()
        changed[:, self._eos] = -torch.inf
        changed[ends] = -torch.inf
        changed[ends, self._eos] = 0.0
        return changed


def _until_end(completions: torch.Tensor, eos: int) -> torch.Tensor:
    """Which tokens of completions [rows, width] are theirs: those up to the first EOS, which is included."""
    is_eos = completions == eos
    return (is_eos.cumsum(1) - is_eos.long()) == 0


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the random states as they are found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def divergence(
    policy: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Row],
    completion_tokens: int,
    seed: int,
    batch_size: int,
) -> tuple[list[str], float, float]:
    """One completion for each prompt, and how far the policy is from where it began.

    Completions are sampled at temperature 1. At each of their tokens, the KL divergence of the two models' next-token
    distributions is computed exactly, so that only the visited states are random.

    Args:
        policy: The policy; it is left in the mode in which it is found.
        start: The policy as it was.
        tokenizer: Their tokenizer.
        prompts: Rows with ``prompt``.
        completion_tokens: The most tokens of a completion.
        seed: What sampling depends on.
        batch_size: Prompts that are completed at once.

    Returns:
        The completions; the mean divergence, in nats per token; the mean number of tokens of a completion.
    """
    training = policy.training
    completions: list[str] = []
    total, count = 0.0, 0
    with same_random_state(), torch.inference_mode():
        set_seed(seed)
        for first in range(0, len(prompts), batch_size):
            inputs, ids = sampled_ids(policy, tokenizer, prompts[first : first + batch_size], completion_tokens)
            completions += tokenizer.batch_decode(ids, skip_special_tokens=True)
            counted = _until_end(ids, int(tokenizer.eos_token_id))
            mask = torch.cat([inputs["attention_mask"], counted.long()], dim=1)
            whole = torch.cat([inputs["input_ids"], ids], dim=1)
            now, then = (_log_probabilities(model, whole, mask, ids.shape[1]) for model in (policy, start))
            each = (now.exp() * (now - then)).sum(-1)
            total += float(each[counted].sum())
            count += int(counted.sum())
    policy.train(training)
    return completions, total / count, count / len(completions)


def _log_probabilities(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """The distributions of each of the last tokens, [rows, tokens, vocabulary]."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=tokens + 1).logits
    found: torch.Tensor = logits[:, :-1].float().log_softmax(-1)
    return found
