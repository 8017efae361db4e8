"""The contract check of protocols."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import AnswerError, UnsupportedError
from rm_plugins.protocols import Answer, Ask, Item, Protocol, Response, ServerFacts

if TYPE_CHECKING:
    pass


def check_protocol(protocol: Protocol, ask: Ask, items: Sequence[Item], *, tolerance: float = 1e-4) -> Answer:
    """Check that a protocol fulfils its contract: order, count, and that a broken answer never becomes a score.

    Args:
        protocol: The protocol.
        ask: Answers a request as a server does, or sends it to a real server.
        items: At least two different items that the server can score, no more than it takes in one request.
        tolerance: How much an item's score may differ between requests, relative to 1 + abs(score).

    Returns:
        The server's answer for `items`.

    Raises:
        AssertionError: The protocol breaks the contract; the message says how.
    """
    assert len(items) > 1, "check_protocol needs at least two items"
    assert isinstance(type(protocol).name, str), "the class has no `name`"
    with asyncio.Runner() as runner:  # one loop for all requests, because a connection belongs to its loop
        return _checked(protocol, ask, items, tolerance, runner)


def _checked(protocol: Protocol, ask: Ask, items: Sequence[Item], tolerance: float, runner: asyncio.Runner) -> Answer:
    server = runner.run(pickle.loads(pickle.dumps(protocol)).prepare(ask))
    prepared = server.protocol

    async def sent(batch: Sequence[Item]) -> Response:
        return await ask(prepared.request(batch, server, "request"))

    def response(batch: Sequence[Item]) -> Response:
        received = runner.run(sent(batch))
        assert 200 <= received.status < 300, (
            f"a request for {len(batch)} items got status {received.status}: {received.body[:200]!r}"
        )
        return received

    def answer(batch: Sequence[Item]) -> Answer:
        return _aligned(prepared.answer(response(batch), batch, server, "request"), len(batch))

    def same(again: Sequence[float | None], what: str) -> None:
        assert _near(again, values, tolerance), f"{what}: {list(again)} instead of {values}"

    singles = [answer([item]) for item in items]
    values = [single.values[0] for single in singles]
    if not prepared.batches:
        for item in items:
            _check_broken(response([item]), [item], server)
        return _side_by_side(singles)
    whole = answer(items)
    same(whole.values, "an item's score depends on what else is in its request")
    same(answer(items[::-1]).values[::-1], "the scores do not follow the order of the items")
    _check_broken(response(items), items, server)
    return whole


def _check_broken(response: Response, items: Sequence[Item], server: ServerFacts) -> None:
    """Check that a protocol refuses a broken response, or gives the right scores if it does not read the broken part."""
    expected = server.protocol.answer(response, items, server, "request").values
    for what, body in _broken(response.body, len(items)):
        try:
            answer = server.protocol.answer(replace(response, body=body), items, server, "request")
        except (AnswerError, UnsupportedError):
            continue
        except Exception as error:
            raise AssertionError(
                f"{what}: the protocol raised {type(error).__name__} ({error}) instead of AnswerError"
            ) from error
        assert len(answer.values) == len(items), f"{what}: the protocol gave {len(answer.values)} scores for {len(items)} items"
        changed = [row for row in range(len(items)) if not _near(answer.values[row : row + 1], expected[row : row + 1], 0.0)]
        assert all(answer.values[row] is None and row in answer.errors for row in changed), (
            f"{what}: the protocol gave the scores {list(answer.values)} instead of raising AnswerError"
        )


def _broken(body: bytes, size: int) -> Iterator[tuple[str, bytes]]:
    """Broken variants of an answer's body, each with a description of what is broken."""
    yield "the second half of the answer is missing", body[: len(body) // 2]
    yield "the answer is empty", b""
    yield "the answer is null", b"null"
    for path, value in _places(json.loads(body)):
        holder: Any = {"answer": json.loads(body)}
        whole, steps = holder, ("answer", *path)
        for step in steps[:-1]:
            holder = holder[step]
        if isinstance(value, list) and len(value) == size:
            holder[steps[-1]] = value[:-1]
            yield f"{list(path)} lacks an entry", json.dumps(whole["answer"]).encode()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[steps[-1]] = math.nan
            yield f"{list(path)} is NaN", json.dumps(whole["answer"]).encode()


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value inside a JSON document, with its path."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in inner:
        yield from _places(part, (*path, step))


def _aligned(answer: Answer, size: int) -> Answer:
    assert len(answer.values) == size, f"{len(answer.values)} scores for {size} items"
    for name, column in answer.details.items():
        assert len(column) == size, f"the detail {name!r} has {len(column)} entries for {size} items"
    problems = "; ".join(f"item {row}: {error}" for row, error in answer.errors.items())
    assert not answer.errors, f"check_protocol needs items that the server can score, but it refused some ({problems})"
    assert all(value is None or math.isfinite(value) for value in answer.values), (
        f"a score is not finite: {list(answer.values)}"
    )
    return answer


def _near(values: Sequence[float | None], expected: Sequence[float | None], tolerance: float) -> bool:
    return all(
        one is other or (one is not None and other is not None and abs(one - other) <= tolerance * (1 + abs(other)))
        for one, other in zip(values, expected, strict=True)
    )


def _side_by_side(singles: Sequence[Answer]) -> Answer:
    names = dict.fromkeys(name for single in singles for name in single.details)
    details = {name: [single.details[name][0] if name in single.details else None for single in singles] for name in names}
    return Answer([single.values[0] for single in singles], details, fingerprint=singles[0].fingerprint)
