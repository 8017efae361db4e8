"""What a client of another server relies on before any score: the model's name, and the reason why a body is not read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rm_plugins.server import ServedReward, Settings, create_app
from rm_plugins.testing import FixedProvider
from tests.server.conftest import lengths, served
from tests.servers import serving

SENTENCES = {"inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": ["one"]}]}


def accepts(client: httpx2.Client, name: str) -> set[int]:
    """The statuses that requests for a model of this name are answered with, in every shape that names models."""
    bodies: dict[str, dict[str, Any]] = {
        "/classify": {"input": "one"},
        "/pooling": {"input": "one"},
        "/score": {"text_1": "one", "text_2": "two"},
        "/v1/rerank": {"query": "one", "documents": ["two"]},
    }
    answers = [client.post(path, json={**body, "model": name}) for path, body in bodies.items()]
    answers.append(client.post(f"/v2/models/{name}/infer", json=SENTENCES))
    answers.append(client.get(f"/v2/models/{name}"))
    statuses = {answer.status_code for answer in answers}
    ready = client.get(f"/v2/models/{name}/ready").status_code  # 400 for a name that is not known, as Triton
    return statuses | {404 if ready == 400 else ready}


class TestNames:
    @pytest.mark.parametrize("called", ["/models/rm", "owner/rm", "rm.yaml", "rewards:length"])
    def test_the_model_is_called_what_the_spec_was_called(self, called: str) -> None:
        with served(ServedReward(FixedProvider(scores=lengths), called)) as client:
            names = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
            assert names == ["fixed", called]
            assert {entry["root"] for entry in client.get("/v1/models").json()["data"]} == {called}
            for name in names:
                assert accepts(client, name) == {200}
            for name in ("other", called.upper(), f"{called}/", f"/{called}"):
                assert accepts(client, name) == {404}
            told = client.post("/classify", json={"input": "one", "model": "other"}).json()["error"]
            assert told["message"] == f"the model 'other' does not exist; this server has 'fixed' or {called!r}"
            assert told["type"] == "NotFoundError"

    def test_a_folder_is_called_by_its_path_and_by_its_name(self, tiny_decoder: Callable[[], Path]) -> None:
        folder = tiny_decoder()
        for source in (str(folder), folder, {"provider": "sequence-classifier", "model": str(folder)}):
            with served(ServedReward.load(source)) as client:
                assert accepts(client, str(folder)) == accepts(client, folder.name) == {200}

    def test_a_model_in_a_file_is_called_by_the_file_and_by_its_own_path(
        self, tiny_decoder: Callable[[], Path], tmp_path: Path
    ) -> None:
        folder, file = tiny_decoder(), tmp_path / "spec.yaml"
        file.write_text(f"provider: sequence-classifier\nmodel: {folder}\n")
        with served(ServedReward.load(file)) as client:
            assert accepts(client, str(folder)) == accepts(client, str(file)) == accepts(client, folder.name) == {200}

    @pytest.mark.parametrize(("label", "called"), [("", "helpful"), ("label: polite\n", "polite")])
    def test_a_combination_in_a_file_is_called_by_the_file_unless_it_has_a_label(
        self, label: str, called: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "helpful.yaml"
        file.write_text(f"provider: sum\nmembers: [{{provider: constant, value: 1}}]\n{label}")
        reward = ServedReward.load(file)
        assert reward.provider.label == (called if label else "sum"), "trainers' metrics keep their names"
        with served(reward) as client:
            assert client.post("/v1/rewards", json={"samples": [{"prompt": "a", "completion": "b"}]}).json()["model"] == called

    def test_a_name_that_is_given_is_the_only_one(self) -> None:
        with served(ServedReward(FixedProvider(scores=lengths), "/models/rm"), model_name="mine") as client:
            assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["mine"]
            assert accepts(client, "mine") == {200}
            assert accepts(client, "/models/rm") == accepts(client, "fixed") == {404}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    app = create_app(FixedProvider(scores=lengths), Settings())
    with serving(app) as url, httpx2.Client(base_url=url, timeout=20, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def paths(client: httpx2.Client) -> list[str]:
    document = client.get("/openapi.json").json()
    posted = {path for path, operations in document["paths"].items() if "post" in operations}
    assert {"/v1/rewards", "/classify", "/predict", "/get_reward", "/v2/rerank", "/v1/reload"} <= posted
    # The Open Inference Protocol takes other bodies than JSON, too; see test_drop_in_oip_binary.py.
    return sorted(path for path in posted if path != "/ping" and not path.startswith(("/v2/models", "/v2/repository")))


BODIES = [b"{}", b'{"input": "one"}', json.dumps({"samples": []}).encode(), b"input=one", b"\x00\xff", b"[" * 2_000]
KINDS = [
    None, "text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "multipart/form-data; boundary=x",
    "application/jsonl", "application/json, text/plain", "json", "application/", "/", ";", "text/json", "application/xml+jsonx",
]  # fmt: skip
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "deflate": zlib.compress, "br": bytes, "zstd": bytes, "x-gzip": gzip.compress, "GZIP": gzip.compress,
    "identity, gzip": gzip.compress, "anything": bytes,
}  # fmt: skip


def reason(path: str, answer: httpx2.Response) -> str:
    """The message of an error, from where clients of this path look for it."""
    told: Any = answer.json()
    if path in ("/", "/decode", "/predict"):
        assert told["error_type"] == "Validation"
        return str(told["error"])
    if path == "/get_reward":
        return str(told["detail"])
    error = told["error"]
    assert error.get("code", 415) == 415
    assert error.get("cause", error.get("type")) in ("unsupported", "Unsupported Media Type")
    return str(error["message"])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_body_that_is_not_sent_as_json_is_refused_with_the_reason(
    client: httpx2.Client, paths: list[str], data: st.DataObject
) -> None:
    path, body = data.draw(st.sampled_from(paths)), data.draw(st.sampled_from(BODIES))
    kind = data.draw(st.sampled_from(KINDS))
    answer = client.post(path, content=body, headers={"Content-Type": kind} if kind is not None else {})
    assert answer.status_code == 415, f"{path} {kind} {body[:80]!r}: {answer.text}"
    told = reason(path, answer)
    assert "Content-Type: application/json" in told
    assert (repr(kind) if kind else "no Content-Type") in told
    assert answer.headers["Accept"] == "application/json"


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_compressed_body_is_refused_with_the_reason(client: httpx2.Client, paths: list[str], data: st.DataObject) -> None:
    path, body = data.draw(st.sampled_from(paths)), data.draw(st.sampled_from(BODIES))
    coding = data.draw(st.sampled_from(sorted(CODINGS)))
    headers = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": coding}
    answer = client.post(path, content=CODINGS[coding](body), headers=headers)
    assert answer.status_code == 415, f"{path} {coding} {body[:80]!r}: {answer.text}"
    assert f"compressed (Content-Encoding: {coding})" in reason(path, answer)
    assert answer.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/problem+json"])
@pytest.mark.parametrize("coding", [None, "identity", "", "Identity"])
def test_json_is_taken_however_it_is_called(client: httpx2.Client, kind: str, coding: str | None) -> None:
    headers = {"Content-Type": kind, **({} if coding is None else {"Content-Encoding": coding})}
    assert client.post("/classify", content=b'{"input": "one"}', headers=headers).status_code == 200


def test_what_takes_no_body_needs_no_type(client: httpx2.Client) -> None:
    assert "made in Python" in client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()["error"]["message"]
