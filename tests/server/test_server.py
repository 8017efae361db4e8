"""The server as its clients and operators meet it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server import create_app
from rm_plugins.spec import component
from rm_plugins.testing import FixedProvider
from rm_plugins.wire import sample_to_json
from tests.server.conftest import SAMPLES, lengths, metric, problem, rewarded, served, until, values
from tests.servers import serving


class Slow(rm.Provider):
    """Scores a text's length, once it may."""

    name = "slow"

    def __init__(self) -> None:
        self.may = threading.Event()
        self.batches: list[list[str]] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        self.batches.append([str(sample.completion) for sample in samples])
        assert self.may.wait(10)
        if any(sample.completion == "poison" for sample in samples):
            raise RuntimeError("poison, at /srv/secret/place.py")
        if any(sample.completion == "unreadable" for sample in samples):
            raise DataError("it cannot be read")
        return Scores(np.array([float(len(sample.completion)) for sample in samples]))


@pytest.fixture
def slow() -> Slow:
    return Slow()


class TestRewards:
    def test_are_those_of_the_same_reward_in_process(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        expected = [rm.load(folder).score([sample]).values[0] for sample in SAMPLES]
        with served(rm.load(folder)) as client, ThreadPoolExecutor(16) as pool:
            orders = [np.random.default_rng(seed).permutation(len(SAMPLES)) for seed in range(48)]
            answers = pool.map(lambda order: rewarded(client, [SAMPLES[row] for row in order]), orders)
            for order, found in zip(orders, answers, strict=True):
                np.testing.assert_allclose(values(found), np.array(expected)[order], rtol=0, atol=1e-4)
                assert found["usage"]["samples"] == len(SAMPLES)
            assert metric(client, "batch_samples_count") < len(orders)  # several requests shared a batch
            assert metric(client, "samples_total") == len(orders) * len(SAMPLES)

    def test_tokens_are_counted_for_each_request(self, tiny_decoder: Any) -> None:
        reward: Any = rm.load(tiny_decoder(positions=16))
        ids = reward.renderer.untruncated_ids(SAMPLES)
        with served(reward) as client, ThreadPoolExecutor(8) as pool:
            for found, sample, row in zip(
                pool.map(lambda sample: rewarded(client, [sample, sample]), SAMPLES), SAMPLES, ids, strict=True
            ):
                cut = len(row) > 16
                assert found["usage"] == {"samples": 2, "tokens": 2 * min(16, len(row)), "truncated": 2 * cut}, sample

    def test_abstentions_failures_and_details_are_told_apart(self, slow: Slow) -> None:
        slow.may.set()
        spec = {
            "provider": "ensemble",
            "members": [FixedProvider(scores=lengths), slow],
            "quorum": 1,
        }
        with served(FixedProvider(scores=lengths)) as client:
            found = rewarded(client, [Sample("", "abc"), Sample("", "abstain")], id="mine")
            assert found["rewards"] == [{"index": 0, "reward": 3.0}, {"index": 1, "reward": None}]
            assert found["id"] == "mine"
        with served(slow) as client:
            found = rewarded(client, [Sample("", "ab"), Sample("", "poison"), Sample("", "unreadable")])
            assert [entry.get("error") for entry in found["rewards"]] == [
                None,
                "the reward failed (ScoringError); see the server's log for the reason",
                "it cannot be read",
            ]
            assert values(found) == [2.0, None, None]
        with served(rm.load(spec)) as client:
            found = rewarded(client, [Sample("", "ab"), Sample("", "abstain")])
            assert found["details"]["member/0"] == [2.0, None]
            assert found["details"]["member/1"] == [2.0, 7.0]
            assert rewarded(client, [Sample("", "ab")], details=False)["details"] == {}

    def test_an_empty_request_has_an_empty_answer(self, simple: httpx2.Client) -> None:
        assert values(rewarded(simple, [])) == []

    def test_one_clients_poison_changes_no_others_rewards(self, slow: Slow) -> None:
        texts = ["a", "bb", "poison", "cccc", "unreadable", "dd"]
        with served(slow) as client, ThreadPoolExecutor(8) as pool:
            first = pool.submit(rewarded, client, [Sample("", "first")])
            until(lambda: len(slow.batches) == 1)
            found = [
                pool.submit(client.post, "/v1/rewards", json={"samples": [{"prompt": "", "completion": text}]})
                for text in texts
            ]
            until(lambda: metric(client, "queue_items") == len(texts))
            slow.may.set()
            assert values(first.result()) == [5.0]
            for text, answer in zip(texts, found, strict=True):
                response = answer.result()
                if text == "poison":
                    assert "/srv/secret" not in problem(response, 500, "failed")
                elif text == "unreadable":
                    assert response.json()["rewards"] == [{"index": 0, "reward": None, "error": "it cannot be read"}]
                else:
                    assert values(response.json()) == [float(len(text))]
            assert sorted(slow.batches[1]) == sorted(texts)  # they did share a batch

    def test_scores_that_depend_on_their_batch_are_of_their_request_alone(self) -> None:
        reward = FixedProvider(scores=lengths)
        reward.transform = component("transform", "rank-in-group")
        alone = reward.score([Sample("Q", "a"), Sample("Q", "bbb")]).values.tolist()
        with served(reward) as client, ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda _: rewarded(client, [Sample("Q", "a"), Sample("Q", "bbb")]), range(16))
            assert all(values(found) == alone for found in answers)
            assert client.get("/v1/info").json()["compares"] is True

    def test_who_leaves_is_not_scored(self, slow: Slow) -> None:
        with served(slow) as client, ThreadPoolExecutor(2) as pool:
            first = pool.submit(rewarded, client, [Sample("", "first")])
            until(lambda: len(slow.batches) == 1)
            url = urlsplit(str(client.base_url))
            with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
                body = json.dumps({"samples": [{"prompt": "", "completion": "left"}]}).encode()
                kind = "Content-Type: application/json"
                head = f"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                until(lambda: metric(client, "queue_items") == 1)
            until(lambda: metric(client, "queue_items") == 0)
            slow.may.set()
            first.result()
            rewarded(client, [Sample("", "last")])
            assert slow.batches == [["first"], ["last"]]
            assert 'status="499"' in client.get("/metrics").text

    def test_more_than_may_wait_is_refused_and_what_was_accepted_is_answered(self, slow: Slow) -> None:
        with served(slow, max_queue_items=4) as client, ThreadPoolExecutor(32) as pool:
            first = pool.submit(rewarded, client, [Sample("", "first")])
            until(lambda: len(slow.batches) == 1)

            def send(number: int) -> httpx2.Response:
                return client.post("/v1/rewards", json={"samples": [{"prompt": "", "completion": "x" * number}]})

            others = [pool.submit(send, number) for number in range(1, 21)]
            until(lambda: sum(other.done() for other in others) == 16)
            slow.may.set()
            assert values(first.result()) == [5.0]
            responses = [other.result() for other in others]
            accepted = [number for number, response in enumerate(responses, start=1) if response.status_code == 200]
            assert len(accepted) == 4
            for number, response in enumerate(responses, start=1):
                if number in accepted:
                    assert values(response.json()) == [float(number)]
                else:
                    problem(response, 429, "overload")
                    assert 1 <= int(response.headers["retry-after"]) <= 60
            assert metric(client, "errors_total") == 16


