"""A reward whose scores are cached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.canonical_json import canonical_json
from rm_plugins.engine.score_cache import MEMORY, ScoreCache
from rm_plugins.errors import DataError, OutputError, ScoringError, SpecError
from rm_plugins.handed_over import OF_THE_RUN
from rm_plugins.identity import fingerprint
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import (
    Combinator,
    depends_on_batch,
    failures_in,
    learns_while_scoring,
    score_rows,
    summed_work,
)
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.wire import sample_to_json


class Cached(Combinator):
    """The reward's score, computed once for each different sample.

    Scores are found by the sample (its prompt, completion and columns) and by the reward (`rm_plugins.identity`: its settings, the files
    that these name, the code of its functions, the weights, tokenizers and rendering of its models) and `version`. Other dependencies
    (a file that a function reads, the model of a remote server) are not noticed: change `version` when they change. Abstentions,
    details, and batches with a failure, even one that a fallback replaced, are not kept. `counts["cached"]` is the number of scores that
    came from the cache.

    Args:
        reward: What is scored.
        path: ``memory``, or the path of an SQLite file, which processes of one machine may share.
        version: Any text; a new one finds no earlier scores.

    Raises:
        SpecError: The file cannot be used or cannot distinguish the reward from others, or the reward's scores change with the training
            or with the samples that it has scored.
    """

    name: ClassVar[str] = "cached"
    metrics: ClassVar[tuple[str, ...]] = ("cached",)
    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"path"})

    def __init__(self, *, reward: Provider, path: str, version: str = "") -> None:
        _check_lasts(reward)
        if path != MEMORY and not version and not _is_written_out(reward.spec):
            raise SpecError(
                f"part of {reward.label!r} was made in Python, so the file {path} cannot distinguish its scores from another "
                "reward's. Give a `version`, or the path `memory`.",
                key="version",
            )
        self.reward = reward
        self.path = path
        self.version = version
        # A cache in memory belongs to this reward alone.
        identity = "" if path == MEMORY else fingerprint(reward)
        try:
            self._cache = ScoreCache(path, json.dumps([identity, version]))
        except (OutputError, ScoringError) as error:
            raise SpecError(str(error), key="path") from error

    def render(self, sample: Sample) -> str:
        """The text that the reward scores."""
        return self.reward.render(sample)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The name of the reward, whose own parts are not kept."""
        return ("reward",)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Look up known scores, and let the reward score the rest, equal samples once."""
        contents = _contents(samples)
        outputs = np.full((len(samples), 1), np.nan)
        unknown = self._cache.read(contents, outputs).tolist()
        firsts = {contents[row]: row for row in reversed(unknown)}
        rows = sorted(firsts.values())
        failures = failures_in(self.reward)
        (scores,) = score_rows(samples, [(self.reward, rows)])
        for row in unknown:
            outputs[row] = scores.values[firsts[contents[row]]]
        if failures_in(self.reward) == failures:
            self._cache.write([contents[row] for row in rows], outputs[rows])
        self._counted("cached", len(samples) - len(unknown))
        values = outputs[:, 0]
        work = summed_work([scores])
        errors = self.reward.unhandled(scores)
        return Scores(
            values,
            metadata={**work, "cached": work.get("cached", 0) + len(samples) - len(unknown)},
            errors={row: errors[firsts[contents[row]]] for row in unknown if firsts[contents[row]] in errors},
            parts={"reward": Scores(values)},
            tokens=scores.tokens,
        )


def _check_lasts(reward: Provider) -> None:
    """Refuse a reward whose score for a sample changes over time."""
    for path, part in reward.walk("reward"):
        if isinstance(part, Sum) and part.is_scheduled:
            raise SpecError(
                "these weights change during training, so their sum cannot be cached; put `cached` around the members.",
                key=f"{path}.weights",
            )
        if isinstance(part, FunctionProvider) and (of_the_run := part.named & {*OF_THE_RUN}):
            raise SpecError(
                f"{part.label!r} takes {', '.join(sorted(of_the_run))}, which changes during training, so its scores cannot be cached; "
                "leave `cached` out.",
                key=path,
            )
        if depends_on_batch(part):
            raise SpecError(
                f"{part.label!r} ranks within its batch, so its scores cannot be cached; put `cached` inside the part that ranks.",
                key=path,
            )
        if learns_while_scoring(part):
            raise SpecError(
                f"{part.label!r} or its transform learns while it scores, so its scores cannot be cached; put `cached` inside the part "
                "that learns.",
                key=path,
            )


def _is_written_out(spec: object) -> bool:
    """Whether a spec describes all of a reward: no part was made in Python or cannot be imported by its name."""
    return spec is not None and not any(
        mark in json.dumps(spec, default=str) for mark in ("made in Python>", "<lambda>", "<locals>")
    )


def _contents(samples: Sequence[Sample]) -> list[bytes]:
    contents: dict[int, bytes] = {}
    problems: dict[int, TypeError] = {}
    for row, sample in enumerate(samples):
        try:
            contents[row] = canonical_json(sample_to_json(sample), default=_plain).encode()
        except TypeError as error:
            problems[row] = error
    if problems:
        first, problem = next(iter(problems.items()))
        raise DataError(
            f"item {first} cannot be cached, because its messages or columns hold something without a JSON form: {problem}. Leave such "
            "columns out of the dataset, or `cached` out of the spec.",
            rows=problems,
        ) from problem
    return list(contents.values())


def _plain(value: Any) -> Any:
    """Arrays as lists, dates as text; anything without an exact form raises."""
    for form in ("tolist", "isoformat"):
        if hasattr(value, form):
            return getattr(value, form)()
    raise TypeError(f"{type(value).__name__} {value!r:.80}")
