"""What the author of a plug-in runs in their own tests: contract checks, and a provider to compose with."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rm_plugins.data.judgements import judgement
from rm_plugins.errors import AnswerError, RmPluginsError, UnsupportedError
from rm_plugins.protocols import Answer, Ask, Item, Protocol, Response, ServerFacts
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores
from rm_plugins.suites import Suite, SuiteItem, SuiteResult

if TYPE_CHECKING:
    from rm_plugins.losses import Loss, RewardBatch

_THREADS = 4

__all__ = ["FixedProvider", "check_loss", "check_protocol", "check_provider", "check_suite"]


class FixedProvider(Provider):
    """A provider that gives each completion the score it is told to.

    Args:
        scores: A function of a sample; None abstains.

    >>> FixedProvider(scores=lambda sample: float(len(sample.completion_text))).score([Sample("Q", "abc")]).values
    array([3.])
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, *, scores: Callable[[Sample], float | None]) -> None:
        self.scores = scores
        self.batches: list[int] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score, and remember the size of the batch in `batches`."""
        self.batches.append(len(samples))
        values = [self.scores(sample) for sample in samples]
        return Scores(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


def check_provider(provider: Provider, samples: Sequence[Sample], *, tolerance: float = 1e-4, pickles: bool = True) -> Scores:
    """Check what every consumer of a provider relies on.

    Args:
        provider: The provider.
        samples: At least two different samples that it can score.
        tolerance: How far a sample's score may move between batches, relative to 1 + abs(score).
        pickles: Whether to check that it can be pickled, which spawned processes need.

    Returns:
        The scores of `samples`.

    Raises:
        AssertionError: The provider breaks the contract; the message says which part.
    """
    assert len(samples) > 1, "check_provider needs at least two samples"
    assert isinstance(type(provider).name, str), "the class has no `name`"
    assert len(provider.score([])) == 0, "an empty batch must give empty scores"
    scores = provider.score(samples)

    def same(again: Scores, expected: Scores, what: str) -> None:
        gap = np.abs(again.values - expected.values)
        near = (gap <= tolerance * (1 + np.abs(expected.values))) | (again.abstained & expected.abstained)
        assert bool(near.all()), f"{what}: {again.values.tolist()} instead of {expected.values.tolist()}"

    same(provider.score(samples), scores, "scoring the same samples again gives other scores")
    backwards = provider.score(samples[::-1])
    same(Scores(backwards.values[::-1]), scores, "the scores do not follow the order of the samples")
    single = Scores(np.concatenate([provider.score([sample]).values for sample in samples]))
    same(single, scores, "a sample's score depends on what else is in its batch")
    doubled = provider.score([*samples, *samples])
    same(Scores(doubled.values[len(samples) :]), scores, "duplicates of a sample get other scores")
    try:
        called = _from_threads(provider, samples)
    except RmPluginsError as error:
        raise AssertionError(f"a call from several threads at once fails, and by itself it does not: {error}") from error
    for numbers, values in called:
        same(Scores(values), scores.rows(numbers), "calls from several threads at once get other scores")
    if pickles:
        same(pickle.loads(pickle.dumps(provider)).score(samples), scores, "the provider scores otherwise after pickling")
    return scores


def _from_threads(provider: Provider, samples: Sequence[Sample]) -> list[tuple[list[int], FloatArray]]:
    """Samples by number, and the scores that they got in one call, while other threads had others of them scored."""
    size = len(samples)
    batches = [
        [*range(size)],
        *([(first + place) % size for place in range(length)] for length in (1, 2) for first in range(size)),
    ]

    def scored(numbers: list[int]) -> tuple[list[int], FloatArray]:
        return numbers, provider.score([samples[number] for number in numbers]).values

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check-provider") as pool, _threads_in_quick_turn():
        return list(pool.map(scored, batches))


@contextmanager
def _threads_in_quick_turn() -> Iterator[None]:
    """Within it, threads take turns far more often, for what they do to each other to show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def check_loss(loss: Loss, batch: RewardBatch) -> float:
    """Check what a trainer relies on of a loss over pairs, or of one over anything else, given a batch of its kind.

    Args:
        loss: The loss.
        batch: A batch with at least one item that the loss is a mean over, whose rewards are float64.

    Returns:
        The loss of the batch.

    Raises:
        AssertionError: The loss breaks the contract; the message says which part.
        torch.autograd.gradcheck.GradcheckError: Its gradient is not that of its value.
    """
    import torch

    assert isinstance(type(loss).name, str), "the class has no `name`"
    assert batch.rewards.dtype == torch.float64, "check_loss needs rewards in float64, for gradients to be compared"

    def of(rewards: torch.Tensor) -> torch.Tensor:
        state = copy.deepcopy(loss.state())
        value = loss(replace(batch, rewards=rewards))
        loss.load_state(state)  # what it remembers must not tell one evaluation from the next
        return value

    rewards = batch.rewards.detach().clone().requires_grad_()
    value = of(rewards)
    assert value.shape == (), f"the loss must be a scalar, not of the shape {tuple(value.shape)}"
    assert bool(value.isfinite()), f"the loss is {value.item()}"
    assert value.requires_grad, "the loss does not depend on the rewards in a way that gradients follow"
    if not loss.state():  # what is remembered of the rewards has no part in the gradient
        torch.autograd.gradcheck(of, (rewards,))
    for scale in (1e4, -1e4):
        far = (batch.rewards.detach() * (scale / batch.rewards.detach().abs().max())).requires_grad_()
        distant = of(far)
        (gradient,) = torch.autograd.grad(distant, far)
        assert bool(distant.isfinite()), f"the loss is {distant.item()} at rewards of {abs(scale):g}"
        assert bool(gradient.isfinite().all()), f"the gradient is not finite at rewards of {abs(scale):g}"
    return value.item()


