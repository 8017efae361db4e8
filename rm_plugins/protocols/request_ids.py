"""Makes the ids of requests, and checks the ids in answers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from itertools import count

from rm_plugins.errors import AnswerError

_OURS = "726d2d70"
"""``rm-p`` as hexadecimal digits."""

REQUEST_ID = re.compile(rf"{_OURS}-[0-9a-f]{{4}}-8[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}")
"""The form of the request ids that a remote provider sends; servers do not make up such ids. They are UUIDs of version 8 (custom), because
some servers accept only UUIDs as ``X-Request-ID``: llama-cpp-python's 0.3.36 answers 400 to anything else."""


def request_ids() -> Iterator[str]:
    """Ids for the requests of one call: random digits for the call, and a number for each request.

    >>> ids = request_ids()
    >>> first, second = next(ids), next(ids)
    >>> first[:9], first[-12:], second[-12:], first[:-12] == second[:-12]
    ('726d2d70-', '000000000000', '000000000001', True)
    """
    call = uuid.uuid4().hex
    for number in count():
        yield f"{_OURS}-{call[:4]}-8{call[4:7]}-{call[16:20]}-{number:012x}"  # digit 16 of a random UUID is its variant


def check_request_id(claimed: object, request_id: str, what: str = "the answer") -> None:
    """Check that an answer does not name another of our requests; an answer without one of our ids passes.

    Args:
        claimed: The id in the answer, perhaps with other text around it.
        request_id: The id of the request that was sent.
        what: Where the id was read, for the message.

    Raises:
        AnswerError: It is the id of another request.

    >>> check_request_id("classify-726d2d70-0123-8456-89ab-000000000007", "726d2d70-0123-8456-89ab-000000000007")
    >>> check_request_id("chatcmpl-42", "726d2d70-0123-8456-89ab-000000000007")
    """
    ids = REQUEST_ID.findall(claimed) if isinstance(claimed, str) else []
    if ids and request_id not in ids:
        raise AnswerError(f"{what} is for the request {ids[0]!r}, not for {request_id!r}; answers were mixed up")
