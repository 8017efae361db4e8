"""The contract check of comparers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from rm_plugins.comparisons import Comparer, Comparison
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    pass


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
