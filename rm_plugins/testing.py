"""For the tests of a plug-in: contract checks of providers, losses, protocols, comparers and suites, and a provider with given scores."""

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
from itertools import permutations
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rm_plugins.comparisons import Comparer, Comparison
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

__all__ = ["FixedProvider", "check_comparer", "check_loss", "check_protocol", "check_provider", "check_suite"]


class FixedProvider(Provider):
    """A provider whose scores are given by a function.

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
        """Score the samples and append the size of the batch to `batches`."""
        self.batches.append(len(samples))
        values = [self.scores(sample) for sample in samples]
        return Scores(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


def check_provider(provider: Provider, samples: Sequence[Sample], *, tolerance: float = 1e-4, pickles: bool = True) -> Scores:
    """Check that a provider fulfils its contract: order, count, independence of the batch, threads, pickling.

    Args:
        provider: The provider.
        samples: At least two different samples that it can score.
        tolerance: How much a sample's score may differ between batches, relative to 1 + abs(score).
        pickles: Whether to check that it can be pickled, which spawned processes need.

    Returns:
        The scores of `samples`.

    Raises:
        AssertionError: The provider breaks the contract; the message says how.
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
        raise AssertionError(f"scoring from several threads at once fails, although it works from one: {error}") from error
    for numbers, values in called:
        same(Scores(values), scores.rows(numbers), "scoring from several threads at once gives other scores")
    if pickles:
        same(pickle.loads(pickle.dumps(provider)).score(samples), scores, "the provider gives other scores after pickling")
    return scores


def _from_threads(provider: Provider, samples: Sequence[Sample]) -> list[tuple[list[int], FloatArray]]:
    """The numbers of the samples in each call and their scores, where several threads call at the same time."""
    size = len(samples)
    batches = [
        [*range(size)],
        *([(first + place) % size for place in range(length)] for length in (1, 2) for first in range(size)),
    ]

    def scored(numbers: list[int]) -> tuple[list[int], FloatArray]:
        return numbers, provider.score([samples[number] for number in numbers]).values

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check-provider") as pool, _frequent_thread_switches():
        return list(pool.map(scored, batches))


