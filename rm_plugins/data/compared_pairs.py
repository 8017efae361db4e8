"""The pairs of answers that a judged row compares, and the side of a split that the row is on: by content, not by place in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from rm_plugins.canonical_json import canonical_json
from rm_plugins.data.answers import answers
from rm_plugins.data.judgements import Judgement
from rm_plugins.samples import Sample, text_of


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two answers to one prompt, and which is better.

    Args:
        answers: The two answers; their order depends on their texts only, not on which is better.
        better: The position of the better one; None if they are equally good.
        id: 24 hexadecimal digits that are equal for the same two answers to the same prompt only, in both orders.
    """

    answers: tuple[Sample, Sample]
    better: Literal[0, 1] | None
    id: str


def without_common_beginning(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples of a row; in transcripts, the lines that all begin with become the prompt.

    >>> without_common_beginning([Sample("", "Human: 2+2?\\nAssistant: 4"), Sample("", "Human: 2+2?\\nAssistant: 22")])[1]
    Sample(prompt='Human: 2+2?\\n', completion='Assistant: 22', columns={})
    """
    beginning, texts = answers(samples)
    if not beginning:
        return tuple(samples)
    return tuple(Sample(beginning, text, sample.columns) for text, sample in zip(texts, samples, strict=True))


def compared_pairs(judged: Judgement) -> list[ComparedPair]:
    """Every pair that a row compares, ties last; two answers with equal texts are left out, because no judge can distinguish them.

    >>> from rm_plugins.data.judgements import judgement
    >>> (pair,) = compared_pairs(judgement({"prompt": "2+2?", "chosen": "4", "rejected": "5"}))
    >>> pair.answers[pair.better].completion
    '4'
    """
    samples = without_common_beginning(judged.samples)
    keys = [_key(sample) for sample in samples]
    prompt = question_text(samples)
    pairs = []
    for (one, other), is_tie in [*((pair, False) for pair in judged.pairs), *((pair, True) for pair in judged.ties)]:
        if keys[one] == keys[other]:
            continue
        better: Literal[0, 1] = 0 if keys[one] < keys[other] else 1
        order = (one, other) if better == 0 else (other, one)
        name = _digest([prompt, *sorted((keys[one], keys[other]))], 12)
        pairs.append(ComparedPair((samples[order[0]], samples[order[1]]), None if is_tie else better, name))
    return pairs


def question_text(samples: Sequence[Sample]) -> str:
    """What the samples of a row answer, as text with single spaces; of transcripts, their common beginning; empty if unknown."""
    prompt = text_of(samples[0].prompt) if samples[0].prompt else answers(samples)[0]
    return " ".join(prompt.split())


def is_held_out(samples: Sequence[Sample], share: float) -> bool:
    """Whether a row belongs to the held-out part of a split.

    It depends on the text of the prompt only, so all rows of a prompt are on one side, in any order and in any file. Without a
    prompt, it depends on the set of answers. A row that is held out stays so with a larger share.

    Args:
        samples: The samples of the row.
        share: The expected share of the prompts that are held out, from 0 to 1.

    >>> is_held_out([Sample("2+2?", "4")], 0.0), is_held_out([Sample("2+2?", "4")], 1.0)
    (False, True)
    """
    known = question_text(samples) or sorted({" ".join(text_of(sample.completion).split()) for sample in samples})
    return int(_digest(known, 8), 16) < share * 2**64


def _key(sample: Sample) -> str:
    """Equal for equal texts; it orders answers in a way that says nothing of them."""
    return _digest(text_of(sample.completion), 12)


def _digest(value: object, size: int) -> str:
    return blake2b(canonical_json(value).encode(), digest_size=size).hexdigest()
