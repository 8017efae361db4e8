"""Encodes two texts as a pair, as cross-encoders are trained: ``tokenizer(one, other)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.rendering.token_types import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def separates_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer adds a separator between two texts, like those of encoders."""
    pair, one = tokenizer("a", "a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    joined = tokenizer("a")["input_ids"]
    return len(pair) > len(joined) + len(one)


class PairTokenizer:
    """Encodes pairs as token ids, with token types if the tokenizer gives any.

    Args:
        tokenizer: The model's tokenizer. If it adds no separator, the tokens of both texts are concatenated, which may differ from the
            tokens of the joined text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        one, other = self._lengths([("a", "a")])
        ids: list[int] = tokenizer("a", "a")["input_ids"]
        alone: list[int] = tokenizer("a")["input_ids"]
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._before = next((start for start in range(len(alone)) if alone[start : start + len(bare)] == bare), 0)
        start = self._before + one[0]
        self._between = next(
            (size for size in range(len(ids) - start) if ids[start + size : start + size + other[0]] == bare), 0
        )
        self._after = len(ids) - start - self._between - other[0]
        self.separator: str = tokenizer.decode(ids[start : start + self._between])
        """The separator between the texts, as text."""

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The untruncated token ids of each pair with their types, [N] lists."""
        encoded = self._tokenizer([one for one, _ in pairs], [other for _, other in pairs], verbose=False)
        rows: list[list[int]] = encoded["input_ids"]
        types: list[list[int]] | None = encoded.get("token_type_ids")
        return [list(row) for row in rows] if types is None else [typed(*row) for row in zip(rows, types, strict=True)]

    def second_starts(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """The number of tokens before each pair's second text, [N]."""
        return [self._before + length + self._between for length in self._lengths(pairs)[0]]

    def truncated(self, pair: tuple[str, str], row: Sequence[int], limit: int) -> list[int]:
        """Truncate a pair to at most `limit` tokens by cutting the end of the longer text, like transformers' ``longest_first``.

        If the tokenizer's ``truncation_side`` is ``left``, the beginning is cut. The tokenizer itself is not used, because it would store
        the limit, which affects other threads.

        Args:
            pair: The two texts.
            row: Their token ids from `__call__`.
            limit: The most tokens.
        """
        (one,), (other,) = self._lengths([pair])
        room = max(limit - self._before - self._between - self._after, 0)
        shorter = min(one, other)
        longer = max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
        kept, kept_other = (longer, shorter) if one > other else (shorter, longer)
        start, second = self._before, self._before + one + self._between
        if self._tokenizer.truncation_side == "left":
            cut = [*row[:start], *row[start + one - kept : second], *row[second + other - kept_other :]]
        else:
            cut = [*row[: start + kept], *row[start + one : second + kept_other], *row[second + other :]]
        return cut[:limit]

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """The numbers of tokens of the first and the second texts, each [N]."""
        texts = [text for pair in pairs for text in pair]
        ids = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths = [len(row) for row in ids]
        return lengths[::2], lengths[1::2]
