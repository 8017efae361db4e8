"""The server as its clients and operators meet it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server import ServedReward, Settings, create_app
from rm_plugins.server.request_log import log_request
from rm_plugins.spec import component
from rm_plugins.testing import FixedProvider
from rm_plugins.wire import sample_to_json
from tests.servers import serving

SAMPLES = [
    Sample("Q: What is 2 + 2?\nA:", " 4"),
    Sample("Q: What is 2 + 2?\nA:", " five, or about that"),
    Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
    Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sea salty?"}], "Rivers."),
    Sample("", "naïve 東京 🙂"),
    Sample("Say nothing.", ""),
]


@contextmanager
def served(reward: rm.Provider | ServedReward, **chosen: Any) -> Iterator[httpx2.Client]:
    """A client of a server of the reward."""
    headers = {"Authorization": f"Bearer {chosen['api_keys'][0]}"} if "api_keys" in chosen else {}
    with (
        serving(create_app(reward, Settings(**chosen))) as url,
        httpx2.Client(base_url=url, timeout=20, headers=headers) as client,
    ):
        yield client


def lengths(sample: Sample) -> float | None:
    return None if sample.completion == "abstain" else float(len(str(sample.completion)))


def rewarded(client: httpx2.Client, samples: Sequence[Sample], **more: Any) -> dict[str, Any]:
    response = client.post("/v1/rewards", json={"samples": [sample_to_json(sample) for sample in samples], **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert [entry["index"] for entry in found["rewards"]] == list(range(len(samples)))
    return found


def values(found: dict[str, Any]) -> list[Any]:
    return [entry["reward"] for entry in found["rewards"]]


def problem(response: httpx2.Response, status: int, cause: str) -> str:
    """The message of an error."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["cause"] == cause
    assert error["request_id"] == response.headers["x-request-id"]
    message: str = error["message"]
    return message


