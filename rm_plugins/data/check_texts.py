"""What a check computes from the texts of a row: whether they are empty, their lengths, digests and excerpts."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from rm_plugins.data.judgements import Judgement
from rm_plugins.samples import Message, Sample, message_text

VERDICT_BITS = 64
"""The number of bits of a digest that encode the row's judgement."""

_EXCERPT = 48
_LOOKED_AT = 8 * _EXCERPT  # of a text that may be long, to find as much that is no white space


def characters(samples: Sequence[Sample]) -> list[int]:
    """The number of characters of each sample, prompt and completion together."""
    return [sum(map(len, (*_texts(sample.prompt), *_texts(sample.completion)))) for sample in samples]


def _texts(part: str | Sequence[Message]) -> list[str]:
    return [part] if isinstance(part, str) else [message_text(message) for message in part]


def is_blank(part: str | Sequence[Message]) -> bool:
    """Whether a prompt or completion has no text and calls no tool."""
    called = not isinstance(part, str) and any(message.get("tool_calls") for message in part)
    return not called and not any(text.strip() for text in _texts(part))


def one_line(text: str) -> str:
    """The beginning of a text, on one line, which can be printed."""
    line = " ".join(text[:_LOOKED_AT].encode("utf-8", "backslashreplace").decode().split())
    whole = len(text) <= _LOOKED_AT and len(line) <= _EXCERPT
    return line if whole else f"{line[: _EXCERPT - 1]}…"


def excerpt(sample: Sample) -> str:
    """An excerpt by which a person can find the row."""
    return " → ".join(repr(one_line(" ".join(_texts(part)))) for part in (sample.prompt, sample.completion) if part)


def row_digests(judged: Judgement, samples: Sequence[bytes]) -> tuple[bytes, int]:
    """The digest of a row's samples in any order, and a number for how they are judged."""
    ranks, labels = judged.ranks or [None] * len(samples), judged.labels or [None] * len(samples)
    verdicts = sorted(digest + repr(verdict).encode() for digest, *verdict in zip(samples, ranks, labels, strict=True))
    texts = blake2b(b"".join(part[:16] for part in verdicts), digest_size=16).digest()
    return texts, int.from_bytes(blake2b(b"".join(verdicts), digest_size=VERDICT_BITS // 8).digest(), "big")
