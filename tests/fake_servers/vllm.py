"""vLLM's pooling endpoints by version, as read in the sources of 0.9.2 to 0.33.0.

The real ones were seen: 0.30.0 applies a wrong head to BERT where the activation is off, from 1.7e-3 to 14 off; 0.32.0 reads the last
token that it is sent, encodes the texts of ``/score`` as ``tokenizer(text_1, text_2)``, which drops an empty second text, and answers
``/tokenize`` as here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fake_servers import Head, head, pair_tokens, sigmoid, softmax, tokens

__all__ = ["FakeVLLM", "Fault"]

Fault: TypeAlias = Literal["", "nan", "shuffled", "short", "twice"]


class FakeVLLM(Starlette):
    """A server of one model.

    Args:
        version: Whose behaviour it has; what ``GET /version`` says unless `told` is given.
        told: The body of ``GET /version``; None for a server without the endpoint.
        model: The name of the model.
        outputs: The model's outputs for token ids.
        problem_type: ``regression`` for a model without an activation.
        task: ``token_classify`` for a model with outputs for each token.
        broken_head: What the outputs become where the activation is off, as BERT's do in 0.14 to 0.30.
        precision: Of its numbers: 64 bits, or as many as a real one has.
        closes: Whether its tokenizer closes texts, as those of encoders do; None for a server that does not tell.
        bare: Whether its tokenizer adds no special tokens at all.
        max_model_len: Most tokens of a text.
        key: Asked for under /v1 alone.
        fault: What is wrong with its answers.
    """

    def __init__(
        self,
        version: str = "0.33.0",
        *,
        told: Mapping[str, Any] | Literal["as is"] | None = "as is",
        model: str = "reward",
        outputs: Head | None = None,
        problem_type: str | None = None,
        task: str = "classify",
        broken_head: Callable[[float], float] | None = None,
        precision: Literal[16, 32, 64] = 64,
        closes: bool | None = False,
        bare: bool = False,
        max_model_len: int = 200,
        key: str | None = None,
        fault: Fault = "",
    ) -> None:
        self.numbers = tuple(map(int, version.split(".")))
        self.told = {"version": version} if told == "as is" else told
        self.model = model
        self.outputs = outputs or head()
        self.problem_type = problem_type
        self.task = task
        self.broken_head = broken_head
        self.precision = np.dtype(f"float{precision}").type
        self.closes = closes
        self.bare = bare
        self.max_model_len = max_model_len
        self.key = key
        self.fault = fault
        self.bodies: list[dict[str, Any]] = []
        posts = {"/classify": self.classify, "/pooling": self.pooling, "/score": self.score, "/tokenize": self.tokenize}
        routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]
        super().__init__(routes=[Route("/version", self.version), Route("/v1/models", self.models), *routes])

    async def version(self, request: Request) -> Response:
        """No secret, with a key or without."""
        return JSONResponse({"detail": "Not Found"}, 404) if self.told is None else JSONResponse(self.told)

    async def models(self, request: Request) -> Response:
        """The one place here that asks for the key."""
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        card = {"id": self.model, "object": "model", "owned_by": "vllm", "max_model_len": self.max_model_len}
        return JSONResponse({"object": "list", "data": [card]})

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a text."""
        body = await request.json()
        if self.closes is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        ids = self._ids(body["prompt"], body.get("add_special_tokens", True))
        return JSONResponse({"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids, "token_strs": None})

    async def classify(self, request: Request) -> Response:
        """Probabilities, unless they are switched off by the name that this version has for it."""
        body = await self._body(request)
        if self.task != "classify":
            return self.error("The model does not support Classification API", 501 if self.numbers >= (0, 16) else 400)
        if error := self._input_error(body, ids=self.numbers >= (0, 15)):
            return error
        add = body.get("add_special_tokens", True) if self.numbers >= (0, 11, 1) else True  # unknown fields are ignored
        return self._scored(body, [self._ids(entry, add) for entry in _listed(body["input"])], self._classified)

    async def pooling(self, request: Request) -> Response:
        """As classify, in another form, and from 0.11.1 on with the same switch."""
        body = await self._body(request)
        if error := self._input_error(body, ids=True):
            return error
        if self.numbers >= (0, 11, 1) and body.get("task", self.task) != self.task:
            return self.error(f"Try switching the model's pooling_task via --pooler-config.task {body['task']}.")
        if body.get("encoding_format", "float") != "float":
            return self.error("not in this fake")
        add = body.get("add_special_tokens", True)
        return self._scored(body, [self._ids(entry, add) for entry in _listed(body["input"])], self._pooled)

    async def score(self, request: Request) -> Response:
        """Pairs, one sequence with the model's separator."""
        body = await self._body(request)
        if len(self.outputs([0])) != 1:
            return self.error("The model does not support Score API", 501 if self.numbers >= (0, 16) else 400)
        names = [("queries", "documents"), ("text_1", "text_2")] if self.numbers >= (0, 15) else [("text_1", "text_2")]
        for first, second in names:
            if first in body and second in body:
                pairs = zip(_listed(body[first]), _listed(body[second]), strict=True)
                return self._scored(body, [self._pair_ids(query, text) for query, text in pairs], self._paired)
        return self.error("1 validation error: field required")

    def error(self, message: str, status: int = 400, kind: str = "BadRequestError") -> Response:
        """Flat before 0.10.1."""
        facts = {"message": message, "type": kind, "param": None, "code": status}
        return JSONResponse({"error": facts} if self.numbers >= (0, 10, 1) else {"object": "error", **facts}, status)

    async def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        return {**body, "request_id": request.headers.get("x-request-id", "made-up")}

    def _input_error(self, body: Mapping[str, Any], *, ids: bool) -> Response | None:
        listed = _listed(body.get("input"))
        if not listed or not all(isinstance(entry, str) or (ids and isinstance(entry, list)) for entry in listed):
            return self.error("1 validation error: {'type': 'string_type', 'loc': 'body.input'}")
        return None

    def _ids(self, entry: Any, add_special_tokens: bool) -> list[int]:
        is_text = isinstance(entry, str)
        return tokens(entry, special=add_special_tokens and not self.bare, closes=bool(self.closes)) if is_text else list(entry)

    def _pair_ids(self, query: str, text: str) -> list[int]:
        """Of a pair with an empty second text, that of the first alone."""
        if self.bare:
            return tokens(query + text, special=False)
        return pair_tokens(query, text, closes=bool(self.closes)) if text else self._ids(query, True)

    def _scored(self, body: Mapping[str, Any], rows: Sequence[Sequence[int]], form: Any) -> Response:
        if body.get("model") not in (None, self.model):
            return self.error(f"The model `{body['model']}` does not exist.", 404, "NotFoundError")
        for ids in rows:
            if len(ids) > self.max_model_len and body.get("truncate_prompt_tokens") is None:
                return self.error(
                    f"This model's maximum context length is {self.max_model_len} tokens. However, you requested {len(ids)} tokens."
                )
        if self.fault == "nan" and form != self._pooled:
            return self.error("Out of range float values are not JSON compliant: nan")
        entries = [
            {"index": place, **form(self._activated(body, ids[: self.max_model_len], form))} for place, ids in enumerate(rows)
        ]
        match self.fault:
            case "shuffled":
                entries.reverse()
            case "short":
                entries.pop()
            case "twice":
                entries[-1]["index"] = 0
        return JSONResponse({"id": f"classify-{body['request_id']}", "object": "list", "model": self.model, "data": entries})

    def _activated(self, body: Mapping[str, Any], ids: Sequence[int], form: Any) -> list[float]:
        use = self._uses_activation(body, pooling=form == self._pooled)
        outputs = self.outputs(ids)
        if self.broken_head and not use:
            outputs = [self.broken_head(value) for value in outputs]
        if use and self.problem_type != "regression":
            outputs = [sigmoid(outputs[0])] if len(outputs) == 1 else softmax(outputs)
        return [float(self.precision(value)) for value in outputs]

    def _uses_activation(self, body: Mapping[str, Any], *, pooling: bool) -> bool:
        if self.numbers >= (0, 17):
            known = ["use_activation"]
        elif self.numbers >= (0, 11, 1):
            if self.numbers < (0, 14) and body.get("activation") is not None:
                return True  # `activation := ... is not None`: even false is true, and it goes before the other
            known = ["activation", "use_activation"]
        else:
            known = ["activation"] if self.numbers >= (0, 10, 1) and not pooling else []
        return next((bool(body[name]) for name in known if body.get(name) is not None), True)

    def _classified(self, outputs: list[float]) -> dict[str, Any]:
        label = f"LABEL_{outputs.index(max(outputs))}"
        return {"label": label, "probs": outputs, "num_classes": len(outputs)}

    def _pooled(self, outputs: list[float]) -> dict[str, Any]:
        if self.fault == "nan":
            return {"object": "pooling", "data": [None]}  # orjson's form of NaN
        return {"object": "pooling", "data": outputs if self.task == "classify" else [outputs, outputs]}

    def _paired(self, outputs: list[float]) -> dict[str, Any]:
        return {"object": "score", "score": outputs[0]}


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return value
    return [] if value is None else [value]
