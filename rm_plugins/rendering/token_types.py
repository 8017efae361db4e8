"""Token ids that include token types, which tell to which text of a pair a token belongs.

A row of token ids remains a list of integers. For models with token types (BERT's ``token_type_ids``), a token's number is its id plus
`TYPE_STEP` times its type. So rows that differ only in their types also differ when rows are compared or cached.
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_STEP = 1 << 24
"""The number that each type adds to a token's number; larger than any vocabulary."""


def typed(ids: Sequence[int], types: Sequence[int]) -> list[int]:
    """Combine token ids and their types.

    >>> typed([101, 102, 5], [0, 0, 1])
    [101, 102, 16777221]
    """
    return [token + TYPE_STEP * kind for token, kind in zip(ids, types, strict=True)]


def has_types(row: Sequence[int]) -> bool:
    """Whether any token of a row has a type other than 0."""
    return max(row, default=0) >= TYPE_STEP


def ids_and_types(row: Sequence[int]) -> tuple[list[int], list[int]]:
    """The token ids of a row and their types, each [tokens].

    >>> ids_and_types([101, 102, 16777221])
    ([101, 102, 5], [0, 0, 1])
    """
    return [number % TYPE_STEP for number in row], [number // TYPE_STEP for number in row]
