"""What a remote scorer does wrong, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ScoringError, UnsupportedError
from rm_plugins.protocols import VLLM, Answer, Item, Native, Response, ServerFacts
from rm_plugins.providers.remote import Remote
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from tests.conftest import make_tokenizer
from tests.fake_servers import logit, tokens
from tests.fake_servers.vllm import FakeVLLM
from tests.fault_proxy import Reply, Scorer, json_reply, reward_of
from tests.remote.conftest import EXPECTED, SAMPLES, many, remote, replies, wait_for
from tests.servers import serving


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
            provider.score(SAMPLES[:1])
        assert len(scorer.bodies) == 3

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            (lambda rewards: rewards[0].update(reward=math.nan), "must be finite"),
            (lambda rewards: rewards[0].update(reward=math.inf), "must be finite"),
            (lambda rewards: rewards[0].update(reward="0.0"), "a number was expected"),
            (lambda rewards: rewards[0].pop("reward"), "no 'reward'"),
            (lambda rewards: rewards.pop(), "0 entries for 1"),
            (lambda rewards: rewards.append(rewards[0]), "2 entries for 1"),
            (lambda rewards: rewards[0].update(index=1), "indices"),
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
            provider.score(SAMPLES[:1])
        assert caught.value.rows == frozenset({0})
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
        with remote(scorer) as provider, pytest.raises(ScoringError, match=r"400: no .*too many requests were rejected"):
            provider.score(many(640))
        assert len(scorer.bodies) < 300

    def test_what_cannot_be_sent_fails_alone_and_unsent(self) -> None:
        scorer = Scorer()
        odd = rm.Sample("Q: ", "odd", {"when": object()})
        with remote(scorer) as provider:
            with pytest.raises(ScoringError, match="JSON cannot represent") as caught:
                provider.score([*SAMPLES, odd])
            assert caught.value.rows == frozenset({5})
        assert len(scorer.texts) == 5

    def test_a_question_that_is_refused_ends_the_whole_call_at_once(self) -> None:
        scorer = Scorer(max_items=1)
        scorer.before = replies(*[json_reply(404, {"error": "no such path"})] * 99)
        told = "answered 404 to POST /v1/rewards: no such path"
        with remote(scorer, concurrency=2) as provider, pytest.raises(ScoringError, match=told) as caught:
            provider.score(many(50))
        assert caught.value.rows is None
        assert len(scorer.bodies) <= 4

    def test_a_redirect_is_not_followed(self) -> None:
        scorer = Scorer()
        scorer.before = replies((307, {"location": "http://evil.example/v1/rewards?token=1"}, b""))
        with (
            remote(scorer) as provider,
            pytest.raises(ScoringError, match=r"a redirect to http://evil.example/v1/rewards\. Redirects are not"),
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
                await asyncio.sleep(60)
            return None

        scorer.before = slow
        begun = time.monotonic()
        with remote(scorer, deadline=1.0) as provider:
            scores = provider.score(SAMPLES, on_error="abstain")
        assert time.monotonic() - begun < 30
        assert scores.values[0] == EXPECTED[0]
        assert scores.failed.tolist() == [False, True, True, True, True]

    def test_nobody_there_is_told_at_the_deadline(self) -> None:
        provider = Remote(url="http://127.0.0.1:9", protocol=Native(), deadline=0.2)
        with pytest.raises(ScoringError, match=r"deadline of 0\.2 seconds; last: http://127.0.0.1:9: no connection") as caught:
            provider.score(SAMPLES)
        assert caught.value.rows == frozenset(range(5))
        assert provider.counts["connection_errors"] >= 2

    @pytest.mark.parametrize("address", [["http://127.0.0.1:9"], ["http://127.0.0.1:9", "http://no-such-host.invalid:9"]])
    @pytest.mark.parametrize("protocol", [Native(), None])
    def test_a_server_that_never_ran_is_soon_given_up(
        self, address: list[str], protocol: Native | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("rm_plugins.remote.spec_settings.ABSENCE", 0.3)
        provider = Remote(url=address, protocol=protocol)
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(ScoringError, match=r"cannot be used.*Is the server running.*deadline: 600}") as caught:
                provider.score(SAMPLES)
            assert 0.3 <= time.monotonic() - begun < 30  # without it, ten minutes
        assert all(f"{url}: no connection" in str(caught.value) for url in address)
        assert "retrying for 0.3 seconds; to wait longer for a server that is starting, set `deadline`" in caplog.messages[0]

    def test_a_deadline_in_the_spec_and_a_server_that_answered_before_are_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("rm_plugins.remote.spec_settings.ABSENCE", 0.1)
        monkeypatch.setattr("rm_plugins.remote.spec_settings.DEADLINE", 0.6)
        with serving(Scorer(), lifespan="off") as url:
            there = Remote(url=url, protocol=Native())
            assert there.score(SAMPLES).values.tolist() == EXPECTED
        patient = Remote(url="http://127.0.0.1:9", protocol=Native(), deadline=0.6)
        again, pair = Remote(url=url, protocol=Native()), Remote(url=["http://127.0.0.1:9", url], protocol=Native())
        for provider in (there, patient, again, pair):
            caplog.clear()
            with pytest.raises(ScoringError, match=r"no score within the deadline of 0\.6 seconds"):
                provider.score(SAMPLES)
            assert "retrying until the deadline of 0.6 seconds (`deadline` in the spec)" in caplog.text

    def test_a_server_that_speaks_no_protocol_is_refused_at_once(self) -> None:
        async def shop(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"welcome"})

        with serving(shop, lifespan="off") as url, pytest.raises(UnsupportedError, match="No protocol recognizes this server"):
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
