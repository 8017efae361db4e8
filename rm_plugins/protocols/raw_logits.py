"""Whether what a server calls raw logits is what its own probabilities are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["raw", "equal", "unrelated"]
"""Raw, as the answers show; equal to what is activated, where nothing shows which of both that is; or neither."""

Outputs: TypeAlias = Sequence[Sequence[float]]
"""What a model gives for N texts, [N, classes]."""

_FAR = 12.0
"""Logits beyond are told apart no more by probabilities in single precision."""


def judge(raw: Outputs, activated: Outputs) -> Verdict:
    """Compare what a server answers with its activation switched off, and on.

    Args:
        raw: The answers for a few texts with it off, [N, classes].
        activated: The answers for the same texts with it on, [N, classes].

    >>> judge([[2.0], [-1.0]], [[0.8808], [0.2689]])
    'raw'
    >>> judge([[2.5], [0.5]], [[2.5], [0.5]])  # no sigmoid is above 1: the model has no activation
    'raw'
    >>> judge([[0.7], [0.2]], [[0.7], [0.2]])  # two logits without an activation, or two sigmoids that came all the same
    'equal'
    >>> judge([[4.0], [-3.0]], [[0.6], [0.4]])
    'unrelated'
    """
    if _all(_near, raw, activated) and any(not -0.05 <= value <= 1.05 for row in raw for value in row):
        return "raw"
    if _all(_same, raw, activated):
        return "equal"
    return "raw" if any(_all(explains, raw, activated) for explains in (_by_sigmoid, _by_softmax)) else "unrelated"


def _all(check: Callable[[Sequence[float], Sequence[float]], bool], raw: Outputs, activated: Outputs) -> bool:
    return all(len(one) == len(other) and check(one, other) for one, other in zip(raw, activated, strict=True))


def _same(raw: Sequence[float], activated: Sequence[float]) -> bool:
    return all(abs(one - other) <= 1e-3 * (1 + abs(one)) for one, other in zip(raw, activated, strict=True))


def _near(raw: Sequence[float], activated: Sequence[float]) -> bool:
    # Models in half precision do not repeat themselves exactly, and cached prefixes change their sums.
    return all(abs(one - other) <= 0.1 + 0.05 * abs(one) for one, other in zip(raw, activated, strict=True))


def _by_sigmoid(raw: Sequence[float], activated: Sequence[float]) -> bool:
    if not all(0 <= value <= 1 for value in activated):
        return False
    least = 1 / (1 + math.exp(_FAR))
    clipped = [min(max(value, least), 1 - least) for value in activated]
    return _near([_cut(value) for value in raw], [math.log(value / (1 - value)) for value in clipped])


def _by_softmax(raw: Sequence[float], activated: Sequence[float]) -> bool:
    if len(raw) < 2 or not all(0 <= value <= 1 for value in activated) or not max(activated):
        return False
    best, most = max(raw), max(activated)
    shares = [max(value / most, math.exp(-_FAR)) for value in activated]
    return _near([_cut(value - best) for value in raw], [math.log(share) for share in shares])


def _cut(value: float) -> float:
    return min(max(value, -_FAR), _FAR)
