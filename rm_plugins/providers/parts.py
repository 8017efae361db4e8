"""What combinators share: parts that score some rows of a batch, and details that have the same names in every batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rm_plugins.errors import ScoringError
from rm_plugins.providers.members import score_side_by_side
from rm_plugins.types import FloatArray, OnError, Provider, Sample, Scores

__all__ = ["Combinator", "part_details", "score_rows"]


class Combinator(Provider):
    """A provider whose scores are made of those of its parts, which are its children."""

    @property
    def concurrent(self) -> bool:  # type: ignore[override]  # of its parts
        """Whether all parts wait."""
        return all(part.concurrent for part in self.children.values())


def score_rows(
    samples: Sequence[Sample], jobs: Sequence[tuple[Provider, Sequence[int]]], *, on_error: OnError | None = None
) -> list[Scores]:
    """The scores of each provider for its own rows of a batch, at their places there; it abstains everywhere else.

    Args:
        samples: The batch, [N].
        jobs: Providers with the rows that each scores, which may be none.
        on_error: What a failure becomes, where it is not to be each provider's own `on_error`.

    Raises:
        ScoringError: One of them failed; its `rows` are those of the batch.
    """
    parts = [(_Part(provider, rows), [samples[row] for row in rows]) for provider, rows in jobs]
    found = score_side_by_side(parts, on_error=on_error)
    return [scores.scattered(rows, len(samples)) for (_, rows), scores in zip(jobs, found, strict=True)]


def part_details(parts: Mapping[str, Scores]) -> dict[str, FloatArray]:
    """The scores of parts that scored the whole batch, by the part's name, and behind each its own details: ``NAME/std``."""
    found: dict[str, FloatArray] = {name: scores.values for name, scores in parts.items()}
    return found | {f"{name}/{detail}": values for name, scores in parts.items() for detail, values in scores.details.items()}


class _Part(Provider):
    """A provider that scores some rows of a batch, and says of a failure which of these it was."""

    name: ClassVar[str] = "part"

    def __init__(self, provider: Provider, rows: Sequence[int]) -> None:
        self.provider = provider
        self.rows = rows
        self.concurrent = provider.concurrent

    def score(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        try:
            return self.provider.score(samples, on_error=on_error)
        except ScoringError as error:
            everything = range(len(self.rows))
            failed = everything if error.rows is None else error.rows.intersection(everything) or everything
            raise ScoringError(str(error), rows=[int(self.rows[row]) for row in failed]) from error

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        return self.provider.score_batch(samples)
