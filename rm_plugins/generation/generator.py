"""The interface of policies that write completions. With the same engine, the same seed samples the same completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import DataError, ModelError, RmPluginsError
from rm_plugins.generation.prompts import CODE_SETTING, PolicyPrompts


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling settings. A model's own sampling settings, such as a ``top_k``, are ignored.

    Args:
        n: The number of completions per prompt.
        temperature: The divisor of the logits; above 0, at most 2.
        top_p: Tokens are sampled from the most likely ones with this total probability; above 0, 1 for all tokens.
        max_new_tokens: The most tokens of a completion.
        seed: The seed. Sampling depends only on the seed, the number of the prompt, and the position of the completion among those of its
            prompt; not on the batch and not on `n`.

    Raises:
        DataError: A value is out of range.
    """

    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("max_new_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise DataError(
                    f"Completions cannot be sampled with {name}={value!r}; it must be an integer of at least {least}."
                )
        for name, most in (("temperature", 2), ("top_p", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= most:  # also refuses NaN
                raise DataError(
                    f"Completions cannot be sampled with {name}={value!r}; it must be a number above 0 and at most {most}."
                )
            object.__setattr__(self, name, float(value))

    def seed_of(self, *place: int) -> int:
        """The seed of a prompt (given its number) or of a completion (given also its position), an integer of 31 bits."""
        return int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0] >> 1)


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion by a policy.

    Args:
        text: The text without the token that ended it.
        finished: Whether the policy ended it; False if it was cut off at the token limit.
    """

    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class GreedyCompletion:
    """The most likely completion, token by token.

    Args:
        tokens: The token ids without the one that ended it.
        text: The same as text.
        finished: Whether the model ended it; False if it was cut off at the token limit.
        watched: For each of `tokens`, the probabilities of the watched token ids at its position, as far as they are known.
    """

    tokens: tuple[int, ...]
    text: str
    finished: bool
    watched: tuple[Mapping[int, float], ...] = ()


class Generator(ABC):
    """A policy that writes completions; a subclass for each engine.

    Args:
        model: A folder or hub id.
        sampling: The sampling settings.
        options: Keyword arguments for the engine that loads the model: ``from_pretrained`` of transformers, ``LLM`` of vLLM.
            Options about the model's origin, such as ``revision``, also apply to the tokenizer.
        batch_size: The number of completions written at a time; by default the engine's `usual_batch_size`.

    Raises:
        MissingDependencyError: The engine is not installed.
        ModelError: The model or its tokenizer cannot be loaded.
    """

    usual_batch_size: ClassVar[int]

    def __init__(
        self, model: str, sampling: Sampling, options: Mapping[str, Any] | None = None, batch_size: int | None = None
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.batch_size = batch_size or self.usual_batch_size
        self.prompts = PolicyPrompts(model, sampling.max_new_tokens, options)
        self.tokenizer = self.prompts.tokenizer
        try:
            self._load(dict(options or {}))
        except RmPluginsError:
            raise
        except Exception as error:  # from the hub, the engine or its libraries
            from rm_plugins.models.model_folder import needs_code, reason_in_short

            reason = reason_in_short(error, CODE_SETTING) if needs_code(error) else error
            raise ModelError(f"The policy {model!r} could not be loaded: {type(error).__name__}: {reason}") from error

    @abstractmethod
    def _load(self, options: dict[str, Any]) -> None:
        """Load the model."""

    @abstractmethod
    def _draw(self, prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[list[Completion]]:
        """Sample `Sampling.n` completions of each prompt.

        Args:
            prompts: The token ids of each prompt.
            numbers: The number of each prompt, from which its seeds are derived.
        """

    @abstractmethod
    def _draw_greedily(
        self, prompts: Sequence[list[int]], max_new_tokens: int, watched: Sequence[int]
    ) -> list[GreedyCompletion]:
        """Write the most likely completion of each prompt; the arguments are those of `complete_greedily`."""

    @abstractmethod
    def close(self) -> None:
        """Free the memory of the model."""

    def complete(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> list[list[Completion]]:
        """Write completions of the prompts of several rows.

        Args:
            rows: Rows with a ``prompt``, text or messages; ``tools`` and ``chat_template_kwargs`` are passed to the chat template.
            first: The number of the first row, from 0. The seeds of completions depend on it.

        Returns:
            `Sampling.n` completions per row.

        Raises:
            DataError: A row has no prompt, or one that this policy does not support.
            ModelError: The engine failed.
        """
        numbers = range(first, first + len(rows))
        prompts = [self.prompts.tokens(row, f"prompt {number + 1}") for row, number in zip(rows, numbers, strict=True)]
        try:
            return self._draw(prompts, numbers)
        except RmPluginsError:
            raise
        except Exception as error:
            last = numbers[-1] + 1
            raise ModelError(
                f"The policy {self.model!r} failed on the prompts {first + 1} to {last}: {type(error).__name__}: {error}"
            ) from error

    def complete_greedily(
        self, prompts: Sequence[list[int]], max_new_tokens: int, watched: Collection[int] = ()
    ) -> list[GreedyCompletion]:
        """Write the most likely completion of each prompt, without the sampling settings.

        Args:
            prompts: The token ids of each prompt, [N].
            max_new_tokens: The most tokens of a completion.
            watched: Token ids whose probabilities are wanted at every position. vLLM knows only those of the 20 most likely tokens.

        Returns:
            One completion per prompt, [N].

        Raises:
            ModelError: The engine failed.
        """
        try:
            return self._draw_greedily(prompts, max_new_tokens, sorted(watched))
        except RmPluginsError:
            raise
        except Exception as error:
            raise ModelError(
                f"The model {self.model!r} failed on {len(prompts)} prompts: {type(error).__name__}: {error}"
            ) from error
