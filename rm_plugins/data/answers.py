"""The answers in samples: where these are whole transcripts, what comes after their common beginning."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

from rm_plugins.samples import Sample, prompt_key, text_of


def answers(samples: Sequence[Sample]) -> tuple[str, tuple[str, ...]]:
    """What the completions of one row begin with in common, and the texts that follow, whose lengths and formats are measured.

    Only completions without a prompt begin with something that is theirs in common: whole lines, such as the earlier turns of two
    transcripts. With a prompt, or where not even a line is common, the beginning is empty.

    >>> answers([Sample("", "Human: 2+2?\\nAssistant: 4"), Sample("", "Human: 2+2?\\nAssistant: 22")])
    ('Human: 2+2?\\n', ('Assistant: 4', 'Assistant: 22'))
    """
    texts = tuple(text_of(sample.completion) for sample in samples)
    if len(texts) < 2 or any(sample.prompt for sample in samples) or len(set(texts)) == 1:
        return "", texts
    common = commonprefix(texts)  # noqa: RUF071 character by character is what is meant
    common = common[: common.rfind("\n") + 1]
    return (common, tuple(text[len(common) :] for text in texts)) if common.strip() else ("", texts)


def question_key(samples: Sequence[Sample]) -> bytes | None:
    """16 bytes that rows have in common whose answers are to the same question: the prompt, or what transcripts begin with in common.

    Returns:
        None where neither is known.
    """
    if samples and samples[0].prompt:
        return samples[0].prompt_key
    beginning, _ = answers(samples)
    return prompt_key(beginning, samples[0].columns) if beginning else None
