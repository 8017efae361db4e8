"""Clients of the Open Inference Protocol get rewards as NeMo-Aligner's server gives them, in the forms of the protocol's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.function import FunctionProvider
from tests.drop_ins import decoder, overloaded, rewards, served, text_rewards

TEXTS = ["What is two and two?\nIt is four.", "Name a colour.\nBlue, as the sea is."]
ROWS = [[25, 40, 61], [90, 12, 99], [33, 99, 99]]  # 99 is no padding to the model, so that its score would tell
LENGTHS = [3, 2, 1]
IDS = [row[:length] for row, length in zip(ROWS, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    return decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def client(reward: rm.Provider) -> Iterator[httpx2.Client]:
    with served(reward) as client:
        yield client


def tensor(name: str, data: list[Any], datatype: str = "BYTES", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data), 1], "datatype": datatype, "data": data}


def integers(name: str, rows: list[list[int]]) -> dict[str, Any]:
    return tensor(name, rows, "INT64", [len(rows), len(rows[0])])


def inferred(client: httpx2.Client, *inputs: dict[str, Any], **more: Any) -> Any:
    response = client.post("/v2/models/tiny/infer", json={"inputs": inputs, **more})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx2.Client, *inputs: Any, status: int = 400, **more: Any) -> str:
    response = client.post("/v2/models/tiny/infer", json={"inputs": inputs, **more})
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])


def test_texts_give_a_tensor_of_rewards(client: httpx2.Client, reward: rm.Provider) -> None:
    expected = text_rewards(reward, TEXTS, add_special_tokens=False)
    output = {"name": "rewards", "shape": [2, 1], "datatype": "FP32", "data": pytest.approx(expected)}
    assert inferred(client, tensor("sentences", TEXTS), id="42") == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "42",
        "outputs": [output],
    }


def test_an_answer_has_an_id_only_if_the_request_has_one(client: httpx2.Client) -> None:
    assert "id" not in inferred(client, tensor("sentences", TEXTS))
    assert inferred(client, tensor("sentences", TEXTS), id="")["id"] == ""


@pytest.mark.parametrize(
    "given",
    [
        tensor("sentences", TEXTS, shape=[2]),
        tensor("sentences", [[text] for text in TEXTS]),
        {**tensor("sentences", TEXTS), "parameters": {"content_type": "str"}},
    ],
)
def test_texts_may_be_flat_or_nested(client: httpx2.Client, given: dict[str, Any]) -> None:
    assert inferred(client, given) == inferred(client, tensor("sentences", TEXTS))


def test_special_tokens_are_added_to_texts_on_demand(client: httpx2.Client, reward: rm.Provider) -> None:
    (output,) = inferred(client, tensor("sentences", TEXTS), parameters={"add_special_tokens": True})["outputs"]
    assert output["data"] == pytest.approx(text_rewards(reward, TEXTS))


def test_prompts_and_completions_are_pairs(client: httpx2.Client, reward: rm.Provider) -> None:
    prompts, completions = ["2+2?\n", "3+3?\n"], ["4", "six"]
    (output,) = inferred(client, tensor("completions", completions), tensor("prompts", prompts, shape=[2]))["outputs"]
    pairs = [rm.Sample(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    assert output["data"] == pytest.approx(rewards(reward, pairs))


@pytest.mark.parametrize("name", ["input_ids", "token_ids", "tokens"])
@pytest.mark.parametrize(
    "padding",
    [
        integers("attention_mask", [[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
        integers("sequence_lengths", [[length] for length in LENGTHS]),
        tensor("sequence_lengths", LENGTHS, "INT32", [3]),
    ],
)
def test_token_ids_are_scored_without_their_padding(
    client: httpx2.Client, reward: rm.Provider, name: str, padding: dict[str, Any]
) -> None:
    expected = pytest.approx(text_rewards(reward, IDS))
    flat = [token for row in ROWS for token in row]
    add_eos = tensor("add_EOS", [[False]] * 3, "BOOL")  # NeMo-Aligner's client sends it, and its server ignores it
    assert inferred(client, integers(name, ROWS), padding, add_eos)["outputs"][0]["data"] == expected
    assert inferred(client, tensor(name, flat, "INT64", [3, 3]), padding)["outputs"][0]["data"] == expected


def test_token_ids_on_the_right_of_their_padding_are_scored_alike(client: httpx2.Client, reward: rm.Provider) -> None:
    mask = integers("attention_mask", [[1, 1, 1], [0, 1, 1]])
    (output,) = inferred(client, integers("input_ids", [[25, 40, 61], [99, 90, 12]]), mask)["outputs"]
    assert output["data"] == pytest.approx(text_rewards(reward, IDS[:2]))


def test_token_ids_without_a_mask_are_all_scored(client: httpx2.Client, reward: rm.Provider) -> None:
    assert inferred(client, integers("input_ids", ROWS))["outputs"][0]["data"] == pytest.approx(text_rewards(reward, ROWS))


SENTENCES = tensor("sentences", TEXTS)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [{**SENTENCES, "datatype": "FP32"}],
        [{**SENTENCES, "shape": [3, 1]}],
        [{**SENTENCES, "shape": [1, 2]}],
        [{**SENTENCES, "shape": [0]}],
        [{**SENTENCES, "shape": []}],
        [{**SENTENCES, "shape": [True, 2]}],
        [{**SENTENCES, "data": ["a", 5]}],
        [{**SENTENCES, "data": [["a", "b"], "c"]}],
        [{**SENTENCES, "data": [[["a"]], [["b"]]]}],
        [{name: value for name, value in SENTENCES.items() if name != "data"}],
        [{**SENTENCES, "data": None, "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}],
        [SENTENCES, SENTENCES],
        [tensor("texts", TEXTS)],
        [tensor("prompts", TEXTS)],
        [tensor("prompts", TEXTS), tensor("completions", TEXTS[:1])],
        [SENTENCES, integers("input_ids", ROWS)],
        [integers("input_ids", ROWS), integers("tokens", ROWS)],
        [integers("attention_mask", ROWS)],
        [integers("input_ids", ROWS), integers("attention_mask", [[1, 1, 1]])],
        [integers("input_ids", ROWS), integers("attention_mask", [[1, 1]] * 3)],
        [integers("input_ids", ROWS), integers("attention_mask", [[1, 1, 2]] * 3)],
        [integers("input_ids", ROWS), integers("attention_mask", [[0, 0, 0]] * 3)],
        [integers("input_ids", ROWS), integers("sequence_lengths", [[0]] * 3)],
        [integers("input_ids", ROWS), integers("sequence_lengths", [[4]] * 3)],
        [integers("input_ids", [[5, 100_000]])],
        [integers("input_ids", [[5, -1]])],
        [tensor("input_ids", [[1.5, 2]], "INT64", [1, 2])],
        [tensor("input_ids", [[True, 2]], "INT64", [1, 2])],
        [tensor("input_ids", [[1, 2]], "FP32", [1, 2])],
    ],
)
def test_inputs_that_are_no_texts_and_no_token_ids_are_refused(client: httpx2.Client, inputs: list[Any]) -> None:
    assert refused(client, *inputs)


def test_outputs_without_binary_data_may_be_asked_for(client: httpx2.Client) -> None:
    asked = [{"name": "rewards", "parameters": {"binary_data": False}}]
    assert inferred(client, SENTENCES, outputs=asked) == inferred(client, SENTENCES)


def test_details_are_outputs_where_they_are_asked_for() -> None:
    members = [FunctionProvider(function=of_length), FunctionProvider(function=of_words)]
    with served(Ensemble(members=members)) as client:
        asked = [{"name": name} for name in ("rewards", "member/1")]
        found = inferred(client, tensor("sentences", ["one two", "three"]), outputs=asked)["outputs"]
        assert [(output["name"], output["data"]) for output in found] == [("rewards", [4.5, 3]), ("member/1", [2, 1])]
        message = refused(client, tensor("sentences", ["one"]), outputs=[{"name": "variance"}])
        assert "'variance'" in message
        assert "std" in message


@pytest.mark.parametrize(
    "asked",
    [
        {"outputs": [{"name": "rewards"}, {"name": "rewards"}]},
        {"outputs": [{"name": "rewards", "parameters": {"classification": 1}}]},
        {"outputs": [{"name": "rewards", "parameters": {"shared_memory_region": "r"}}]},
        {"outputs": [{"name": "rewards", "parameters": {"binary_data": "yes"}}]},
        {"outputs": [{"name": "rewards", "parameters": {"datatype": "INT8"}}]},
        {"parameters": {"datatype": "FP16"}},
    ],
)
def test_outputs_in_forms_that_there_are_not_are_refused(client: httpx2.Client, asked: dict[str, Any]) -> None:
    assert refused(client, SENTENCES, **asked)


def test_a_reward_beyond_fp32_is_no_infinity() -> None:
    with served(FunctionProvider(function=huge)) as client:
        message = refused(client, SENTENCES)
        assert "output 'rewards' of row 1 is 1e+300, which exceeds FP32" in message
        for asked in (
            {"parameters": {"datatype": "FP64"}},
            {"outputs": [{"name": "rewards", "parameters": {"datatype": "FP64"}}]},
        ):
            (output,) = inferred(client, SENTENCES, **asked)["outputs"]
            assert (output["datatype"], output["data"]) == ("FP64", [0.1, 1e300])


def huge(samples: Sequence[rm.Sample]) -> list[float]:
    return [0.1, 1e300]


OF_MODEL = {
    "name": "tiny",
    "versions": ["1"],
    "platform": "rm-plugins",
    "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}],
}


def test_the_server_and_the_model_describe_themselves(client: httpx2.Client) -> None:
    extensions = ["binary_tensor_data", "model_configuration", "parameters", "statistics"]
    assert client.get("/v2").json() == {"name": "rm-plugins", "version": rm.__version__, "extensions": extensions}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for model in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(model).json() == OF_MODEL
        assert client.get(f"{model}/ready").json() == {"name": "tiny", "ready": True}
        assert client.get(f"{model}/config").json()["max_batch_size"] == 1024
        assert client.get(f"{model}/stats").json()["model_stats"][0]["name"] == "tiny"


def test_models_are_listed_as_triton_and_kserve_list_them(client: httpx2.Client) -> None:
    listed = [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert client.post("/v2/repository/index").json() == listed
    assert client.post("/v2/repository/index", json={"ready": True}).json() == listed
    assert client.get("/v2/models").json() == {"models": ["tiny"]}


def test_a_version_is_the_model(client: httpx2.Client) -> None:
    body = {"inputs": [SENTENCES]}
    answer = client.post("/v2/models/tiny/versions/1/infer", json=body).json()
    assert answer == client.post("/v2/models/tiny/infer", json=body).json()


def test_statistics_count_samples_and_failures() -> None:
    with served(FunctionProvider(function=of_length)) as client:
        inferred(client, tensor("sentences", ["a", "b", "c"]))
        refused(client, tensor("sentences", ["fails"]), status=500)
        (stats,) = client.get("/v2/models/stats").json()["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (3, 1)
        assert [stats["inference_stats"][name]["count"] for name in ("success", "fail", "queue")] == [1, 1, 0]


@pytest.mark.parametrize("path", ["", "/config", "/stats", "/ready"])
@pytest.mark.parametrize("model", ["other", "other/versions/1", "tiny/versions/2"])
def test_another_model_is_refused_with_the_names_that_there_are(client: httpx2.Client, model: str, path: str) -> None:
    response = client.get(f"/v2/models/{model}{path}")
    assert response.status_code == (400 if path == "/ready" else 404)  # as Triton
    assert ("'1'" if "tiny" in model else "'tiny'") in response.json()["error"]
    infer = client.post(f"/v2/models/{model}/infer", json={"inputs": [SENTENCES]})
    assert infer.status_code == 404
    assert isinstance(infer.json()["error"], str)


def of_length(samples: Sequence[rm.Sample]) -> list[float | None]:
    if any(sample.completion == "fails" for sample in samples):
        raise RuntimeError("secret of the reward")
    return [None if sample.completion == "abstains" else float(len(sample.completion)) for sample in samples]


def of_words(samples: Sequence[rm.Sample]) -> list[int]:
    return [len(str(sample.completion).split()) for sample in samples]


def test_a_text_is_a_completion_for_a_reward_that_is_no_model_and_failures_are_no_numbers() -> None:
    with served(FunctionProvider(function=of_length), api_keys=["open sesame"]) as client:
        refused(client, SENTENCES, status=401)
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        client.headers["Authorization"] = "Bearer open sesame"
        assert inferred(client, tensor("sentences", ["four"]))["outputs"][0]["data"] == [4]
        assert "token ids" in refused(client, integers("input_ids", ROWS))
        assert "abstained on item 1" in refused(client, tensor("sentences", ["a", "abstains"]))
        assert "secret" not in refused(client, tensor("sentences", ["fails"]), status=500)


def test_an_overloaded_server_says_so() -> None:
    with overloaded() as client:
        assert refused(client, SENTENCES, status=429)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/v2/nothing", {}, 404),
        ("POST", "/v2/repository/models/tiny/load", {}, 404),
        ("GET", "/v2/systemsharedmemory/status", {}, 404),
        ("GET", "/v2/models/tiny/infer", {}, 404),
        ("DELETE", "/v2/health/live", {}, 405),
        ("POST", "/v2/models/tiny/infer", {}, 400),
        ("POST", "/v2/models/tiny/infer", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v2/models/tiny/infer", {"content": b"[NaN]", "headers": {"Content-Type": "application/json"}}, 422),
        ("POST", "/v2/models/tiny/infer", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ("POST", "/v2/models/tiny/infer", {"json": ["x" * 20_000]}, 413),
        ("POST", "/v2/models/tiny/infer", {"json": {}, "headers": {"Host": "elsewhere"}}, 421),
    ],
)
def test_every_error_is_a_string(method: str, path: str, sent: dict[str, Any], status: int) -> None:
    with served(FunctionProvider(function=of_length), max_body_bytes=10_000) as client:
        response = client.request(method, path, **sent)
        assert response.status_code == status
        assert set(response.json()) == {"error"}
        assert isinstance(response.json()["error"], str)
