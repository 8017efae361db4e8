"""What another try would not change: it is seen by the first answer, costs no further request, and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import rm_plugins as rm
from rm_plugins.errors import RmPluginsError, ScoringError
from rm_plugins.protocols import TEI, VLLM, Auto, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.remote import Remote
from tests.fake_servers import head
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.native import native
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.servers import serving

SAMPLES = [rm.Sample("", f"text {number}") for number in range(200)]
QUESTIONS = ("/tokenize", "/v2/repository/index")
"""Posts that score nothing."""


class Counting:
    """Another app, whose scoring requests are counted; those to the path `absent` find nothing."""

    def __init__(self, app: Any, *, absent: str = "") -> None:
        self.app = app
        self.absent = absent
        self.scored = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] not in QUESTIONS:
            self.scored += 1
            if scope["path"] == self.absent:
                await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def several(request: Request) -> JSONResponse:
    size = len((await request.json())["query"])
    return JSONResponse({"rewards": [[0.5, 1.5]] * size})


async def ready(request: Request) -> JSONResponse:
    return JSONResponse({})


async def two_outputs(request: Request) -> JSONResponse:
    body = await request.json()
    (size, *_) = body["inputs"][0]["shape"]
    tensor = {"shape": [size, 1], "datatype": "FP32", "data": [0.5] * size}
    return JSONResponse({"id": body["id"], "outputs": [{"name": "a", **tensor}, {"name": "b", **tensor}]})


def without_logprobs(question: str) -> Any:
    return choice("Yes", logprobs=False)


class NoLogprobs(Starlette):
    """OpenAI's answer for models that give none."""

    def __init__(self) -> None:
        super().__init__(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> JSONResponse:
        return JSONResponse({"error": {"message": "You are not allowed to request logprobs from this model"}}, 403)


PERMANENT: dict[str, tuple[Protocol, Callable[[], Any], str]] = {
    "vllm, no label": (VLLM(), lambda: FakeVLLM(outputs=head(3)), r"has 3 outputs.*label: NUMBER"),
    "vllm, another label": (VLLM(label=3), lambda: FakeVLLM(outputs=head(3)), "there is no label 3"),
    "vllm, for tokens": (VLLM(endpoint="pooling"), lambda: FakeVLLM(task="token_classify"), "pooler-config.task"),
    "vllm, no classifier": (VLLM(), lambda: FakeVLLM(task="token_classify"), r"501 to POST /classify.*--runner pooling"),
    "vllm, another model": (VLLM(model="other"), FakeVLLM, r"404 to POST /classify.*`other` does not exist.*GET /v1/models"),
    "sglang, no label": (SGLang(), lambda: FakeSGLang(outputs=head(3)), r"has 3 outputs.*label: NUMBER"),
    "tei, no label": (TEI(), lambda: FakeTEI(labels=("bad", "good")), "label: NAME"),
    "openrlhf, several numbers": (
        OpenRLHF(),
        lambda: Starlette(routes=[Route("/get_reward", several, methods=["POST"])]),
        "several numbers for each item",
    ),
    "oip, several outputs": (
        OpenInference(model="rm"),
        lambda: Starlette(
            routes=[Route("/v2/models/rm/ready", ready), Route("/v2/models/rm/infer", two_outputs, methods=["POST"])]
        ),
        "has 2 outputs of FP32 or FP64 .*output: NAME",
    ),
    "oip, another output": (
        OpenInference(model="rm", output="score"),
        lambda: Starlette(
            routes=[Route("/v2/models/rm/ready", ready), Route("/v2/models/rm/infer", two_outputs, methods=["POST"])]
        ),
        "has 0 outputs called 'score'",
    ),
    "swift, a classifier": (Swift(texts="messages"), lambda: swift(kind="classifier"), "--num_labels 1"),
    "swift, a generator": (Swift(texts="messages"), lambda: swift(kind="generator"), "--task_type seq_cls"),
    "swift, another model": (Swift(model="other", texts="messages"), swift, "is not in the model_list"),
    "judge, no logprobs": (OpenAIJudge(), lambda: judge(without_logprobs), r"no logprobs.*`range: \[1, 10\]`"),
    "judge, logprobs refused": (OpenAIJudge(model="m"), NoLogprobs, "not allowed to request logprobs"),
    "rm-plugins, another version": (
        Native(),
        lambda: native(lambda sample: 1.0, info={"protocol": "rm-plugins/2"}),
        "speaks 'rm-plugins/1'",
    ),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_a_wrong_configuration_fails_at_its_first_answer(name: str) -> None:
    protocol, make, message = PERMANENT[name]
    app = Counting(make())
    with serving(app, lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol, tries=4, concurrency=1)
        with pytest.raises(RmPluginsError, match=message):
            provider.score(SAMPLES)
        provider.close()
    assert app.scored <= 1
    assert provider.counts["retries"] == provider.counts["splits"] == 0


ABSENT: dict[str, tuple[Protocol, Callable[[], Any], str, str]] = {
    "rm-plugins": (Native(), lambda: native(lambda sample: 1.0), "/v1/rewards", "`rm-plugins serve`"),
    "vllm": (VLLM(), FakeVLLM, "/classify", "`vllm serve MODEL --runner pooling --convert classify`"),
    "vllm pooling": (VLLM(endpoint="pooling"), FakeVLLM, "/pooling", "--runner pooling"),
    "vllm score": (VLLM(endpoint="score"), FakeVLLM, "/score", "--runner pooling"),
    "sglang": (SGLang(), FakeSGLang, "/classify", "`--is-embedding`"),
    "tei": (TEI(), FakeTEI, "/predict", "root of text-embeddings-inference"),
    "openrlhf": (OpenRLHF(), openrlhf, "/get_reward", "`openrlhf.cli.serve_rm`"),
    "oip": (OpenInference(), oip, "/v2/models/reward_model/infer", "Name a model"),
    "swift": (Swift(texts="messages"), swift, "/v1/chat/completions", "`swift deploy --task_type seq_cls`"),
    "openai-judge": (OpenAIJudge(), lambda: judge(without_logprobs), "/v1/chat/completions", "Name a model"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_path_that_is_not_there_is_named_with_the_likely_cause(name: str) -> None:
    protocol, make, path, cause = ABSENT[name]
    app = Counting(make(), absent=path)
    with serving(app, lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol, concurrency=1)
        with pytest.raises(ScoringError) as caught:
            provider.score(SAMPLES)
        provider.close()
    assert f"answered 404 to POST {path}" in str(caught.value)
    assert cause in str(caught.value)
    assert "ends with" not in str(caught.value)
    assert app.scored == 1


@pytest.mark.parametrize("protocol", [Auto(), Native(), TEI(), SGLang(), OpenAIJudge(), OpenAIJudge(model="judge"), VLLM()])
@pytest.mark.parametrize("path", ["/v1", "/get_reward"])
def test_a_url_that_ends_with_a_version_or_an_endpoint_is_named_as_the_cause(protocol: Protocol, path: str) -> None:
    with serving(judge(without_logprobs), lifespan="off") as url:
        provider = Remote(url=f"{url}{path}", protocol=protocol, tries=1)
        with pytest.raises(RmPluginsError, match=rf"The URL ends with {path}, .*remove {path} from the URL"):
            provider.score(SAMPLES[:2])
        provider.close()
