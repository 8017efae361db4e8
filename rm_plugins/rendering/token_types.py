"""Tokens with their types: which of two texts, encoded as a pair, a token belongs to.

A row of token ids stays a list of numbers. Where a model is told of types (BERT's ``token_type_ids``), a token's number is its id and
`TYPE_STEP` times its type, so that rows which differ in their types alone differ wherever rows are compared, kept or looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_STEP = 1 << 24
"""What a type adds to a token's number; more than any vocabulary has tokens."""


def typed(ids: Sequence[int], types: Sequence[int]) -> list[int]:
    """Token ids with their types in them.

    >>> typed([101, 102, 5], [0, 0, 1])
    [101, 102, 16777221]
    """
    return [token + TYPE_STEP * kind for token, kind in zip(ids, types, strict=True)]


def has_types(row: Sequence[int]) -> bool:
    """Whether a token of a row has another type than 0."""
    return max(row, default=0) >= TYPE_STEP


def ids_and_types(row: Sequence[int]) -> tuple[list[int], list[int]]:
    """The token ids of a row and their types, each [tokens].

    >>> ids_and_types([101, 102, 16777221])
    ([101, 102, 5], [0, 0, 1])
    """
    return [number % TYPE_STEP for number in row], [number // TYPE_STEP for number in row]
