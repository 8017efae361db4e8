"""Samples as they may be sent: rendered by the tokenizer that the spec names, or as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_plugins.protocols.protocol import Item
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import TokenCounts

if TYPE_CHECKING:
    from rm_plugins.rendering.render import Renderer


class SendableSamples:
    """Samples, and what a server may be sent of them.

    Which text has the token ids of a sample depends on whether the server's tokenizer adds special tokens, which is known once
    the server is; a server that takes token ids needs none.

    Args:
        samples: [N].
        renderer: What renders them; None where the spec names no tokenizer.

    Attributes:
        tokens: Their lengths, [N]; None where nothing is rendered.

    Raises:
        ScoringError: Rows are too long, and the rendering refuses such.
        DataError: The chat template refuses a conversation.
    """

    def __init__(self, samples: Sequence[Sample], renderer: Renderer | None = None) -> None:
        self._samples = samples
        self._renderer = renderer
        self._ids: list[list[int]] = []
        self.tokens: TokenCounts | None = None
        if renderer is not None:
            self._ids, truncated = renderer.tokenized(samples)
            self.tokens = TokenCounts(np.array([len(ids) for ids in self._ids], dtype=np.int64), truncated)
        self._made: dict[bool, list[Item]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    def items(self, *, server_adds_special_tokens: bool) -> Sequence[Item]:
        """All of them, [N]; made once."""
        with self._lock:
            if server_adds_special_tokens not in self._made:
                self._made[server_adds_special_tokens] = self._items(server_adds_special_tokens)
            return self._made[server_adds_special_tokens]

    def _items(self, server_adds_special_tokens: bool) -> list[Item]:
        if self._renderer is None:
            return [_as_it_is(sample) for sample in self._samples]
        texts = _texts_of(self._ids, self._samples, self._renderer, server_adds_special_tokens)
        return [Item(sample, text, tuple(ids)) for sample, text, ids in zip(self._samples, texts, self._ids, strict=True)]


def _as_it_is(sample: Sample) -> Item:
    if isinstance(sample, RenderedSample):  # which has its prompt in its text
        return Item(sample, str(sample.completion) if sample.token_ids is None else None, token_ids=sample.token_ids)
    return Item(sample, None if sample.is_conversational else f"{sample.prompt}{sample.completion}")


def _texts_of(
    ids: Sequence[Sequence[int]], samples: Sequence[Sample], renderer: Renderer, adds_special_tokens: bool
) -> list[str | None]:
    """For each row a text that the tokenizer makes exactly these token ids of; None where none of those tried is one."""
    tokenizer = renderer.tokenizer
    sendable: list[str | None] = [None] * len(ids)
    for text_of in _candidates(tokenizer, ids, [renderer.text(sample) for sample in samples], adds_special_tokens):
        missing = [row for row, text in enumerate(sendable) if text is None]
        if not missing:
            break
        texts = [text_of(row) for row in missing]
        tokenized = tokenizer(texts, add_special_tokens=adds_special_tokens, verbose=False)["input_ids"]
        for row, text, row_ids in zip(missing, texts, tokenized, strict=True):
            if list(row_ids) == list(ids[row]):
                sendable[row] = text
    return sendable


def _candidates(
    tokenizer: Any, ids: Sequence[Sequence[int]], rendered: Sequence[str], adds_special_tokens: bool
) -> Iterator[Callable[[int], str]]:
    """Ways to write a row as text, the likeliest first."""

    def decoded(row: int) -> str:
        return str(tokenizer.decode(list(ids[row]), clean_up_tokenization_spaces=False))

    yield lambda row: rendered[row]
    if adds_special_tokens:
        yield lambda row: _inner(tokenizer, rendered[row])
        yield lambda row: _inner(tokenizer, decoded(row))
    else:
        before, after = _around(tokenizer)
        yield lambda row: f"{before}{rendered[row]}{after}"
    yield decoded


def _around(tokenizer: Any) -> tuple[str, str]:
    """What a tokenizer puts before and after a text, as text."""
    bare, whole = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (False, True))
    start = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
    return tokenizer.decode(whole[:start]), tokenizer.decode(whole[start + len(bare) :])


def _inner(tokenizer: Any, text: str) -> str:
    """A text without the special tokens that a tokenizer may have put around it."""
    for token in (tokenizer.bos_token, tokenizer.cls_token):
        text = text.removeprefix(token or "")
    for token in (tokenizer.eos_token, tokenizer.sep_token):
        text = text.removesuffix(token or "")
    return text
