"""The answers in samples; in whole transcripts, what follows their common beginning."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

from rm_plugins.samples import Sample, prompt_key, text_of


def answers(samples: Sequence[Sample]) -> tuple[str, tuple[str, ...]]:
    """The common beginning of a row's completions, and the texts that follow it, whose lengths and formats are measured.

    Only completions without a prompt have a common beginning: whole lines, such as the earlier turns of two transcripts. With a prompt, or
    without a common line, it is empty.

    >>> answers([Sample("", "Human: 2+2?\\nAssistant: 4"), Sample("", "Human: 2+2?\\nAssistant: 22")])
    ('Human: 2+2?\\n', ('Assistant: 4', 'Assistant: 22'))
    """
    texts = tuple(text_of(sample.completion) for sample in samples)
    if len(texts) < 2 or any(sample.prompt for sample in samples) or len(set(texts)) == 1:
        return "", texts
    common = commonprefix(texts)  # noqa: RUF071 compared character by character
    common = common[: common.rfind("\n") + 1]
    return (common, tuple(text[len(common) :] for text in texts)) if common.strip() else ("", texts)


def question_key(samples: Sequence[Sample]) -> bytes | None:
    """16 bytes that are equal for rows with the same question: of the prompt, or of the common beginning of transcripts.

    Returns:
        None if neither is known.
    """
    if samples and samples[0].prompt:
        return samples[0].prompt_key
    beginning, _ = answers(samples)
    return prompt_key(beginning, samples[0].columns) if beginning else None