def metric(client: httpx2.Client, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == f"rm_plugins_{name}")


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


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came to that")


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture(scope="module")
def simple() -> Iterator[httpx2.Client]:
    """A client of a server of completions' lengths."""
    with served(FixedProvider(scores=lengths), max_items=8, max_characters=1_000, max_body_bytes=20_000) as client:
        yield client


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
                "the reward failed (ScoringError); the server's log has the reason",
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

    def test_who_leaves_is_not_scored(self, slow: Slow) -> None:
        with served(slow) as client, ThreadPoolExecutor(2) as pool:
            first = pool.submit(rewarded, client, [Sample("", "first")])
            until(lambda: len(slow.batches) == 1)
            url = urlsplit(str(client.base_url))
            with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
                body = json.dumps({"samples": [{"prompt": "", "completion": "left"}]}).encode()
                head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
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
        message = problem(simple.post("/v1/rewards", json={"samples": [{"text": "a"}]}), 422, "invalid")
        assert "only a model can" in message

    def test_limits(self, simple: httpx2.Client) -> None:
        sample = {"prompt": "", "completion": "x"}
        rewarded(simple, [Sample("", "x")] * 8)
        assert "at most 8" in problem(simple.post("/v1/rewards", json={"samples": [sample] * 9}), 413, "too-large")
        long = {"samples": [sample, {"prompt": "", "completion": "x" * 1_001}]}
        assert "item 1 has 1,001 characters" in problem(simple.post("/v1/rewards", json=long), 413, "too-large")
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
            (b"{", "no JSON"),
            (b'{"samples": NaN}', "NaN is no number"),
            (b'{"samples": [{"prompt": "", "completion": "", "columns": {"a": -Infinity}}]}', "-Infinity is no number"),
            (b'{"samples": ' + b"9" * 5_000 + b"}", ""),
            (b"[" * 100_000, ""),
            (b'{"samples": ' + b'{"a": ' * 50_000, ""),
            (b'{"samples": ["\xff\xfe"]}', "no UTF-8"),
            (b'{"samples": [{"prompt": "", "completion": "\xed\xa0\x80"}]}', "no UTF-8"),
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
        assert simple.post("/v1/rewards", content=b"{}", headers={"content-type": "text/plain"}).status_code == 422

    def test_a_fault_of_the_server_is_told_without_its_inside(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(FixedProvider(scores=lengths))

        async def broken(samples: object) -> None:
            raise KeyError("/srv/secret")

        monkeypatch.setattr(app.state.service, "render", broken)
        with serving(app) as url:
            response = httpx2.post(f"{url}/v1/render", json={"samples": []})
        assert problem(response, 500, "failed") == "the server failed (KeyError); its log has the reason"
        assert "/srv/secret" in caplog.text

    def test_a_hook_that_fails_is_the_servers_fault(self, caplog: pytest.LogCaptureFixture) -> None:
        def rm_scored() -> None:
            raise DataError("/srv/secret")

        registry = rm.Registry([SimpleNamespace(__name__="theirs", rm_scored=rm.hookimpl(rm_scored))])
        with served(rm.load({"provider": "constant", "value": 1.0}, registry=registry)) as client:
            response = client.post("/v1/rewards", json={"samples": [sample_to_json(SAMPLES[0])]})
        assert problem(response, 500, "failed") == "the reward failed (PluginError); the server's log has the reason"
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


class TestKeys:
    def test_scoring_asks_for_a_key_and_watching_does_not(self) -> None:
        with served(FixedProvider(scores=lengths), api_keys=["first", "second"]) as client:
            rewarded(client, [Sample("", "x")])
            del client.headers["authorization"]
            body: dict[str, Any] = {"samples": []}
            for header in (
                b"",
                b"Bearer",
                b"Bearer wrong",
                b"first",
                b"Basic first",
                b"Bearer first second",
                b"Bearer f\xefrst",
            ):
                response = client.post("/v1/rewards", json=body, headers={b"Authorization": header})
                problem(response, 401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/rewards", json=body, headers={"Authorization": "bearer second"}).status_code == 200
            for path in ("/v1/info", "/v1/render", "/v1/reload", "/unknown"):
                problem(client.post(path) if path != "/v1/info" else client.get(path), 401, "unauthorized")
            assert client.post("/classify", json={"input": "x"}).status_code == 401
            for path in ("/health", "/ready", "/metrics", "/openapi.json", "/"):
                assert client.get(path).status_code == 200

    def test_a_problem_is_told_in_the_dialect_of_its_path(self) -> None:
        with served(FixedProvider(scores=lengths), api_keys=["key"]) as client:
            del client.headers["authorization"]
            assert client.post("/classify", json={"input": "x"}).json() == {"error": "Unauthorized"}
            assert set(client.post("/predict", json={"inputs": "x"}).json()) == {"error", "error_type"}


class TestWatching:
    def test_every_request_has_an_id(self, simple: httpx2.Client) -> None:
        assert simple.get("/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
        for bad in ("", "x" * 129, "with space"):
            made = simple.get("/health", headers={"X-Request-ID": bad}).headers["x-request-id"]
            assert len(made) == 32

    def test_every_request_is_a_line_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger=log_request.__module__)
        with served(FixedProvider(scores=lengths), api_keys=["very-secret"]) as client:
            rewarded(client, [Sample("private prompt", "private completion")] * 2)
            client.post("/v1/rewards", json={"samples": "private"})
        first, second = [record.fields for record in caplog.records if hasattr(record, "fields")]
        assert first.items() >= {"dialect": "rm-plugins", "samples": 2, "status": 200, "client": "127.0.0.1#key1"}.items()
        assert {"request_id", "tokens", "queue_ms", "score_ms", "ms", "path", "method"} <= set(first)
        assert (second["status"], second["cause"]) == (422, "invalid")
        written = [record.getMessage() for record in caplog.records if hasattr(record, "fields")]
        assert not any("private" in line or "very-secret" in line for line in written)

    def test_the_metrics(self) -> None:
        with served(FixedProvider(scores=lengths)) as client:
            rewarded(client, [Sample("", "x"), Sample("", "abstain")])
            client.post("/v1/rewards", json={})
            until(lambda: metric(client, "errors_total") == 1)  # it is counted behind the answer
            text = client.get("/metrics").text
            assert 'rm_plugins_errors_total{cause="invalid",dialect="rm-plugins"} 1.0' in text
            assert 'rm_plugins_answers_total{dialect="rm-plugins",status="200"}' in text
            fingerprint = client.get("/v1/info").json()["fingerprint"]
            assert f'rm_plugins_model_info{{fingerprint="{fingerprint}",model="fixed"}} 1.0' in text
            for name, expected in {"samples_total": 2, "abstentions_total": 1, "failures_total": 0, "queue_items": 0}.items():
                assert metric(client, name) == expected
            for name in ("request_seconds_bucket", "queue_seconds_bucket", "batch_fill_bucket", "batch_samples_bucket"):
                assert f"rm_plugins_{name}" in text

    def test_two_apps_count_for_themselves(self) -> None:
        with served(FixedProvider(scores=lengths)) as one, served(FixedProvider(scores=lengths)) as other:
            rewarded(one, [Sample("", "x")])
            assert (metric(one, "samples_total"), metric(other, "samples_total")) == (1, 0)

    def test_a_reward_that_learns_from_its_clients_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        create_app(rm.load({"provider": "constant", "value": 1.0, "transform": {"name": "zscore", "running": True}}))
        assert "learns from what it scores" in caplog.text

    def test_the_description_is_whole(self, simple: httpx2.Client) -> None:
        found = simple.get("/openapi.json").json()
        assert {"/v1/rewards", "/v1/info", "/v1/render", "/v1/reload", "/health", "/classify"} <= set(found["paths"])
        example = found["components"]["schemas"]["RewardsRequest"]["examples"][0]
        assert simple.post("/v1/rewards", json=example).json()["id"] == example["id"]
        assert simple.get("/docs").status_code == 404


def change_weights(folder: Path, by: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["score.weight"] += by
    save_file(tensors, path, {"format": "pt"})


class TestReload:
    def test_other_weights_take_over_without_a_request_lost(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        (before,) = rm.load(folder).score(SAMPLES[:1]).values
        with served(ServedReward.load(str(folder))) as client, ThreadPoolExecutor(8) as pool:
            old = client.get("/v1/info").json()["fingerprint"]
            assert client.post("/v1/reload").json() == {"fingerprint": old, "changed": False}
            change_weights(folder, 0.25)
            (after,) = rm.load(folder).score(SAMPLES[:1]).values
            ending = threading.Event()

            def send() -> list[tuple[str, float]]:
                found = []
                while not ending.is_set():
                    answer = rewarded(client, SAMPLES[:1])
                    found.append((answer["fingerprint"], answer["rewards"][0]["reward"]))
                return found

            sending = [pool.submit(send) for _ in range(4)]
            answer = client.post("/v1/reload").json()
            new = answer["fingerprint"]
            assert answer["changed"] and new != old
            rewarded(client, SAMPLES[:1])
            ending.set()
            expected = {old: before, new: after}
            seen = [pair for task in sending for pair in task.result()]
            assert {fingerprint for fingerprint, _ in seen} <= {old, new}
            for fingerprint, value in seen:
                assert value == pytest.approx(expected[fingerprint], abs=1e-4)
            assert rewarded(client, SAMPLES[:1])["fingerprint"] == new
            assert f'model_info{{fingerprint="{old}",model="{folder.name}"}} 0.0' in client.get("/metrics").text

    def test_a_spec_that_cannot_be_loaded_changes_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        spec = tmp_path / "reward.yaml"
        spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
        with served(ServedReward.load(str(spec))) as client:
            spec.write_text("{provider: constant, value: [}", encoding="utf-8")
            message = problem(client.post("/v1/reload"), 500, "failed")
            assert "the earlier one goes on" in message
            assert str(tmp_path) not in message
            assert values(rewarded(client, SAMPLES[:1])) == [1.0]
            spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
            assert client.post("/v1/reload").json()["changed"]
            assert values(rewarded(client, SAMPLES[:1])) == [2.0]
            assert metric(client, "reloads_total") == 2
        assert "could not be loaded again" in caplog.text

    def test_requests_that_waited_are_for_the_new_reward_to_take(
        self, tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = tmp_path / "reward.yaml"
        spec.write_text(f"{{provider: sequence-classifier, model: {tiny_decoder()}}}", encoding="utf-8")
        reward = ServedReward.load(str(spec))
        provider, may, began = reward.provider, threading.Event(), threading.Event()
        score_batch = provider.score_batch

        def slowly(samples: Sequence[Sample]) -> Scores:
            began.set()
            assert may.wait(10)
            return score_batch(samples)

        monkeypatch.setattr(provider, "score_batch", slowly)
        # Its scores are ranks within a request from now on, and it takes no rendered texts.
        spec.write_text("{provider: length-window, low: 2, soft: 4, transform: rank-in-group}", encoding="utf-8")
        pair = [Sample("Q", ""), Sample("Q", "aaa")]
        with served(reward) as client, ThreadPoolExecutor(16) as pool:
            running = pool.submit(rewarded, client, SAMPLES[:1])
            assert began.wait(10)
            taken = pool.submit(client.post, "/v1/rewards", json={"samples": [{"text": "a"}]})
            pairs = [pool.submit(rewarded, client, pair) for _ in range(8)]
            until(lambda: metric(client, "queue_items") == 17)
            reloading = pool.submit(client.post, "/v1/reload")
            until(lambda: client.get("/v1/info").json()["fingerprint"] != reward.fingerprint)
            may.set()
            assert running.result()["fingerprint"] == reward.fingerprint
            assert "only a model can" in problem(taken.result(), 422, "invalid")
            expected = rm.load(str(spec)).score(pair).values.tolist()
            assert [values(found.result()) for found in pairs] == [expected] * 8
            assert reloading.result().json()["changed"]

    def test_what_was_made_in_python_cannot_be_loaded_again(self, simple: httpx2.Client) -> None:
        assert "made in Python" in problem(simple.post("/v1/reload"), 422, "invalid")


class TestAServerBehindTheServer:
    def test_is_waited_for_by_several_batches_and_keeps_its_headers_to_itself(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        expected = rm.load(folder).score(SAMPLES).values
        with served(rm.load(folder)) as behind:
            spec = {"provider": "remote", "url": str(behind.base_url), "headers": {"X-Secret": "very-secret"}}
            with served(ServedReward.load(spec)) as client, ThreadPoolExecutor(8) as pool:
                for found in pool.map(lambda _: rewarded(client, SAMPLES), range(8)):
                    np.testing.assert_allclose(values(found), expected, rtol=0, atol=1e-4)
                info = client.get("/v1/info")
                assert info.json()["spec"]["headers"] == "<hidden>"
                assert info.json()["rendered"] is False
                rendered = client.post("/v1/render", json={"samples": [sample_to_json(SAMPLES[0])]})
                assert rendered.json() == {"renderings": [[]]}

    def test_its_tokens_are_counted_where_they_are_made(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        with served(rm.load(folder)) as behind:
            spec = {"provider": "remote", "url": str(behind.base_url), "tokenizer": str(folder)}
            with served(ServedReward.load(spec)) as client, ThreadPoolExecutor(8) as pool:
                tokens = [rewarded(behind, [sample])["usage"]["tokens"] for sample in SAMPLES]
                assert [found["usage"]["tokens"] for found in pool.map(lambda one: rewarded(client, [one]), SAMPLES)] == tokens
                assert values(rewarded(client, [RenderedSample.of([5, 6])])) == values(
                    rewarded(behind, [RenderedSample.of([5, 6])])
                )


class TestFingerprint:
    def test_is_of_the_weights_and_not_of_their_place(self, tiny_decoder: Any, tmp_path: Path) -> None:
        folder = tiny_decoder()
        first = ServedReward.load(str(folder)).fingerprint
        shutil.copytree(folder, tmp_path / "moved")
        assert ServedReward.load(str(tmp_path / "moved")).fingerprint == first
        change_weights(tmp_path / "moved", 1e-3)
        assert ServedReward.load(str(tmp_path / "moved")).fingerprint != first

    @pytest.mark.parametrize(
        "change",
        [{"max_length": 8}, {"append_eos": False}, {"transform": {"name": "scale", "factor": 2.0}}, {"dtype": "bfloat16"}],
        ids=str,
    )
    def test_is_of_all_that_changes_the_score(self, change: dict[str, Any], tiny_decoder: Any) -> None:
        spec = {"provider": "sequence-classifier", "model": str(tiny_decoder())}
        assert ServedReward.load(spec | change).fingerprint != ServedReward.load(spec).fingerprint
        assert (
            ServedReward.load(spec | {"label": "other", "max_batch_tokens": 64}).fingerprint
            == ServedReward.load(spec).fingerprint
        )

    def test_a_file_counts_by_what_is_in_it(self, tmp_path: Path) -> None:
        inner = {"provider": "constant", "value": 1.0}
        spec = {"provider": "cached", "reward": inner, "path": str(tmp_path / "scores.sqlite")}
        first = ServedReward.load(spec)
        asyncio.run(asyncio.to_thread(first.provider.score, SAMPLES))
        assert ServedReward.load(spec).fingerprint == first.fingerprint
        assert ServedReward.load(spec | {"version": "2"}).fingerprint != first.fingerprint
