"""What the author of a plug-in runs in their own tests: contract checks, and a provider to compose with."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.types import Provider, Sample, Scores

__all__ = ["FixedProvider", "check_provider"]


class FixedProvider(Provider):
    """A provider that gives each completion the score it is told to.

    Args:
        scores: A function of a sample; None abstains.

    >>> FixedProvider(scores=lambda sample: float(len(sample.completion))).score([Sample("Q", "abc")]).values
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
        tolerance: How far a sample's score may move between batches, relative to 1 + |score|.
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

    def same(found: Scores, expected: Scores, what: str) -> None:
        gap = np.abs(found.values - expected.values)
        near = (gap <= tolerance * (1 + np.abs(expected.values))) | (found.abstained & expected.abstained)
        assert bool(near.all()), f"{what}: {found.values.tolist()} instead of {expected.values.tolist()}"

    same(provider.score(samples), scores, "scoring the same samples again gives other scores")
    backwards = provider.score(samples[::-1])
    same(Scores(backwards.values[::-1]), scores, "the scores do not follow the order of the samples")
    single = Scores(np.concatenate([provider.score([sample]).values for sample in samples]))
    same(single, scores, "a sample's score depends on what else is in its batch")
    doubled = provider.score([*samples, *samples])
    same(Scores(doubled.values[len(samples) :]), scores, "duplicates of a sample get other scores")
    if pickles:
        same(pickle.loads(pickle.dumps(provider)).score(samples), scores, "the provider scores otherwise after pickling")
    return scores
