"""Whether what a server calls raw logits is what its own probabilities are made of, and the logits of these probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from rm_plugins.errors import AnswerError, UnsupportedError

Verdict: TypeAlias = Literal["raw", "equal", "sigmoid", "activated", "half", "unrelated"]
"""Raw, as the answers show; equal to what is activated, where nothing shows which of both that is; or neither.

Where an exact comparison is asked for, answers that are alike and no more have one of these: ``sigmoid``, the activated ones are
probabilities, of which the logit is right; ``activated``, the model has no activation, and the activated ones are right as they are;
``half``, all are in half precision, which shows nothing.
"""

Outputs: TypeAlias = Sequence[Sequence[float]]
"""What a model gives for N texts, [N, classes]."""

_FAR = 12.0
"""Logits beyond are told apart no more by probabilities in single precision."""

_EXACT = 2e-5
"""Relative to 1 + abs(logit): how far two passes of a model in single precision may be apart. A wrong head was seen 1.7e-3 away."""

_RESOLVED = 1e-4
"""How well a logit must be known."""

_EPSILON = 2.0**-24
"""Half the distance of 1 to the next number in single precision."""


def judge(raw: Outputs, activated: Outputs, *, exact: bool = False) -> Verdict:
    """Compare what a server answers with its activation switched off, and on.

    Args:
        raw: The answers for a few texts with it off, [N, classes].
        activated: The answers for the same texts with it on, [N, classes].
        exact: Whether raw ones must be those of the same head, to the last digits that single precision has.

    >>> judge([[2.0], [-1.0]], [[0.8808], [0.2689]])
    'raw'
    >>> judge([[2.001], [-1.001]], [[0.8807971], [0.2689414]], exact=True)  # a wrong head
    'sigmoid'
    >>> judge([[2.5], [0.5]], [[2.5], [0.5]])  # no sigmoid is above 1: the model has no activation
    'raw'
    >>> judge([[0.7], [0.2]], [[0.7], [0.2]])  # two logits without an activation, or two sigmoids that came all the same
    'equal'
    >>> judge([[4.0], [-3.0]], [[0.6], [0.4]])
    'unrelated'
    """
    loose = _alike(raw, activated)
    if (
        loose == "unrelated" or loose == "equal"
    ):  # who knows that there is no activation takes the activated ones, of the whole head
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
        what: Where it stands, for the message.
        row: The item that it is of.

    Raises:
        UnsupportedError: It is none.
        SaturatedError: It is too near to 0 or 1 to have a logit to 1e-4, as above 0.9994, a logit of 7.4.

    >>> round(logit(0.8807971, "probs[0]", 0), 5)
    2.0
    """
    if not 0 <= probability <= 1:
        raise UnsupportedError(f"{what} is {probability}; a probability was expected, the sigmoid of the reward")
    if not _resolution(probability) <= _RESOLVED:
        raise SaturatedError(
            f"{what} is {probability!r}, too near to {round(probability)} for a logit to four decimals to be left in it",
            rows=[row],
        )
    return math.log(probability) - math.log1p(-probability)


class SaturatedError(AnswerError):
    """A probability that has no logit any more; it is the same in every answer."""


def _alike(raw: Outputs, activated: Outputs) -> Literal["same", "equal", "sigmoid", "softmax", "unrelated"]:
    """How two answers belong together, roughly."""
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


def _equals(raw: Sequence[float], activated: Sequence[float]) -> bool:
    return all(abs(one - other) <= _EXACT * (1 + abs(one)) for one, other in zip(raw, activated, strict=True))


def _by_exact_sigmoid(raw: Sequence[float], activated: Sequence[float]) -> bool:
    """Whether each probability is that of its logit, but for what its own precision leaves open."""
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
    """How far a logit is known from its probability in single precision."""
    return math.inf if not 0 < probability < 1 else _EPSILON / (1 - probability)


def _is_half(value: float) -> bool:
    """Whether a number is one of half precision, float16 or bfloat16."""
    return float(np.float16(value)) == value or not int(np.float32(value).view(np.uint32)) & 0xFFFF
