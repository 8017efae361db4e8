"""A sample that cannot be scored, among others that can: the answer says which it is, and the others have their scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.server import Settings, create_app
from tests.servers import serving

GOOD = ["4", "five, or about that", "🙂", "a\x00b", "\\ud83d"]
HALF = "a\ud83d"
LONG = "x" * 2_001
SAMPLES: list[Any] = [{"prompt": "Q", "completion": text} for text in GOOD]
BAD: list[Any] = [
    {"prompt": "Q", "completion": HALF}, {"prompt": HALF, "completion": ""}, {"prompt": "Q", "completion": LONG},
    {"prompt": "Q", "completion": "", "columns": {"note": [HALF]}}, {"prompt": "Q", "completion": "", "columns": {HALF: 1}},
    {"prompt": "Q"}, {"prompt": 1, "completion": ""}, {"prompt": [{"role": "nobody", "content": ""}], "completion": ""},
    {"prompt": [{"role": "user"}], "completion": "4"}, {"prompt": "Q", "completion": "", "columns": [1]}, {"token_ids": []},
    {"token_ids": [1, -1]}, {"token_ids": [10**9]}, {"token_ids": [1] * 5_000}, {"text": 1}, {"text": HALF}, {}, [], None, 1, "text",
    {"prompt": "Q", "completion": "", "columns": {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}},
    {"prompt": "Q", "completion": "", "columns": {"chat_template_kwargs": 3}}, {"prompt": "Q", "completion": "", "more": 1},
    {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "4"},
]  # fmt: skip


@pytest.fixture(scope="module")
def reward(tiny_decoder: Any) -> rm.Provider:
    return rm.load(str(tiny_decoder()))


@pytest.fixture(scope="module")
def client(reward: rm.Provider) -> Iterator[httpx2.Client]:
    app = create_app(reward, Settings(model_name="reward", max_characters=2_000, max_items=16))
    with serving(app) as url, httpx2.Client(base_url=url, timeout=60, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(reward: rm.Provider) -> dict[str, float]:
    """The score of each good completion by itself."""
    return {text: float(reward.score([rm.Sample("Q", text)]).values[0]) for text in GOOD}


def post(client: httpx2.Client, path: str, body: Any) -> httpx2.Response:
    answer = client.post(path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, f"{path} {str(body)[:300]}: {answer.text}"
    json.loads(answer.text, parse_constant=pytest.fail)
    return answer


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bad_samples_have_their_errors_and_the_others_their_scores(
    client: httpx2.Client, alone: dict[str, float], data: st.DataObject
) -> None:
    good, bad = st.sampled_from(SAMPLES), st.sampled_from(BAD)
    samples = data.draw(
        st.permutations([*data.draw(st.lists(good, min_size=1, max_size=4)), *data.draw(st.lists(bad, min_size=1, max_size=3))])
    )
    answer = post(client, "/v1/rewards", {"samples": samples})
    assert answer.status_code == 200, answer.text
    entries = answer.json()["rewards"]
    assert [entry["index"] for entry in entries] == list(range(len(samples)))
    for sample, entry in zip(samples, entries, strict=True):
        if sample in SAMPLES:
            assert entry["reward"] == pytest.approx(alone[sample["completion"]], abs=1e-4)
            assert "error" not in entry
        else:
            assert entry["reward"] is None
            assert entry["error"]


@pytest.mark.parametrize("sample", BAD)
def test_a_request_of_nothing_else_is_told_what_is_wrong(client: httpx2.Client, sample: Any) -> None:
    answer = post(client, "/v1/rewards", {"samples": [sample, sample]})
    if answer.status_code == 200:  # the chat template, or the tokenizer, has looked at it
        assert all(entry["error"] for entry in answer.json()["rewards"])
    else:
        assert answer.status_code == 422
        assert "samples[0]" in answer.json()["error"]["message"] or "item 0" in answer.json()["error"]["message"]


def test_what_cannot_be_rendered_is_named(client: httpx2.Client) -> None:
    for sample in BAD:
        answer = post(client, "/v1/render", {"samples": [SAMPLES[0], sample]})
        if answer.status_code != 200:
            message = answer.json()["error"]["message"]
            assert "samples[1]" in message or "item 1" in message


def row(tensor: str, rows: list[Any], datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": tensor, "shape": shape, "datatype": datatype, "data": rows}


Body = Callable[[list[Any]], Any]
SHAPES: dict[str, tuple[Body, list[Any], list[Any]]] = {
    "/classify": (lambda rows: {"input": rows}, ["a", "bb"], [HALF, LONG, "", 5, None, ["a"], {}]),
    "/classify ": (lambda rows: {"input": rows}, [[5, 6], [7]], [[-1], [10**9], [], [1] * 5_000, ["a"], [1.5], [None]]),
    "/pooling": (lambda rows: {"input": rows}, ["a", "bb"], [HALF, LONG, "", 5]),
    "/score": (lambda rows: {"queries": "Q", "documents": rows}, ["a", "bb"], [HALF, LONG, 5, None]),
    "/v1/score": (lambda rows: {"text_1": rows, "text_2": ["a"] * len(rows)}, ["a", "bb"], [HALF, LONG, 5]),
    "/v1/rerank": (lambda rows: {"query": "Q", "documents": rows}, ["a", "bb"], [HALF, LONG, 5]),
    "/rerank": (lambda rows: {"query": "Q", "texts": rows}, ["a", "bb"], [HALF, LONG, 5]),
    "/rerank ": (lambda rows: {"query": "", "texts": rows}, ["a", "bb"], [""]),
    "/predict": (lambda rows: {"inputs": rows}, [["a"], ["Q", "bb"]], [[HALF], ["Q", LONG], [""], ["", ""], [5], [], ["a", "b", "c"], 5]),
    "/get_reward": (lambda rows: {"query": rows}, ["a", "bb"], [HALF, LONG, 5, None]),
    "/v2/models/reward/infer": (
        lambda rows: {"inputs": [row("sentences", rows, "BYTES", [len(rows)])]}, ["a", "bb"], [HALF, LONG, 5, None],
    ),
    "/v2/models/reward/infer ": (
        lambda rows: {"inputs": [row("input_ids", rows, "INT64", [len(rows), 2])]},
        [[5, 6], [7, 8]], [[-1, 5], [10**9, 5], [5, 1.5], [5, None]],
    ),
    "/v2/models/reward/infer  ": (
        lambda rows: {
            "inputs": [
                row("input_ids", [[5, 6]] * len(rows), "INT64", [len(rows), 2]),
                row("attention_mask", rows, "INT64", [len(rows), 2]),
            ]
        },
        [[1, 1], [1, 0]], [[0, 0], [1, 2]],
    ),
    "/v2/models/reward/infer   ": (
        lambda rows: {
            "inputs": [
                row("input_ids", [[5, 6]] * len(rows), "INT64", [len(rows), 2]),
                row("sequence_lengths", rows, "INT64", [len(rows), 1]),
            ]
        },
        [1, 2], [0, 3, -1],
    ),
}  # fmt: skip
"""Bodies of rows for each path of a drop-in, rows that it takes, and rows that it does not."""


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_shape_without_a_place_for_errors_names_the_row(client: httpx2.Client, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(SHAPES)))
    body, good, bad = SHAPES[path]
    rows = [good[number % len(good)] for number in range(data.draw(st.integers(2, 5)))]
    assert post(client, path.strip(), body(rows)).status_code == 200
    place = data.draw(st.integers(0, len(rows) - 1))
    rows[place] = data.draw(st.sampled_from(bad))
    answer = post(client, path.strip(), body(rows))
    assert 400 <= answer.status_code < 500, answer.text
    names = (f"item {place}", f"row {place} ", f"[{place}]", f".{place}:", f".{place}.")
    assert any(name in answer.text for name in names), f"{path} {place} {str(rows)[:200]}: {answer.text}"


def test_what_a_reward_fails_at_is_named_too() -> None:
    class Fussy(rm.Provider):
        name = "fussy"

        def score_batch(self, samples: Any) -> rm.Scores:
            wrong = [number for number, sample in enumerate(samples) if "bad" in sample.completion]
            if wrong:
                raise ScoringError("it is bad", rows=wrong)
            return rm.Scores(np.array([float(len(sample.completion)) for sample in samples]))

    with serving(create_app(Fussy(), Settings())) as url, httpx2.Client(base_url=url, trust_env=False) as client:
        texts = ["a", "bad", "cc"]
        samples = [{"prompt": "", "completion": text} for text in texts]
        assert [entry["reward"] for entry in client.post("/v1/rewards", json={"samples": samples}).json()["rewards"]] == [
            1,
            None,
            2,
        ]
        for path in ("/classify", "/score", "/predict", "/get_reward"):
            bodies = {
                "/classify": {"input": texts},
                "/score": {"queries": "", "documents": texts},
                "/get_reward": {"query": texts},
            }
            assert "item 1" in client.post(path, json=bodies.get(path, {"inputs": [[text] for text in texts]})).text
