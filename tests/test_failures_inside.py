"""What a failure of a part becomes outside: whose rows it names, who stands in, and what is no failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import ScoringError

GOOD, BAD, SILENT = rm.Sample("Q", "good"), rm.Sample("Q", "bad"), rm.Sample("Q", "silent")


class Fragile(rm.Provider):
    """Fails for one completion, and abstains for another."""

    name = "fragile"

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        rows = [row for row, sample in enumerate(samples) if sample.completion == "bad"]
        if rows:
            raise ScoringError("a completion is bad", rows=rows[:1])  # one at a time, as far as it had come
        silent = [sample.completion == "silent" for sample in samples]
        return rm.Scores(np.where(silent, np.nan, 1.0), {"fragile": np.zeros(len(samples))})


def fragile(**settings: Any) -> rm.Provider:
    provider = Fragile()
    for name, value in settings.items():
        setattr(provider, name, value)
    return provider


def scored(spec: dict[str, Any], *samples: rm.Sample) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in rm.load(spec).score(samples).values]


SEVEN = {"provider": "constant", "value": 7.0}


class TestAFallbackThatFails:
    def test_names_the_rows_of_the_batch(self) -> None:
        with pytest.raises(ScoringError) as caught:
            fragile(fallback=fragile()).score([GOOD, GOOD, GOOD, BAD])
        assert set(caught.value.rows or ()) == {3}

    def test_costs_nobody_else_a_score(self) -> None:
        inner = fragile(fallback=fragile())
        spec = {"provider": "threshold", "at": 1.0, "reward": inner, "on_error": "abstain"}
        assert scored(spec, GOOD, GOOD, GOOD, BAD) == [1.0, 1.0, 1.0, None]

    def test_leaves_the_rest_to_the_next_member(self) -> None:
        spec = {"provider": "fallback", "members": [fragile(fallback=fragile()), SEVEN]}
        assert scored(spec, GOOD, BAD) == [1.0, 7.0]

    def test_is_a_member_less_of_a_quorum(self) -> None:
        spec = {"provider": "ensemble", "quorum": 1, "members": [fragile(fallback=fragile()), SEVEN]}
        assert scored(spec, GOOD, BAD) == [4.0, 7.0]


def test_the_details_of_a_fallback_are_none_of_the_providers_own() -> None:
    scores = fragile(fallback=fragile()).score([GOOD])
    assert scores.columns["fragile"].tolist() == [0.0]
    rescued = fragile(fallback=rm.load(SEVEN)).score([BAD, GOOD])
    assert rescued.values.tolist() == [7.0, 1.0]
    assert np.isnan(rescued.columns["fragile"][0])
    rescued = fragile(fallback=fragile(transform=rm.load(SEVEN).transform, fallback=rm.load(SEVEN))).score([BAD, GOOD])
    assert rescued.values.tolist() == [7.0, 1.0]


def test_many_failures_one_after_the_other_cost_nobody_else_a_score() -> None:
    scores = fragile(on_error="abstain").score([BAD] * 1_200 + [GOOD] * 3)
    assert scores.values[-3:].tolist() == [1.0, 1.0, 1.0]
    assert scores.failed.sum() == scores.abstained.sum() == 1_200


class TestAQuorum:
    def test_abstaining_breaks_it_for_nobody_even_where_others_failed(self) -> None:
        spec = {"provider": "ensemble", "quorum": 2, "members": [fragile(), fragile(), SEVEN]}
        assert scored(spec, SILENT) == [None]
        spec["members"] = [SEVEN, SEVEN, fragile()]
        assert scored(spec, SILENT, BAD, GOOD) == [7.0, 7.0, 5.0]
        spec = {"provider": "ensemble", "quorum": 2, "members": [fragile(), SEVEN], "on_error": "abstain"}
        ensemble = rm.load(spec)
        scores = ensemble.score([SILENT, BAD, GOOD])
        assert np.isnan(scores.values[:2]).all() and scores.values[2] == 4.0
        assert scores.failed.tolist() == [False, True, False]
