"""What writes completions: a policy, run by one of several engines, that samples the same with the same seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rm_plugins.errors import DataError, ModelError, RmPluginsError
from rm_plugins.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ENGINES", "Completion", "Generator", "Sampling", "default_engine", "load_generator"]

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. A model's own sampling settings, such as a ``top_k``, do not count.

    Args:
        n: Completions of a prompt.
        temperature: What the logits are divided by; above 0.
        top_p: Tokens are drawn among the most likely ones that together have this probability; above 0, 1 for all.
        max_new_tokens: Where a completion is cut off that has not ended.
        seed: The same seed draws the same. What is drawn hangs on it, on the number of the prompt and on the place of the
            completion among those of its prompt, and on nothing else: neither on the batch nor on `n`.
    """

    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

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
        options: Keyword arguments for the engine that loads the model.
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
        self.tokenizer, self._positions = _tokenizer_and_positions(model)
        try:
            self._load(dict(options or {}))
        except RmPluginsError:
            raise
        except Exception as error:  # the hub, the engine and its libraries each have their own
            raise ModelError(f"The policy {model!r} could not be loaded: {type(error).__name__}: {error}") from error

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
        prompts = [self.prompt_tokens(row, number) for row, number in zip(rows, numbers, strict=True)]
        try:
            return self._draw(prompts, numbers)
        except RmPluginsError:
            raise
        except Exception as error:
            last = numbers[-1] + 1
            raise ModelError(
                f"The policy {self.model!r} failed on the prompts {first + 1} to {last}: {type(error).__name__}: {error}"
            ) from error

    def prompt_tokens(self, row: Mapping[str, Any], number: int = 0) -> list[int]:
        """The token ids that the policy is given of a row's prompt: a text as it is, messages by its chat template.

        A text that the policy goes on with gets the special tokens that its tokenizer puts before texts. Behind a last message
        of the assistant, the policy goes on with that message.

        Args:
            row: Columns by name.
            number: The prompt's number, from 0, for messages.

        Raises:
            DataError: The row has no prompt, or one that this policy cannot be given.
        """
        where = f"prompt {number + 1}"
        if row.get("prompt") is None:
            raise DataError(f"{where}: there is no 'prompt'; the row has the columns {', '.join(map(repr, row)) or 'none'}.")
        try:
            prompt = Sample(row["prompt"], "").prompt
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if isinstance(prompt, str):
            tokens = list(self.tokenizer(prompt)["input_ids"])
        else:
            tokens = self._templated([dict(message) for message in prompt], row, where)
        if not tokens:
            raise DataError(f"{where} is empty, and the policy {self.model!r} needs one token at least.")
        needed = len(tokens) + self.sampling.max_new_tokens
        if self._positions is not None and needed > self._positions:
            raise DataError(
                f"{where} has {len(tokens):,} tokens, which with {self.sampling.max_new_tokens:,} new ones are more than the "
                f"{self._positions:,} positions of the policy {self.model!r}. Leave the row out, or ask for fewer new tokens."
            )
        return tokens

    def _templated(self, messages: list[dict[str, Any]], row: Mapping[str, Any], where: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{where} is a list of messages, and the tokenizer of the policy {self.model!r} has no chat template. "
                "Give it prompts that are text, or save a chat template with its tokenizer."
            )
        goes_on = bool(messages) and messages[-1].get("role") == "assistant"
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=row.get("tools"),
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                **(row.get("chat_template_kwargs") or {}),
            )
        except Exception as error:  # a template is a program, with errors of its own
            raise DataError(
                f"{where}: the chat template of the policy {self.model!r} refuses it: {type(error).__name__}: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def default_engine() -> str:
    """``vllm`` if it is installed and there is a GPU of CUDA, else ``transformers``."""
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def load_generator(
    model: str,
    sampling: Sampling,
    *,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Generator:
    """A policy that writes completions.

    Args:
        model: A folder or hub id.
        sampling: How completions are drawn.
        engine: One of `ENGINES`; `default_engine` if None.
        options: Keyword arguments for the engine that loads the model: ``from_pretrained`` of transformers, ``LLM`` of vLLM.
        batch_size: Completions written at a time; what is usual for the engine if None.

    Raises:
        MissingDependencyError: The engine is not installed.
        ModelError: The model or its tokenizer cannot be loaded.
    """
    if (engine or default_engine()) == "vllm":
        from rm_plugins.generation.vllm_generator import VLLMGenerator

        return VLLMGenerator(model, sampling, options, batch_size)
    from rm_plugins.generation.transformers_generator import TransformersGenerator

    return TransformersGenerator(model, sampling, options, batch_size)


def _tokenizer_and_positions(model: str) -> tuple[PreTrainedTokenizerBase, int | None]:
    """A policy's tokenizer, and how many tokens the policy can look at, if its configuration says so."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # the hub, transformers and tokenizers each have their own
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"No tokenizer could be loaded for the policy {model!r}: {type(error).__name__}: {reason} Name a folder or hub id that "
            "holds a causal language model and its tokenizer."
        ) from error
    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError):  # such as a folder of an adapter
        return tokenizer, None
    return tokenizer, getattr(config, "max_position_embeddings", None)
