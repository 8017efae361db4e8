"""Detects answers that were already given to another request, which may be the mistake of a gateway if answers have no ids."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

_KEPT = 10_000
"""The number of answers that are remembered."""


class RepeatedAnswers:
    """Remembers which request got which answer, as digests.

    A reward with few distinct values gives equal answers to many requests. Such an answer is doubted once; if the same request gets it
    again, it is accepted from then on.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[bytes, bytes | None] = OrderedDict()  # by answer; None if several requests may have it

    def is_doubtful(self, request: bytes, answer: bytes) -> bool:
        """Whether the identical answer was given to another request and is not accepted for several; otherwise remembers it."""
        request_digest, answer_digest = _digest(request), _digest(answer)
        if self._requests.get(answer_digest, request_digest) not in (request_digest, None):
            return True
        self._requests.setdefault(answer_digest, request_digest)
        self._requests.move_to_end(answer_digest)
        if len(self._requests) > _KEPT:
            self._requests.popitem(last=False)
        return False

    def believe(self, answer: bytes) -> None:
        """Accept this answer for any request from now on."""
        self._requests[_digest(answer)] = None


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
