"""A policy that writes completions, whichever engine runs it: the same seed samples the same completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import DataError, ModelError, RmPluginsError
from rm_plugins.generation.prompts import CODE_SETTING, PolicyPrompts


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. A model's own sampling settings, such as a ``top_k``, do not count.

    Args:
        n: Completions of a prompt.
        temperature: What the logits are divided by; above 0, and 2 at most.
        top_p: Tokens are drawn among the most likely ones that together have this probability; above 0, 1 for all.
        max_new_tokens: Where a completion is cut off that has not ended.
        seed: Sampling depends on it, on the number of the prompt and on the place of the completion among those of its prompt,
            and on nothing else: neither on the batch nor on `n`.

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
                raise DataError(f"Completions cannot be drawn with {name}={value!r}; allowed are integers from {least} on.")
        for name, most in (("temperature", 2), ("top_p", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= most:  # which NaN is not, either
                raise DataError(
                    f"Completions cannot be drawn with {name}={value!r}; allowed are numbers above 0, and {most} at most."
                )
            object.__setattr__(self, name, float(value))

    def seed_of(self, *place: int) -> int:
        """The seed of a prompt (its number) or of a completion (and its place), an integer of 31 bits."""
        return int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0] >> 1)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy wrote.

    Args:
        text: Without the token that ended it.
        finished: Whether the policy ended it, rather than the limit on tokens.
    """

    text: str
    finished: bool


class Generator(ABC):
    """A policy that writes completions; a subclass for each engine.

    Args:
        model: A folder or hub id.
        sampling: How completions are drawn.
        options: Keyword arguments for the engine that loads the model: ``from_pretrained`` of transformers, ``LLM`` of vLLM.
            Those that say where it comes from, such as ``revision``, are the tokenizer's too.
        batch_size: Completions written at a time; the engine's `usual_batch_size` by default.

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
        except Exception as error:  # the hub, the engine and its libraries each have their own
            from rm_plugins.models.model_folder import needs_code, reason_in_short

            reason = reason_in_short(error, CODE_SETTING) if needs_code(error) else error
            raise ModelError(f"The policy {model!r} could not be loaded: {type(error).__name__}: {reason}") from error

    @abstractmethod
    def _load(self, options: dict[str, Any]) -> None:
        """Load the model."""

    @abstractmethod
    def _draw(self, prompts: Sequence[list[int]], numbers: Sequence[int]) -> list[list[Completion]]:
        """Draw `Sampling.n` completions of each prompt.

        Args:
            prompts: Token ids.
            numbers: The number of each prompt, which its seeds are made of.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back that the model takes."""

    def complete(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> list[list[Completion]]:
        """Write completions of the prompts of several rows.

        Args:
            rows: Each has a ``prompt``, text or messages; ``tools`` and ``chat_template_kwargs`` reach the chat template.
            first: The number of the first row, from 0. It is part of what a completion's seed is made of.

        Returns:
            `Sampling.n` completions a row.

        Raises:
            DataError: A row has no prompt, or one that this policy cannot be given.
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
