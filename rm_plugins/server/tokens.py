"""Tokenizes and decodes texts with a model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.errors import DataError
from rm_plugins.server.dialects.dialect import Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[Token]:
    """The tokens of a text with their positions.

    Raises:
        DataError: The tokenizer is a slow one, in Python, which does not give the positions of tokens.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"The tokenizer {type(tokenizer).__name__} does not give the positions of tokens; a fast tokenizer does."
        )
    encoded = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    ids = encoded["input_ids"]
    rows = zip(
        ids, tokenizer.convert_ids_to_tokens(ids), encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True
    )
    return [Token(token, name, bool(is_special), *place) for token, name, is_special, place in rows]


def text_of_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool) -> str:
    """The text of token ids.

    Raises:
        DataError: A token id is unknown.
    """
    size = len(tokenizer)
    if unknown := [token for token in ids if token >= size]:
        raise DataError(f"The token id {unknown[0]} is unknown; the tokenizer has only ids below {size}.")
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
