"""Texts to token ids, with what neighbouring texts begin with tokenized once where that is exact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TemplatedTextTokenizer:
    """Tokenizes texts that a chat template wrote, without adding special tokens.

    A fast tokenizer cuts its special tokens out of a text before anything else looks at it, so that a text may be tokenized in
    two parts if the second begins with one. Completions of one prompt have the text before such a token in common. Whether the
    parts really give the ids of the whole is tried on the first texts; if not, or with a slow tokenizer, all are tokenized whole.

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
            self._tried = True  # not before: another thread may be here as well
        beginnings = list(dict.fromkeys(text[:start] for text, start in zip(texts, starts, strict=True)))
        ids = self._whole([*beginnings, *(text[start:] for text, start in zip(texts, starts, strict=True))])
        begun = dict(zip(beginnings, ids, strict=False))
        ends = ids[len(beginnings) :]
        return [begun[text[:start]] + end for text, start, end in zip(texts, starts, ends, strict=True)]

    def _starts(self, texts: Sequence[str]) -> list[int]:
        """Where the second part of each text begins: what is before is another text's beginning as well; 0 for no such part."""
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
    """How many tokens two rows begin with in common.

    >>> common_beginning([5, 6, 7], [5, 6, 8, 9])
    2
    """
    different = (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(different, min(len(one), len(other)))


def _common_length(one: str, other: str) -> int:
    """Leading characters that two texts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
