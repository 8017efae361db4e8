"""The ids of requests: what they look like, and whether an answer names the right one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from itertools import count

from rm_plugins.errors import AnswerError

_OURS = "726d2d70"
"""``rm-p`` as hexadecimal digits."""

REQUEST_ID = re.compile(rf"{_OURS}-[0-9a-f]{{4}}-8[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}")
"""What every id of a request looks like that a remote provider sends: no server makes up such a one. It is a UUID, of the version that is
free to use (8), because there are servers that take nothing else as ``X-Request-ID``: llama-cpp-python's, 0.3.36, answers 400."""


def request_ids() -> Iterator[str]:
    """Ids for the requests of one call: random digits of the call, and a number for each request.

    >>> ids = request_ids()
    >>> first, second = next(ids), next(ids)
    >>> first[:9], first[-12:], second[-12:], first[:-12] == second[:-12]
    ('726d2d70-', '000000000000', '000000000001', True)
    """
    call = uuid.uuid4().hex
    for number in count():
        yield f"{_OURS}-{call[:4]}-8{call[4:7]}-{call[16:20]}-{number:012x}"  # a random UUID has its variant at 16, and so has this


def check_request_id(claimed: object, request_id: str, what: str = "the answer") -> None:
    """See that an answer which names a request of ours names the one that it came for; one that names none says nothing.

    Args:
        claimed: What stands where the server puts a request's id, perhaps with something around it.
        request_id: Of the request that was sent.
        what: What has it, for the message.

    Raises:
        AnswerError: It names another one.

    >>> check_request_id("classify-726d2d70-0123-8456-89ab-000000000007", "726d2d70-0123-8456-89ab-000000000007")
    >>> check_request_id("chatcmpl-42", "726d2d70-0123-8456-89ab-000000000007")
    """
    named = REQUEST_ID.findall(claimed) if isinstance(claimed, str) else []
    if named and request_id not in named:
        raise AnswerError(f"{what} is for the request {named[0]!r}, not for {request_id!r}; they were mixed up")
