"""What an operator of a server sees and does: keys, metrics, reloads, fingerprints."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import rm_plugins as rm
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server import ServedReward, create_app
from rm_plugins.server.request_log import log_request
from rm_plugins.testing import FixedProvider
from rm_plugins.wire import sample_to_json
from tests.server.conftest import SAMPLES, lengths, metric, problem, rewarded, served, until, values


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
        assert "learns from the samples it scores" in caplog.text

    def test_a_weight_that_would_follow_the_training_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        members = [{"provider": "constant", "value": 1.0}, {"provider": "constant", "value": 2.0}]
        spec = {"provider": "sum", "members": members, "weights": [1.0, 0.5]}
        create_app(rm.load(spec))
        assert not caplog.messages
        create_app(
            rm.load({"provider": "ensemble", "members": [{**spec, "weights": [1.0, {"from": 0.0, "to": 0.5}]}, *members]})
        )
        (said,) = caplog.messages
        assert "'sum' (members[0]) has weights that change during training, but is loaded outside the trainer" in said

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
            assert client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json() == {
                "fingerprint": old,
                "changed": False,
            }
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
            answer = client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()
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
            message = problem(client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}), 500, "failed")
            assert "the previous one stays in use" in message
            assert str(tmp_path) not in message
            assert values(rewarded(client, SAMPLES[:1])) == [1.0]
            spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
            assert client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()["changed"]
            assert values(rewarded(client, SAMPLES[:1])) == [2.0]
            assert metric(client, "reloads_total") == 2
        assert "could not be reloaded" in caplog.text

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
            reloading = pool.submit(client.post, "/v1/reload", headers={"X-RM-Plugins": "reload"})
            until(lambda: client.get("/v1/info").json()["fingerprint"] != reward.fingerprint)
            may.set()
            assert running.result()["fingerprint"] == reward.fingerprint
            assert "only models can score" in problem(taken.result(), 422, "invalid")
            expected = rm.load(str(spec)).score(pair).values.tolist()
            assert [values(found.result()) for found in pairs] == [expected] * 8
            assert reloading.result().json()["changed"]

    def test_what_was_made_in_python_cannot_be_loaded_again(self, simple: httpx2.Client) -> None:
        assert "made in Python" in problem(simple.post("/v1/reload", headers={"X-RM-Plugins": "reload"}), 422, "invalid")


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
