"""Tokenizes texts; common beginnings of neighbouring texts are tokenized once where the result is the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TemplatedTextTokenizer:
    """Tokenizes texts that a chat template wrote, without adding special tokens.

    A fast tokenizer splits a text at its special tokens first, so a text can be tokenized in two parts if the second begins with one.
    Completions of one prompt share the text before such a token. The first texts are used to check that the parts give the ids of the
    whole text; if not, or with a slow tokenizer, all texts are tokenized whole.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values() if tokenizer.is_fast else ()
        marks = [
            re.escape(token.content)
            for token in added
            if token.special and not (token.lstrip or token.normalized or token.single_word)
        ]
        self._marks = re.compile("|".join(sorted(marks, key=len, reverse=True))) if marks else None
        self._tried = False

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, [N] lists."""
        starts = self._starts(texts)
        if not any(starts):
            return self._whole(texts)
        if not self._tried:
            first = next(row for row, start in enumerate(starts) if start)
            start, text = starts[first], texts[first]
            before, after, whole = self._whole([text[:start], text[start:], text])
            if before + after != whole:
                self._marks = None
                return self._whole(texts)
            self._tried = True  # only now, because another thread may run this at the same time
        beginnings = list(dict.fromkeys(text[:start] for text, start in zip(texts, starts, strict=True)))
        ids = self._whole([*beginnings, *(text[start:] for text, start in zip(texts, starts, strict=True))])
        ids_of_beginning = dict(zip(beginnings, ids, strict=False))
        ends = ids[len(beginnings) :]
        return [ids_of_beginning[text[:start]] + end for text, start, end in zip(texts, starts, ends, strict=True)]

    def _starts(self, texts: Sequence[str]) -> list[int]:
        """The start of the second part of each text; the first part is shared with a neighbouring text. 0 if the text is not split."""
        marks = self._marks
        if marks is None:
            return [0] * len(texts)
        starts: list[int] = []
        for row, text in enumerate(texts):
            start = starts[-1] if starts else 0
            if not (start and text.startswith(texts[row - 1][:start]) and marks.match(text, start)):
                following = texts[row + 1] if row + 1 < len(texts) else ""
                shared = text[: _common_length(text, following)]
                start = max((mark.start() for mark in marks.finditer(shared)), default=0)
            starts.append(start)
        return starts

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of leading tokens that two rows share.

    >>> common_beginning([5, 6, 7], [5, 6, 8, 9])
    2
    """
    different = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(different, min(len(one), len(other)))


def _common_length(one: str, other: str) -> int:
    """The number of leading characters that two texts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
