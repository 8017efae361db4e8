"""Answers that came before, to another request: where answers have no ids, a gateway's mistake looks like that."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

_KEPT = 10_000
"""Answers that are remembered."""


class RepeatedAnswers:
    """What was answered, and to which request, as digests of both.

    A reward of few values answers many requests alike. Such an answer is doubted once, and believed ever after it came twice to the
    same request.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[bytes, bytes | None] = OrderedDict()  # of each answer; None where it is of several

    def is_doubtful(self, request: bytes, answer: bytes) -> bool:
        """Whether the answer, byte for byte, was one to another request, and to no two of them by right; takes note of it if not."""
        asked, answered = _digest(request), _digest(answer)
        if self._requests.get(answered, asked) not in (asked, None):
            return True
        self._requests.setdefault(answered, asked)
        self._requests.move_to_end(answered)
        if len(self._requests) > _KEPT:
            self._requests.popitem(last=False)
        return False

    def believe(self, answer: bytes) -> None:
        """Take note that several requests have this answer by right."""
        self._requests[_digest(answer)] = None


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
