"""Endpoints that a plug-in adds to the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx2
import pytest
from fastapi import APIRouter, Request, WebSocket
from pydantic import BaseModel

import rm_plugins as rm
from rm_plugins.errors import PluginError
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.server import Settings, create_app, dialects
from rm_plugins.server.dialects import Dialect, Problem, Scorer, score_all, text_sample
from rm_plugins.server.dialects.dialect import Cause
from tests.servers import serving


class Texts(BaseModel):
    texts: list[str]


class Lengths(Dialect):
    """Answers one number for each text."""

    name: ClassVar[str] = "lengths"

    def router(self, scorer: Scorer) -> APIRouter:
        router = APIRouter()

        @router.post("/lengths")
        async def lengths(body: Texts) -> list[float]:
            values, _ = await score_all(scorer, [text_sample(scorer, text) for text in body.texts])
            return values

        @router.get("/lengths/facts")
        async def facts() -> dict[str, Any]:
            return {
                "model": scorer.name,
                "fingerprint": scorer.fingerprint == scorer.info["fingerprint"],
                "most": scorer.max_items,
                "ready": scorer.is_ready,
                "request": scorer.request_id,
                "renderings": await scorer.render([rm.Sample("", "a")]),
            }

        @router.get("/lengths/health")
        async def health() -> str:
            return "well"

        @router.get("/lengths/healthy")
        async def healthy() -> str:
            return "well, too"

        @router.post("/lengths/health/report")
        async def report(body: Texts) -> int:
            return len(body.texts)

        return router


class Terse(Lengths):
    """The same with errors of its own."""

    def error_body(self, problem: Problem, request_id: str) -> Any:
        return [problem.cause, request_id]


class Strict(Terse):
    """The same with statuses and words of its own."""

    statuses: ClassVar[Mapping[Cause, int]] = {"invalid": 400, "failed": 424}

    def complaint(self, errors: Sequence[Mapping[str, Any]], body: Any) -> str:
        return f"{len(errors)} errors in {body}"

    def error_body(self, problem: Problem, request_id: str) -> Any:
        return problem.message


def lengths(samples: Sequence[rm.Sample]) -> list[float | None]:
    """The lengths of completions; it abstains from empty ones and fails for questions."""
    if any("?" in str(sample.completion) for sample in samples):
        raise ValueError("a question")
    return [float(len(sample.completion)) or None for sample in samples]


def registry(*classes: type[Dialect]) -> rm.Registry:
    hook: Callable[[], Any] = rm.hookimpl(lambda: list(classes))
    return rm.Registry([SimpleNamespace(__name__="theirs", rm_register_dialects=hook)])


@contextmanager
def served(*classes: type[Dialect], **settings: Any) -> Iterator[httpx2.Client]:
    app = create_app(FunctionProvider(function=lengths), Settings(**settings), registry=registry(*classes))
    with serving(app) as url, httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client


def test_its_endpoints_score() -> None:
    with served(Lengths) as client:
        answer = client.post("/lengths", json={"texts": ["a", "four"]}, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.json(), answer.headers["x-request-id"]) == (200, [1.0, 4.0], "mine")
        facts = client.get("/lengths/facts", headers={"X-Request-ID": "mine"}).json()
        assert facts == {
            "model": "lengths",
            "fingerprint": True,
            "most": 1_024,
            "ready": True,
            "request": "mine",
            "renderings": [[]],
        }
        documented = client.get("/openapi.json").json()["paths"]["/lengths"]["post"]["responses"]
        assert {"200", "401", "413", "422", "429", "500", "503"} <= set(documented)
        assert documented["413"]["content"]["application/json"]["example"]["error"]["cause"] == "too-large"
        assert 'dialect="lengths"' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ({"texts": 3}, 422, "invalid"),
        ({"texts": [""]}, 422, "invalid"),  # the reward abstains
        ({"texts": ["what?"]}, 500, "failed"),
        ({"texts": ["a"] * 9}, 413, "too-large"),
        ({"texts": ["a" * 2000]}, 413, "too-large"),
    ],
)
def test_its_problems_are_told(body: Any, status: int, cause: str) -> None:
    for cls in (Lengths, Terse):
        with served(cls, max_items=8, max_body_bytes=1000) as client:
            answer = client.post("/lengths", json=body, headers={"X-Request-ID": "mine"})
        told = answer.json()
        assert answer.status_code == status
        if cls is Terse:
            assert told == [cause, "mine"]
        else:
            assert (told["error"]["cause"], told["error"]["request_id"]) == (cause, "mine")


def test_its_statuses_and_words_are_those_of_its_own_endpoints_alone() -> None:
    with served(Strict, max_body_bytes=1000) as client:
        wrong = client.post("/lengths", json={"texts": [3, 4]})
        assert (wrong.status_code, wrong.json()) == (400, "2 errors in {'texts': [3, 4]}")
        assert client.post("/lengths", json={"texts": [""]}).status_code == 400
        assert client.post("/lengths", json={"texts": ["what?"]}).status_code == 424
        assert client.post("/lengths", json={"texts": ["a" * 2000]}).status_code == 413
        json_type = {"Content-Type": "application/json"}
        refused = client.post("/lengths", content=b"NaN", headers=json_type)
        assert refused.status_code == 422, "refused before it is the endpoint's"
        assert client.post("/v1/rewards", json={"samples": 3}).status_code == 422
        documented = client.get("/openapi.json").json()["paths"]["/lengths"]["post"]["responses"]
        assert documented["424"]["content"]["application/json"] == {
            "schema": {"type": "string"},
            "example": "The reward failed.",
        }


def test_it_asks_for_a_key_but_to_say_how_it_is() -> None:
    with served(Lengths, api_keys=["secret"]) as client:
        body: dict[str, Any] = {"json": {"texts": ["a"]}}
        assert client.post("/lengths", **body).status_code == 401
        assert client.post("/lengths", **body, headers={"Authorization": "Bearer secret"}).json() == [1.0]
        assert client.get("/lengths/health").json() == "well"
        assert client.get("/lengths/healthy").status_code == 401
        assert client.post("/lengths/health/report", **body).status_code == 401


def dialect(add: Callable[[APIRouter], None]) -> type[Dialect]:
    class Odd(Dialect):
        name: ClassVar[str] = "odd"

        def router(self, scorer: Scorer) -> APIRouter:
            router = APIRouter()
            add(router)
            return router

    return Odd


async def nothing() -> None: ...


async def talk(socket: WebSocket) -> None: ...


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda router: router.add_api_route("/score", nothing, methods=["POST"]), r"'vllm' and the dialect 'odd' both answer POST /score"),
        (lambda router: router.add_api_route("/lengths", nothing, methods=["POST"]), r"'lengths' and the dialect 'odd' both answer"),
        (lambda router: router.add_api_route("/health", nothing), r"The server itself and the dialect 'odd' both answer GET /health"),
        (lambda router: router.add_api_websocket_route("/talk", talk), r"'odd' has .*; only HTTP routes"),
        (lambda router: 1 / 0, r"The dialect 'odd' of the plug-in 'theirs' cannot be served: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_served_is_refused_at_the_start(add: Callable[[APIRouter], None], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        create_app(FunctionProvider(function=lengths), registry=registry(Lengths, dialect(add)))


def test_another_method_of_a_path_may_be_anothers() -> None:
    def add(router: APIRouter) -> None:
        async def method(request: Request) -> str:
            return request.method

        router.add_api_route("/score", method, methods=["PUT"])

    with served(dialect(add)) as client:
        assert client.put("/score").json() == "PUT"
        assert client.post("/score", json={"queries": "", "documents": ["ab"], "use_activation": False}).status_code == 200


def test_importing_them_imports_no_web_framework() -> None:
    code = "import sys, rm_plugins.server.dialects; sys.exit('fastapi' in sys.modules or 'starlette' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_are_none_without_the_web_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialects, "find_spec", lambda name: None)
    assert rm.Registry().all("dialect") == {}
    assert list(registry(Lengths).all("dialect")) == ["lengths"]
