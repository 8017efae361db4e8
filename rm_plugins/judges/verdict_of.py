"""The verdict of a judge's reply."""

from __future__ import annotations

from collections.abc import Collection

from rm_plugins.judges.judge import Reply
from rm_plugins.replies import Verdict, verdict_in


def verdict_of(reply: Reply | str, verdicts: Collection[str]) -> Verdict:
    """The verdict of a reply, as `rm_plugins.replies.verdict_in` reads it from the text; a reply with an error has that error.

    Args:
        reply: A judge's reply, or any text.
        verdicts: The possible verdicts, such as ``["A", "B", "tie"]``.

    >>> verdict_of(Reply("", error="the judge's answer was cut off"), ["A", "B"])
    Verdict(label='', error="the judge's answer was cut off")
    """
    if isinstance(reply, Reply):
        if reply.error:
            return Verdict(error=reply.error)
        reply = reply.text
    return verdict_in(reply, verdicts)
