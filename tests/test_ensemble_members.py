"""An ensemble of any providers: who scores beside whom, what a missing member means, and what they disagree about."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.aggregates import Mean, Min
from rm_plugins.errors import ScoringError, SpecError
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.combinators.members import combined, rank_disagreement
from rm_plugins.scores import FloatArray
from rm_plugins.testing import FixedProvider, check_provider

SAMPLES = [rm.Sample("Q", "a"), rm.Sample("Q", "bb"), rm.Sample("Q", "ccc"), rm.Sample("other", "d")]


def fixed(*scores: float | None) -> FixedProvider:
    """A member that gives the samples of `SAMPLES` these scores, whatever their order."""
    by_completion = {str(sample.completion): score for sample, score in zip(SAMPLES, scores, strict=True)}
    return FixedProvider(scores=lambda sample: by_completion[str(sample.completion)])


class Broken(rm.Provider):
    """A member that fails for a sample, or for whole batches."""

    name: ClassVar[str] = "broken"

    def __init__(self, *, completion: str | None = None, concurrent: bool = False) -> None:
        self.completion = completion
        self.concurrent = concurrent

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        rows = [row for row, sample in enumerate(samples) if sample.completion == self.completion]
        if rows or self.completion is None:
            raise ScoringError(f"{self.label} is broken", rows=rows or None)
        return rm.Scores(np.full(len(samples), 7.0))


def member(provider: rm.Provider, **settings: Any) -> rm.Provider:
    for name, value in settings.items():
        setattr(provider, name, value)
    return provider


def broken(name: str = "broken", **settings: Any) -> rm.Provider:
    return member(Broken(**settings), label=name)


class TestConcurrency:
    """With real servers: a member that waits for one is a function over urllib."""

    @contextmanager
    def server(self, *, status: int = 200, together: threading.Barrier | None = None) -> Iterator[str]:
        """A server that answers with the length of every completion, once all who meet at a barrier are there; gives its address."""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                completions = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if together is not None:
                    together.wait()
                body = json.dumps([len(completion) for completion in completions]).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/"
            finally:
                server.shutdown()
                thread.join()

    def asking(self, url: str) -> rm.Provider:
        def ask(completions: list[str]) -> list[float]:
            request = urllib.request.Request(url, json.dumps(completions).encode(), method="POST")
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found: list[float] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                error.close()  # it holds the connection
                raise

        return rm.load({"provider": "function", "function": ask, "concurrent": True})

    def computing(self, together: threading.Barrier) -> rm.Provider:
        def compute(samples: Sequence[rm.Sample]) -> list[float]:
            together.wait()
            return [10.0] * len(samples)

        return rm.load(compute)

    def test_those_that_wait_overlap_with_each_other_and_with_what_computes_here(self) -> None:
        together = threading.Barrier(4, timeout=30)  # which breaks where one begins after another
        with self.server(together=together) as one, self.server(together=together) as two:
            ensemble = Ensemble(members=[self.asking(one), self.computing(together), self.asking(two), self.asking(one)])
            assert not ensemble.concurrent
            scores = ensemble.score(SAMPLES)
        lengths = np.array([len(sample.completion) for sample in SAMPLES], dtype=float)
        np.testing.assert_array_equal([scores.columns[f"member/{number}"] for number in (0, 2, 3)], [lengths] * 3)
        np.testing.assert_array_equal(scores.columns["member/1"], np.full(4, 10.0))
        np.testing.assert_array_equal(scores.values, (3 * lengths + 10) / 4)

    def test_an_ensemble_of_those_that_wait_waits_itself(self) -> None:
        together = threading.Barrier(3, timeout=30)
        with self.server(together=together) as one, self.server(together=together) as two:
            inner = Ensemble(members=[self.asking(one), self.asking(two)])
            assert inner.concurrent
            scores = Ensemble(members=[inner, self.asking(one)]).score(SAMPLES)
        assert scores.values.tolist() == [1, 2, 3, 1]
        assert scores.columns["member/0/member/1"].tolist() == [1, 2, 3, 1]

    def test_what_a_server_refuses_is_an_error_here(self) -> None:
        with self.server(status=503) as down, self.server() as up:
            members = [self.asking(up), self.asking(down), fixed(1, 2, 3, 4)]
            with pytest.raises(ScoringError, match="'ask' failed: HTTPError: HTTP Error 503"):
                Ensemble(members=members).score(SAMPLES)
            members[1].on_error = "abstain"
            scores = Ensemble(members=members, quorum=2).score(SAMPLES)
        assert scores.values.tolist() == [1, 2, 3, 2.5]
        assert members[1].counts["errors"] == 1  # an error that is raised is its caller's to count

    def test_the_context_of_the_caller_reaches_the_threads(self) -> None:
        variable: ContextVar[float] = ContextVar("variable", default=0.0)

        def read(samples: Sequence[rm.Sample]) -> list[float]:
            return [variable.get()] * len(samples)

        variable.set(3.0)
        waiting = [rm.load({"provider": "function", "function": read, "concurrent": True}) for _ in range(2)]
        assert Ensemble(members=waiting).score(SAMPLES).values.tolist() == [3.0] * 4

    def test_each_thread_is_gone_afterwards(self) -> None:
        before = threading.active_count()
        with pytest.raises(ScoringError):
            Ensemble(members=[broken(concurrent=True), broken(concurrent=True)]).score(SAMPLES)
        assert threading.active_count() == before

    def test_the_first_failure_in_the_members_order_is_raised(self) -> None:
        first = broken("first", concurrent=True)
        for later in (broken("later", concurrent=True), broken("here")):
            with pytest.raises(ScoringError, match="first is broken"):
                Ensemble(members=[fixed(1, 2, 3, 4), first, later]).score(SAMPLES)


class TestMissingMembers:
    def test_a_failure_is_the_ensembles(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, 4), broken()])
        with pytest.raises(ScoringError, match="broken is broken"):
            ensemble.score(SAMPLES)
        ensemble.on_error = "abstain"
        assert ensemble.score(SAMPLES).abstained.all()
        assert ensemble.counts == {"samples": 4, "abstained": 4, "errors": 1}

    def test_where_one_sample_fails_the_others_are_scored(self) -> None:
        ensemble = member(Ensemble(members=[fixed(1, 2, 3, 4), broken(completion="bb")]), on_error="abstain")
        np.testing.assert_array_equal(ensemble.score(SAMPLES).values, [4, np.nan, 5, 5.5])

    def test_a_fallback_for_a_member(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, 4), member(broken(completion="bb"), fallback=fixed(0, 0, 0, 0))])
        scores = ensemble.score(SAMPLES)
        assert scores.values.tolist() == [4, 1, 5, 5.5]
        assert scores.metadata["missing_members"] == 0

    def test_where_a_member_abstains_the_ensemble_does(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, None), fixed(3, None, 5, None)])
        scores = ensemble.score(SAMPLES)
        np.testing.assert_array_equal(scores.values, [2, np.nan, 4, np.nan])
        np.testing.assert_array_equal(scores.columns["std"], [1, 0, 1, np.nan])  # of those that gave a score
        np.testing.assert_array_equal(scores.columns["member/1"], [3, np.nan, 5, np.nan])
        assert scores.metadata["missing_members"] == 3 / 8
        assert (ensemble.counts["missing_members"], ensemble.counts["abstained"]) == (3, 2)

    def test_a_quorum_goes_on_without_some(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, None), fixed(3, None, 5, None), fixed(5, None, 7, 9)], quorum=2)
        scores = ensemble.score(SAMPLES)
        np.testing.assert_array_equal(scores.values, [3, np.nan, 5, np.nan])
        assert scores.metadata["missing_members"] == 4 / 12

    def test_a_quorum_goes_on_where_members_fail(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, 4), broken(), broken(completion="ccc")], quorum=2)
        with pytest.raises(ScoringError, match=r"fewer than 2 of its 3 members for 1 of 4 samples \(first: item 2\)") as caught:
            ensemble.score(SAMPLES)
        assert caught.value.rows == frozenset({2})
        ensemble.on_error = "abstain"
        np.testing.assert_array_equal(ensemble.score(SAMPLES).values, [4, 4.5, np.nan, 5.5])
        assert ensemble.counts["errors"] == 1
        assert ensemble.members[1].counts["errors"] > 0

    def test_abstaining_by_itself_breaks_no_quorum(self) -> None:
        scores = Ensemble(members=[fixed(1, None, 3, 4), fixed(1, None, 3, 4)], quorum=2).score(SAMPLES)
        np.testing.assert_array_equal(scores.values, [1, np.nan, 3, 4])

    @pytest.mark.parametrize("quorum", [0, 3, -1])
    def test_a_quorum_of_more_than_there_are(self, quorum: int) -> None:
        with pytest.raises(SpecError, match=f"^quorum: .* from 1 to the number of members, 2; not {quorum}") as caught:
            Ensemble(members=[fixed(1, 2, 3, 4)] * 2, quorum=quorum)
        assert caught.value.key == "quorum"

    def test_nobody(self) -> None:
        with pytest.raises(SpecError, match=r"^members: an ensemble needs at least one member"):
            Ensemble(members=[])


class TestDetails:
    def test_order_and_contract(self) -> None:
        ensemble = Ensemble(members=[fixed(1, 2, 3, None), fixed(3, -2, 5, 7)])
        scores = check_provider(ensemble, SAMPLES, pickles=False)
        assert list(scores.columns) == ["member/0", "member/1", "std", "rank_disagreement"]
        assert scores.columns["std"][:3].tolist() == [1, 2, 1]
        assert ensemble.members[0].batches[0] == 4  # type: ignore[attr-defined]  # every member sees the whole batch at once

    def test_a_members_transform_and_details(self) -> None:
        first = rm.load({"provider": "function", "function": lengths, "transform": {"name": "scale", "factor": 10.0}})
        second = rm.load({"provider": "function", "function": lengths, "transform": {"name": "scale", "shift": 2.0}})
        ensemble = rm.load({"provider": "ensemble", "aggregate": "min", "members": [first, second]})
        scores = ensemble.score(SAMPLES)
        assert scores.values.tolist() == [-1, 0, 1, -1]
        assert scores.columns["member/0"].tolist() == [10, 20, 30, 10]
        assert scores.columns["member/0/raw"].tolist() == [1, 2, 3, 1]
        assert scores.columns["member/1/raw"].tolist() == [1, 2, 3, 1]

    def test_nested_ensembles(self) -> None:
        inner = Ensemble(members=[fixed(1, 2, 3, 4), fixed(3, 4, 5, 6)])
        scores = Ensemble(members=[inner, fixed(0, 0, 0, 0)]).score(SAMPLES)
        assert scores.values.tolist() == [1, 1.5, 2, 2.5]
        assert scores.columns["member/0"].tolist() == [2, 3, 4, 5]
        assert scores.columns["member/0/member/1"].tolist() == [3, 4, 5, 6]
        assert scores.columns["member/0/std"].tolist() == [1, 1, 1, 1]

    def test_work_adds_up(self) -> None:
        def counted(samples: Sequence[rm.Sample]) -> rm.Scores:
            return rm.Scores(np.zeros(len(samples)), metadata={"tokens": 5, "seconds": 0.5, "tokens_per_second": 10.0})

        found = Ensemble(members=[rm.load(counted), rm.load(counted), fixed(1, 2, 3, 4)]).score(SAMPLES).metadata
        assert found == {"tokens": 10, "seconds": 1.0, "missing_members": 0.0}

    def test_an_aggregate_of_another_shape_is_an_error(self) -> None:
        class Sums(rm.Aggregate):
            name = "sums"

            def __call__(self, members: FloatArray) -> FloatArray:
                found: FloatArray = members.sum(axis=1)
                return found

        with pytest.raises(
            ScoringError, match=r"'sums' returned an array of shape \(2,\) for the scores of 2 members and 4 samples"
        ):
            Ensemble(members=[fixed(1, 2, 3, 4)] * 2, aggregate=Sums()).score(SAMPLES)


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion)) for sample in samples]


class TestRankDisagreement:
    PROMPTS: ClassVar = [rm.Sample("Q", "a"), rm.Sample("P", "x"), rm.Sample("Q", "b"), rm.Sample("Q", "c")]

    @pytest.mark.parametrize(
        ("members", "expected"),
        [
            # All rank alike, whatever their scales and shifts.
            ([[1, 0, 2, 3], [-50, 9, 0, 0.5]], [0, np.nan, 0, 0]),
            # The second one the other way round: ranks 0, 1/2, 1 against 1, 1/2, 0.
            ([[1, 0, 2, 3], [3, 0, 2, 1]], [0.5, np.nan, 0, 0.5]),
            # Ties share their mean rank: 1/4, 1/4, 1 against 0, 1/2, 1.
            ([[1, 0, 1, 3], [1, 0, 2, 3]], [0.125, np.nan, 0.125, 0]),
            # Everything equal is in the middle.
            ([[1, 0, 1, 1], [1, 0, 2, 3]], [0.25, np.nan, 0, 0.25]),
            # Three members, one of which is alone in its opinion: ranks 0, 0, 1 of the first completion.
            ([[1, 0, 2, 3], [1, 0, 2, 3], [3, 0, 2, 1]], [np.sqrt(2) / 3, np.nan, 0, np.sqrt(2) / 3]),
            # Without its missing score, the second one ranks two completions; with one member only there is no disagreement.
            ([[1, 0, 2, 3], [5, 0, np.nan, 4]], [0.5, np.nan, np.nan, 0.5]),
            # One score by itself has no rank.
            ([[1, 0, 2, 3], [5, 0, np.nan, np.nan]], [np.nan] * 4),
        ],
    )
    def test_by_hand(self, members: list[list[float]], expected: list[float]) -> None:
        found = rank_disagreement(np.array(members, dtype=np.float64), self.PROMPTS)
        np.testing.assert_allclose(found, expected, atol=1e-12)

    def test_completions_of_equal_conversations_are_compared(self) -> None:
        samples = [rm.Sample([{"role": "user", "content": "Q"}], answer) for answer in "ab"]
        np.testing.assert_array_equal(rank_disagreement(np.array([[1.0, 2.0], [2.0, 1.0]]), samples), [0.5, 0.5])

    def test_it_is_a_detail(self) -> None:
        found = combined(np.array([[1.0, 0, 2, 3], [3, 0, 2, 1]]), self.PROMPTS, Mean())
        np.testing.assert_array_equal(found.columns["rank_disagreement"], [0.5, np.nan, 0, 0.5])


class TestCommonScale:
    def test_a_missing_one_is_warned_of_once(self) -> None:
        with pytest.warns(UserWarning) as caught:
            ensemble = Ensemble(members=[fixed(1, 2, 3, 4), fixed(1, 2, 3, 4)], aggregate=Min())
        (warning,) = caught
        assert "aggregate 'min' of 'ensemble' needs a common scale, but all of its members have no transform" in str(
            warning.message
        )
        assert "`transform: zscore`" in str(warning.message) and "`common_scale: true`" in str(warning.message)
        ensemble.score(SAMPLES)

    def test_those_without_a_transform_are_named(self) -> None:
        scaled = rm.load({"provider": "function", "function": lengths, "transform": "scale"})
        with pytest.warns(UserWarning, match=r"some of its members have no transform \(0, 2\)"):
            Ensemble(members=[fixed(1, 2, 3, 4), scaled, fixed(1, 2, 3, 4)], aggregate=Min())

    def test_where_nothing_is_to_be_warned_of(self) -> None:
        scaled = rm.load({"provider": "function", "function": lengths, "transform": "scale"})
        Ensemble(members=[fixed(1, 2, 3, 4)] * 2)
        Ensemble(members=[fixed(1, 2, 3, 4)] * 2, aggregate=Min(), common_scale=True)
        Ensemble(members=[fixed(1, 2, 3, 4)], aggregate=Min())
        Ensemble(members=[scaled, scaled], aggregate=Min())


class TestSpec:
    SPEC: ClassVar[dict[str, Any]] = {
        "provider": "ensemble",
        "members": [{"provider": "function", "function": lengths, "label": "length"}] * 2,
        "aggregate": {"name": "weighted", "weights": [1.0, 3.0]},
        "quorum": 1,
    }

    def test_it_is_written_out(self) -> None:
        found = rm.load(self.SPEC).spec
        assert found is not None
        assert found["aggregate"] == {"name": "weighted", "weights": [1.0, 3.0]}
        assert [inner["label"] for inner in found["members"]] == ["length", "length"]

    def test_a_member_says_where_it_is(self) -> None:
        members = rm.load(self.SPEC).members  # type: ignore[attr-defined]
        assert [found.where for found in members] == ["members[0]", "members[1]"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"aggregate": {"name": "weighted", "weights": [1.0]}}, r"^aggregate\.weights: there are 1 weights for 2 members"),
            ({"aggregate": {"name": "quantile", "q": 2.0}}, r"^aggregate\.q: q must be between 0 and 1"),
            ({"aggregate": {"name": "trimmed-mean"}}, r"^aggregate\.share: .*leaves out no member"),
            ({"members": [lengths], "aggregate": "lcb"}, r"^aggregate: one member has no spread"),
            ({"quorum": 3}, r"^quorum: "),
            ({"members": []}, r"^members: "),
            ({"agregate": "mean"}, r"^agregate: unknown key 'agregate' for 'ensemble'\. Did you mean 'aggregate'"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_path(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            rm.load({**self.SPEC, "quorum": None, **change})
