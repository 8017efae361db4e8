"""Checks whether a server's raw logits match its own probabilities, and computes logits from probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from rm_plugins.errors import AnswerError, UnsupportedError

Verdict: TypeAlias = Literal["raw", "equal", "sigmoid", "activated", "half", "unrelated"]
"""The result of a comparison.

- ``raw``: the raw answers are logits.
- ``equal``: raw and activated answers are equal, so either may be logits.
- ``unrelated``: they do not match.

An exact comparison of answers that match only roughly has one of these results:

- ``sigmoid``: the activated answers are probabilities, and their logits are right.
- ``activated``: the model has no activation, and the activated answers are right.
- ``half``: all answers are in half precision, so an exact comparison is impossible.
"""

Outputs: TypeAlias = Sequence[Sequence[float]]
"""A model's outputs for N texts, [N, classes]."""

_FAR = 12.0
"""Logits beyond this cannot be distinguished by their probabilities in single precision."""

_EXACT = 2e-5
"""The largest difference of two passes of a model in single precision, relative to 1 + abs(logit). A wrong head differed by 1.7e-3."""

_RESOLVED = 1e-4
"""The accuracy that a logit must have."""

_EPSILON = 2.0**-24
"""Half the distance from 1 to the next number in single precision."""


def judge(raw: Outputs, activated: Outputs, *, exact: bool = False) -> Verdict:
    """Compare a server's answers with its activation off and on.

    Args:
        raw: The answers for a few texts with the activation off, [N, classes].
        activated: The answers for the same texts with the activation on, [N, classes].
        exact: Whether the raw answers must match to the accuracy of single precision, which shows whether both come from the same head.

    >>> judge([[2.0], [-1.0]], [[0.8808], [0.2689]])
    'raw'
    >>> judge([[2.001], [-1.001]], [[0.8807971], [0.2689414]], exact=True)  # a wrong head
    'sigmoid'
    >>> judge([[2.5], [0.5]], [[2.5], [0.5]])  # a sigmoid is never above 1, so the model has no activation
    'raw'
    >>> judge([[0.7], [0.2]], [[0.7], [0.2]])  # logits without an activation, or sigmoids although the activation was switched off
    'equal'
    >>> judge([[4.0], [-3.0]], [[0.6], [0.4]])
    'unrelated'
    """
    loose = _alike(raw, activated)
    if (
        loose == "unrelated" or loose == "equal"
    ):  # if there is no activation, the caller uses the activated answers, which come from the whole head
        return loose
    if not exact:
        return "raw"
    if all(_is_half(value) for row in (*raw, *activated) for value in row):
        return "half"
    match loose:
        case "same":
            return "raw" if _all(_equals, raw, activated) else "activated"
        case "sigmoid":
            return "raw" if _all(_by_exact_sigmoid, raw, activated) else "sigmoid" if len(raw[0]) == 1 else "unrelated"
    return "raw" if _all(_by_exact_softmax, raw, activated) else "unrelated"


def logit(probability: float, what: str, row: int) -> float:
    """The logit of a probability in single precision.

    Args:
        probability: From 0 to 1.
        what: Its place in the answer, for the message.
        row: The item that it belongs to.

    Raises:
        UnsupportedError: It is not a probability.
        SaturatedError: It is too near 0 or 1 for a logit accurate to 1e-4, for example above 0.9994 (a logit of 7.4).

    >>> round(logit(0.8807971, "probs[0]", 0), 5)
    2.0
    """
    if not 0 <= probability <= 1:
        raise UnsupportedError(f"{what} is {probability}; a probability was expected, the sigmoid of the reward")
    if not _resolution(probability) <= _RESOLVED:
        raise SaturatedError(
            f"{what} is {probability!r}, too near {round(probability)} for a logit that is accurate to four decimals",
            rows=[row],
        )
    return math.log(probability) - math.log1p(-probability)


class SaturatedError(AnswerError):
    """A probability too near 0 or 1 for an accurate logit; asking again would give the same."""


def _alike(raw: Outputs, activated: Outputs) -> Literal["same", "equal", "sigmoid", "softmax", "unrelated"]:
    """How two answers are related, within a loose tolerance."""
    if _all(_near, raw, activated) and any(not -0.05 <= value <= 1.05 for row in raw for value in row):
        return "same"
    if _all(_same, raw, activated):
        return "equal"
    if _all(_by_sigmoid, raw, activated):
        return "sigmoid"
    return "softmax" if _all(_by_softmax, raw, activated) else "unrelated"


def _all(check: Callable[[Sequence[float], Sequence[float]], bool], raw: Outputs, activated: Outputs) -> bool:
    return all(len(one) == len(other) and check(one, other) for one, other in zip(raw, activated, strict=True))


def _same(raw: Sequence[float], activated: Sequence[float]) -> bool:
    return all(abs(one - other) <= 1e-3 * (1 + abs(one)) for one, other in zip(raw, activated, strict=True))


def _near(raw: Sequence[float], activated: Sequence[float]) -> bool:
    # Models in half precision do not give exactly repeatable results, and cached prefixes change their sums.
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


def _equals(raw: Sequence[float], activated: Sequence[float]) -> bool:
    return all(abs(one - other) <= _EXACT * (1 + abs(one)) for one, other in zip(raw, activated, strict=True))


def _by_exact_sigmoid(raw: Sequence[float], activated: Sequence[float]) -> bool:
    """Whether each probability is the sigmoid of its logit, within the precision of the probability."""
    return all(
        0 < share < 1
        and abs(value - math.log(share) + math.log1p(-share)) <= _EXACT * (1 + abs(value)) + 4 * _resolution(share)
        for value, share in zip(raw, activated, strict=True)
    )


def _by_exact_softmax(raw: Sequence[float], activated: Sequence[float]) -> bool:
    best, most = max(raw), max(activated)
    return all(
        share > 0 and abs(value - best - math.log(share / most)) <= _EXACT * (1 + abs(value - best)) + 4 * _EPSILON
        for value, share in zip(raw, activated, strict=True)
    )


def _resolution(probability: float) -> float:
    """The uncertainty of a logit that is computed from a probability in single precision."""
    return math.inf if not 0 < probability < 1 else _EPSILON / (1 - probability)


def _is_half(value: float) -> bool:
    """Whether a number is exactly representable in half precision, float16 or bfloat16."""
    return float(np.float16(value)) == value or not int(np.float32(value).view(np.uint32)) & 0xFFFF
