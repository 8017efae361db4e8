"""Converts the prompts of rows to token ids for a policy."""

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
"""The setting that allows code in a policy's checkpoint to run, for error messages."""

_HUB_OPTIONS = {
    **{name: name for name in ("cache_dir", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")},
    "download_dir": "cache_dir",  # vLLM's name
    "hf_token": "token",
}
"""Engine options about the origin of a model, with the names of the corresponding options of its tokenizer."""


class PolicyPrompts:
    """A policy's tokenizer and token limit, which can be used without the policy's weights.

    Args:
        model: A folder or hub id.
        max_new_tokens: The number of tokens that a prompt must leave room for.
        options: Keyword arguments for the engine that loads the model; those about the model's origin also apply to the tokenizer.

    Raises:
        ModelError: The tokenizer cannot be loaded.
    """

    def __init__(self, model: str, max_new_tokens: int, options: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        origin = {_HUB_OPTIONS[name]: value for name, value in (options or {}).items() if name in _HUB_OPTIONS}
        self.tokenizer, positions = _tokenizer_and_positions(model, origin)
        limits = (positions, (options or {}).get("max_model_len"))  # max_model_len is vLLM's limit
        self._positions = min((limit for limit in limits if limit is not None), default=None)
        self._tokens_after_text = _tokens_after(self.tokenizer)

    def tokens(self, row: Mapping[str, Any], where: str) -> list[int]:
        """The token ids of a row's prompt: text unchanged, messages rendered with the chat template.

        Text gets the special tokens that the tokenizer adds before texts, but not those after them, because the policy continues it.

        Args:
            row: Columns by name; ``tools`` (also as JSON) and ``chat_template_kwargs`` are passed to the chat template.
            where: The name of the row in error messages.

        Raises:
            DataError: The row has no prompt, or one that this policy does not support.
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
            raise DataError(f"{where}: the prompt is empty, but the policy {self.model!r} needs at least one token.")
        if self._positions is not None and len(tokens) + self.max_new_tokens > self._positions:
            raise DataError(
                f"{where}: the prompt has {len(tokens):,} tokens; together with {self.max_new_tokens:,} new ones, this exceeds the "
                f"{self._positions:,} positions of the policy {self.model!r}. Leave the row out, or request fewer new tokens."
            )
        return tokens

    def _templated(self, messages: list[dict[str, Any]], row: Mapping[str, Any], where: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{where}: the prompt is a list of messages, but the tokenizer of the policy {self.model!r} has no chat template. "
                "Use prompts that are text, or save a chat template with the tokenizer."
            )
        if messages and messages[-1].get("role") == "assistant":
            raise DataError(
                f"{where}: the prompt ends with an assistant message, but a completion is a separate assistant message. End prompts with "
                "another role."
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
        except Exception as error:  # a template is a program that may raise anything
            raise DataError(
                f"{where}: the chat template of the policy {self.model!r} refuses the prompt: {type(error).__name__}: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokens_after(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of special tokens that the tokenizer adds after a text, such as EOS."""
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    extra = len(whole) - len(bare)
    return next((extra - before for before in range(extra + 1) if whole[before : before + len(bare)] == bare), 0)


def _tokenizer_and_positions(model: str, origin: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, int | None]:
    """A policy's tokenizer, and the policy's number of positions if its configuration has it."""
    from rm_plugins.models.model_folder import load_config, load_tokenizer

    advice = "Name a folder or hub id with a causal language model and its tokenizer."
    tokenizer = load_tokenizer([model], f"the policy {model!r}", advice=advice, code_setting=CODE_SETTING, **origin)
    return tokenizer, position_limit(load_config(model, code_setting=CODE_SETTING, **origin))
