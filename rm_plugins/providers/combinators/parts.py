"""What providers that are made of others share: parts scored side by side, details of the same names in every batch, what depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ClassVar

from rm_plugins.errors import ScoringError
from rm_plugins.provider import OnError, Provider, Transform
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores, rows_of_batch
from rm_plugins.transforms import RankInGroup, transforms_in

__all__ = [
    "Combinator",
    "failures_in",
    "learns_while_scoring",
    "part_details",
    "ranks_within_batch",
    "score_rows",
    "score_side_by_side",
    "summed_work",
]

_WORK = ("rows", "duplicates", "cached", "tokens", "unique_tokens", "padded_tokens", "seconds", "truncated")
"""Entries of `Scores.metadata` that add up over members."""


class Combinator(Provider):
    """A provider whose scores are made of those of its parts, which are its children."""

    @property
    def concurrent(self) -> bool:  # type: ignore[override]  # of its parts
        """Whether all parts wait."""
        return all(part.concurrent for part in self.children.values())


def score_side_by_side(jobs: Sequence[tuple[Provider, Sequence[Sample]]], *, on_error: OnError | None = None) -> list[Scores]:
    """The scores of each provider for its own samples, in the order of the jobs.

    Providers that compute here run one after another; those that wait (`Provider.concurrent`) run in threads beside them, so
    that all together take as long as the slowest.

    Args:
        jobs: Providers with the samples that each scores.
        on_error: What a failure becomes, where it is not to be each provider's own `on_error`.

    Raises:
        ScoringError: One of them failed; the first in the order of the jobs.
    """
    waiting = [place for place, (provider, _) in enumerate(jobs) if provider.concurrent]
    if not waiting or len(jobs) == 1:
        return [provider.score(samples, on_error=on_error) for provider, samples in jobs]
    with ThreadPoolExecutor(len(waiting), thread_name_prefix="rm-plugins-member") as pool:
        running = {
            place: pool.submit(copy_context().run, jobs[place][0].score, jobs[place][1], on_error=on_error) for place in waiting
        }
        here: dict[int, Scores | ScoringError] = {}
        for place, (provider, samples) in enumerate(jobs):
            if place not in running:
                try:
                    here[place] = provider.score(samples, on_error=on_error)
                except ScoringError as error:  # of several failures, the first in the order of the jobs is told
                    here[place] = error
        found = []
        for place in range(len(jobs)):
            scores = here[place] if place in here else running[place].result()
            if isinstance(scores, ScoringError):
                raise scores
            found.append(scores)
        return found


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


def summed_work(parts: Iterable[Scores]) -> dict[str, float]:
    """What the parts of a batch took together: those entries of their metadata that add up."""
    work: Counter[str] = Counter()
    for part in parts:
        work.update({name: part.metadata[name] for name in _WORK if name in part.metadata})
    return dict(work)


def failures_in(reward: Provider) -> int:
    """How often the reward or a part of it has failed so far, what an abstention or a fallback made up for included."""
    return sum(part.counts["errors"] for _, part in reward.walk())


def ranks_within_batch(part: Provider) -> bool:
    """Whether the part itself, its children left aside, makes a sample's score depend on the others of its batch."""
    return any(isinstance(found, RankInGroup) for found in _transforms_of(part))


def learns_while_scoring(part: Provider) -> bool:
    """Whether the part itself, its children left aside, will score a sample otherwise after it has scored more."""
    return bool(part.state()) or any(found.state() for found in _transforms_of(part))


def _transforms_of(holder: Provider | Transform) -> Iterator[Transform]:
    for found in transforms_in(holder).values():
        yield found
        yield from _transforms_of(found)


class _Part(Provider):
    """A provider that scores some rows of a batch, and says of a failure which of these it was."""

    name: ClassVar[str] = "part"

    def __init__(self, provider: Provider, rows: Sequence[int]) -> None:
        self.provider = provider
        self.rows = rows
        self.concurrent = provider.concurrent

    def score(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        with rows_of_batch(self.rows):
            return self.provider.score(samples, on_error=on_error)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        return self.provider.score_batch(samples)
