"""Rewards from servers: every sample gets its own score or an error that says why, whatever the server does."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.protocols import Answer, Item, Native, Protocol, Request, Response, ServerFacts
from rm_plugins.providers.remote import Remote
from rm_plugins.remote.items import SendableSamples
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import RenderedSample
from rm_plugins.testing import check_provider
from tests.conftest import make_tokenizer
from tests.fault_proxy import Reply, Scorer, json_reply, reward_of
from tests.remote.conftest import EXPECTED, SAMPLES, many, remote, replies
from tests.servers import serving


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
            with pytest.raises(ScoringError, match="from one model: the model changed from model-1 to model-2") as caught:
                provider.score(SAMPLES[:3])
            assert caught.value.rows == frozenset({0, 2})

    def test_servers_that_disagree_are_an_error_that_names_both(self) -> None:
        scorers = [Scorer(max_items=1), Scorer(max_items=1, fingerprint="model-2")]
        with serving(scorers[0], lifespan="off") as one, serving(scorers[1], lifespan="off") as other:
            provider = Remote(url=[one, other], protocol=Native(), concurrency=1)
            with pytest.raises(ScoringError, match=r"answers with different models: .*model-[12] and model-[12]"):
                provider.score(many(12))
            provider.close()

    @pytest.mark.parametrize(("served", "told"), [("model-1", "serves the model"), ("", "does not report a fingerprint")])
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
        ("named", "hint"), [("SCORER_KEY", "SCORER_KEY, which `api_key_env`"), (None, "api_key_env: NAME")]
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
            ({"url": "http://127.0.0.1:99999"}, "is not a valid URL"),
            ({"url": []}, "at least one URL"),
            ({"url": ["http://a", "http://a/"]}, "the same server twice"),
            ({"timeout": 0.0}, "timeout: must be a positive"),
            ({"tries": 0}, "tries: must be at least 1"),
            ({"headers": {"Authorization": "Bearer secret"}}, "a spec must not contain secrets"),
            ({"headers": {"Host": "other"}}, "the client sets this header itself"),
            ({"headers": {"X-Team": "a\nb"}}, "printable"),
            ({"max_length": 8}, "max_length: this needs a `tokenizer`"),
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


class AddsSpecialTokens(Texts):
    """Sends texts to a server that adds special tokens to them."""

    server_adds_special_tokens = True


class TestRendering:
    CHAT = rm.Sample([{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": "four"}])

    def test_without_a_tokenizer_text_is_prompt_and_completion_and_a_conversation_fails_alone(self) -> None:
        scorer = Scorer()
        with remote(scorer, protocol=Texts()) as provider:
            with pytest.raises(ScoringError, match="conversation and there is no tokenizer to render it") as caught:
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
        items = SendableSamples(samples, renderer).items(
            ServerFacts(AddsSpecialTokens() if server_adds else Texts(), "a server")
        )
        assert [item.sample for item in items] == samples
        assert sum(item.text is not None for item in items) >= 5
        for item in items:
            if item.text is not None:
                found = tokenizer(item.text, add_special_tokens=server_adds)["input_ids"]
                assert tuple(found) == item.token_ids
            else:
                with pytest.raises(DataError, match="no text gives the token ids"):
                    _ = item.needed_text
        if not adds_bos:
            assert all(item.text is not None for item in items[:6])
