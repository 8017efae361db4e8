"""The text of a completion, which rules look at."""

from __future__ import annotations

from rm_plugins.types import Sample

__all__ = ["completion_text"]


def completion_text(sample: Sample) -> str:
    """The completion as text: of messages, the contents of the assistant's, one after another on lines of their own.

    >>> completion_text(Sample([{"role": "user", "content": "2+2?"}], "4"))
    '4'
    """
    if isinstance(sample.completion, str):
        return sample.completion
    contents = (message.get("content") for message in sample.completion if message["role"] == "assistant")
    return "\n".join(content for content in contents if content)
