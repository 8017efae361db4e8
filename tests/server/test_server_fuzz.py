"""Whatever the server is sent, its answer is one that its OpenAPI document announces, and no failure of its own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.server import Settings, create_app
from tests.servers import serving


@pytest.fixture(scope="module")
def url(tiny_decoder: Any) -> Iterator[str]:
    app = create_app(rm.load(str(tiny_decoder())), Settings(model_name="reward", max_body_bytes=200_000, max_items=8))
    with serving(app) as found:
        yield found


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as found:
        yield found


@pytest.fixture(scope="module")
def examples(client: httpx2.Client) -> list[tuple[str, Any]]:
    """Paths with the bodies that the OpenAPI document gives as examples of what they take."""
    document = client.get("/openapi.json").json()
    found = []
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        schema = content.get("schema", {}).get("$ref", "").removeprefix("#/components/schemas/")
        bodies = [example["value"] for example in content.get("examples", {}).values()]
        bodies += document["components"]["schemas"].get(schema, {}).get("examples", [])
        found += [(path.replace("{model}", "reward").replace("{version}", "1"), body) for body in bodies]
    return found


def test_every_endpoint_that_scores_shows_a_body_that_it_takes(client: httpx2.Client, examples: list[tuple[str, Any]]) -> None:
    assert {path for path, _ in examples} >= {
        "/v1/rewards", "/v1/render", "/classify", "/pooling", "/score", "/predict", "/rerank", "/get_reward",
        "/v2/models/reward/infer",
    }  # fmt: skip
    for path, body in examples:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, f"{path} {body}: {answer.text}"


ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "\x00", "\ud800", "a" * 5_000, "<|end|>",
    [], {}, [[]], [{}], [None], [[["a"]]], [1, "a"], [2**40], ["a"] * 40, {"role": "user"}, [{"role": "user", "content": None}],
]  # fmt: skip
for _ in range(200):
    ODD[-1] = [ODD[-1]]  # very deep


def places(value: Any) -> list[list[Any]]:
    """The paths to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[], *([key, *path] for key, item in inner for path in places(item))]


def changed(body: Any, where: list[Any], odd: Any, how: str) -> Any:
    """The body with something odd in the place of a part, beside it, or with the part left out."""
    if not where:
        return odd
    body = copy.deepcopy(body)
    holder = body
    for key in where[:-1]:
        holder = holder[key]
    if how == "left out":
        del holder[where[-1]]
    elif how == "beside" and isinstance(holder, dict):
        holder["odd"] = odd
    else:
        holder[where[-1]] = odd
    return body


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_body_with_something_odd_in_it_is_no_failure(
    client: httpx2.Client, examples: list[tuple[str, Any]], data: st.DataObject
) -> None:
    path, body = data.draw(st.sampled_from(examples))
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(places(body)))
        body = changed(
            body, where, data.draw(st.sampled_from(ODD)), data.draw(st.sampled_from(["instead", "beside", "left out"]))
        )
    sent = json.dumps(body).encode()
    answer = client.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, f"{path} {sent[:300]!r}: {answer.status_code} {answer.text}"
    json.loads(answer.text, parse_constant=pytest.fail)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_body_that_is_no_json_is_no_failure(
    client: httpx2.Client, examples: list[tuple[str, Any]], data: st.DataObject
) -> None:
    path, body = data.draw(st.sampled_from(examples))
    whole = json.dumps(body).encode()
    cut = data.draw(st.integers(0, len(whole)))
    sent = whole[:cut] + data.draw(st.binary(max_size=8)) + data.draw(st.sampled_from([b"", whole[cut:]]))
    kind = data.draw(st.sampled_from(["application/json", "text/plain", "application/octet-stream", ""]))
    answer = client.post(path, content=sent, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code < 500, f"{path} {sent!r}: {answer.status_code} {answer.text}"


def test_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    pytest.importorskip(
        "schemathesis", reason="schemathesis, which needs newer packages than the oldest supported, is not installed"
    )
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", checks, "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--generation-deterministic"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
