"""Other projects' servers as far as scoring goes, misbehaving as the originals do, around one toy model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["BOS", "SEP", "Head", "head", "logit", "pair_tokens", "sigmoid", "softmax", "tokens"]

BOS = 1

Head: TypeAlias = Callable[[Sequence[int]], list[float]]
"""The outputs of a model for token ids, one for each class."""


SEP = 2


def tokens(text: str, *, special: bool = True, closes: bool = False) -> list[int]:
    """A token for each character, behind BOS unless that is left out; `closes` puts SEP behind it, as encoders' tokenizers do."""
    begun = [*([BOS] if special else []), *(ord(character) for character in text)]
    return [*begun, SEP] if closes and special else begun


def pair_tokens(one: str, other: str, *, closes: bool = False) -> list[int]:
    """Two texts with a separator between them."""
    return [*tokens(one), SEP, *tokens(other, special=False), *([SEP] if closes else [])]


def logit(ids: Sequence[int]) -> float:
    """The toy model: another number between -6 and 6 for every other sequence of tokens."""
    state = 7
    for token in ids:
        state = (state * 31 + token) % 1201
    return state / 100 - 6


def head(classes: int = 1) -> Head:
    """The toy model with several classes, of which the first is `logit`."""
    return lambda ids: [logit(ids) - place for place in range(classes)]


def sigmoid(value: float) -> float:
    """What hides a logit."""
    return 1 / (1 + math.exp(-value))


def softmax(values: Sequence[float]) -> list[float]:
    """What hides several."""
    shares = [math.exp(value - max(values)) for value in values]
    return [share / sum(shares) for share in shares]
