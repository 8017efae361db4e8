"""What asking a judge costs."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.judges.judge import Reply

COSTS = ("calls", "prompt_tokens", "completion_tokens", "cached", "seconds")
"""The entries of `cost_of`, which rewards with a judge have in `Scores.metadata` and trainers log."""


def cost_of(replies: Sequence[Reply], seconds: float) -> dict[str, float]:
    """What replies cost, as numbers that add up: questions that were asked, tokens, questions that were not asked again, seconds.

    >>> cost_of([Reply("A", prompt_tokens=90, completion_tokens=1), Reply("A", cached=True)], 0.5)
    {'calls': 1, 'prompt_tokens': 90, 'completion_tokens': 1, 'cached': 1, 'seconds': 0.5}
    """
    cached = sum(reply.cached for reply in replies)
    return {
        "calls": len(replies) - cached,
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
        "cached": cached,
        "seconds": seconds,
    }
