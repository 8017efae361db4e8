"""A reward whose scores are kept: what is found again, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, SpecError, UnsupportedError
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.combinators.threshold import Threshold
from tests.combinators.conftest import LENGTH, LONGER, NAN, SAMPLES, failing_on, same, scored, seen

SCHEDULED = {"provider": "sum", "members": [LENGTH], "weights": [{"from": 0, "to": 1}]}


class TestCached:
    def test_what_is_known_is_not_scored_again(self) -> None:
        asked: list[list[str]] = []
        reward = Cached(reward=seen(asked), path="memory")
        reward.score(SAMPLES[:2])
        scores = reward.score([*SAMPLES, SAMPLES[3]])
        assert asked == [["", "a"], ["bb", "ccc"]]
        same(scores.values, [1] * 5)
        assert (scores.metadata["cached"], reward.counts["cached"]) == (2, 2)

    def test_a_sample_is_its_prompt_completion_and_columns(self) -> None:
        asked: list[list[str]] = []
        reward = Cached(reward=seen(asked), path="memory")
        for sample in (
            rm.Sample("p", "a"),
            rm.Sample("q", "a"),
            rm.Sample("p", "b"),
            rm.Sample("p", "a", {"answer": np.arange(3000)}),
            rm.Sample("p", "a", {"answer": np.arange(3000) + (np.arange(3000) == 1500)}),
            rm.Sample("p", "a", {"answer": date(2026, 1, 1)}),
            rm.Sample([{"role": "user", "content": "p"}], "a"),
        ):
            before = len(asked)
            assert [reward.score([sample]).metadata["cached"] for _ in range(2)] == [0, 1]
            assert len(asked) == before + 1

    def test_a_column_that_cannot_be_told_from_another_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"item 1 cannot be cached, .*: object <object .*Leave such columns out"):
            scored([SAMPLES[0], rm.Sample("", "a", {"thing": object()})], provider="cached", reward=LENGTH, path="memory")

    def test_a_file_outlives_the_provider_and_knows_the_reward(self) -> None:
        def cached(reward: Any = LENGTH, **settings: Any) -> int:
            found = scored(provider="cached", reward=reward, path="scores.sqlite", **settings).metadata["cached"]
            return int(found)

        assert [cached(), cached()] == [0, 4]
        assert [cached(version="2"), cached(version="2")] == [0, 4]
        assert [cached({"provider": "function", "function": LENGTH, "transform": "scale"}), cached()] == [0, 4]

    def test_a_model_that_was_trained_anew_is_another_reward(self, here: Path) -> None:
        class Trained(Constant):
            """A reward whose weights are part of what it is, as models' are."""

            weights = "one"

            @property
            def identity(self) -> list[Any]:
                return [*super().identity, self.weights]

        reward = Trained(value=1.0)
        path, version = str(here / "scores.sqlite"), "1"
        Cached(reward=reward, path=path, version=version).score(SAMPLES)
        assert Cached(reward=reward, path=path, version=version).score(SAMPLES).metadata["cached"] == 4
        Trained.weights = "another"
        assert Cached(reward=reward, path=path, version=version).score(SAMPLES).metadata["cached"] == 0

    def test_neither_an_abstention_nor_a_stand_ins_score_is_kept(self) -> None:
        reward = rm.load({"provider": "cached", "reward": LONGER, "path": "memory"})
        reward.score(SAMPLES)
        assert reward.score(SAMPLES).metadata["cached"] == 3
        judge = failing_on("a")
        judge.fallback = Constant(value=-1.0)
        reward = Cached(reward=judge, path="memory")
        assert reward.score(SAMPLES).values.tolist() == [5, -1, 5, 5]
        assert reward.score(SAMPLES).metadata["cached"] == 0
        reward.score(SAMPLES[2:])
        assert reward.score(SAMPLES).metadata["cached"] == 2

    def test_a_failure_names_the_rows_of_the_batch(self) -> None:
        reward = Cached(reward=failing_on("ccc"), path="memory")
        reward.score(SAMPLES[:2])
        reward.on_error = "abstain"
        same(reward.score([*SAMPLES, SAMPLES[3]]).values, [5, 5, 5, NAN, NAN])

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                {"path": "combinator_rules.py"},
                "path: The score cache combinator_rules.py cannot be used: file is not a database",
            ),
            (
                {"reward": lambda samples: [], "path": "a.sqlite"},
                "version: part of '<lambda>' was made in Python, so the file a.sqlite cannot distinguish its scores",
            ),
            (
                {"reward": {"provider": "sum", "members": [Constant(value=1.0)]}, "path": "a.sqlite"},
                "version: part of 'sum' was made",
            ),
            (
                {"reward": {"provider": "product", "members": [SCHEDULED]}},
                "reward.members[0].weights: these weights change during training, so their sum cannot be cached",
            ),
        ],
    )
    def test_what_cannot_be_cached(self, spec: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError) as caught:
            rm.load({"provider": "cached", "reward": LENGTH, "path": "memory", **spec})
        assert str(caught.value).startswith(message)

    def test_a_reward_that_learns_from_what_it_scores_is_refused(self) -> None:
        class Learning(Constant):
            name = "learning"

            def state(self) -> dict[str, Any]:
                return {"seen": 0}

        with pytest.raises(SpecError, match=r"^reward.members\[0\]: 'learning' or its transform learns while it scores"):
            Cached(reward=Sum(members=[Learning(value=1.0)]), path="memory")

    def test_renders_as_its_reward(self) -> None:
        class Rendering(Constant):
            def render(self, sample: rm.Sample) -> str:
                return f"{sample.prompt}|{sample.completion}"

        for reward in (Cached(reward=Rendering(value=1.0), path="memory"), Threshold(reward=Rendering(value=1.0), at=0)):
            assert reward.render(SAMPLES[1]) == "p|a"
        with pytest.raises(UnsupportedError):
            Sum(members=[Rendering(value=1.0)]).render(SAMPLES[1])


class Judge:
    """A reward that is an object, of which there may be several."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, samples: Sequence[rm.Sample]) -> list[float]:
        return [self.value] * len(samples)


def test_objects_of_one_class_are_told_apart_in_a_cache(tmp_path: Path) -> None:
    for reward in (Judge(1.0), Judge(1.0).__call__):
        with pytest.raises(SpecError, match="made in Python"):
            rm.load({"provider": "cached", "path": str(tmp_path / "x.sqlite"), "reward": reward})


def test_what_is_ranked_in_its_batch_is_not_cached() -> None:
    reward = {"provider": "function", "function": len_of, "transform": ["scale", "rank-in-group"]}
    with pytest.raises(SpecError, match="ranks within its batch, so its scores cannot be cached"):
        rm.load({"provider": "cached", "path": "memory", "reward": reward})


def len_of(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion)) for sample in samples]
