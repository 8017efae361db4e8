"""What is sent in one request, and what its answer must be. No network in it."""

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
"""Of the body of a request for several items: TEI takes 2 MB, many gateways take 1 MB."""

ANSWER_BYTES = 4 * 1024 * 1024
"""Most bytes of an answer, beside those that the protocol allows for each item."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """A request and what is in it.

    Args:
        rows: The rows that it has scored.
        request: What is sent; None where nothing can be.
        body: As it goes over the wire.
        unsendable: The rows that were left out, and why.
    """

    rows: Sequence[int]
    request: Request | None
    body: bytes | None
    unsendable: Mapping[int, str] = field(default_factory=dict)


def packed(rows: Sequence[int], most: int) -> list[Sequence[int]]:
    """Rows in as few parts of at most `most` as there can be, all of about the same size.

    >>> packed(range(5), 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    parts = math.ceil(len(rows) / max(1, most))
    size, larger = divmod(len(rows), max(1, parts))
    starts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(starts)]


def scoring_request(rows: Sequence[int], items: Sequence[Item], server: ServerFacts, request_id: str) -> ScoringRequest:
    """The request for those of the rows, positions in `items`, that can be sent.

    Raises:
        RequestFailure: It is more than one request should carry.
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
        if not unsendable:  # each can be sent, but not all together
            raise RequestFailure("too-large", str(problem)) from problem
        rest = [row for row in rows if row not in unsendable]
        prepared = scoring_request(rest, items, server, request_id) if rest else ScoringRequest([], None, None)
        return replace(prepared, unsendable=unsendable)
    if len(rows) > 1 and body is not None and len(body) > MOST_BYTES:
        raise RequestFailure("too-large", f"{len(body):,} bytes are more than a request should have")
    return ScoringRequest(rows, request, body)


def encoded(request: Request) -> bytes | None:
    """The request's body as it is sent.

    Raises:
        DataError: It has no form in JSON.
    """
    if request.body is None:
        return None
    try:
        return json.dumps(request.body, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"A sample cannot be sent, for something in it has no form in JSON: {error}.") from error


def read_answer(response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
    """What the protocol makes of a good response, checked again whoever wrote the protocol.

    Raises:
        RequestFailure: It is not one finite score, abstention or error for each item; or it shows that the next one would not be, either.
    """
    try:
        check_request_id(response.headers.get("x-request-id"), request_id)
        answer = server.protocol.answer(response, items, server, request_id)
        columns = {"the answer": answer.values, **answer.details}
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
        raise RequestFailure("bad-answer", f"a wrong answer: {error}") from error
    except Exception as error:  # an answer of a form that the protocol's author did not think of
        raise RequestFailure("bad-answer", f"an answer that cannot be read: {type(error).__name__}: {error}") from error
    return answer
