"""What a remote provider does about failures: the rules by themselves, then all of them through a network that goes wrong."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.protocols import Native, ServerFacts
from rm_plugins.remote import retry
from rm_plugins.remote.endpoint import Breaker, ConcurrencyLimit, Endpoint
from rm_plugins.remote.notices import Notices
from rm_plugins.remote.request_failure import Cause, RequestFailure
from rm_plugins.remote.requests import packed
from rm_plugins.remote.retry import backoff, retry_after
from tests.fault_proxy import ANSWER_FAULTS, HARMLESS, STATUS_FAULTS, TCP_FAULTS
from tests.fault_run import run


class TestDelays:
    def test_they_double_up_to_eight_seconds(self) -> None:
        assert [backoff(failures, 0.0) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
        assert backoff(10_000, 0.0) == 8

    @given(st.integers(1, 100), st.floats(0, 1))
    def test_jitter_takes_a_quarter_at_most(self, failures: int, jitter: float) -> None:
        assert 0.75 * backoff(failures, 0.0) <= backoff(failures, jitter) <= backoff(failures, 0.0)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "3"}, 3.0),
            ({"retry-after": "0.5"}, 0.5),
            ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
            ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
            ({"retry-after": "86400"}, 60.0),
            ({"retry-after": "-5"}, 0.0),
            ({"retry-after": "nan"}, None),
            ({"retry-after": "tomorrow"}, None),
            ({"retry-after": "Wed, 21 Oct 2015 07:28:07 GMT"}, 7.0),
            ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0.0),
            ({"retry-after": "Wed, 21 Oct 2065 07:28:00 GMT"}, 60.0),
        ],
    )
    def test_what_a_server_asks_for_is_understood_and_capped(self, headers: dict[str, str], seconds: float | None) -> None:
        assert retry_after(headers, now=1445412480.0) == seconds


class TestConcurrencyLimit:
    def test_it_is_halved_once_for_all_that_was_under_way_together(self) -> None:
        limit = ConcurrencyLimit(16)
        for _ in range(16):
            limit.overloaded(sent_at=1.0, now=2.0)
        assert limit.value == 8
        limit.overloaded(sent_at=2.5, now=3.0)
        assert limit.value == 4

    def test_it_never_ends_at_nothing_and_grows_by_one_a_round(self) -> None:
        limit = ConcurrencyLimit(4)
        for second in range(9):
            limit.overloaded(sent_at=second, now=second)
        assert limit.value == 1
        rounds = []
        for _ in range(4):
            for _ in range(limit.value):
                limit.succeeded()
            rounds.append(limit.value)
        assert rounds == sorted(rounds)
        for _ in range(50):
            limit.succeeded()
        assert limit.value == 4


class TestBreaker:
    def test_it_opens_after_failures_in_a_row(self) -> None:
        breaker = Breaker(threshold=3)
        for failed in (True, True, False, True, True):
            if failed:
                breaker.failed(sent_at=0.0, now=0.0)
            else:
                breaker.succeeded()
        assert not breaker.is_open
        breaker.failed(sent_at=0.0, now=0.0)
        assert breaker.is_open
        assert breaker.wait(0.25) == 0.75
        assert breaker.wait(1.5) == 0

    def test_its_pause_grows_while_trials_fail_and_ends_with_a_success(self) -> None:
        breaker = Breaker(threshold=1)
        now, pauses = 0.0, []
        for _ in range(6):
            breaker.failed(sent_at=now, now=now)
            pauses.append(breaker.wait(now))
            now += pauses[-1]
        assert pauses == [1, 2, 4, 8, 8, 8]
        breaker.succeeded()
        assert not breaker.is_open
        breaker.failed(sent_at=now, now=now)
        assert breaker.wait(now) == 1

    def test_what_was_sent_before_it_opened_says_nothing_new(self) -> None:
        breaker = Breaker(threshold=1)
        breaker.failed(sent_at=0.0, now=1.0)
        for _ in range(5):
            breaker.failed(sent_at=0.5, now=1.5)
        assert breaker.wait(1.0) == 1


class TestEndpoint:
    def endpoint(self) -> Endpoint:
        return Endpoint("http://server", ConcurrencyLimit(4), Breaker(threshold=2), ServerFacts(Native(), "a server"))

    @pytest.mark.parametrize(
        ("cause", "status", "opens"),
        [
            ("connection", 0, True),
            ("timeout", 0, True),
            ("retry", 500, True),
            ("overload", 429, True),
            ("overload", 503, True),
            ("retry", 409, False),
            ("rejected", 400, False),
            ("too-large", 413, False),
            ("bad-answer", 200, False),
        ],
    )
    def test_only_trouble_of_the_server_itself_opens_its_breaker(self, cause: Cause, status: int, opens: bool) -> None:
        endpoint = self.endpoint()
        for _ in range(2):
            endpoint.failed(RequestFailure(cause, "why", status=status), sent_at=0.0, now=1.0)
        assert endpoint.breaker.is_open is opens
        assert (endpoint.facts is None) is opens, "it is asked again what it is, before it is used"

    def test_one_request_tries_a_server_whose_breaker_is_open(self) -> None:
        endpoint = self.endpoint()
        facts = endpoint.facts
        for _ in range(2):
            endpoint.failed(RequestFailure("retry", "why", status=500), sent_at=0.0, now=1.0)
        assert endpoint.wait(5.0) == math.inf, "nothing is known of it"
        endpoint.facts = facts
        assert endpoint.wait(1.25) == 0.75
        assert endpoint.wait(5.0) == 0
        endpoint.in_flight = 1
        assert endpoint.wait(5.0) == math.inf
        endpoint.answered(sent_at=5.0, now=6.0)
        assert endpoint.wait(6.0) == 0

    def test_the_quicker_and_the_emptier_is_preferred_and_a_quick_failure_is_not_quick(self) -> None:
        quick, slow = self.endpoint(), self.endpoint()
        quick.answered(sent_at=0.0, now=0.1)
        slow.answered(sent_at=0.0, now=0.3)
        assert quick.load < slow.load
        quick.in_flight = 3
        assert slow.load < quick.load
        quick.in_flight = 0
        for _ in range(3):
            quick.failed(RequestFailure("bad-answer", "NaN"), sent_at=1.0, now=1.0)
        assert slow.load < quick.load


class TestNotices:
    def test_each_kind_is_written_at_once_and_then_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        now = 0.0
        notices = Notices(logging.getLogger("rm_plugins.remote"), interval=30, clock=lambda: now)
        for second in range(61):
            now = float(second)
            notices.say("timeout", f"timeout at {second}")
            if second == 5:
                notices.say("reset", "reset")
        assert [record.message for record in caplog.records] == [
            "timeout at 0",
            "reset",
            "timeout at 30 (29 more like this in the last 30 s)",
            "timeout at 60 (29 more like this in the last 30 s)",
        ]


@given(st.integers(0, 300), st.integers(1, 70))
def test_requests_are_as_few_as_can_be_and_of_about_the_same_size(rows: int, most: int) -> None:
    parts = packed(range(rows), most)
    assert [row for part in parts for row in part] == list(range(rows))
    assert len(parts) == math.ceil(rows / most)
    sizes = [len(part) for part in parts] or [0]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_a_thousand_scores_through_a_network_that_goes_wrong_are_all_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 0.1)
    caplog.set_level(logging.INFO, "rm_plugins.remote")
    found = run(1000, seed=1, timeout=0.3, batch_size=3, concurrency=32)
    assert found.wrong == 0
    assert set(TCP_FAULTS + STATUS_FAULTS + ANSWER_FAULTS + HARMLESS) <= set(found.happened), "each fault happened"
    for name in ("connection_errors", "timeouts", "overloads", "server_errors", "bad_answers"):
        assert found.counts[name] > 0
    assert found.counts["requests"] >= found.happened["requests"]  # one may be given up before it arrives
    assert found.counts["errors"] == 0
    # Each kind of trouble is told once, and the sum at the end; not each time.
    assert "scored 900 of 900 samples" in caplog.text
    assert "no answer within 0.3 seconds; retrying" in caplog.text
    assert len(caplog.records) < 15 < found.counts["retries"]
