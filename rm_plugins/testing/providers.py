"""The contract check of providers."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from rm_plugins.errors import RmPluginsError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores

if TYPE_CHECKING:
    pass

_THREADS = 4


def check_provider(provider: Provider, samples: Sequence[Sample], *, tolerance: float = 1e-4, pickles: bool = True) -> Scores:
    """Check that a provider fulfils its contract: order, count, independence of the batch, names of parts, threads, pickling.

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
    if provider.part_names is not None:
        expected = set(provider.part_names)
        assert set(scores.parts) - {"fallback"} == expected, (
            f"the parts are {list(scores.parts)}, and `part_names` has {sorted(expected)}"
        )

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