@contextmanager
def _frequent_thread_switches() -> Iterator[None]:
    """Within it, threads switch far more often, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def check_comparer(
    comparer: Comparer, samples: Sequence[Sample], *, tolerance: float = 1e-4, pickles: bool = True
) -> FloatArray:
    """Check that a comparer fulfils its contract: one verdict per question, in their order, independent of the other questions.

    Args:
        comparer: The comparer.
        samples: At least two different answers to one prompt that it can compare.
        tolerance: How much a probability may differ between calls.
        pickles: Whether to check that it can be pickled, which spawned processes need.

    Returns:
        float64 [N, N]: the probability that the answer of the row is better than that of the column, shown in this order. It is NaN on the
        diagonal and where there is no verdict.

    Raises:
        AssertionError: The comparer breaks the contract; the message says how.
    """
    assert len(samples) > 1, "check_comparer needs at least two samples"
    asked = [Comparison(*pair) for pair in permutations(range(len(samples)), 2)]

    def verdicts(asking: Comparer, questions: Sequence[Comparison], answers: Sequence[Sample] = samples) -> FloatArray:
        answered = asking.compare(answers, questions)
        assert len(answered) == len(questions), f"there are {len(answered)} verdicts on {len(questions)} comparisons"
        return answered.probabilities

    expected = verdicts(comparer, asked)

    def same(found: FloatArray, wanted: FloatArray, what: str) -> None:
        near = np.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
        assert near, f"{what}: {found.tolist()} instead of {wanted.tolist()}"

    same(verdicts(comparer, asked[::-1])[::-1], expected, "the verdicts do not follow the order of the comparisons")
    single = np.concatenate([verdicts(comparer, [question]) for question in asked])
    same(single, expected, "a verdict depends on the other comparisons")
    last = len(samples) - 1
    moved = [Comparison(last - question.first, last - question.second) for question in asked]
    same(verdicts(comparer, moved, samples[::-1]), expected, "a verdict depends on the positions of the answers in the list")
    if pickles:
        same(
            verdicts(pickle.loads(pickle.dumps(comparer)), asked), expected, "the comparer gives other verdicts after pickling"
        )
    table = np.full((len(samples), len(samples)), np.nan)
    for question, probability in zip(asked, expected.tolist(), strict=True):
        table[question.first, question.second] = probability
    return table


def check_loss(loss: Loss, batch: RewardBatch) -> float:
    """Check that a loss fulfils its contract: a finite scalar with the right gradient, also at extreme rewards.

    Args:
        loss: The loss.
        batch: A batch of the loss's kind with float64 rewards and at least one item of those that the loss averages over.

    Returns:
        The loss of the batch.

    Raises:
        AssertionError: The loss breaks the contract; the message says how.
        torch.autograd.gradcheck.GradcheckError: The gradient does not match the value.
    """
    import torch

    assert isinstance(type(loss).name, str), "the class has no `name`"
    assert batch.rewards.dtype == torch.float64, "check_loss needs float64 rewards, to compare gradients"

    def of(rewards: torch.Tensor) -> torch.Tensor:
        state = copy.deepcopy(loss.state())
        value = loss(replace(batch, rewards=rewards))
        loss.load_state(state)  # the loss's state must not change between evaluations
        return value

    rewards = batch.rewards.detach().clone().requires_grad_()
    value = of(rewards)
    assert value.shape == (), f"the loss must be a scalar; its shape is {tuple(value.shape)}"
    assert bool(value.isfinite()), f"the loss is {value.item()}"
    assert value.requires_grad, "the loss has no gradient with respect to the rewards"
    if not loss.state():  # a state computed from earlier rewards is not part of the gradient
        torch.autograd.gradcheck(of, (rewards,))
    for scale in (1e4, -1e4):
        far = (batch.rewards.detach() * (scale / batch.rewards.detach().abs().max())).requires_grad_()
        distant = of(far)
        (gradient,) = torch.autograd.grad(distant, far)
        assert bool(distant.isfinite()), f"the loss is {distant.item()} at rewards of {abs(scale):g}"
        assert bool(gradient.isfinite().all()), f"the gradient is not finite at rewards of {abs(scale):g}"
    return value.item()


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


def check_suite(suite: Suite, raw: Sequence[Mapping[str, Any]]) -> SuiteResult:
    """Check that a benchmark fulfils its contract: rows with right and wrong samples, and a score that is higher for better rewards.

    Args:
        suite: The benchmark.
        raw: Rows in the format of its dataset, with rows of every section that counts towards the score.

    Returns:
        The result of a reward that ranks everything correctly.

    Raises:
        AssertionError: The benchmark breaks the contract; the message says how.
    """
    rows = list(suite.checked_rows(iter(raw)))
    assert rows, "the suite made no rows from the raw ones"
    assert all("section" in row for row in rows), "a row has no `section`"
    labels = [_right_and_wrong(row) for row in rows]
    assert all(len(set(row_labels.tolist())) == 2 for row_labels in labels), "a row has no right sample or no wrong sample"

    def result(score: Callable[[FloatArray], FloatArray]) -> SuiteResult:
        return suite.result(
            [
                SuiteItem(str(row.get("id", "")), str(row["section"]), score(right), right, tuple(row.get("compared") or ()))
                for row, right in zip(rows, labels, strict=True)
            ]
        )

    perfect, worst = result(lambda right: right), result(lambda right: -right)
    assert math.isfinite(perfect.score), f"a reward that is always right has the score {perfect.score}, which is not finite"
    assert perfect.score > worst.score, (
        f"a reward that is always wrong has the score {worst.score}, and one that is always right {perfect.score}"
    )
    weights = math.fsum(section.weight for section in perfect.sections)
    assert abs(weights - 1) < 1e-6, f"the weights of the sections add up to {weights}, not to 1"
    nothing = result(lambda right: np.full(len(right), np.nan))
    assert nothing.abstained == len(rows), (
        f"a reward that abstains on all {len(rows)} rows is counted as abstaining on {nothing.abstained}"
    )
    assert nothing.score == worst.score, (
        f"a reward that always abstains has the score {nothing.score}; it must equal the score of one that is always wrong, {worst.score}"
    )
    return perfect


def _right_and_wrong(row: Mapping[str, Any]) -> FloatArray:
    """1 for each right sample of a benchmark's row and 0 for each wrong one."""
    judged = judgement(row)
    assert judged.format in ("preference", "labelled"), f"a row's format is {judged.format}; it must be preference or labelled"
    if judged.labels is None:
        return np.array([1.0, 0.0])
    return np.array([label for (label,) in judged.labels], dtype=np.float64)