class TestWhatIsTaken:
    def test_models_take_texts_and_token_ids_as_they_are(self, tiny_decoder: Any) -> None:
        reward: Any = rm.load(tiny_decoder(positions=32))
        samples: list[Sample] = [
            RenderedSample.of("<|start|>user\n2+2?<|end|>\n", add_special_tokens=False),
            RenderedSample.of("rivers"),
            RenderedSample.of([5, 6, 7, 8]),
        ]
        expected = reward.score(samples).values
        with served(reward) as client:
            assert client.get("/v1/info").json()["rendered"] is True
            np.testing.assert_allclose(values(rewarded(client, samples)), expected, rtol=0, atol=1e-4)
            size = reward.model.get_input_embeddings().num_embeddings
            for ids, why in (([size], f"above {size - 1}"), ([5] * 33, "at most 32"), ([10**30], "above")):
                assert why in problem(client.post("/v1/rewards", json={"samples": [{"token_ids": ids}]}), 422, "invalid")
            rewarded(client, [RenderedSample.of([size - 1] * 32)])

    def test_other_rewards_take_no_rendered_ones(self, simple: httpx2.Client) -> None:
        assert simple.get("/v1/info").json()["rendered"] is False
        assert simple.get("/v1/info").json()["compares"] is False
        message = problem(simple.post("/v1/rewards", json={"samples": [{"text": "a"}]}), 422, "invalid")
        assert "only models can score" in message

    def test_limits(self, simple: httpx2.Client) -> None:
        sample = {"prompt": "", "completion": "x"}
        rewarded(simple, [Sample("", "x")] * 8)
        assert "at most 8" in problem(simple.post("/v1/rewards", json={"samples": [sample] * 9}), 413, "too-large")
        long = {"prompt": "", "completion": "x" * 1_001}
        answer = simple.post("/v1/rewards", json={"samples": [sample, long]}).json()["rewards"]
        assert answer == [
            {"index": 0, "reward": 1.0},
            {"index": 1, "reward": None, "error": "It has 1,001 characters; the limit is 1,000."},
        ]
        told = problem(simple.post("/v1/rewards", json={"samples": [long]}), 422, "invalid")
        assert told == "item 0: It has 1,001 characters; the limit is 1,000."
        whole = json.dumps({"samples": [{**sample, "prompt": "x" * 20_000}]}).encode()
        headers = {"content-type": "application/json"}
        told = problem(simple.post("/v1/rewards", content=whole, headers=headers), 413, "too-large")
        assert told.startswith("the body is longer than 20,000 bytes")

        def chunks() -> Iterator[bytes]:  # without a Content-Length
            for start in range(0, len(whole), 5_000):
                yield whole[start : start + 5_000]

        assert problem(simple.post("/v1/rewards", content=chunks(), headers=headers), 413, "too-large") == told
        assert values(rewarded(simple, [Sample("", "still there")])) == [11.0]

    @pytest.mark.parametrize(
        ("body", "why"),
        [
            (b"", "body: Field required"),
            (b"null", "body"),
            (b"[]", "body"),
            (b"{", "not valid JSON"),
            (b'{"samples": NaN}', "NaN is not a JSON number"),
            (b'{"samples": [{"prompt": "", "completion": "", "columns": {"a": -Infinity}}]}', "-Infinity is not a JSON number"),
            (b'{"samples": ' + b"9" * 5_000 + b"}", ""),
            (b"[" * 100_000, ""),
            (b'{"samples": ' + b'{"a": ' * 50_000, ""),
            (b'{"samples": ["\xff\xfe"]}', "not valid UTF-8"),
            (b'{"samples": [{"prompt": "", "completion": "\xed\xa0\x80"}]}', "not valid UTF-8"),
            (b'{"samples": [{"prompt": "", "completion": "\\ud83d"}]}', "surrogate"),
            (b'{"samples": [{"prompt": "", "completion": ""}], "\\udc00": 1}', "surrogate"),
            (b'{"samples": [{"prompt": "", "completion": "", "columns": {"\\uDEAD": 1}}]}', "surrogate"),
            (b'{"samples": {}}', "body.samples"),
            (b'{"samples": [1]}', "body.samples[0]"),
            (b'{"samples": [{}]}', "samples[0]"),
            (b'{"samples": [{"prompt": 1, "completion": ""}]}', "samples[0]"),
            (b'{"samples": [{"prompt": "", "completion": "", "columns": [1]}]}', "columns"),
            (b'{"samples": [{"prompt": [{"role": []}], "completion": ""}]}', "samples[0]"),
            (b'{"samples": [{"token_ids": []}]}', "samples[0]"),
            (b'{"samples": [{"token_ids": [1.5]}]}', "samples[0]"),
            (b'{"samples": [], "unknown": 1}', "body.unknown"),
            (b'{"samples": [], "id": 7}', "body.id"),
        ],
    )
    def test_a_body_that_is_not_right_is_the_clients_fault(self, body: bytes, why: str, simple: httpx2.Client) -> None:
        response = simple.post("/v1/rewards", content=body[:19_000], headers={"content-type": "application/json"})
        message = problem(response, 422, "invalid")
        assert why in message
        assert len(message) < 700

    def test_texts_of_any_characters_are_scored(self, simple: httpx2.Client) -> None:
        texts = ["\x00null\x00", "🙂", "NaN and Infinity", "\\ud83d", "\u202e", "\uffff"]
        assert values(rewarded(simple, [Sample("", text) for text in texts])) == [float(len(text)) for text in texts]

    def test_a_client_brings_no_program(self, tiny_decoder: Any) -> None:
        with served(rm.load(tiny_decoder())) as client:
            for kwargs, status in (({"chat_template": "{{ 1 }}"}, 422), ({"closing": "!"}, 200), (7, 422)):
                conversation = sample_to_json(SAMPLES[2]) | {"columns": {"chat_template_kwargs": kwargs}}
                assert client.post("/v1/rewards", json={"samples": [conversation]}).status_code == status

    def test_what_no_path_takes(self, simple: httpx2.Client) -> None:
        problem(simple.get("/nowhere"), 404, "not-found")
        response = simple.get("/v1/rewards")
        problem(response, 405, "invalid")
        assert response.headers["allow"] == "POST"
        assert simple.head("/v1/rewards").status_code == 405
        assert simple.post("/v1/rewards", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415

    def test_a_fault_of_the_server_is_told_without_its_inside(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(FixedProvider(scores=lengths))

        async def broken(samples: object) -> None:
            raise KeyError("/srv/secret")

        monkeypatch.setattr(app.state.service, "render", broken)
        with serving(app) as url:
            response = httpx2.post(f"{url}/v1/render", json={"samples": []})
        assert problem(response, 500, "failed") == "the server failed (KeyError); see its log for the reason"
        assert "/srv/secret" in caplog.text

    def test_a_hook_that_fails_is_the_servers_fault(self, caplog: pytest.LogCaptureFixture) -> None:
        def rm_scored() -> None:
            raise DataError("/srv/secret")

        registry = rm.Registry([SimpleNamespace(__name__="theirs", rm_scored=rm.hookimpl(rm_scored))])
        with served(rm.load({"provider": "constant", "value": 1.0}, registry=registry)) as client:
            response = client.post("/v1/rewards", json={"samples": [sample_to_json(SAMPLES[0])]})
        assert problem(response, 500, "failed") == "the reward failed (PluginError); see the server's log for the reason"
        assert "The plug-in 'theirs' failed in its hook rm_scored" in caplog.text


class TestRendering:
    def test_what_the_models_are_given(self, tiny_decoder: Any, tiny_encoder: Any) -> None:
        decoder, encoder = tiny_decoder(positions=16), tiny_encoder()
        members = [str(decoder), str(encoder), {"provider": "sequence-classifier", "model": str(decoder), "label": "again"}]
        reward = rm.load({"provider": "ensemble", "members": members})
        with served(reward) as client:
            response = client.post("/v1/render", json={"samples": [sample_to_json(sample) for sample in SAMPLES[:3]]})
            renderings = response.json()["renderings"]
        assert [len(entries) for entries in renderings] == [2, 2, 2]  # the third model makes the same of them as the first
        for sample, (first, second) in zip(SAMPLES, renderings, strict=False):
            model: Any = rm.load(decoder)
            (ids,), truncated = model.renderer.token_ids([sample])
            assert (first["text"], first["token_ids"], first["truncated"]) == (model.render(sample), ids, bool(truncated))
            assert first["tokens"] == model.renderer.tokenizer.convert_ids_to_tokens(ids)
            assert (first["path"], second["path"]) == ("members[0]", "members[1]")

    def test_what_is_rendered_by_nobody(self, simple: httpx2.Client) -> None:
        assert simple.post("/v1/render", json={"samples": [{"prompt": "", "completion": ""}]}).json() == {"renderings": [[]]}
