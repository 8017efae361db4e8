"""Providers made of other providers: what they compute, when they abstain, and what they say of a mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.fallback import Fallback
from rm_plugins.providers.combinators.gate import Gate
from rm_plugins.providers.combinators.product import Product
from rm_plugins.providers.combinators.route import Route
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.combinators.threshold import Threshold
from rm_plugins.testing import check_provider
from rm_plugins.training_progress import Schedule, current_progress, training_progress
from tests.combinators.conftest import LENGTH, LONGER, NAN, SAMPLES, failing_on, same, scored, seen


def constant(value: float) -> dict[str, Any]:
    return {"provider": "constant", "value": value}


@pytest.mark.parametrize(
    "spec",
    [
        {"provider": "sum", "members": [LENGTH, LONGER], "weights": [2, {"from": 0.0, "to": -1.0}]},
        {"provider": "product", "members": [LENGTH, LONGER]},
        {"provider": "gate", "gate": LENGTH, "at": 1.5, "reward": LONGER},
        {"provider": "route", "column": "topic", "routes": {"math": LENGTH, "code": LONGER}},
        {"provider": "route", "by": "combinator_rules:is_long", "routes": {True: LENGTH}, "otherwise": LONGER},
        {"provider": "fallback", "members": ["combinator_rules:fails", LONGER, LENGTH]},
        {"provider": "cached", "reward": LONGER, "path": "memory"},
        {"provider": "cached", "reward": LONGER, "path": "scores.sqlite"},
        {"provider": "threshold", "reward": LONGER, "at": 12},
        constant(3),
    ],
    ids=lambda spec: spec["provider"],
)
def test_each_keeps_the_contract(spec: dict[str, Any]) -> None:
    check_provider(rm.load(spec), SAMPLES)


class TestSum:
    def test_adds_its_members_up(self) -> None:
        scores = scored(provider="sum", members=[LENGTH, LONGER])
        same(scores.values, [NAN, 12, 14, 16])
        same(scores.columns["member/0"], [0, 1, 2, 3])
        same(scores.columns["member/1"], [NAN, 11, 12, 13])

    def test_weights(self) -> None:
        same(scored(provider="sum", members=[LENGTH, constant(10)], weights=[-1, 0.5]).values, [5, 4, 3, 2])

    def test_a_member_without_weight_is_scored_and_does_not_count(self) -> None:
        scores = scored(provider="sum", members=[LENGTH, LONGER], weights=[1, 0])
        same(scores.values, [0, 1, 2, 3])
        same(scores.columns["member/1"], [NAN, 11, 12, 13])

    def test_a_weight_follows_the_training(self) -> None:
        ramp = {"from": 0.0, "to": 2.0, "start": 0.2, "end": 0.6}
        reward = rm.load({"provider": "sum", "members": [LENGTH, LONGER], "weights": [1, ramp]})
        for progress, weight in [(0.0, 0.0), (0.2, 0.0), (0.4, 1.0), (0.6, 2.0), (1.0, 2.0), (1.5, 2.0)]:
            with training_progress(progress):
                scores = reward.score(SAMPLES)
            same(scores.values[1:], [1 + weight * 11, 2 + weight * 12, 3 + weight * 13])
            same(scores.metadata["weights"], [1, weight])
            assert np.isnan(scores.values[0]) == (weight > 0)
        same(reward.score(SAMPLES).metadata["weights"], [1, 2])  # outside training

    def test_a_nested_sum_in_a_thread_sees_the_progress(self) -> None:
        inner = Sum(members=[Waiting(1.0)], weights=[{"from": 3.0, "to": 5.0}])
        with training_progress(0.5):
            same(Sum(members=[inner, Constant(value=0.0)]).score(SAMPLES).values, [4] * 4)

    def test_details_of_members_stay_under_their_name_and_their_work_adds_up(self) -> None:
        scores = scored(provider="sum", members=["combinator_rules:with_details", "combinator_rules:with_details"])
        assert list(scores.columns) == ["member/0", "member/1", "member/0/std", "member/1/std"]
        same(scores.columns["member/1/std"], [0, 0.5, 1, 1.5])
        assert (scores.metadata["tokens"], scores.metadata["truncated"]) == (8, 2)

    def test_a_failure_of_a_member_names_the_rows(self) -> None:
        reward = Sum(members=[Constant(value=1.0), failing_on("bb")])
        reward.on_error = "abstain"
        same(reward.score(SAMPLES).values, [6, 6, NAN, 6])


class TestProduct:
    def test_multiplies_its_members(self) -> None:
        scores = scored(provider="product", members=[LENGTH, LONGER, constant(-1)])
        same(scores.values, [NAN, -11, -24, -39])
        assert list(scores.columns) == ["member/0", "member/1", "member/2"]

    def test_nothing_times_an_abstention_is_an_abstention(self) -> None:
        same(scored(provider="product", members=[LONGER, constant(0)]).values, [NAN, 0, 0, 0])


class TestGate:
    @pytest.mark.parametrize(("closed", "value"), [({}, 0.0), ({"closed": -1}, -1.0), ({"closed": None}, NAN)])
    def test_lets_through_what_reaches_it(self, closed: dict[str, Any], value: float) -> None:
        reward = rm.load({"provider": "gate", "gate": LENGTH, "at": 2, "reward": LONGER, **closed})
        scores = reward.score(SAMPLES)
        same(scores.values, [value, value, 12, 13])
        same(scores.columns["gate"], [0, 1, 2, 3])
        same(scores.columns["reward"], [NAN, NAN, 12, 13])
        assert reward.counts["closed"] == 2

    def test_only_what_it_lets_through_is_scored(self) -> None:
        asked: list[list[str]] = []
        scored(provider="gate", gate=LENGTH, at=2, reward=seen(asked))
        scored(provider="gate", gate=LENGTH, at=9, reward=seen(asked))
        assert asked == [["bb", "ccc"]]

    def test_abstains_where_the_gate_or_the_reward_does(self) -> None:
        same(scored(provider="gate", gate=LONGER, at=12, reward=LENGTH).values, [NAN, 0, 2, 3])
        same(scored(provider="gate", gate=LENGTH, at=0, reward=LONGER).values, [NAN, 11, 12, 13])

    def test_it_is_said_once_if_closing_the_gate_pays(self, caplog: pytest.LogCaptureFixture) -> None:
        reward = rm.load({"provider": "gate", "gate": LENGTH, "at": 2, "reward": LONGER, "label": "neat"})
        reward.score(SAMPLES)
        assert not caplog.text, "12 and 13 pay more than 0"
        reward.reward = rm.load(constant(-1.25))  # type: ignore[attr-defined]
        reward.score(SAMPLES[:2])
        assert not caplog.text, "none passed"
        reward.score(SAMPLES)
        reward.score(SAMPLES)
        (message,) = caplog.messages
        assert (
            "'neat'" in message
            and "scored -1.25" in message
            and "less than the 0 of" in message
            and "Set `closed` below" in message
        )

    @pytest.mark.parametrize("closed", [0.0, -1.0, None])
    def test_a_closed_that_is_written_is_taken_as_intended(
        self, closed: float | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        scored(provider="gate", gate=LENGTH, at=2, reward=constant(-1.25), closed=closed)
        assert not caplog.text

    def test_a_gate_made_in_python_warns_too_and_stays_the_same_reward(self, caplog: pytest.LogCaptureFixture) -> None:
        gate = Gate(gate=rm.load(LENGTH), reward=rm.load(constant(-1.25)), at=2)
        before = gate.identity
        gate.score(SAMPLES)
        assert "scored -1.25" in caplog.text
        assert gate.identity == before

    def test_the_names_of_details_are_the_same_in_every_batch(self) -> None:
        reward = rm.load({"provider": "gate", "gate": "combinator_rules:with_details", "at": 3, "reward": LENGTH})
        assert {tuple(reward.score([sample]).columns) for sample in SAMPLES} == {("gate", "reward", "gate/std")}

    def test_a_failure_names_the_rows_of_the_batch(self) -> None:
        reward = rm.load({"provider": "gate", "gate": LENGTH, "at": 1, "reward": failing_on("ccc"), "on_error": "abstain"})
        same(reward.score(SAMPLES).values, [0, 5, 5, NAN])


class TestThreshold:
    def test_makes_one_of_two_values(self) -> None:
        reward = rm.load({"provider": "threshold", "reward": LONGER, "at": 12})
        same(reward.score(SAMPLES).values, [NAN, 0, 1, 1])
        same(reward.score(SAMPLES).columns["reward"], [NAN, 11, 12, 13])
        assert reward.counts["above"] == 4

    def test_the_values_are_free(self) -> None:
        same(scored(provider="threshold", reward=LENGTH, at=2, above=-1, below=7).values, [7, 7, -1, -1])


class TestFallback:
    def test_the_first_that_gives_a_number(self) -> None:
        reward = rm.load({"provider": "fallback", "members": [LONGER, LENGTH]})
        scores = reward.score(SAMPLES)
        same(scores.values, [0, 11, 12, 13])
        same(scores.columns["member/0"], [NAN, 11, 12, 13])
        same(scores.columns["member/1"], [0, NAN, NAN, NAN])
        assert (reward.counts["member/0"], reward.counts["member/1"]) == (3, 1)

    def test_a_failure_leaves_its_samples_to_the_next(self, caplog: pytest.LogCaptureFixture) -> None:
        asked: list[list[str]] = []
        judge = failing_on("a", "ccc")
        same(scored(provider="fallback", members=[judge, seen(asked, 2.0)]).values, [5, 2, 5, 2])
        assert asked == [["a", "ccc"]]
        assert judge.counts["errors"] == 1
        assert "2 of 4 samples failed, they abstain: the judge is away" in caplog.text

    def test_one_that_is_not_needed_is_not_asked(self) -> None:
        asked: list[list[str]] = []
        scored(provider="fallback", members=[LENGTH, seen(asked)])
        assert asked == []

    def test_the_last_ones_abstention_stands(self) -> None:
        same(scored(provider="fallback", members=["combinator_rules:fails", LONGER]).values, [NAN, 11, 12, 13])

    def test_the_last_ones_error_is_raised_with_its_rows(self) -> None:
        members = [failing_on("a", "bb"), failing_on("bb", value=6.0)]
        with pytest.raises(ScoringError, match="the judge is away") as caught:
            Fallback(members=members).score(SAMPLES)
        assert caught.value.rows == frozenset({2})
        reward = Fallback(members=members)
        reward.on_error = "abstain"
        same(reward.score(SAMPLES).values, [5, 6, NAN, 5])

    def test_a_column_that_is_not_there_is_a_failure(self) -> None:
        route = {"provider": "route", "column": "absent", "routes": {"a": LENGTH}}
        same(scored(provider="fallback", members=[route, LENGTH]).values, scored(provider="fallback", members=[LENGTH]).values)


class TestRoute:
    def test_a_column_chooses(self) -> None:
        asked: tuple[list[list[str]], list[list[str]]] = ([], [])
        routes = {"math": seen(asked[0], 1.0), "code": seen(asked[1], 2.0)}
        reward = rm.load({"provider": "route", "column": "topic", "routes": routes})
        scores = reward.score(SAMPLES)
        same(scores.values, [1, 2, 1, 2])
        same(scores.columns["route/math"], [1, NAN, 1, NAN])
        same(scores.columns["route/code"], [NAN, 2, NAN, 2])
        assert asked == ([["", "bb"]], [["a", "ccc"]])
        assert (reward.counts["route/math"], reward.counts["route/code"]) == (2, 2)

    @pytest.mark.parametrize("value", [True, np.True_, 3, None, "true"])
    def test_kinds_are_compared_as_yaml_writes_them(self, value: object, here: Path) -> None:
        (here / "spec.yaml").write_text(
            "provider: route\ncolumn: kind\nroutes:\n"
            "  true: {provider: constant, value: 1}\n  3: {provider: constant, value: 1}\n  null: {provider: constant, value: 1}\n"
            "otherwise: {provider: constant, value: 0}\n"
        )
        same(rm.load("spec.yaml").score([rm.Sample("", "a", {"kind": value})]).values, [1])
        same(rm.load("spec.yaml").score([rm.Sample("", "a", {"kind": "True"})]).values, [0])

    def test_a_predicate_chooses(self) -> None:
        routes = {True: constant(1), False: constant(-1)}
        same(scored(provider="route", by="combinator_rules:is_long", routes=routes).values, [-1, -1, -1, 1])
        same(
            scored(provider="route", by=lambda sample: sample.prompt, routes={"p": LENGTH, "q": LONGER}).values, [0, 1, 12, 13]
        )

    def test_the_others(self) -> None:
        scores = scored(provider="route", column="topic", routes={"math": LENGTH, "poetry": LONGER}, otherwise=constant(9))
        same(scores.values, [0, 9, 2, 9])
        same(scores.columns["otherwise"], [NAN, 9, NAN, 9])
        same(scores.columns["route/poetry"], [NAN] * 4)

    def test_a_failure_names_the_rows_of_the_batch(self) -> None:
        routes = {"math": failing_on("bb"), "code": LENGTH}
        same(scored(provider="route", column="topic", routes=routes, on_error="abstain").values, [5, 1, NAN, 3])
        routes = {"math": LENGTH, "code": "combinator_rules:fails"}
        fallback = {"fallback": constant(-9)}
        same(scored(provider="route", column="topic", routes=routes, on_error=fallback).values, [0, -9, 2, -9])

    def test_routes_that_wait_run_side_by_side(self) -> None:
        meeting = threading.Barrier(2)
        routes = {topic: Waiting(1.0, meeting) for topic in ("math", "code")}
        same(Route(column="topic", routes=routes).score(SAMPLES).values, [1] * 4)  # type: ignore[arg-type]  # keys of one type

    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(DataError) as caught:
            scored(
                [*SAMPLES, rm.Sample("", "z", {"topics": 1})],
                provider="route",
                column="topic",
                routes={"math": LENGTH, "code": LENGTH},
            )
        assert str(caught.value) == (
            "column: the route 'route' cannot score the batch: 1 of 5 samples (items 4) have no column 'topic'. Did you mean 'topic'? "
            "Allowed: topic, topics. Add the column to the dataset, or name another one in the spec."
        )
        assert caught.value.rows == frozenset({4})

    def test_a_value_without_a_route(self) -> None:
        with pytest.raises(DataError) as caught:
            scored(provider="route", label="by topic", column="topic", routes={"maths": LENGTH})
        assert str(caught.value) == (
            "column: the route 'by topic' cannot score the batch: 4 of 4 samples (items 0, 1, 2, 3) have a kind without a route: "
            "'code', 'math'. Did you mean 'maths'? Allowed: maths. Add a route for it, or the key `otherwise` for all such kinds."
        )

    def test_a_function_that_fails_is_a_failure(self) -> None:
        with pytest.raises(ScoringError, match="'route' failed: ZeroDivisionError"):
            scored(provider="route", by=lambda sample: 1 / 0, routes={"a": LENGTH})


class Waiting(Constant):
    """A reward that waits for somebody, and for as many others as the barrier says."""

    concurrent = True

    def __init__(self, value: float, meeting: threading.Barrier | None = None) -> None:
        super().__init__(value=value)
        self._meeting = meeting

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        if self._meeting is not None:
            self._meeting.wait(timeout=20)
        time.sleep(0.001)
        return super().score_batch(samples)


def test_a_combinator_waits_where_all_of_its_parts_do() -> None:
    waiting, here = Waiting(1.0), Constant(value=1.0)
    for other, expected in ((waiting, True), (here, False)):
        for combinator in (
            Sum(members=[waiting, other]),
            Product(members=[waiting, other]),
            Fallback(members=[waiting, other]),
            Gate(gate=waiting, reward=other),
            Route(column="topic", routes={"a": waiting}, otherwise=other),
            Cached(reward=other, path="memory"),
            Threshold(reward=other, at=0),
        ):
            assert combinator.concurrent is expected, combinator
    remedied = Sum(members=[waiting])
    remedied.fallback = here
    assert not remedied.concurrent


def test_closing_one_closes_its_parts() -> None:
    closed: list[str] = []

    class Held(Constant):
        def close(self) -> None:
            closed.append(self.label)

    parts = [Held(value=1.0), Held(value=2.0)]
    parts[0].label, parts[1].label = "one", "two"
    Gate(gate=parts[0], reward=Threshold(reward=parts[1], at=0)).close()
    assert closed == ["one", "two"]


class TestProgress:
    def test_is_what_the_innermost_says_and_none_outside(self) -> None:
        assert current_progress() is None
        with training_progress(0.1):
            with pytest.raises(KeyError), training_progress(0.7):
                assert current_progress() == 0.7
                raise KeyError
            assert current_progress() == 0.1
        assert current_progress() is None

    def test_a_schedule_may_fall(self) -> None:
        with training_progress(0.25):
            assert Schedule.from_spec({"from": 1, "to": 0}).value() == 0.75


def test_a_sum_of_nothing_but_abstentions_abstains() -> None:
    silent = {"provider": "function", "function": lambda samples: [None] * len(samples)}
    with training_progress(0.0):
        scores = rm.load({"provider": "sum", "members": [silent], "weights": [{"from": 0, "to": 1}]}).score(
            [rm.Sample("Q", "A")]
        )
    assert np.isnan(scores.values).all()
