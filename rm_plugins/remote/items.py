"""Samples as they may be sent: rendered by the tokenizer that the spec names, or as they are."""

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
    "Whether the model takes prompt and completion as a pair, as cross-encoders do, or as one text is not known: the server's tokenizer "
    "closes texts, as those of encoders do. Say it in the spec of the remote provider: `pair: true` or `pair: false`."
)
_READS_BEFORE_PADDING = (
    "The model is read at the last token (`read: last`), which is the padding token here, and this server reads the last one that is not. "
    "Use a server that reads the last token (vLLM, SGLang, OpenRLHF, or `rm-plugins serve`)."
)
_READS_NOBODY_KNOWS = (
    "The model is read at the last token (`read: last`), which is the padding token here, and whether this server reads that one or the "
    "last that is not padding is not known. Say it in the spec if it reads that one, `protocol: {{name: {name}, reads: last}}`."
)
_NO_SUCH_PAIR = (
    "The server is sent two texts and encodes them as `tokenizer(prompt, completion)`, which has other token ids than the model's own "
    "rendering of this sample: that joins the texts, closes them with EOS, or cut them at `max_length`. Use another endpoint of the "
    "protocol (`classify` of vLLM, `predict` of TEI), or say how the model was trained: `pair`, `append_eos`."
)
_NO_PAIR = (
    "The spec says `pair: false`, and this endpoint is sent prompt and completion as a pair. Use another endpoint of the protocol "
    "(`classify` of vLLM, `predict` of TEI), or leave `pair` out."
)
_CUT_PAIR = (
    "The sample is longer than `max_length`, and a pair with token types is sent as its two whole texts. Shorten it, or raise `max_length` "
    "if the model takes more."
)
_CUT_CONVERSATION = (
    "The sample is longer than `max_length`, and this server renders conversations by itself, whole or cut elsewhere. Shorten it, or raise "
    "`max_length` if the model takes more."
)


class SendableSamples:
    """Samples, and what a server may be sent of them.

    Which text has the token ids of a sample depends on whether the server's tokenizer adds special tokens, and where a row ends on the
    token that it reads, which is known once the server is.

    Args:
        samples: [N].
        renderer: What renders them; None where the spec names no tokenizer.
        pair: Whether they are pairs where nothing renders them; None where the spec does not say.
        open_texts: Whether the spec says that texts have no EOS where nothing renders them.

    Attributes:
        tokens: Their lengths, [N]; None where nothing is rendered.
        has_texts: Whether some are texts that nothing renders here, so that the server's tokenizer decides what becomes of them.
        open_texts: As it was given.

    Raises:
        ScoringError: Rows are too long, and the rendering refuses such.
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
        """Whether the server's tokenizer is known to have other token ids than the one that renders here."""
        if self._renderer is None or server.tokens_of_probe is None:
            return False
        own = self._renderer.tokenizer(PROBE_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(own) != server.tokens_of_probe

    def items(self, server: ServerFacts) -> Sequence[Item]:
        """All of them as the server is sent them, [N]; made once for all servers that are sent the same."""
        spoken = server.protocol
        kind = (spoken.server_adds_special_tokens, spoken.reads, spoken.takes_only_pairs, server.closes_texts)
        with self._lock:
            if kind not in self._made:
                renderer = self._renderer
                self._made[kind] = (
                    [self._as_it_is(sample, server) for sample in self._samples]
                    if renderer is None
                    else self._rendered(renderer, spoken)
                )
            return self._made[kind]

    def _as_it_is(self, sample: Sample, server: ServerFacts) -> Item:
        if isinstance(sample, RenderedSample):  # which has its prompt in its text
            return Item(sample, str(sample.completion) if sample.token_ids is None else None, token_ids=sample.token_ids)
        if sample.is_conversational:
            return Item(sample)
        if self._pair:
            return Item(sample, pair=(str(sample.prompt), str(sample.completion)))
        refusal = ""
        if server.protocol.takes_only_pairs:
            refusal = _NO_PAIR if self._pair is False else ""
        elif server.closes_texts and self._pair is None:  # also of a single text: with an empty one, a pair is another row
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
    """Why a row must not be sent; empty where it may."""
    if renderer.rendering.read == "last" and row[-1] == renderer.pad_token_id:
        if protocol.reads == "before-padding":
            return _READS_BEFORE_PADDING
        if protocol.reads == "unknown":
            return _READS_NOBODY_KNOWS.format(name=protocol.name)
    if pair is None and has_types(row):
        return _CUT_PAIR
    return _NO_SUCH_PAIR if pair is None and protocol.takes_only_pairs and _is_text(sample) else ""


def _pairs_of(
    rows: Sequence[Sequence[int]], samples: Sequence[Sample], renderer: Renderer, *, takes_only_pairs: bool
) -> list[tuple[str, str] | None]:
    """For each row the two texts that the tokenizer makes exactly this row of as a pair; None where there are none, or none are wanted."""
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
    """For each row a text that the tokenizer makes exactly these token ids of; None where none of those tried is one."""
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
    """Ways to write a row as text, the likeliest first."""

    def decoded(row: int) -> str:
        return str(tokenizer.decode(list(ids[row]), clean_up_tokenization_spaces=False))

    def open_text(row: int) -> str:
        return rendered[row].removesuffix(tokenizer.eos_token or "")

    yield lambda row: rendered[row]
    yield open_text  # of a row that ends before its EOS
    if adds_special_tokens:
        yield lambda row: _inner(tokenizer, rendered[row])
        yield lambda row: _inner(tokenizer, decoded(row))
    else:
        before, after = _around(tokenizer)
        yield lambda row: f"{before}{rendered[row]}{after}"
        yield lambda row: f"{before}{open_text(row)}{after}"
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
