"""OpenRLHF's client gets its rewards from this server, with nothing but another URL."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.function import FunctionProvider
from tests.drop_ins import decoder, served, text_rewards

PROMPTS = ["<|start|>user\n2+2?<|end|>\n<|start|>assistant\n", "<|start|>user\nName a colour.<|end|>\n<|start|>assistant\n"]
QUERIES = [f"{PROMPTS[0]}It is 4.<|end|>", f"{PROMPTS[1]}Blue.<|end|>"]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    return decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def client(reward: rm.Provider) -> Iterator[httpx2.Client]:
    with served(reward) as client:
        yield client


def answered(client: httpx2.Client, body: dict[str, Any]) -> Any:
    response = client.post("/get_reward", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("extra", [{}, {"prompts": PROMPTS, "labels": ["4", None]}, {"prompts": None, "labels": None}])
def test_queries_are_scored_as_they_are_without_further_special_tokens(
    client: httpx2.Client, reward: rm.Provider, extra: dict[str, Any]
) -> None:
    expected = text_rewards(reward, QUERIES, add_special_tokens=False)
    assert expected != pytest.approx(text_rewards(reward, QUERIES))
    found = answered(client, {"query": QUERIES, **extra})
    assert found == {"rewards": pytest.approx(expected), "scores": pytest.approx(expected), "extra_logs": {}}


def test_a_batch_of_one_is_a_list_of_one(client: httpx2.Client) -> None:
    (alone,) = answered(client, {"query": QUERIES[:1], "prompts": PROMPTS[:1], "labels": ["4"]})["rewards"]
    assert alone == pytest.approx(answered(client, {"query": QUERIES})["rewards"][0])
    assert answered(client, {"query": QUERIES[0]})["rewards"] == [alone]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": []},
        {"query": [5]},
        {"query": None},
        {"query": QUERIES, "prompts": PROMPTS[:1]},
        {"query": QUERIES, "labels": ["4"]},
        {"query": QUERIES, "prompts": "2+2?"},
    ],
)
def test_what_cannot_be_told_apart_is_refused(client: httpx2.Client, body: dict[str, Any]) -> None:
    response = client.post("/get_reward", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"detail"}


def test_a_reward_that_is_no_model_is_told_of_prompts_and_labels() -> None:
    with served(Sum(members=[FunctionProvider(function=of_label), FunctionProvider(function=of_prompt)])) as client:
        found = answered(client, {"query": QUERIES, "prompts": PROMPTS, "labels": ["4", "red"]})
        assert found["rewards"] == [1 + len(PROMPTS[0]), len(PROMPTS[1])]
        elsewhere = answered(client, {"query": QUERIES, "prompts": [PROMPTS[0], None], "labels": ["4", "Blue"]})
        assert elsewhere["rewards"] == [1 + len(PROMPTS[0]), 1]
        refused = client.post("/get_reward", json={"query": QUERIES, "labels": ["4", None]})
        assert refused.status_code == 422
        assert "abstained on item 1" in refused.json()["detail"]


def test_details_that_every_query_has_are_logged_by_the_trainer() -> None:
    with served(Ensemble(members=[FunctionProvider(function=of_length), FunctionProvider(function=of_prompt)])) as client:
        logs = answered(client, {"query": ["prompt and more", "prompt"], "prompts": ["prompt", "prompt"]})["extra_logs"]
    assert logs["member/0"] == [9, 0]
    assert logs["member/1"] == [6, 6]
    assert logs["std"][1] > logs["std"][0] > 0


@pytest.mark.parametrize(
    "query",
    [
        "user 2+2?\n assistant\nIt is 4.",  # decoded without special tokens
        "<|start|> user\n2+2? <|end|> \n<|start|> assistant\nIt is 4.<|end|>",  # SentencePiece's spaces
        "ser\n2+2?<|end|>\n<|start|>assistant\nIt is 4.<|end|>",  # the beginning of a long prompt was cut off
        "\ufffdser\n2+2?<|end|>\n<|start|>assistant\nIt is 4.<|end|><|end|>",  # within a character
    ],
)
def test_a_prompt_is_found_in_a_query_as_tokenizers_and_trainers_change_it(query: str) -> None:
    assert completions_of([query], [PROMPTS[0]]) == [(PROMPTS[0], "It is 4.")]


def test_where_a_prompt_ends_is_not_guessed() -> None:
    assert completions_of(["cafe\u0301? Yes"], ["caf\u00e9? "]) == "refused"
    assert completions_of(["caf\u00e9? Yes"], ["cafe\u0301? "]) == [("cafe\u0301? ", "Yes")]  # a tokenizer's NFC
    for query, prompt in (
        ("another one", PROMPTS[0]),
        ("", PROMPTS[0]),
        ("ab" * 20 + "c", "x" + "ab" * 30),
        (f"{PROMPTS[0][:24]} and something else", PROMPTS[0] * 2 + PROMPTS[0][:24]),
    ):
        assert completions_of([query], [prompt]) == "refused"


@pytest.mark.parametrize(
    ("eos_texts", "completion", "expected"),
    [
        (None, "4<|im_end|>", "4"),
        (None, "4<|im_end|><|endoftext|>", "4"),
        (None, "4</s>", "4"),
        (None, "4<\uff5cend\u2581of\u2581sentence\uff5c>", "4"),
        (None, "4<end_of_turn>", "4"),
        (None, "<s>4</s>", "<s>4</s>"),
        (None, "<s>4</s></s>", "<s>4</s>"),
        (None, "<|im_end|> is how it ends", "<|im_end|> is how it ends"),
        (None, "a |> b <| c", "a |> b <| c"),
        (["[END]"], "4[END]", "4"),
        (["[END]"], "4<|im_end|>", "4<|im_end|>"),
        ([], "4</s>", "4</s>"),
    ],
)
def test_the_eos_of_the_policy_is_no_text(eos_texts: list[str] | None, completion: str, expected: str) -> None:
    assert completions_of([f"Q: {completion}"], ["Q: "], eos_texts=eos_texts) == [("Q: ", expected)]


def test_prompts_tell_which_completions_of_models_are_compared(reward: rm.Provider) -> None:
    ranked = rm.load({**(reward.spec or {}), "transform": "rank-in-group"})
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    queries = [f"{prompt}{answer}<|end|>" for prompt, answer in zip(prompts, ["4", "5", "Blue.", "No."], strict=True)]
    with served(ranked) as client:
        found = answered(client, {"query": queries, "prompts": prompts, "labels": [""] * 4})["rewards"]
    values = text_rewards(reward, queries, add_special_tokens=False)
    assert found == [
        float(values[0] > values[1]),
        float(values[1] > values[0]),
        float(values[2] > values[3]),
        float(values[3] > values[2]),
    ]


def completions_of(queries: list[str], prompts: list[str], **settings: Any) -> Any:
    """What a rule is given as prompt and completion; ``refused`` where the request is."""
    seen: list[tuple[Any, Any]] = []

    def rule(samples: Sequence[rm.Sample]) -> list[float]:
        seen.extend((sample.prompt, sample.completion) for sample in samples)
        return [0.0] * len(samples)

    with served(FunctionProvider(function=rule), **settings) as client:
        response = client.post("/get_reward", json={"query": queries, "prompts": prompts})
    if response.status_code == 422:
        assert "item 0" in response.json()["detail"]
        return "refused"
    assert response.status_code == 200, response.text
    return seen


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenRLHF's own module with the client, where an unpacked OpenRLHF is at hand."""
    folder = os.environ.get("RM_PLUGINS_OPENRLHF")
    if not folder:
        pytest.skip("RM_PLUGINS_OPENRLHF does not name the folder of the package openrlhf")
    pytest.importorskip("aiohttp", reason="aiohttp, which OpenRLHF's client needs, is not installed")
    logging_utils = SimpleNamespace(init_logger=logging.getLogger)  # the package itself imports ray and vLLM
    monkeypatch.setitem(sys.modules, "openrlhf.utils.logging_utils", logging_utils)
    spec = importlib.util.spec_from_file_location("openrlhf_agent", Path(folder) / "utils" / "agent.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_openrlhf_s_own_client_gets_the_rewards_in_order(agent: Any, client: httpx2.Client, reward: rm.Provider) -> None:
    executor = agent.SingleTurnAgentExecutor([str(client.base_url.join("/get_reward"))] * 2)
    queries, prompts, labels = QUERIES * 2, PROMPTS * 2, ["4", "blue"] * 2
    shards = asyncio.run(executor._fetch_rewards_via_http(queries, prompts, labels))
    found = [value for shard in shards for value in shard["rewards"]]
    assert found == pytest.approx(text_rewards(reward, queries, add_special_tokens=False))


def test_openrlhf_s_own_rollout_has_the_reward(agent: Any, client: httpx2.Client, reward: rm.Provider) -> None:
    renderer: Any = reward
    tokenizer = renderer.renderer.tokenizer
    answer = tokenizer("It is 4.<|end|>", add_special_tokens=False)["input_ids"]

    class Engine:
        async def generate(self, *arguments: Any, **settings: Any) -> Any:
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer, finish_reason="stop", logprobs=None)])

    executor = agent.SingleTurnAgentExecutor(str(client.base_url.join("/get_reward")))
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    output = asyncio.run(executor.execute(PROMPTS[0], "4", sampling, 256, tokenizer, Engine()))
    expected = pytest.approx(text_rewards(reward, QUERIES[:1], add_special_tokens=False))
    assert output["reward"] == output["scores"] == expected


def of_label(samples: Sequence[rm.Sample]) -> list[float | None]:
    labels = [sample.columns.get("label") for sample in samples]
    return [None if label is None else float(label in sample.completion) for label, sample in zip(labels, samples, strict=True)]


def of_prompt(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.prompt)) for sample in samples]


def of_length(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion)) for sample in samples]
