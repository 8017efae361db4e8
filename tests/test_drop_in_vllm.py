"""vLLM's clients get from this server what they know, in the forms of vLLM's own documentation and tests."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.providers.function import FunctionProvider
from tests.conftest import MakeFolder
from tests.drop_ins import decoder, overloaded, rewards, served, text_rewards

TEXTS = ["This product was excellent and exceeded my expectations", "two and two is four"]
TOKENS = [[25, 40, 61, 7], [90, 12]]
CONVERSATION = [
    {"role": "user", "content": "The cat sat on the mat."},
    {"role": "assistant", "content": "A feline was resting on a rug."},
    {"role": "user", "content": "Stars twinkle brightly in the night sky."},
]
PROMPTS = ["What is the capital of France?", "What is the capital of Germany?"]
COMPLETIONS = ["The capital of France is Paris.", "The capital of Germany is Berlin."]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    return decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def client(reward: rm.Provider) -> Iterator[httpx2.Client]:
    with served(reward) as client:
        yield client


def sigmoid(values: Sequence[float]) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in values]


def answered(client: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def classified(client: httpx2.Client, **body: Any) -> list[float]:
    found = answered(client, "/classify", {"use_activation": False, **body})
    assert [entry["index"] for entry in found["data"]] == list(range(len(found["data"])))
    return [entry["probs"][0] for entry in found["data"]]


def refused(client: httpx2.Client, path: str, body: dict[str, Any], status: int = 400) -> str:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return str(error["message"])


def test_a_text_is_answered_with_the_sigmoid_of_its_reward(client: httpx2.Client, reward: rm.Provider) -> None:
    found = answered(client, "/classify", {"model": "tiny", "input": TEXTS[0]})
    (value,) = text_rewards(reward, TEXTS[:1])
    assert found.pop("id").startswith("classify-")
    assert found.pop("created") > 1_700_000_000
    assert found.pop("usage")["total_tokens"] > 10
    (entry,) = found.pop("data")
    assert entry.pop("probs") == pytest.approx(sigmoid([value]))
    assert entry == {"index": 0, "label": "LABEL_0", "num_classes": 1}
    assert found == {"object": "list", "model": "tiny"}


@pytest.mark.parametrize(
    ("options", "is_raw"),
    [
        ({}, False),
        ({"use_activation": None}, False),
        ({"use_activation": True}, False),
        ({"use_activation": False}, True),
        ({"activation": False}, True),
        ({"activation": False, "use_activation": True}, False),
    ],
)
def test_the_reward_itself_is_given_where_its_activation_is_turned_off(
    client: httpx2.Client, reward: rm.Provider, options: dict[str, Any], is_raw: bool
) -> None:
    values = text_rewards(reward, TEXTS[:1])
    (entry,) = answered(client, "/classify", {"input": TEXTS[0], **options})["data"]
    assert entry["probs"] == pytest.approx(values if is_raw else sigmoid(values))


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS, TEXTS * 5, TOKENS[0], TOKENS])
def test_every_form_of_input_is_scored_in_its_order(client: httpx2.Client, reward: rm.Provider, given: Any) -> None:
    rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    assert classified(client, input=given) == pytest.approx(text_rewards(reward, rows))


def test_special_tokens_are_added_to_a_text_unless_it_has_them_already(client: httpx2.Client, reward: rm.Provider) -> None:
    (plain,) = classified(client, input=TEXTS[0])
    assert classified(client, input=f"<|bos|>{TEXTS[0]}", add_special_tokens=False) == pytest.approx([plain])
    assert classified(client, input=TEXTS[0], add_special_tokens=False) != pytest.approx([plain])


def test_a_conversation_is_rendered_as_the_reward_renders_it(client: httpx2.Client, reward: rm.Provider) -> None:
    expected = rewards(reward, [rm.Sample(CONVERSATION[:2], CONVERSATION[2:])])
    assert classified(client, messages=CONVERSATION) == pytest.approx(expected)
    assert classified(client, messages=CONVERSATION, add_generation_prompt=False, add_special_tokens=False) == pytest.approx(
        expected
    )


def test_the_beginning_of_another_turn_is_scored_on_demand(client: httpx2.Client, reward: Any, tmp_path: Path) -> None:
    text = reward.renderer.tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    expected = text_rewards(reward, [text], add_special_tokens=False)
    found = classified(client, messages=CONVERSATION, add_generation_prompt=True)
    assert found == pytest.approx(expected)
    assert found != pytest.approx(classified(client, messages=CONVERSATION))
    tokens = answered(client, "/tokenize", {"messages": CONVERSATION, "return_token_strs": True})
    assert tokens["tokens"] == reward.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens["token_strs"] == reward.renderer.tokenizer.convert_ids_to_tokens(tokens["tokens"])
    fewer = answered(client, "/tokenize", {"messages": CONVERSATION, "add_generation_prompt": False})
    assert fewer["count"] < tokens["count"]
    with served(decoder(tmp_path, chat_template=None)) as plain:
        for path in ("/classify", "/tokenize"):
            body = {"messages": CONVERSATION, "add_generation_prompt": True}
            assert "no chat template" in refused(plain, path, body)


def test_a_message_of_text_parts_is_their_lines(client: httpx2.Client) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    expected = classified(client, messages=[{"role": "user", "content": "one\ntwo"}])
    assert classified(client, messages=[{"role": "user", "content": parts}]) == expected


def test_what_a_chat_template_reads_is_handed_on(client: httpx2.Client, reward: rm.Provider) -> None:
    settings = {"closing": "and that is all"}
    sample = rm.Sample(CONVERSATION[:2], CONVERSATION[2:], {"chat_template_kwargs": settings})
    found = classified(client, messages=CONVERSATION, chat_template_kwargs=settings)
    assert found == pytest.approx(rewards(reward, [sample]))
    assert found != pytest.approx(classified(client, messages=CONVERSATION))


def test_a_tool_call_reaches_the_chat_template(client: httpx2.Client, reward: rm.Provider) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "count"}}]}
    expected = rewards(reward, [rm.Sample(CONVERSATION[:1], [call])])
    assert classified(client, messages=[CONVERSATION[0], call]) == pytest.approx(expected)


def test_usage_counts_tokens(client: httpx2.Client) -> None:
    usage = answered(client, "/classify", {"input": TOKENS})["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"], usage["completion_tokens"]) == (6, 6, 0)


def test_an_answer_has_the_request_s_id(client: httpx2.Client) -> None:
    assert answered(client, "/classify", {"input": "a", "request_id": "mine"})["id"] == "classify-mine"
    response = client.post("/classify", json={"input": "a", "request_id": "mine"}, headers={"X-Request-ID": "header"})
    assert response.json()["id"] == "classify-header"


def test_fields_that_vllm_does_not_know_are_ignored(client: httpx2.Client) -> None:
    assert classified(client, input="a", temperature=0.5, user="me", cache_salt="s") == classified(client, input="a")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": [[]]},
        {"input": [1, True]},
        {"input": [1, "a"]},
        {"input": [1.5]},
        {"input": [-1]},
        {"input": [100_000]},
        {"input": [5] * 1_000},
        {"input": 5},
        {"input": "a", "use_activation": 0},
        {"input": "a", "truncate_prompt_tokens": -2},
        {"input": "a", "normalize": True},
        {"messages": []},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "nobody", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": CONVERSATION, "continue_final_message": True, "add_generation_prompt": True},
    ],
)
def test_what_vllm_refuses_is_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    assert refused(client, "/classify", body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("truncate_prompt_tokens", 5),
        ("padding", "max_length"),
        ("continue_final_message", True),
        ("add_special_tokens", True),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"chat_template": "{{ messages }}"}),
    ],
)
def test_what_would_change_the_reward_is_refused_by_name(client: httpx2.Client, field: str, value: Any) -> None:
    assert field in refused(client, "/classify", {"messages": CONVERSATION, field: value})


def test_a_long_text_is_truncated_as_the_reward_was_trained(client: httpx2.Client, reward: rm.Provider) -> None:
    text = "hello " * 600
    assert classified(client, input=text, truncate_prompt_tokens=-1) == pytest.approx(text_rewards(reward, [text]))
    assert classified(client, input=text, truncation_side="left") == pytest.approx(text_rewards(reward, [text]))
    assert "truncation_side" in refused(client, "/classify", {"input": text, "truncation_side": "right"})


@pytest.mark.parametrize("body", [{"input": TEXTS}, {"input": TOKENS}, {"messages": CONVERSATION}])
def test_a_limit_that_cuts_nothing_changes_nothing_and_one_that_cuts_is_refused(
    client: httpx2.Client, body: dict[str, Any]
) -> None:
    whole = answered(client, "/classify", {**body, "use_activation": False})
    longest = 84 if "messages" in body else 4 if body["input"] is TOKENS else 42
    options = {"use_activation": False, "truncation_side": "right", "padding": "do_not_pad", "cache_salt": "s"}
    assert answered(client, "/classify", {**body, **options, "truncate_prompt_tokens": longest})["data"] == whole["data"]
    message = refused(client, "/classify", {**body, "truncate_prompt_tokens": longest - 1})
    assert f"truncate_prompt_tokens: item 0 has {longest} tokens, more than {longest - 1}" in message


@pytest.mark.parametrize("path", ["/score", "/rerank"])
def test_limits_of_prompts_and_completions_are_those_of_their_own_tokens(client: httpx2.Client, path: str) -> None:
    names = {"/score": ("queries", "documents"), "/rerank": ("query", "documents")}[path]
    body = dict(zip(names, (PROMPTS[0], COMPLETIONS), strict=True))
    limits = {"max_tokens_per_query": 30, "max_tokens_per_doc": 31}

    def numbers(found: dict[str, Any]) -> Any:
        return [sorted(entry.items(), key=str) for entry in found.get("data") or found["results"]]

    assert numbers(answered(client, path, {**body, **limits})) == numbers(answered(client, path, body))
    assert "max_tokens_per_query: item 0" in refused(client, path, {**body, "max_tokens_per_query": 5})
    assert "max_tokens_per_doc: item 0" in refused(client, path, {**body, "max_tokens_per_doc": 5})


def test_a_body_that_is_no_json_is_refused_in_vllm_s_words(client: httpx2.Client) -> None:
    for body in (b'{"in', b"[]"):
        response = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "BadRequestError"


def test_another_model_is_not_found(client: httpx2.Client) -> None:
    assert "'other' does not exist" in refused(client, "/classify", {"input": "a", "model": "other"}, 404)


def test_too_many_texts_are_refused(client: httpx2.Client) -> None:
    message = refused(client, "/classify", {"input": ["a"] * 1_025}, 413)
    assert "at most 1024" in message
    assert "--max-items" in message


@pytest.mark.parametrize("body", [{"input": TEXTS}, {"input": TOKENS}, {"messages": CONVERSATION}])
def test_pooling_gives_vectors_of_one_number(client: httpx2.Client, body: dict[str, Any]) -> None:
    expected = classified(client, **body)
    found = answered(client, "/pooling", {**body, "task": "classify", "encoding_format": "float", "use_activation": False})
    assert [entry["data"] for entry in found["data"]] == [[value] for value in expected]
    assert found["data"][0] == {"index": 0, "object": "pooling", "data": [expected[0]]}


@pytest.mark.parametrize(("endianness", "form"), [("native", "=f"), ("little", "<f"), ("big", ">f")])
def test_pooling_in_base64_has_the_bytes_of_32_bit_floats(client: httpx2.Client, endianness: str, form: str) -> None:
    body = {"input": TEXTS, "encoding_format": "base64", "endianness": endianness, "use_activation": False}
    found = [base64.b64decode(entry["data"]) for entry in answered(client, "/pooling", body)["data"]]
    assert [struct.unpack(form, data)[0] for data in found] == pytest.approx(classified(client, input=TEXTS))


@pytest.mark.parametrize("task", ["embed", "token_embed", "token_classify", "plugin"])
def test_other_pooling_tasks_are_refused(client: httpx2.Client, task: str) -> None:
    assert "task" in refused(client, "/pooling", {"input": "a", "task": task})


def test_bytes_are_no_encoding_of_this_server(client: httpx2.Client) -> None:
    assert "encoding_format" in refused(client, "/pooling", {"input": "a", "encoding_format": "bytes"})


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")])
def test_pairs_are_prompts_and_completions_under_each_of_their_names(
    client: httpx2.Client, reward: rm.Provider, path: str, names: tuple[str, str]
) -> None:
    expected = rewards(reward, [rm.Sample(one, other) for one, other in zip(PROMPTS, COMPLETIONS, strict=True)])
    found = answered(client, path, {**dict(zip(names, (PROMPTS, COMPLETIONS), strict=True)), "use_activation": False})
    assert [entry["score"] for entry in found["data"]] == pytest.approx(expected)
    assert found["data"][1] == {"index": 1, "object": "score", "score": pytest.approx(expected[1])}
    assert found["object"] == "list"


@pytest.mark.parametrize(
    ("ones", "others"),
    [(PROMPTS[0], COMPLETIONS[0]), (PROMPTS[0], COMPLETIONS), (PROMPTS[:1], COMPLETIONS), (PROMPTS[0], COMPLETIONS[:1])],
)
def test_a_prompt_goes_with_every_completion(client: httpx2.Client, reward: rm.Provider, ones: Any, others: Any) -> None:
    completions = [others] if isinstance(others, str) else others
    expected = rewards(reward, [rm.Sample(PROMPTS[0], completion) for completion in completions])
    found = answered(client, "/score", {"queries": ones, "documents": others})
    assert [entry["score"] for entry in found["data"]] == pytest.approx(sigmoid(expected))


@pytest.mark.parametrize(
    "body",
    [
        {"queries": PROMPTS, "documents": [*COMPLETIONS, "a third"]},
        {"queries": PROMPTS, "documents": "one"},
        {"queries": [], "documents": COMPLETIONS},
        {"queries": PROMPTS[0], "documents": []},
        {"queries": PROMPTS[0]},
        {"queries": {"content": [{"type": "text", "text": "a"}]}, "documents": "b"},
        {"queries": "a", "documents": "b", "max_tokens_per_doc": -1},
        {"queries": "a", "documents": "b", "instruction": "judge"},
    ],
)
def test_pairs_that_do_not_fit_are_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    assert refused(client, "/score", body)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("raw", [True, False])
def test_completions_are_ranked_with_the_best_first(client: httpx2.Client, reward: rm.Provider, path: str, raw: bool) -> None:
    completions = [*COMPLETIONS, "Cross-encoder models are neat"]
    values = rewards(reward, [rm.Sample(PROMPTS[0], completion) for completion in completions])
    body = {"query": PROMPTS[0], "documents": completions, "use_activation": not raw}
    found = answered(client, path, body)
    order = sorted(range(3), key=lambda row: -values[row])
    assert [entry["index"] for entry in found["results"]] == order
    assert found["results"][0] == {
        "index": order[0],
        "document": {"text": completions[order[0]], "multi_modal": None},
        "relevance_score": pytest.approx((values if raw else sigmoid(values))[order[0]]),
    }
    assert set(found) == {"id", "model", "usage", "results"}
    assert set(found["usage"]) == {"prompt_tokens", "total_tokens"}
    assert answered(client, path, {**body, "top_n": 2})["results"] == found["results"][:2]


@pytest.mark.parametrize("change", [{"documents": []}, {"top_n": -1}, {"top_n": True}, {"query": None}])
def test_rankings_that_vllm_refuses_are_refused(client: httpx2.Client, change: dict[str, Any]) -> None:
    assert refused(client, "/rerank", {"query": "a", "documents": ["b"], **change})


def of_number(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(str(sample.completion)) for sample in samples]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rewards_with_the_same_sigmoid_are_in_the_order_of_the_rewards(path: str) -> None:
    documents = ["50", "-800", "40", "-700", "60", "0", "-900"]
    with served(FunctionProvider(function=of_number)) as client:
        found = answered(client, path, {"query": "a", "documents": documents})["results"]
        assert [documents[entry["index"]] for entry in found] == ["60", "50", "40", "0", "-700", "-800", "-900"]
        assert [entry["relevance_score"] for entry in found] == pytest.approx([1, 1, 1, 0.5, 0, 0, 0])
        assert [
            entry["index"] for entry in answered(client, path, {"query": "a", "documents": documents, "top_n": 1})["results"]
        ] == [4]
        ranks = answered(client, "/rerank", {"query": "a", "texts": documents})
        assert [entry["index"] for entry in ranks] == [entry["index"] for entry in found]


@pytest.mark.parametrize(
    ("settings", "is_raw"),
    [
        ({"problem_type": "regression"}, True),
        ({"problem_type": "multi_label_classification"}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, False),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, None),
    ],
)
def test_the_activation_is_that_of_the_model_s_configuration(
    tmp_path: Path, settings: dict[str, Any], is_raw: bool | None
) -> None:
    decoder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | settings | {"id2label": {"0": "reward"}, "label2id": {"reward": 0}})
    )
    reward = rm.load(tmp_path)
    values = rewards(reward, [rm.Sample(PROMPTS[0], completion) for completion in COMPLETIONS])
    body = {"queries": PROMPTS[0], "documents": COMPLETIONS}
    with served(reward) as client:
        assert answered(client, "/classify", {"input": "a", "use_activation": False})["data"][0]["label"] == "reward"
        assert client.get("/info").json()["model_type"]["reranker"]["id2label"] == {"0": "reward"}
        raw = answered(client, "/score", {**body, "use_activation": False})["data"]
        assert [entry["score"] for entry in raw] == pytest.approx(values)
        if is_raw is None:
            assert "use_activation" in refused(client, "/score", body)
            return
        for options in ({}, {"use_activation": True}):
            found = [entry["score"] for entry in answered(client, "/score", {**body, **options})["data"]]
            assert found == pytest.approx(values if is_raw else sigmoid(values))


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS, TOKENS[0], TOKENS])
def test_clients_of_sglang_find_the_reward_in_the_embedding(client: httpx2.Client, reward: rm.Provider, given: Any) -> None:
    rows = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    found = answered(client, "/v1/embeddings", {"model": "tiny", "input": given})
    assert [entry["embedding"] for entry in found["data"]] == [[pytest.approx(value)] for value in text_rewards(reward, rows)]
    assert found["data"][0]["object"] == "embedding"
    packed = answered(client, "/v1/embeddings", {"input": given, "encoding_format": "base64"})["data"][-1]["embedding"]
    assert struct.unpack("<f", base64.b64decode(packed))[0] == pytest.approx(found["data"][-1]["embedding"][-1])
    assert "does not exist" in refused(client, "/v1/embeddings", {"model": "other", "input": given}, 404)


def test_a_text_is_tokenized_and_made_again(client: httpx2.Client, reward: Any) -> None:
    tokenizer = reward.renderer.tokenizer
    ids = tokenizer(TEXTS[0])["input_ids"]
    found = answered(client, "/tokenize", {"model": "tiny", "prompt": TEXTS[0]})
    assert found == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
    bare = answered(client, "/tokenize", {"prompt": TEXTS[0], "add_special_tokens": False, "return_token_strs": True})
    assert bare["tokens"] == ids[1:]
    assert bare["token_strs"] == tokenizer.convert_ids_to_tokens(ids[1:])
    assert answered(client, "/detokenize", {"tokens": ids}) == {"prompt": f"<|bos|>{TEXTS[0]}"}
    assert "100000 is unknown" in refused(client, "/detokenize", {"tokens": [100_000]})
    assert refused(client, "/tokenize", {"prompt": 5})
    assert refused(client, "/tokenize", {})


def test_the_server_is_pinged_and_says_how_much_it_has_to_do(client: httpx2.Client) -> None:
    assert client.get("/ping").status_code == client.post("/ping").status_code == client.get("/health").status_code == 200
    assert client.get("/load").json() == {"server_load": 0}


def test_the_version_names_the_dialect_and_the_server(client: httpx2.Client) -> None:
    assert client.get("/version").json() == {"version": "0.33.0", "server": f"rm-plugins {rm.__version__}"}


def test_the_served_model_is_listed(client: httpx2.Client) -> None:
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    (card,) = found["data"]
    assert (card["id"], card["object"], card["root"]) == ("tiny", "model", "tiny")


def of_length(samples: Sequence[rm.Sample]) -> list[float | None]:
    if any(sample.completion == "fails" for sample in samples):
        raise RuntimeError("secret of the reward")
    return [None if sample.completion == "abstains" else float(len(sample.completion)) for sample in samples]


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx2.Client]:
    """A client without a key, of a server with one whose reward is a function."""
    with served(FunctionProvider(function=of_length), api_keys=["open sesame"]) as client:
        yield client


@pytest.fixture
def of_function(guarded: httpx2.Client) -> Iterator[httpx2.Client]:
    guarded.headers["Authorization"] = "Bearer open sesame"
    yield guarded
    del guarded.headers["Authorization"]


@pytest.mark.parametrize("path", ["/classify", "/v1/score", "/rerank"])
def test_a_wrong_key_is_told_as_vllm_does(guarded: httpx2.Client, path: str) -> None:
    response = guarded.post(path, json={"input": "a"}, headers={"Authorization": "Bearer wrong"})
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})


def test_a_text_is_a_completion_for_a_reward_that_is_no_model(of_function: httpx2.Client) -> None:
    assert classified(of_function, input=["four", "fifteen"]) == [4, 7]
    (entry,) = answered(of_function, "/score", {"queries": "a", "documents": "bc", "use_activation": False})["data"]
    assert entry["score"] == 2
    assert "token ids" in refused(of_function, "/classify", {"input": TOKENS})


def test_an_abstention_is_no_number(of_function: httpx2.Client) -> None:
    assert "abstained on item 1" in refused(of_function, "/classify", {"input": ["a", "abstains"]})


def test_a_failure_is_no_number_and_tells_nothing_of_the_inside(of_function: httpx2.Client) -> None:
    message = refused(of_function, "/classify", {"input": ["fails"]}, 500)
    assert "secret" not in message


def test_an_overloaded_server_says_when_to_come_again() -> None:
    with overloaded() as client:
        response = client.post("/classify", json={"input": "a"})
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["error"]["type"] == "ServiceUnavailableError"
        assert refused(client, "/score", {"queries": "a", "documents": "b"}, 503)


class TestWhatRerankClientsWrite:
    """Seen with langchain-cohere 0.6, LangChain's JinaRerank 0.4, cohere-ai 8.1 (JavaScript), cohere's v1 client 5.21 and 7.3."""

    def test_null_for_all(self, client: httpx2.Client) -> None:
        body = {"query": "a", "documents": ["b", "c"], "use_activation": False}
        plain = client.post("/v2/rerank", json=body).json()["results"]
        nulls = {"top_n": None, "max_tokens_per_doc": None, "max_tokens_per_query": None}
        assert client.post("/v2/rerank", json=body | nulls).json()["results"] == plain

    def test_documents_with_their_text(self, client: httpx2.Client) -> None:
        body = {"query": "a", "documents": ["b", "c"], "use_activation": False}
        plain = client.post("/v2/rerank", json=body).json()["results"]
        body["documents"] = [{"text": "b"}, {"text": "c"}]
        assert client.post("/v2/rerank", json=body).json()["results"] == plain
        assert "Field required" in refused(client, "/v2/rerank", body | {"documents": [{"title": "b"}]})


class TestALabelOfSeveral:
    """The answer is of the label that the reward is made of, and nothing that the original would not say."""

    @pytest.fixture
    def folder(self, tiny_encoder: MakeFolder) -> Path:
        return tiny_encoder(num_labels=3, pairs=True)

    @pytest.mark.parametrize(
        ("head", "label"), [("LABEL_2", "LABEL_2"), (1, "LABEL_1"), ({"LABEL_0": 1.0, "LABEL_2": -1.0}, "reward")]
    )
    def test_its_name_and_no_softmax(self, head: Any, label: str, folder: Path) -> None:
        reward = rm.load(folder, head=head, pair=True)
        expected = [float(value) for value in reward.score([rm.Sample("a", "b")]).values]
        with served(reward) as client:
            body = {"input": "a text"}
            assert "several labels" in refused(client, "/classify", body)
            raw = client.post("/classify", json=body | {"use_activation": False}).json()["data"][0]
            assert raw["label"] == label
            pair = client.post("/predict", json={"inputs": ["a", "b"], "raw_scores": True}).json()[0]
            assert pair == {"score": pytest.approx(expected[0]), "label": label}
            assert client.post("/predict", json={"inputs": ["a", "b"]}).status_code == 422
            assert client.get("/info").json()["model_type"]["reranker"]["id2label"] == {"0": label}


@pytest.mark.parametrize("more", [{"documents": [{"text": "b", "image": "x"}]}, {"rank_fields": ["title", "text"]}], ids=str)
def test_what_else_a_document_would_be_ranked_by_is_refused(client: httpx2.Client, more: dict[str, Any]) -> None:
    refused(client, "/v2/rerank", {"query": "a", "documents": [{"text": "b"}]} | more)
