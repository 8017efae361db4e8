"""Builds requests and checks their answers. Does no network access."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rm_plugins.errors import AnswerError, DataError, ScoringError, UnsupportedError
from rm_plugins.protocols.protocol import Answer, Item, Request, Response, ServerFacts, finite
from rm_plugins.protocols.request_ids import check_request_id
from rm_plugins.remote.request_failure import RequestFailure

MOST_BYTES = 1_000_000
"""The largest body of a request with several items: TEI accepts 2 MB, many gateways accept 1 MB."""

ANSWER_BYTES = 4 * 1024 * 1024
"""The largest answer, in addition to the bytes that the protocol allows for each item."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """A request and its contents.

    Args:
        rows: The rows that the request scores.
        request: The request; None if no row can be sent.
        body: The encoded body.
        unsendable: The rows that cannot be sent, each with the reason.
    """

    rows: Sequence[int]
    request: Request | None
    body: bytes | None
    unsendable: Mapping[int, str] = field(default_factory=dict)


def packed(rows: Sequence[int], most: int) -> list[Sequence[int]]:
    """Split rows into the fewest parts of at most `most` rows, all of about the same size.

    >>> packed(range(5), 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    parts = math.ceil(len(rows) / max(1, most))
    size, larger = divmod(len(rows), max(1, parts))
    starts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(starts)]


def scoring_request(rows: Sequence[int], items: Sequence[Item], server: ServerFacts, request_id: str) -> ScoringRequest:
    """The request for those of the rows (positions in `items`) that can be sent.

    Raises:
        RequestFailure: The rows are too much for one request.
    """

    def made(some: Sequence[int]) -> tuple[Request, bytes | None]:
        if refusal := next((items[row].refusal for row in some if items[row].refusal), ""):
            raise DataError(refusal)
        request = server.protocol.request([items[row] for row in some], server, request_id)
        return request, encoded(request)

    try:
        request, body = made(rows)
    except DataError as problem:
        unsendable: dict[int, str] = {}
        for row in rows:
            try:
                made([row])
            except DataError as error:
                unsendable[row] = str(error)
        if not unsendable:  # each can be sent alone, but not all together
            raise RequestFailure("too-large", str(problem)) from problem
        rest = [row for row in rows if row not in unsendable]
        prepared = scoring_request(rest, items, server, request_id) if rest else ScoringRequest([], None, None)
        return replace(prepared, unsendable=unsendable)
    if len(rows) > 1 and body is not None and len(body) > MOST_BYTES:
        raise RequestFailure("too-large", f"a request of {len(body):,} bytes is too large; the limit is {MOST_BYTES:,} bytes")
    return ScoringRequest(rows, request, body)


def encoded(request: Request) -> bytes | None:
    """The encoded body of a request; None for no body.

    Raises:
        DataError: JSON cannot represent the body.
    """
    if request.body is None:
        return None
    try:
        return json.dumps(request.body, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A sample cannot be sent, because JSON cannot represent a value in it: {error}. Convert it."
        ) from error


def read_answer(response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
    """Read a response with a 2xx status with its protocol, and check the result, because plug-ins may define protocols.

    Raises:
        RequestFailure: It is not one finite score, abstention or error for each item; or it shows that the server never gives rewards.
    """
    try:
        check_request_id(response.headers.get("x-request-id"), request_id)
        answer = server.protocol.answer(response, items, server, request_id)
        columns: dict[str, Sequence[object]] = {"the answer": answer.values, **answer.details}
        if answer.replies:
            columns["replies"] = answer.replies
        for name, column in columns.items():
            if len(column) != len(items):
                raise AnswerError(f"{name} has {len(column)} entries for {len(items)} items")
        for place, value in enumerate(answer.values):
            if value is not None:
                finite(value, f"the score of item {place}")
                if place in answer.errors:
                    raise AnswerError(f"item {place} has both a score and an error")
    except UnsupportedError as error:
        raise RequestFailure("refused", str(error)) from error
    except ScoringError as error:
        raise RequestFailure("bad-answer", f"wrong answer: {error}") from error
    except Exception as error:  # an answer in a form that the protocol's author did not expect
        raise RequestFailure("bad-answer", f"the answer cannot be read: {type(error).__name__}: {error}") from error
    return answer
