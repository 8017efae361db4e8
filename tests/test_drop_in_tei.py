"""Clients of text-embeddings-inference get from this server what they know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.providers.function import FunctionProvider
from tests.drop_ins import decoder, overloaded, rewards, served, text_rewards

TEXTS = ["test", "What is Deep Learning?"]
PAIR = ["What is Deep Learning?", "Deep Learning is learning in layers."]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    return decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def client(reward: rm.Provider) -> Iterator[httpx2.Client]:
    with served(reward, max_items=32) as client:
        yield client


def of_pairs(reward: rm.Provider, *pairs: Sequence[str]) -> list[float]:
    return rewards(reward, [rm.Sample(prompt, completion) for prompt, completion in pairs])


def answered(client: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def predicted(client: httpx2.Client, inputs: Any) -> Any:
    return answered(client, "/predict", {"inputs": inputs, "raw_scores": True})


def refused(client: httpx2.Client, path: str, body: dict[str, Any], status: int = 422) -> tuple[str, str]:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    return response.json()["error_type"], response.json()["error"]


def test_a_score_is_the_sigmoid_of_the_reward_unless_it_is_asked_for_raw(client: httpx2.Client, reward: rm.Provider) -> None:
    (value,) = text_rewards(reward, TEXTS[:1])
    expected = {"score": pytest.approx(1 / (1 + math.exp(-value))), "label": "LABEL_0"}
    assert answered(client, "/predict", {"inputs": "test"}) == [expected]
    assert answered(client, "/predict", {"inputs": "test", "raw_scores": False}) == [expected]
    assert predicted(client, "test") == [{"score": pytest.approx(value), "label": "LABEL_0"}]


def test_a_list_of_two_texts_is_one_pair(client: httpx2.Client, reward: rm.Provider) -> None:
    assert predicted(client, PAIR) == [{"score": pytest.approx(of_pairs(reward, PAIR)[0]), "label": "LABEL_0"}]


def test_a_list_of_one_text_is_that_text(client: httpx2.Client) -> None:
    assert predicted(client, ["test"]) == predicted(client, "test")


def test_a_batch_is_a_list_of_lists_and_keeps_its_order(client: httpx2.Client, reward: rm.Provider) -> None:
    texts, pairs = text_rewards(reward, TEXTS), of_pairs(reward, PAIR)
    found = predicted(client, [[TEXTS[1]], PAIR, [TEXTS[0]]])
    assert [entry["score"] for (entry,) in found] == pytest.approx([texts[1], pairs[0], texts[0]])
    assert predicted(client, [["test"]] * 5) == [predicted(client, "test")] * 5


def test_an_empty_completion_is_scored_and_two_empty_texts_are_not(client: httpx2.Client, reward: rm.Provider) -> None:
    (entry,) = predicted(client, ["prompt", ""])
    assert entry["score"] == pytest.approx(of_pairs(reward, ["prompt", ""])[0])
    cases: list[tuple[Any, int]] = [("", 0), ([""], 0), (["", ""], 0), ([["a"], [""]], 1)]
    for inputs, row in cases:
        assert refused(client, "/predict", {"inputs": inputs}) == ("Validation", f"`inputs` cannot be empty (item {row})")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": ["a", "b", "c"]},
        {"inputs": [["a"], ["b", "c", "d"]]},
        {"inputs": [["a"], "b"]},
        {"inputs": [["a"], []]},
        {"inputs": 5},
        {"inputs": [[5]]},
        {"inputs": "a", "raw_scores": "yes"},
        {"inputs": "a", "truncation_direction": "up"},
    ],
)
def test_what_tei_refuses_is_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    assert refused(client, "/predict", body)[0] == "Validation"


def test_options_of_truncation_and_unknown_fields_change_nothing(client: httpx2.Client) -> None:
    options = {"truncate": True, "truncation_direction": "Left", "normalize": True}
    assert answered(client, "/predict", {"inputs": "test", "raw_scores": True, **options}) == predicted(client, "test")


def test_what_is_too_long_is_truncated_unless_that_is_ruled_out(client: httpx2.Client, reward: rm.Provider) -> None:
    text = "hello " * 600
    expected = [{"score": pytest.approx(text_rewards(reward, [text])[0]), "label": "LABEL_0"}]
    for options in ({}, {"truncate": True}, {"truncate": True, "truncation_direction": "left"}):
        assert answered(client, "/predict", {"inputs": text, "raw_scores": True, **options}) == expected
    for options in ({"truncate": False}, {"truncate": True, "truncation_direction": "Right"}):
        kind, message = refused(client, "/predict", {"inputs": text, **options})
        assert kind == "Validation"
        assert next(reversed(options)) in message
        assert predicted(client, "test") == answered(client, "/predict", {"inputs": "test", "raw_scores": True, **options})


def test_the_root_answers_what_predict_and_rerank_answer(client: httpx2.Client) -> None:
    for body in ({"inputs": "test"}, {"inputs": [["test"], PAIR]}):
        assert answered(client, "/", body) == answered(client, "/predict", body)
    for options in ({}, {"return_text": True}):
        ranked: dict[str, Any] = {"query": "a", "texts": ["b", "c"], **options}
        assert answered(client, "/", ranked) == answered(client, "/rerank", ranked)
    assert refused(client, "/", {})[0] == "Validation"
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_texts_are_tokenized_and_made_again(client: httpx2.Client, reward: Any) -> None:
    tokenizer = reward.renderer.tokenizer
    texts = ["naïve 東京", "test"]
    found = answered(client, "/tokenize", {"inputs": texts})
    assert [[token["id"] for token in row] for row in found] == tokenizer(texts)["input_ids"]
    assert found[0][0] == {"id": tokenizer.bos_token_id, "text": "<|bos|>", "special": True, "start": None, "stop": None}
    for text, row in zip(texts, found, strict=True):
        for token in row[1:]:
            assert token["text"] == text.encode()[token["start"] : token["stop"]].decode()
    assert answered(client, "/tokenize", {"inputs": "test", "add_special_tokens": False}) == [found[1][1:]]
    ids = [[token["id"] for token in row] for row in found]
    assert answered(client, "/decode", {"ids": ids}) == texts
    assert answered(client, "/decode", {"ids": ids[1], "skip_special_tokens": False}) == ["<|bos|>test"]
    assert refused(client, "/tokenize", {"inputs": []})[0] == "Validation"
    assert refused(client, "/tokenize", {"inputs": ["a"] * 33})[0] == "Validation"
    assert refused(client, "/decode", {"ids": [[100_000]]})[0] == "Validation"


def test_a_batch_that_is_too_large_fails_validation(client: httpx2.Client) -> None:
    kind, message = refused(client, "/predict", {"inputs": [["a"]] * 33})
    assert (kind, message) == ("Validation", "batch size 33 > maximum allowed batch size 32 (--max-items)")
    assert refused(client, "/rerank", {"query": "a", "texts": ["b"] * 33})[0] == "Validation"


def test_completions_are_ranked_with_the_best_first(client: httpx2.Client, reward: rm.Provider) -> None:
    texts = ["test", "other", "another one"]
    values = of_pairs(reward, *(("query", text) for text in texts))
    found = answered(client, "/rerank", {"query": "query", "texts": texts, "raw_scores": True})
    assert found == [
        {"index": row, "score": pytest.approx(values[row])} for row in sorted(range(3), key=lambda row: -values[row])
    ]
    probable = answered(client, "/rerank", {"query": "query", "texts": texts})
    assert [entry["index"] for entry in probable] == [entry["index"] for entry in found]
    assert all(0 < entry["score"] < 1 for entry in probable)


def test_of_equal_completions_the_last_comes_first_and_texts_are_repeated_on_demand(client: httpx2.Client) -> None:
    texts = ["test", "other", "test"]
    found = answered(client, "/rerank", {"query": "test", "texts": texts, "return_text": True})
    assert [entry["text"] for entry in found] == [texts[entry["index"]] for entry in found]
    assert [entry["index"] for entry in found if entry["text"] == "test"] == [2, 0]


@pytest.mark.parametrize("change", [{"texts": []}, {"texts": "a"}, {"query": 5}, {"query": "", "texts": ["a", ""]}])
def test_rankings_that_tei_refuses_are_refused_in_its_words(client: httpx2.Client, change: dict[str, Any]) -> None:
    assert refused(client, "/rerank", {"query": "a", "texts": ["b"], **change})[0] == "Validation"


def test_the_served_model_is_described_as_a_reranker(client: httpx2.Client) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert info["max_client_batch_size"] == 32
    assert (info["version"], info["server"]) == ("1.9.3", f"rm-plugins {rm.__version__}")


def of_length(samples: Sequence[rm.Sample]) -> list[float | None]:
    if any(sample.completion == "fails" for sample in samples):
        raise RuntimeError("secret of the reward")
    if any(sample.completion == "unfit" for sample in samples):
        raise DataError("a sample is unfit")
    return [None if sample.completion == "abstains" else float(len(sample.completion)) for sample in samples]


@pytest.fixture(scope="module")
def of_function() -> Iterator[httpx2.Client]:
    with served(FunctionProvider(function=of_length), api_keys=["open sesame"], max_body_bytes=1_000) as client:
        client.headers["Authorization"] = "Bearer open sesame"
        yield client


def test_a_text_is_a_completion_for_a_reward_that_is_no_model(of_function: httpx2.Client) -> None:
    assert [entry["score"] for (entry,) in predicted(of_function, [["four"], ["prompt", "fifteen"]])] == [4, 7]


def test_what_has_no_reward_has_no_score(of_function: httpx2.Client) -> None:
    kind, message = refused(of_function, "/predict", {"inputs": [["a"], ["abstains"]]})
    assert kind == "Validation"
    assert "abstained on item 1" in message
    kind, message = refused(of_function, "/predict", {"inputs": [["a"], ["unfit"]]})
    assert (kind, message) == ("Validation", "item 1 could not be scored: a sample is unfit")
    for path, body in (("/predict", {"inputs": "fails"}), ("/rerank", {"query": "a", "texts": ["fails"]})):
        kind, message = refused(of_function, path, body, 424)
        assert kind == "Backend"
        assert "secret" not in message


def test_a_reward_without_a_model_has_no_tokens(of_function: httpx2.Client) -> None:
    assert "no model" in refused(of_function, "/tokenize", {"inputs": "a"})[1]


@pytest.mark.parametrize("path", ["/predict", "/info", "/"])
def test_a_wrong_key_is_refused(of_function: httpx2.Client, path: str) -> None:
    method = "GET" if path == "/info" else "POST"
    response = of_function.request(method, path, headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert set(response.json()) == {"error", "error_type"}
    page = of_function.get("/", headers={"Authorization": ""})
    assert page.status_code == 200  # though the same path is TEI's for requests to score


def test_a_body_that_is_too_long_is_413(of_function: httpx2.Client) -> None:
    assert refused(of_function, "/predict", {"inputs": "a" * 2_000}, 413)[0] == "Validation"


def test_an_overloaded_server_says_so() -> None:
    with overloaded() as client:
        assert refused(client, "/predict", {"inputs": "a"}, 429)[0] == "Overloaded"
        assert refused(client, "/rerank", {"query": "a", "texts": ["b"]}, 429)[0] == "Overloaded"


def test_a_function_to_apply_is_no_silent_sigmoid(client: httpx2.Client) -> None:
    """huggingface_hub 2.4's ``text_classification`` posts to the URL itself; TEI takes no notice of the parameters."""
    raw = client.post("/predict", json={"inputs": "a text", "raw_scores": True}).json()[0]["score"]
    for parameters, expected in (
        ({"function_to_apply": "none"}, raw),
        ({}, 1 / (1 + math.exp(-raw))),
        (None, 1 / (1 + math.exp(-raw))),
    ):
        answer = client.post("/", json={"inputs": "a text", "parameters": parameters}).json()
        assert answer[0]["score"] == pytest.approx(expected)
    assert client.post("/", json={"inputs": "a", "parameters": {"function_to_apply": "softmax"}}).status_code == 422
