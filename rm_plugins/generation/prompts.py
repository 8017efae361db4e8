"""What a policy is given of a row's prompt: token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import DataError
from rm_plugins.rendering.positions import position_limit
from rm_plugins.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_SETTING = "the engine's option `trust_remote_code` (--engine-options '{\"trust_remote_code\": true}')"
"""What lets the code in a policy's checkpoint run."""

_HUB_OPTIONS = {
    **{name: name for name in ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")},
    "download_dir": "cache_dir",  # as vLLM calls it
    "hf_token": "token",
}
"""Options of an engine that say where a model comes from, and what they are called where its tokenizer is loaded."""


class PolicyPrompts:
    """A policy's tokenizer, and its limit on tokens. The policy's weights are not needed for it.

    Args:
        model: A folder or hub id.
        max_new_tokens: How many tokens a prompt must leave room for.
        options: Keyword arguments for the engine that loads the model; those that say where it comes from count here too.

    Raises:
        ModelError: The tokenizer cannot be loaded.
    """

    def __init__(self, model: str, max_new_tokens: int, options: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        origin = {_HUB_OPTIONS[name]: value for name, value in (options or {}).items() if name in _HUB_OPTIONS}
        self.tokenizer, positions = _tokenizer_and_positions(model, origin)
        limits = (positions, (options or {}).get("max_model_len"))  # the latter is vLLM's own limit
        self._positions = min((limit for limit in limits if limit is not None), default=None)
        self._tokens_after_text = _tokens_after(self.tokenizer)

    def tokens(self, row: Mapping[str, Any], where: str) -> list[int]:
        """The token ids of a row's prompt: a text as it is, messages by the chat template.

        A text that the policy continues gets the special tokens that its tokenizer puts before texts, but not those after them.

        Args:
            row: Columns by name; ``tools`` (also as JSON) and ``chat_template_kwargs`` reach the chat template.
            where: What an error message calls the row.

        Raises:
            DataError: The row has no prompt, or one that this policy cannot be given.
        """
        if row.get("prompt") is None:
            raise DataError(f"{where}: there is no 'prompt'; the row has the columns {', '.join(map(repr, row)) or 'none'}.")
        try:
            prompt = Sample(row["prompt"], "").prompt
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if isinstance(prompt, str):
            tokens = list(self.tokenizer(prompt)["input_ids"])
            tokens = tokens[: len(tokens) - self._tokens_after_text]
        else:
            tokens = self._templated([dict(message) for message in prompt], row, where)
        if not tokens:
            raise DataError(f"{where}: the prompt is empty, and the policy {self.model!r} needs one token at least.")
        if self._positions is not None and len(tokens) + self.max_new_tokens > self._positions:
            raise DataError(
                f"{where}: the prompt has {len(tokens):,} tokens, which with {self.max_new_tokens:,} new ones are more than the "
                f"{self._positions:,} positions of the policy {self.model!r}. Leave the row out, or ask for fewer new tokens."
            )
        return tokens

    def _templated(self, messages: list[dict[str, Any]], row: Mapping[str, Any], where: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{where}: the prompt is a list of messages, and the tokenizer of the policy {self.model!r} has no chat template. "
                "Give it prompts that are text, or save a chat template with its tokenizer."
            )
        if messages and messages[-1].get("role") == "assistant":
            raise DataError(
                f"{where}: the prompt ends with a message of the assistant. What a policy writes is a message of its own, which is "
                "scored and trained on as one. Let prompts end with another role."
            )
        tools = row.get("tools")
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=json.loads(tools) if isinstance(tools, str) else tools,
                tokenize=False,
                add_generation_prompt=True,
                **(row.get("chat_template_kwargs") or {}),
            )
        except Exception as error:  # a template is a program, with errors of its own
            raise DataError(
                f"{where}: the chat template of the policy {self.model!r} refuses the prompt: {type(error).__name__}: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokens_after(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer puts after a text, such as one that ends it."""
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    extra = len(whole) - len(bare)
    return next((extra - before for before in range(extra + 1) if whole[before : before + len(bare)] == bare), 0)


def _tokenizer_and_positions(model: str, origin: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, int | None]:
    """A policy's tokenizer, and how many tokens the policy can look at, if its configuration says so."""
    from rm_plugins.models.model_folder import load_config, load_tokenizer

    advice = "Name a folder or hub id that holds a causal language model and its tokenizer."
    tokenizer = load_tokenizer([model], f"the policy {model!r}", advice=advice, code_setting=CODE_SETTING, **origin)
    return tokenizer, position_limit(load_config(model, code_setting=CODE_SETTING, **origin))
