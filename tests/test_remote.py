"""Rewards from servers: every sample gets its own score or an error that says why, whatever the server does."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.protocols import VLLM, Answer, Item, Native, Protocol, Request, Response, ServerFacts
from rm_plugins.providers.remote import Remote
from rm_plugins.remote import retry
from rm_plugins.remote.items import SendableSamples
from rm_plugins.rendering.render import Renderer, Rendering
from rm_plugins.samples import RenderedSample
from rm_plugins.testing import check_provider
from tests.conftest import make_tokenizer
from tests.fake_servers import logit, tokens
from tests.fake_servers.vllm import FakeVLLM
from tests.fault_proxy import Reply, Scorer, json_reply, reward_of
from tests.servers import serving

SAMPLES = [rm.Sample("Q: ", text) for text in ("a", "bb", "ccc", "dddd", "eeeee")]
EXPECTED = [reward_of(f"Q: {sample.completion}") for sample in SAMPLES]

Before = Callable[[dict[str, Any]], Awaitable[Reply | None]]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 0.05)


@contextmanager
def remote(scorer: Any, **settings: Any) -> Iterator[Remote]:
    with serving(scorer, lifespan="off") as url:
        provider = Remote(url=url, **{"protocol": Native(), **settings})
        yield provider
        provider.close()


def replies(*scripted: Reply | None) -> Before:
    """Answers with these first, and as usual (None) ever after."""
    left = list(scripted)

    async def before(body: dict[str, Any]) -> Reply | None:
        return left.pop(0) if left else None

    return before


def wait_for(happened: Callable[[], bool]) -> None:
    patience = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < patience, "it did not happen"
        time.sleep(0.01)


def many(size: int) -> list[rm.Sample]:
    return [rm.Sample("Q: ", str(number)) for number in range(size)]


class TestScores:
    def test_every_sample_gets_its_own_score_in_order(self) -> None:
        with remote(Scorer(), batch_size=2) as provider:
            check_provider(provider, SAMPLES, tolerance=0.0)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_a_url_is_enough(self) -> None:
        with serving(Scorer(), lifespan="off") as url:
            provider = rm.load(url)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            assert provider.spec == {"provider": "remote", "url": url}
            assert url.endswith(provider.label)
            provider.close()

    def test_equal_samples_are_sent_once(self) -> None:
        scorer = Scorer()
        with remote(scorer) as provider:
            scores = provider.score([*SAMPLES, *SAMPLES])
        assert scores.values.tolist() == EXPECTED * 2
        assert sorted(scorer.texts) == sorted(f"Q: {sample.completion}" for sample in SAMPLES)
        assert (scores.metadata["rows"], scores.metadata["duplicates"]) == (10, 5)

    @pytest.mark.parametrize(("setting", "limit", "expected"), [(None, 3, 3), (2, 3, 2), (9, 3, 3)])
    def test_a_request_has_as_many_samples_as_spec_and_server_allow(
        self, setting: int | None, limit: int, expected: int
    ) -> None:
        scorer = Scorer(max_items=limit)
        with remote(scorer, batch_size=setting) as provider:
            provider.score(many(12))
        assert {len(body["samples"]) for body in scorer.bodies} == {expected}

    def test_a_request_has_no_more_bytes_than_gateways_take(self) -> None:
        scorer = Scorer()
        long = [rm.Sample("Q: ", str(number) * 300_000) for number in range(5)]
        with remote(scorer) as provider:
            values = provider.score(long).values.tolist()
        assert values == [reward_of(f"Q: {sample.completion}") for sample in long]
        assert max(len(json.dumps(body)) for body in scorer.bodies) < 1_000_000

    def test_abstentions_and_details_come_back(self) -> None:
        scorer = Scorer(reward=lambda text: None if text == "Q: bb" else 1.0)

        async def detailed(body: dict[str, Any]) -> Reply | None:
            lengths = [len(sample["completion"]) for sample in body["samples"]]
            return json_reply(200, {**scorer.scored(body), "details": {"length": lengths}})

        scorer.before = detailed
        with remote(scorer, batch_size=2) as provider:
            scores = provider.score(SAMPLES)
        np.testing.assert_array_equal(scores.values, [1, np.nan, 1, 1, 1])
        assert not scores.failed.any()
        assert scores.details["length"].tolist() == [1, 2, 3, 4, 5]

    def test_numbers_for_trainers_are_in_every_batch(self) -> None:
        with remote(Scorer()) as provider:
            found = provider.score(SAMPLES).metadata
        assert all(isinstance(found[name], (int, float)) for name in Remote.metrics)
        assert found["fingerprint"] == "model-1"


class TestFailures:
    def test_a_sample_that_the_reward_fails_on_fails_alone(self) -> None:
        scorer = Scorer(reward=lambda text: ValueError("no digits") if text == "Q: ccc" else 2.0)
        with remote(scorer) as provider:
            with pytest.raises(ScoringError, match=r"1 of 5 samples\. item 2: no digits") as caught:
                provider.score(SAMPLES)
            assert caught.value.rows == frozenset({2})
            assert len(scorer.bodies) == 1, "what failed in the reward fails again"

    def test_what_was_scored_is_not_asked_for_again_where_others_abstain(self) -> None:
        scorer = Scorer(reward=lambda text: ValueError("no digits") if text == "Q: ccc" else 2.0)
        with remote(scorer) as provider:
            scores = provider.score(SAMPLES, on_error="abstain")
            assert scores.values[[0, 1, 3, 4]].tolist() == [2.0] * 4
            assert scores.failed.tolist() == [False, False, True, False, False]
            assert len(scorer.bodies) == scores.metadata["requests"] == 1
            provider.score(SAMPLES[:1])
            assert len(scorer.bodies) == 2, "only within one call"

    def test_samples_with_columns_that_are_not_sent_keep_their_own_scores_where_another_fails(self) -> None:
        scorer = Scorer(reward=lambda text: ValueError("no digits") if text == "Q: a" else reward_of(text))
        with remote(scorer, protocol=Native(columns=[])) as provider:
            scores = provider.score([replace(sample, columns={"image": object()}) for sample in SAMPLES], on_error="abstain")
            assert scores.failed.tolist() == [True, False, False, False, False]
            assert scores.values[1:].tolist() == EXPECTED[1:]

    @pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503])
    def test_what_may_go_well_the_next_time_is_tried_again(self, status: int) -> None:
        scorer = Scorer()
        scorer.before = replies(json_reply(status, {"error": "busy"}))
        with remote(scorer) as provider:
            scores = provider.score(SAMPLES)
        assert scores.values.tolist() == EXPECTED
        assert (scores.metadata["requests"], scores.metadata["retries"]) == (2, 1)
        assert provider.counts["overloads" if status in (429, 503) else "server_errors"] == 1
        assert scorer.bodies[0]["id"] == scorer.bodies[1]["id"]

    def test_a_server_is_left_alone_for_as_long_as_it_asks(self) -> None:
        scorer = Scorer()
        scorer.before = replies(json_reply(429, {"error": "busy"}, {"retry-after-ms": "300"}))
        with remote(scorer) as provider:
            begun = time.monotonic()
            provider.score(SAMPLES)
            assert time.monotonic() - begun >= 0.3

    def test_an_overloaded_server_is_asked_less_at_a_time(self) -> None:
        scorer = Scorer(max_items=1)
        running = 0
        seen: list[int] = []

        async def crowded(body: dict[str, Any]) -> Reply | None:
            nonlocal running
            running += 1
            seen.append(running)
            await asyncio.sleep(0.01)
            running -= 1
            return json_reply(429, {"error": "busy"}) if seen[-1] > 4 or running >= 4 else None

        scorer.before = crowded
        with remote(scorer, concurrency=16, tries=50) as provider:
            found = provider.score(many(60)).values.tolist()
        assert found == [reward_of(f"Q: {number}") for number in range(60)]
        assert max(seen[:20]) > 8 > max(seen[-15:])

    def test_one_that_always_fails_is_an_error_after_the_tries(self) -> None:
        scorer = Scorer()
        scorer.before = replies(*[json_reply(500, {"error": {"message": "out of memory"}})] * 9)
        with (
            remote(scorer, tries=3) as provider,
            pytest.raises(ScoringError, match=r"it answered 500: out of memory \(tried 3 times\)"),
        ):
            provider.score(SAMPLES)
        assert len(scorer.bodies) == 3

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            (lambda rewards: rewards[1].update(reward=math.nan), "must be finite"),
            (lambda rewards: rewards[1].update(reward=math.inf), "must be finite"),
            (lambda rewards: rewards[1].update(reward="0.0"), "a number was expected"),
            (lambda rewards: rewards[1].pop("reward"), "no 'reward'"),
            (lambda rewards: rewards.pop(), "4 entries for 5"),
            (lambda rewards: rewards.append(rewards[0]), "6 entries for 5"),
            (lambda rewards: rewards[1].update(index=0), "indices"),
        ],
    )
    def test_a_wrong_answer_never_becomes_a_number(self, wrong: Callable[[Any], None], told: str) -> None:
        scorer = Scorer()

        async def spoilt(body: dict[str, Any]) -> Reply | None:
            answer = scorer.scored(body)
            wrong(answer["rewards"])
            return json_reply(200, answer)

        scorer.before = spoilt
        with remote(scorer, tries=2) as provider, pytest.raises(ScoringError, match=told) as caught:
            provider.score(SAMPLES)
        assert caught.value.rows == frozenset(range(5))
        assert provider.counts["bad_answers"] == 2

    def test_an_answer_to_another_request_is_refused(self) -> None:
        scorer = Scorer(max_items=5)
        scorer.before = replies(json_reply(200, {"id": "other", "rewards": [{"index": i, "reward": 0.0} for i in range(5)]}))
        with remote(scorer) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_a_careless_protocol_is_checked_as_well(self) -> None:
        class Careless(Native):
            def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
                found = super().answer(response, items, server, request_id)
                calls.append(1)
                match len(calls):
                    case 1:
                        return Answer([math.nan] * 5)
                    case 2:
                        return Answer(found.values[:-1])
                    case 3:
                        raise KeyError("absent")
                return found

        calls: list[int] = []
        with remote(Scorer(), protocol=Careless()) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
        assert provider.counts["bad_answers"] == 3

    def test_a_batch_that_is_too_large_is_halved(self) -> None:
        scorer = Scorer()

        async def small(body: dict[str, Any]) -> Reply | None:
            return json_reply(413, {"error": "too large"}) if len(body["samples"]) > 2 else None

        scorer.before = small
        with remote(scorer) as provider:
            assert provider.score(many(8)).values.tolist() == [reward_of(f"Q: {number}") for number in range(8)]
        assert provider.counts["splits"] == 3
        assert provider.counts["retries"] == 0

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_the_sample_at_fault_is_found_and_fails_alone(self, status: int) -> None:
        scorer = Scorer()

        async def picky(body: dict[str, Any]) -> Reply | None:
            bad = any(sample["completion"] == "5" for sample in body["samples"])
            return json_reply(status, {"error": {"message": "token 5 is unknown"}}) if bad else None

        scorer.before = picky
        with remote(scorer) as provider:
            with pytest.raises(ScoringError, match=f"it answered {status}: token 5 is unknown") as caught:
                provider.score(many(16))
            assert caught.value.rows == frozenset({5})
            assert provider.score(many(16), on_error="abstain").failed.sum() == 1

    def test_many_bad_samples_do_not_keep_a_good_one_from_its_score(self) -> None:
        samples = many(300)

        async def before(body: dict[str, Any]) -> Reply | None:
            bad = any(int(sample["completion"]) % 5 == 0 for sample in body["samples"])
            return json_reply(422, {"error": {"message": "it ends in 0 or 5"}}) if bad else None

        scorer = Scorer()
        scorer.before = before
        with remote(scorer, batch_size=32) as provider:
            scores = provider.score(samples, on_error="abstain")
            assert [row for row in range(300) if scores.failed[row]] == list(range(0, 300, 5))

    def test_a_server_that_rejects_everything_is_not_asked_forever(self) -> None:
        scorer = Scorer(max_items=64)

        async def sulky(body: dict[str, Any]) -> Reply | None:
            return json_reply(400, {"error": "no"})

        scorer.before = sulky
        with remote(scorer) as provider, pytest.raises(ScoringError, match=r"400: no .*too many were rejected"):
            provider.score(many(640))
        assert len(scorer.bodies) < 300

    def test_what_cannot_be_sent_fails_alone_and_unsent(self) -> None:
        scorer = Scorer()
        odd = rm.Sample("Q: ", "odd", {"when": object()})
        with remote(scorer) as provider:
            with pytest.raises(ScoringError, match="has no form in JSON") as caught:
                provider.score([*SAMPLES, odd])
            assert caught.value.rows == frozenset({5})
        assert len(scorer.texts) == 5

    def test_a_question_that_is_refused_ends_the_whole_call_at_once(self) -> None:
        scorer = Scorer(max_items=1)
        scorer.before = replies(*[json_reply(404, {"error": "no such path"})] * 99)
        with remote(scorer, concurrency=2) as provider, pytest.raises(ScoringError, match="404: no such path") as caught:
            provider.score(many(50))
        assert caught.value.rows is None
        assert len(scorer.bodies) <= 4

    def test_a_redirect_is_not_followed(self) -> None:
        scorer = Scorer()
        scorer.before = replies((307, {"location": "http://evil.example/v1/rewards?token=1"}, b""))
        with (
            remote(scorer) as provider,
            pytest.raises(ScoringError, match=r"sends us to http://evil.example/v1/rewards\. Redirects are not"),
        ):
            provider.score(SAMPLES)

    def test_a_server_that_does_not_answer_is_given_up_in_time(self) -> None:
        scorer = Scorer()

        async def silent(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(5)
            return None

        scorer.before = silent
        with remote(scorer, timeout=0.1, tries=2) as provider:
            with pytest.raises(ScoringError, match=r"no answer within 0\.1 seconds \(tried 2 times\)"):
                provider.score(SAMPLES)
            assert provider.counts["timeouts"] == 2
            wait_for(lambda: scorer.hung_up >= 2)  # the requests are cut, not left running

    def test_nothing_lasts_longer_than_the_deadline(self) -> None:
        scorer = Scorer(max_items=1)

        async def slow(body: dict[str, Any]) -> Reply | None:
            if body["samples"][0]["completion"] != "a":
                await asyncio.sleep(5)
            return None

        scorer.before = slow
        begun = time.monotonic()
        with remote(scorer, deadline=0.3) as provider:
            scores = provider.score(SAMPLES, on_error="abstain")
        assert time.monotonic() - begun < 2
        assert scores.values[0] == EXPECTED[0]
        assert scores.failed.tolist() == [False, True, True, True, True]

    def test_nobody_there_is_told_at_the_deadline(self) -> None:
        provider = Remote(url="http://127.0.0.1:9", protocol=Native(), deadline=0.2)
        with pytest.raises(ScoringError, match=r"deadline of 0\.2 seconds; last: http://127.0.0.1:9: no connection") as caught:
            provider.score(SAMPLES)
        assert caught.value.rows == frozenset(range(5))
        assert provider.counts["connection_errors"] >= 2

    def test_a_server_that_speaks_no_protocol_is_refused_at_once(self) -> None:
        async def shop(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"welcome"})

        with serving(shop, lifespan="off") as url, pytest.raises(UnsupportedError, match="No protocol knows this server"):
            rm.load(url).score(SAMPLES)

    def test_samples_that_are_too_long_fail_alone_and_so_do_those_that_equal_them(self) -> None:
        renderer = Renderer(make_tokenizer(), replace(Rendering.default(make_tokenizer()), max_length=20, truncation="error"))
        with remote(Scorer(reward=lambda text: 3.0), protocol=Native()) as provider:
            provider.renderer = renderer
            long = rm.Sample("Q: ", "z " * 50)
            with pytest.raises(ScoringError) as caught:
                provider.score([SAMPLES[0], SAMPLES[0], long, SAMPLES[1], long])
            assert sorted(caught.value.rows or ()) == [2, 4]

    def test_a_server_may_be_tried_out_before_it_is_used(self) -> None:
        with remote(FakeVLLM(told={"version": "dev"}), protocol=VLLM()) as provider:
            samples = [rm.Sample("Q: ", text) for text in ("4", "5", "a longer answer")]
            expected = [logit(tokens(f"Q: {sample.completion}")) for sample in samples]
            assert provider.score(samples).values == pytest.approx(expected)


class TestSeveralServers:
    def test_requests_are_spread_over_all(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1)]
        with (
            serving(scorers[0], lifespan="off") as one,
            serving(scorers[1], lifespan="off") as other,
        ):
            provider = Remote(url=[one, other], protocol=Native(), concurrency=2)
            values = provider.score(many(40)).values.tolist()
            provider.close()
        assert values == [reward_of(f"Q: {number}") for number in range(40)]
        assert min(len(scorer.bodies) for scorer in scorers) >= 8

    def test_one_may_be_dead_from_the_start(self) -> None:
        with remote_pair() as (url, dead):
            provider = Remote(url=[dead, url], protocol=Native())
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_one_may_be_lost_in_the_middle(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1)]

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.01)
            return None

        for scorer in scorers:
            scorer.before = slowly
        with serving(scorers[0], lifespan="off") as one, ThreadPoolExecutor(1) as pool:
            with serving(scorers[1], lifespan="off") as other:
                provider = Remote(url=[one, other], protocol=Native(), concurrency=2, deadline=20)
                scoring = pool.submit(provider.score, many(100))
                wait_for(lambda: len(scorers[1].bodies) >= 5)
            assert scoring.result(20).values.tolist() == [reward_of(f"Q: {number}") for number in range(100)]
            provider.close()

    def test_one_that_cannot_be_used_is_left_out_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        async def shop(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"welcome"})

        with serving(shop, lifespan="off") as wrong, serving(Scorer(), lifespan="off") as url:
            provider = Remote(url=[wrong, url], protocol=Native())
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()
        assert f"{wrong} is left out" in caplog.text

    def test_what_failed_on_one_is_tried_on_another_though_that_is_slower(self) -> None:
        broken, slow = Scorer(reward=lambda text: math.nan if "ccc" in text else reward_of(text)), Scorer()

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.3)
            return None

        slow.before = slowly
        with serving(broken, lifespan="off") as one, serving(slow, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), tries=2)
            provider.score(SAMPLES[:2])
            provider.score(SAMPLES[:2])  # which is the quicker one is known now
            assert provider.score(SAMPLES[2:3]).values.tolist() == EXPECTED[2:3]
            provider.close()
        assert "Q: ccc" in broken.texts

    def test_a_second_request_that_cannot_be_sent_does_not_keep_the_first_from_being_tried_again(self) -> None:
        scorer = Scorer()

        async def before(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) > 1:
                return None
            await asyncio.sleep(0.1)
            return json_reply(503, {"error": {"message": "busy"}})

        scorer.before = before
        with remote(scorer, concurrency=1, hedge_after=0.02, deadline=5.0) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_one_that_refuses_is_left_to_the_others(self) -> None:
        refusing, sound = Scorer(), Scorer()

        async def before(body: dict[str, Any]) -> Reply | None:
            return json_reply(404, {"error": {"message": "no such model"}})

        refusing.before = before
        with serving(refusing, lifespan="off") as one, serving(sound, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), batch_size=1)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_a_slow_answer_is_overtaken_by_a_second_request(self) -> None:
        slow, quick = Scorer(), Scorer()

        async def asleep(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(5)
            return None

        with serving(slow, lifespan="off") as one, serving(quick, lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), hedge_after=0.1, concurrency=1)
            while not (slow.bodies and quick.bodies):
                provider.score(many(4))
            slow.bodies.clear()
            slow.before = asleep
            begun = time.monotonic()
            scores = provider.score(SAMPLES)
            wait_for(lambda: slow.hung_up >= len(slow.bodies))
            provider.close()
        assert scores.values.tolist() == EXPECTED
        assert time.monotonic() - begun < 3
        assert provider.counts["hedges"] >= 1
        assert slow.bodies[0]["id"] in [body["id"] for body in quick.bodies]


@contextmanager
def remote_pair() -> Iterator[tuple[str, str]]:
    """The URLs of a server, and of one that was there before."""
    with serving(Scorer(), lifespan="off") as dead:
        pass
    with serving(Scorer(), lifespan="off") as url:
        yield url, dead


class TestFingerprints:
    def test_a_change_between_calls_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        scorer = Scorer()
        with remote(scorer) as provider:
            provider.score(SAMPLES)
            scorer.fingerprint = "model-2"
            provider.score(SAMPLES)
            provider.score(SAMPLES)
        assert provider.counts["model_changed"] == 1
        assert "the model changed from model-1 to model-2" in caplog.text

    def test_a_change_within_a_call_has_all_scored_by_the_new_model(self) -> None:
        scorer = Scorer(max_items=1)

        async def reloaded(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) == 4:
                scorer.fingerprint = "model-2"
                scorer.reward = lambda text: len(text)
            return None

        scorer.before = reloaded
        with remote(scorer, concurrency=1) as provider:
            scores = provider.score(SAMPLES)
        assert scores.values.tolist() == [4, 5, 6, 7, 8]
        assert scores.metadata["fingerprint"] == "model-2"
        assert provider.counts["model_changed"] == 1

    def test_a_change_that_meets_the_deadline_leaves_no_mixture(self) -> None:
        scorer = Scorer(max_items=1)

        async def reloaded(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) == 2:
                scorer.fingerprint = "model-2"
            if len(scorer.bodies) == 3:
                await asyncio.sleep(5)
            return None

        scorer.before = reloaded
        with remote(scorer, concurrency=1, deadline=0.5) as provider:
            with pytest.raises(ScoringError, match="by one model: it changed from model-1 to model-2") as caught:
                provider.score(SAMPLES[:3])
            assert caught.value.rows == frozenset({0, 2})

    def test_servers_that_disagree_are_an_error_that_names_both(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1, fingerprint="model-2")]
        with serving(scorers[0], lifespan="off") as one, serving(scorers[1], lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), concurrency=1)
            with pytest.raises(ScoringError, match=r"Different models answer .*model-[12] and model-[12]"):
                provider.score(many(12))
            provider.close()

    @pytest.mark.parametrize(("served", "told"), [("model-1", "serves the model"), ("", "does not say which model")])
    def test_another_model_than_the_spec_names_is_refused(self, served: str, told: str) -> None:
        with remote(Scorer(fingerprint=served), fingerprint="model-0") as provider, pytest.raises(ScoringError, match=told):
            provider.score(SAMPLES)
        with remote(Scorer(), fingerprint="model-1") as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED


class TestKeys:
    KEY = "sk-do-not-tell"

    @pytest.fixture(autouse=True)
    def key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SCORER_KEY", self.KEY)

    def test_the_key_is_sent_and_kept_nowhere(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "rm_plugins")
        scorer = Scorer()
        scorer.before = replies(json_reply(500, {"error": f"key {self.KEY} crashed"}))
        with serving(scorer, lifespan="off") as url:
            provider = rm.load({"provider": "remote", "url": url, "api_key_env": "SCORER_KEY"})
            provider.score(SAMPLES)
            assert all(headers["authorization"] == f"Bearer {self.KEY}" for headers in scorer.headers)
            told = [caplog.text, repr(provider), str(provider.spec), str(vars(provider)), str(pickle.dumps(provider))]
            assert not any(self.KEY in text for text in told)
            assert "key *** crashed" in caplog.text
            provider.close()

    @pytest.mark.parametrize(
        ("named", "hint"), [("SCORER_KEY", "SCORER_KEY, which `api_key_env`"), (None, "with `api_key_env`")]
    )
    @pytest.mark.parametrize("where", ["asked", "scored"])
    def test_a_refused_key_says_where_it_comes_from(self, named: str | None, hint: str, where: str) -> None:
        scorer = Scorer()
        scorer.before = replies(json_reply(401, {"error": f"{self.KEY} is not a key"}))

        async def locked(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": f"{self.KEY} is not a key".encode()})

        error = UnsupportedError if where == "asked" else ScoringError
        with remote(locked if where == "asked" else scorer, api_key_env=named) as provider:
            with pytest.raises(error, match=hint) as caught:
                provider.score(SAMPLES)
            assert named is None or self.KEY not in str(caught.value)

    def test_an_absent_key_is_told_before_anything_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with remote(Scorer(), api_key_env="SCORER_KEY") as provider:
            monkeypatch.delenv("SCORER_KEY")
            with pytest.raises(ScoringError, match=r"SCORER_KEY.*is not set"):
                provider.score(SAMPLES)
            with pytest.raises(SpecError, match="SCORER_KEY is not set"):
                Remote(url="http://127.0.0.1:9", api_key_env="SCORER_KEY")


class TestSpecs:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"url": "http://me:secret@127.0.0.1:1"}, "api_key_env"),
            ({"url": "127.0.0.1:8000"}, "is not the URL of a server"),
            ({"url": "http://127.0.0.1:8000?key=secret"}, "must end before"),
            ({"url": "http://127.0.0.1:99999"}, "is no URL"),
            ({"url": []}, "at least one URL"),
            ({"url": ["http://a", "http://a/"]}, "one server twice"),
            ({"timeout": 0.0}, "timeout: must be a positive"),
            ({"tries": 0}, "tries: must be at least 1"),
            ({"headers": {"Authorization": "Bearer secret"}}, "no secret belongs into a spec"),
            ({"headers": {"Host": "other"}}, "the client's own affair"),
            ({"headers": {"X-Team": "a\nb"}}, "printable"),
            ({"max_length": 8}, "max_length: nothing is rendered here without a `tokenizer`"),
            ({"ca_file": "absent.pem"}, "ca_file: there is no file"),
            ({"protocol": "vlm"}, "Did you mean 'vllm'"),
        ],
    )
    def test_a_wrong_setting_is_told_at_once_and_without_secrets(self, settings: dict[str, Any], told: str) -> None:
        with pytest.raises((SpecError, LookupError), match=told) as caught:
            rm.load({"provider": "remote", "url": "http://127.0.0.1:8000", **settings})
        assert "secret@" not in str(caught.value)
        assert "=secret" not in str(caught.value)

    def test_headers_are_sent_along(self) -> None:
        scorer = Scorer()
        with remote(scorer, headers={"X-Team": "rewards"}) as provider:
            provider.score(SAMPLES)
        assert {headers["x-team"] for headers in scorer.headers} == {"rewards"}

    def test_a_path_in_the_url_is_kept(self) -> None:
        scorer = Scorer()

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            assert scope["path"].startswith("/rewards/")
            await scorer({**scope, "path": scope["path"].removeprefix("/rewards")}, receive, send)

        with serving(mounted, lifespan="off") as url:
            provider = Remote(url=f"{url}/rewards/", protocol=Native())
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_the_http_client_is_not_imported_before_it_is_needed(self) -> None:
        code = (
            "import sys, rm_plugins as rm; rm.load({'provider': 'constant', 'value': 1.0}); rm.load('http://127.0.0.1:9');"
            "print([name for name in ('httpx2', 'torch', 'fastapi') if name in sys.modules])"
        )
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


class TestProcessesAndThreads:
    def test_an_interrupt_cancels_what_is_under_way(self) -> None:
        scorer = Scorer(max_items=1)

        async def slow(body: dict[str, Any]) -> Reply | None:
            if len(scorer.bodies) <= 5:
                await asyncio.sleep(5)
            return None

        scorer.before = slow
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run in the background was started without
        with remote(scorer) as provider:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                provider.score(SAMPLES)
            wait_for(lambda: scorer.hung_up >= 5)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
        signal.signal(signal.SIGINT, before)

    def test_several_threads_may_score_at_once(self) -> None:
        with remote(Scorer(max_items=2), concurrency=3) as provider, ThreadPoolExecutor(8) as pool:
            batches = [many(16)[start:] for start in range(8)]
            for start, scores in enumerate(pool.map(provider.score, batches)):
                assert scores.values.tolist() == [reward_of(f"Q: {number}") for number in range(start, 16)]
        assert provider.counts["samples"] == sum(map(len, batches))

    def test_all_providers_share_one_thread(self) -> None:
        with remote(Scorer()) as one, remote(Scorer()) as other:
            one.score(SAMPLES)
            other.score(SAMPLES)
            assert [thread.name for thread in threading.enumerate()].count("rm-plugins-remote") == 1

    def test_a_closed_provider_opens_again(self) -> None:
        with remote(Scorer()) as provider:
            provider.score(SAMPLES)
            provider.close()
            provider.close()
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_another_process_has_connections_of_its_own(self, method: Any) -> None:
        scorer = Scorer()
        with remote(scorer) as provider:
            provider.score(SAMPLES)
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.apply(provider.score, (SAMPLES,)).values.tolist() == EXPECTED
                assert provider.score(SAMPLES).values.tolist() == EXPECTED

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_scores_with_the_very_object(self) -> None:
        with remote(Scorer()) as provider:
            provider.score(SAMPLES)
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                try:
                    os.write(writer, json.dumps(provider.score(SAMPLES).values.tolist()).encode())
                finally:
                    os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as file:
                assert json.loads(file.read()) == EXPECTED
            os.waitpid(child, 0)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED


class TestConnections:
    def test_no_proxy_of_the_environment_has_a_part_in_what_is_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        with remote(Scorer()) as provider:
            assert provider.score(SAMPLES).values.tolist() == EXPECTED

    def test_certificates_are_verified(self, tmp_path: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl to make a certificate with")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", "/CN=scorer", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", *subject]
        subprocess.run([openssl, *made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        with serving(Scorer(), lifespan="off", ssl_keyfile=str(key), ssl_certfile=str(certificate)) as url:
            secure = url.replace("http:", "https:")
            with pytest.raises(ScoringError, match=r"certificate cannot be verified .*`ca_file`"):
                Remote(url=secure, protocol=Native()).score(SAMPLES)
            provider = Remote(url=secure, protocol=Native(), ca_file=str(certificate))
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()

    def test_a_server_may_be_restarted_meanwhile(self) -> None:
        first, second = Scorer(max_items=1), Scorer(max_items=2)

        async def slowly(body: dict[str, Any]) -> Reply | None:
            await asyncio.sleep(0.02)
            return None

        first.before = slowly
        with ThreadPoolExecutor(1) as pool:
            with serving(first, lifespan="off") as url:
                provider = Remote(url=url, protocol=Native(), concurrency=2)
                scoring = pool.submit(provider.score, many(60))
                wait_for(lambda: len(first.bodies) >= 10)
            time.sleep(0.2)
            with serving(second, port=int(url.rpartition(":")[2]), lifespan="off"):
                assert scoring.result(20).values.tolist() == [reward_of(f"Q: {number}") for number in range(60)]
                provider.close()
        assert second.questions == 1, "it is asked again what it is"
        assert provider.counts["connection_errors"] >= 1


class Texts(Protocol):
    """Sends nothing but texts or token ids; the score is a digest of what arrives."""

    name = "texts"

    def __init__(self, *, sends: str = "text") -> None:
        self.sends = sends

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        sent = [item.needed_text if self.sends == "text" else str(item.token_ids) for item in items]
        samples = [{"prompt": "", "completion": text} for text in sent]
        return Request("/v1/rewards", {"id": request_id, "samples": samples})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        return Native().answer(response, items, server, request_id)


class TestRendering:
    CHAT = rm.Sample([{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "four"}])

    def test_without_a_tokenizer_text_is_prompt_and_completion_and_a_conversation_fails_alone(self) -> None:
        scorer = Scorer()
        with remote(scorer, protocol=Texts()) as provider:
            with pytest.raises(ScoringError, match="conversation that nothing here can render") as caught:
                provider.score([*SAMPLES, self.CHAT])
            assert caught.value.rows == frozenset({5})
            with pytest.raises(UnsupportedError):
                provider.render(SAMPLES[0])
        assert scorer.texts == [f"Q: {sample.completion}" for sample in SAMPLES]

    def test_with_a_tokenizer_samples_become_the_token_ids_of_its_manifest(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(tmp_path)
        scorer = Scorer()
        with remote(scorer, protocol=Texts(sends="ids"), tokenizer=str(tmp_path), append_eos=False) as provider:
            provider.score([SAMPLES[0], self.CHAT])
            assert provider.render(SAMPLES[0]) == "Q: a"
            again = pickle.loads(pickle.dumps(provider))
            assert again.render(self.CHAT) == provider.render(self.CHAT)
        rendering = Rendering(chat_template="tokenizer", append_eos=False, max_length=None)
        expected, _ = Renderer(tokenizer, rendering).token_ids([SAMPLES[0], self.CHAT])
        assert scorer.texts == [str(tuple(ids)) for ids in expected]

    @pytest.mark.parametrize("adds_bos", [False, True])
    @pytest.mark.parametrize("server_adds", [False, True])
    @pytest.mark.parametrize("append_eos", [False, True])
    def test_a_text_that_is_sent_has_exactly_the_token_ids(self, adds_bos: bool, server_adds: bool, append_eos: bool) -> None:
        tokenizer = make_tokenizer(adds_bos=adds_bos)
        rendering = Rendering(chat_template="tokenizer", append_eos=append_eos, max_length=16)
        renderer = Renderer(tokenizer, rendering)
        samples = [
            *SAMPLES,
            self.CHAT,
            rm.Sample("long ", "words and more words and naïve 東京 words"),
            rm.Sample("", ""),
            RenderedSample.of("as it is"),
            RenderedSample.of([70, 71, 72]),
        ]
        items = SendableSamples(samples, renderer).items(server_adds_special_tokens=server_adds)
        assert [item.sample for item in items] == samples
        assert sum(item.text is not None for item in items) >= 5
        for item in items:
            if item.text is not None:
                found = tokenizer(item.text, add_special_tokens=server_adds)["input_ids"]
                assert tuple(found) == item.token_ids
            else:
                with pytest.raises(DataError, match="no text gives it the token ids"):
                    _ = item.needed_text
        if not adds_bos:
            assert all(item.text is not None for item in items[:6])