def check_protocol(protocol: Protocol, ask: Ask, items: Sequence[Item], *, tolerance: float = 1e-4) -> Answer:
    """Check what the remote provider relies on of a protocol: order, count, and that no broken answer becomes a number.

    Args:
        protocol: The protocol.
        ask: Answers a request as a server does, or asks a real one.
        items: At least two different items that the server can score, no more than it takes in one request.
        tolerance: How far an item's score may move between requests, relative to 1 + abs(score).

    Returns:
        What the server says of `items`.

    Raises:
        AssertionError: The protocol breaks the contract; the message says which part.
    """
    assert len(items) > 1, "check_protocol needs at least two items"
    assert isinstance(type(protocol).name, str), "the class has no `name`"
    with asyncio.Runner() as runner:  # one loop for all, as connections belong to one
        return _checked(protocol, ask, items, tolerance, runner)


def _checked(protocol: Protocol, ask: Ask, items: Sequence[Item], tolerance: float, runner: asyncio.Runner) -> Answer:
    server = runner.run(pickle.loads(pickle.dumps(protocol)).prepare(ask))
    spoken = server.protocol

    async def asked(batch: Sequence[Item]) -> Response:
        return await ask(spoken.request(batch, server, "request"))

    def response(batch: Sequence[Item]) -> Response:
        answered = runner.run(asked(batch))
        assert 200 <= answered.status < 300, (
            f"a request for {len(batch)} items was answered {answered.status}: {answered.body[:200]!r}"
        )
        return answered

    def answer(batch: Sequence[Item]) -> Answer:
        return _aligned(spoken.answer(response(batch), batch, server, "request"), len(batch))

    def same(again: Sequence[float | None], what: str) -> None:
        assert _near(again, values, tolerance), f"{what}: {list(again)} instead of {values}"

    singles = [answer([item]) for item in items]
    values = [single.values[0] for single in singles]
    if not spoken.batches:
        for item in items:
            _check_broken(response([item]), [item], server)
        return _side_by_side(singles)
    whole = answer(items)
    same(whole.values, "an item's score depends on what else is in its request")
    same(answer(items[::-1]).values[::-1], "the scores do not follow the order of the items")
    _check_broken(response(items), items, server)
    return whole


