"""What combinators share: scoring their parts, and collecting the parts' failures, work and tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from rm_plugins.component import Transform
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.provider import OnError, Provider, transforms_of
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores, TokenCounts

_WORK = (
    *("rows", "duplicates", "cached", "tokens", "unique_tokens", "padded_tokens", "seconds", "truncated"),
    *("calls", "prompt_tokens", "completion_tokens"),
)
"""Entries of `Scores.metadata` that add up over members."""


class Combinator(Provider):
    """A provider whose scores are made from those of its parts, which are its children.

    `score_batch` scores with the parts by `Provider.attempt`, computes its values from theirs, and returns `whole`::

        scores = self.reward.attempt(samples)
        return self.whole(2 * scores.values, {"reward": (self.reward, scores)})
    """

    @property
    def concurrent(self) -> bool:  # type: ignore[override]  # of its parts
        """Whether all parts wait."""
        return all(part.concurrent for part in self.children.values())

    @property
    def scores_alone(self) -> bool:
        """Only if no part waits. If one does, a call may wait while another computes; parts that compute have locks of their own."""
        return not any(part.concurrent for _, part in self.walk())

    @property
    def part_names(self) -> tuple[str, ...] | None:
        """The names of its `part_providers`, where it has any."""
        return tuple(self.part_providers) or None

    def whole(
        self,
        values: FloatArray,
        parts: Mapping[str, tuple[Provider, Scores]],
        *,
        kind: str = "",
        details: Mapping[str, FloatArray] | None = None,
        metadata: Mapping[str, Any] | None = None,
        errors: Mapping[int, RmPluginsError] | None = None,
    ) -> Scores:
        """The scores of the whole, with those of its parts, their failures, work and tokens.

        Args:
            values: float64 [N].
            parts: By name, each part with its scores of the batch, [N].
            kind: What the parts are, such as ``member``; see `rm_plugins.Scores`.
            details: Further per-sample extras, each [N].
            metadata: Further facts about the batch.
            errors: By row, why there is no score; the errors of the parts by default.
        """
        scored = [scores for _, scores in parts.values()]
        return Scores(
            values,
            details or {},
            {**summed_work(scored), **(metadata or {})},
            errors=failures_of(parts.values()) if errors is None else errors,
            parts={name: replace(scores, kind=kind or scores.kind) for name, (_, scores) in parts.items()},
            tokens=summed_tokens(scored),
        )


def score_side_by_side(jobs: Sequence[tuple[Provider, Sequence[Sample]]], *, on_error: OnError | None = None) -> list[Scores]:
    """The scores of each provider for its own samples, in the order of the jobs, with failures among the errors.

    Providers that compute here run one after another; those that wait (`Provider.concurrent`) run in threads at the same time, so
    that all together take as long as the slowest.

    Args:
        jobs: Providers, each with the samples that it scores.
        on_error: As for `Provider.attempt`.

    Raises:
        DataError: As `Provider.attempt`; the first in the order of the jobs.
    """
    waiting = [place for place, (provider, _) in enumerate(jobs) if provider.concurrent]
    if not waiting or len(jobs) == 1:
        return [provider.attempt(samples, on_error=on_error) for provider, samples in jobs]
    with ThreadPoolExecutor(len(waiting), thread_name_prefix="rm-plugins-member") as pool:
        running = {
            place: pool.submit(copy_context().run, jobs[place][0].attempt, jobs[place][1], on_error=on_error)
            for place in waiting
        }
        here: dict[int, Scores | DataError] = {}
        for place, (provider, samples) in enumerate(jobs):
            if place not in running:
                try:
                    here[place] = provider.attempt(samples, on_error=on_error)
                except DataError as error:  # of several errors, the first in the order of the jobs is raised
                    here[place] = error
        scored = []
        for place in range(len(jobs)):
            scores = here[place] if place in here else running[place].result()
            if isinstance(scores, DataError):
                raise scores
            scored.append(scores)
        return scored


def score_rows(
    samples: Sequence[Sample], jobs: Sequence[tuple[Provider, Sequence[int]]], *, on_error: OnError | None = None
) -> list[Scores]:
    """The scores of each provider for its own rows of a batch, at their positions in the batch; it abstains everywhere else.

    Args:
        samples: The batch, [N].
        jobs: Providers, each with the rows that it scores, which may be none.
        on_error: As for `Provider.attempt`.

    Raises:
        DataError: As `Provider.attempt`; its `rows` are those of the batch.
    """
    scored = score_side_by_side([(provider, [samples[row] for row in rows]) for provider, rows in jobs], on_error=on_error)
    return [scores.scattered(rows, len(samples)) for (_, rows), scores in zip(jobs, scored, strict=True)]


def failures_of(jobs: Iterable[tuple[Provider, Scores]]) -> dict[int, RmPluginsError]:
    """The errors of parts that are errors of the whole, by row; of several for a row, that of the first part."""
    errors: dict[int, RmPluginsError] = {}
    for provider, scores in jobs:
        errors = {**provider.unhandled(scores), **errors}
    return errors


def numbered(members: Iterable[Provider], scored: Iterable[Scores]) -> dict[str, tuple[Provider, Scores]]:
    """Members and their scores by their number, as the parts of a `Combinator.whole`."""
    return {str(number): pair for number, pair in enumerate(zip(members, scored, strict=True))}


def summed_tokens(scored: Iterable[Scores]) -> TokenCounts | None:
    """The sum of the parts' token counts; None where no part has any."""
    counts = [scores.tokens for scores in scored if scores.tokens is not None]
    return None if not counts else sum(counts[1:], counts[0])


def summed_work(parts: Iterable[Scores]) -> dict[str, float]:
    """The sum of the parts' work: those entries of their metadata that add up."""
    work: Counter[str] = Counter()
    for part in parts:
        work.update({name: part.metadata[name] for name in _WORK if name in part.metadata})
    return dict(work)


def failures_in(reward: Provider) -> int:
    """How often the reward or a part of it has failed so far, including failures that became abstentions or went to a fallback."""
    return sum(part.counts["errors"] for _, part in reward.walk())


def unnamed_failures_in(reward: Provider) -> int:
    """How often a batch of several samples failed, in the reward or a part of it, with an error that does not name the failed samples."""
    return sum(part.unnamed_failures for _, part in reward.walk())


def depends_on_batch(part: Provider) -> bool:
    """Whether the part itself, without its children, makes a sample's score depend on the others of its group."""
    return any(True for _ in _groupings_of_part(part))


def groupings(reward: Provider) -> tuple[str | None, ...]:
    """By what the parts of the reward that compare samples group them: None for the prompt, or a column; empty where none compares."""
    return tuple(dict.fromkeys(by for _, part in reward.walk() for by in _groupings_of_part(part)))


def compares_samples(reward: Provider) -> bool:
    """Whether the reward or a part of it makes a sample's score depend on the others of its group."""
    return bool(groupings(reward))


def learns_while_scoring(part: Provider) -> bool:
    """Whether the part itself, without its children, changes its scores as it scores more samples."""
    return bool(part.state()) or any(transform.state() for transform in _nested_transforms(part))


def _groupings_of_part(part: Provider) -> Iterator[str | None]:
    if part.depends_on_batch:
        yield part.group
    for transform in part.transforms.values():
        yield from transform.groupings


def _nested_transforms(holder: Provider | Transform) -> Iterator[Transform]:
    for transform in transforms_of(holder).values():
        yield transform
        yield from _nested_transforms(transform)
