"""Samples in the forms in which they can be sent: rendered with the tokenizer in the spec, or unrendered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_plugins.protocols.discovery import PROBE_TEXT
from rm_plugins.protocols.protocol import Item, Protocol, ServerFacts
from rm_plugins.rendering.token_types import has_types, typed
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import TokenCounts

if TYPE_CHECKING:
    from rm_plugins.rendering.render import Renderer

_PAIR_OR_NOT = (
    "It is not known whether the model takes prompt and completion as a pair, like cross-encoders, or as one text: the server's tokenizer "
    "closes texts, like those of encoders. Set `pair: true` or `pair: false` in the spec of the remote provider."
)
_READS_BEFORE_PADDING = (
    "The model is scored at the last token (`read: last`), which is the padding token here, but this server reads the last token that is "
    "not padding. Use a server that reads the last token (vLLM, SGLang, OpenRLHF, or `rm-plugins serve`)."
)
_READS_UNKNOWN = (
    "The model is scored at the last token (`read: last`), which is the padding token here, and it is not known whether this server reads "
    "it or the last token that is not padding. If it reads the last token, set `protocol: {{name: {name}, reads: last}}` in the spec."
)
_NO_SUCH_PAIR = (
    "The server encodes the two texts like `tokenizer(prompt, completion)`, which gives other token ids than the model's own rendering of "
    "this sample (it joins the texts, ends them with EOS, or truncated them to `max_length`). Use another endpoint of the protocol "
    "(`classify` of vLLM, `predict` of TEI), or set `pair` and `append_eos` as the model was trained."
)
_NO_PAIR = (
    "The spec sets `pair: false`, but this endpoint takes prompt and completion as a pair. Use another endpoint of the protocol "
    "(`classify` of vLLM, `predict` of TEI), or leave `pair` out."
)
_CUT_PAIR = (
    "The sample is longer than `max_length`, but a pair with token types can only be sent as two whole texts. Shorten it, or raise "
    "`max_length` if the model takes more."
)
_CUT_CONVERSATION = (
    "The sample is longer than `max_length`, but this server renders conversations itself and would not truncate it in the same way. "
    "Shorten it, or raise `max_length` if the model takes more."
)


class SendableSamples:
    """Samples, and the forms in which a server can be sent them.

    The forms depend on the server. The text that has the token ids of a sample depends on the special tokens that the server's tokenizer
    adds, and the end of a row depends on the token that the server reads.

    Args:
        samples: The samples, [N].
        renderer: Renders the samples; None if the spec names no tokenizer.
        pair: Whether unrendered samples are pairs; None if the spec does not say.
        open_texts: Whether the spec says that unrendered texts have no EOS.

    Attributes:
        tokens: The numbers of tokens, [N]; None if nothing is rendered.
        has_texts: Whether some samples are unrendered texts, so that the server's tokenizer decides their token ids.
        open_texts: The argument.

    Raises:
        ScoringError: Rows are too long, and the rendering does not allow truncation.
        DataError: The chat template refuses a conversation.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        renderer: Renderer | None = None,
        *,
        pair: bool | None = None,
        open_texts: bool = False,
    ) -> None:
        self._samples = samples
        self._renderer = renderer
        self._pair = pair
        self._ids: list[list[int]] = []
        self.tokens: TokenCounts | None = None
        if renderer is not None:
            self._ids, truncated = renderer.tokenized(samples)
            self.tokens = TokenCounts(np.array([len(ids) for ids in self._ids], dtype=np.int64), truncated)
        self.has_texts = renderer is None and any(map(_is_text, samples))
        self.open_texts = open_texts
        self._made: dict[object, list[Item]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    def has_other_tokens(self, server: ServerFacts) -> bool:
        """Whether the server's tokenizer is known to give other token ids than the local one."""
        if self._renderer is None or server.tokens_of_probe is None:
            return False
        own = self._renderer.tokenizer(PROBE_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(own) != server.tokens_of_probe

    def items(self, server: ServerFacts) -> Sequence[Item]:
        """All samples as items for a server, [N]; made once for all servers that need the same forms."""
        protocol = server.protocol
        kind = (protocol.server_adds_special_tokens, protocol.reads, protocol.takes_only_pairs, server.closes_texts)
        with self._lock:
            if kind not in self._made:
                renderer = self._renderer
                self._made[kind] = (
                    [self._unrendered(sample, server) for sample in self._samples]
                    if renderer is None
                    else self._rendered(renderer, protocol)
                )
            return self._made[kind]

    def _unrendered(self, sample: Sample, server: ServerFacts) -> Item:
        if isinstance(sample, RenderedSample):  # its text includes the prompt
            return Item(sample, str(sample.completion) if sample.token_ids is None else None, token_ids=sample.token_ids)
        if sample.is_conversational:
            return Item(sample)
        if self._pair:
            return Item(sample, pair=(str(sample.prompt), str(sample.completion)))
        refusal = ""
        if server.protocol.takes_only_pairs:
            refusal = _NO_PAIR if self._pair is False else ""
        elif server.closes_texts and self._pair is None:  # also if one text is empty: as a pair, it would be another row
            refusal = _PAIR_OR_NOT
        return Item(sample, f"{sample.prompt}{sample.completion}", refusal=refusal)

    def _rendered(self, renderer: Renderer, protocol: Protocol) -> list[Item]:
        rows = self._ids if protocol.reads is None else [renderer.up_to_read(ids) for ids in self._ids]
        texts = _texts_of(rows, self._samples, renderer, protocol.server_adds_special_tokens)
        pairs = _pairs_of(rows, self._samples, renderer, takes_only_pairs=protocol.takes_only_pairs)
        assert self.tokens is not None
        is_cut = self.tokens.truncated & ("messages" in protocol.sent_as)
        return [
            Item(
                sample,
                text,
                None if has_types(row) else tuple(row),
                pair,
                (_CUT_CONVERSATION if cut else "") or _refusal(renderer, protocol, sample, row, pair),
                len(ids),
            )
            for sample, text, row, pair, ids, cut in zip(self._samples, texts, rows, pairs, self._ids, is_cut, strict=True)
        ]


def _is_text(sample: Sample) -> bool:
    return not isinstance(sample, RenderedSample) and not sample.is_conversational


def _refusal(renderer: Renderer, protocol: Protocol, sample: Sample, row: Sequence[int], pair: tuple[str, str] | None) -> str:
    """Why a row must not be sent; empty if it may be sent."""
    if renderer.rendering.read == "last" and row[-1] == renderer.pad_token_id:
        if protocol.reads == "before-padding":
            return _READS_BEFORE_PADDING
        if protocol.reads == "unknown":
            return _READS_UNKNOWN.format(name=protocol.name)
    if pair is None and has_types(row):
        return _CUT_PAIR
    return _NO_SUCH_PAIR if pair is None and protocol.takes_only_pairs and _is_text(sample) else ""


def _pairs_of(
    rows: Sequence[Sequence[int]], samples: Sequence[Sample], renderer: Renderer, *, takes_only_pairs: bool
) -> list[tuple[str, str] | None]:
    """For each row, the two texts that the tokenizer encodes to exactly this row; None if there are none, or pairs are not wanted."""
    pairs: list[tuple[str, str] | None] = [None] * len(rows)
    is_pair = bool(renderer.rendering.pair)
    wanted = [
        row for row, sample in enumerate(samples) if _is_text(sample) or (is_pair and not isinstance(sample, RenderedSample))
    ]
    if not wanted or not (is_pair or takes_only_pairs):
        return pairs
    texts = [renderer.pair_texts(samples[row]) for row in wanted]
    encoded = renderer.tokenizer([one for one, _ in texts], [other for _, other in texts], verbose=False)
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [[0] * len(row_ids) for row_ids in ids]
    for row, pair, row_ids, row_types in zip(wanted, texts, ids, types, strict=True):
        if typed(row_ids, row_types) == list(rows[row]):
            pairs[row] = pair
    return pairs


def _texts_of(
    ids: Sequence[Sequence[int]], samples: Sequence[Sample], renderer: Renderer, adds_special_tokens: bool
) -> list[str | None]:
    """For each row, a text that the tokenizer encodes to exactly these token ids; None if no candidate does."""
    tokenizer = renderer.tokenizer
    sendable: list[str | None] = [None] * len(ids)
    possible = [row for row in range(len(ids)) if not has_types(ids[row])]
    for text_of in _candidates(tokenizer, ids, [renderer.text(sample) for sample in samples], adds_special_tokens):
        missing = [row for row in possible if sendable[row] is None]
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
    """Functions that write a row as text, the most likely one first."""

    def decoded(row: int) -> str:
        return str(tokenizer.decode(list(ids[row]), clean_up_tokenization_spaces=False))

    def open_text(row: int) -> str:
        return rendered[row].removesuffix(tokenizer.eos_token or "")

    yield lambda row: rendered[row]
    yield open_text  # for a row that ends before its EOS
    if adds_special_tokens:
        yield lambda row: _inner(tokenizer, rendered[row])
        yield lambda row: _inner(tokenizer, decoded(row))
    else:
        before, after = _around(tokenizer)
        yield lambda row: f"{before}{rendered[row]}{after}"
        yield lambda row: f"{before}{open_text(row)}{after}"
    yield decoded


def _around(tokenizer: Any) -> tuple[str, str]:
    """The special tokens that a tokenizer adds before and after a text, as text."""
    bare, whole = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (False, True))
    start = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
    return tokenizer.decode(whole[:start]), tokenizer.decode(whole[start + len(bare) :])


def _inner(tokenizer: Any, text: str) -> str:
    """A text without the special tokens that a tokenizer may have added around it."""
    for token in (tokenizer.bos_token, tokenizer.cls_token):
        text = text.removeprefix(token or "")
    for token in (tokenizer.eos_token, tokenizer.sep_token):
        text = text.removesuffix(token or "")
    return text