def _check_broken(response: Response, items: Sequence[Item], server: ServerFacts) -> None:
    """Check that a protocol refuses a broken response, or gives the scores of the whole one where it reads nothing of what broke."""
    expected = server.protocol.answer(response, items, server, "request").values
    for what, body in _broken(response.body, len(items)):
        try:
            answer = server.protocol.answer(replace(response, body=body), items, server, "request")
        except (AnswerError, UnsupportedError):
            continue
        except Exception as error:
            raise AssertionError(f"{what}: the protocol raised {type(error).__name__} ({error}), not AnswerError") from error
        assert len(answer.values) == len(items), f"{what}: the protocol gave {len(answer.values)} scores for {len(items)} items"
        changed = [row for row in range(len(items)) if not _near(answer.values[row : row + 1], expected[row : row + 1], 0.0)]
        assert all(answer.values[row] is None and row in answer.errors for row in changed), (
            f"{what}: it became {list(answer.values)}"
        )


def _broken(body: bytes, size: int) -> Iterator[tuple[str, bytes]]:
    """What is broken in it, and the body of an answer."""
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
            yield f"{list(path)} has an entry less", json.dumps(whole["answer"]).encode()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[steps[-1]] = math.nan
            yield f"{list(path)} is NaN", json.dumps(whole["answer"]).encode()


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value inside a JSON document, with the way to it."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in inner:
        yield from _places(part, (*path, step))


def _aligned(answer: Answer, size: int) -> Answer:
    assert len(answer.values) == size, f"{len(answer.values)} scores for {size} items"
    for name, column in answer.details.items():
        assert len(column) == size, f"the detail {name!r} has {len(column)} entries for {size} items"
    assert not answer.errors, f"items of the check must be ones that the server can score: {dict(answer.errors)}"
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


def check_suite(suite: Suite, raw: Sequence[Mapping[str, Any]]) -> SuiteResult:
    """Check what an evaluation relies on of a benchmark: rows that can be judged, and a rule that tells rewards apart.

    Args:
        suite: The benchmark.
        raw: Rows as its dataset has them, of every section that has a weight in its score.

    Returns:
        What the benchmark says of a reward that has everything right.

    Raises:
        AssertionError: The benchmark breaks the contract; the message says which part.
    """
    rows = list(suite.checked_rows(iter(raw)))
    assert rows, "it made no rows of the raw ones"
    assert all("section" in row for row in rows), "a row has no `section`"
    labels = [_right_and_wrong(row) for row in rows]
    assert all(len(set(row_labels.tolist())) == 2 for row_labels in labels), "a row has no right sample, or no wrong one"

    def result(score: Callable[[FloatArray], FloatArray]) -> SuiteResult:
        return suite.result(
            [
                SuiteItem(str(row.get("id", "")), str(row["section"]), score(right), right, tuple(row.get("compared") or ()))
                for row, right in zip(rows, labels, strict=True)
            ]
        )

    perfect, worst = result(lambda right: right), result(lambda right: -right)
    assert math.isfinite(perfect.score), f"{perfect.score} is the score of a reward that has everything right, in all sections"
    assert perfect.score > worst.score, (
        f"a reward that has everything wrong reaches {worst.score}, and {perfect.score} with all right"
    )
    weights = math.fsum(section.weight for section in perfect.sections)
    assert abs(weights - 1) < 1e-6, f"the sections' weights add up to {weights}, not to 1"
    nothing = result(lambda right: np.full(len(right), np.nan))
    assert nothing.abstained == len(rows), f"{nothing.abstained} of {len(rows)} rows count as abstained, where all are"
    assert nothing.score == worst.score, (
        f"abstaining everywhere reaches {nothing.score}, and {worst.score} with everything wrong"
    )
    return perfect


def _right_and_wrong(row: Mapping[str, Any]) -> FloatArray:
    """1 for each right sample of a benchmark's row and 0 for each wrong one."""
    judged = judgement(row)
    assert judged.format in ("preference", "labelled"), f"a row's format is {judged.format}; it must be preference or labelled"
    if judged.labels is None:
        return np.array([1.0, 0.0])
    return np.array([label for (label,) in judged.labels], dtype=np.float64)
