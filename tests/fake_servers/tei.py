"""text-embeddings-inference's scoring endpoints and its tokenizer's, as read in the source of 1.9.3's router."""

from __future__ import annotations

from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.fake_servers import Head, head, pair_tokens, sigmoid, softmax, tokens

__all__ = ["FakeTEI"]

_STATUS = {"Validation": 422, "Tokenizer": 422, "Empty": 400, "Backend": 424, "Overloaded": 429, "Unhealthy": 503}


class _Error(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class FakeTEI(Starlette):
    """A server of one model.

    Args:
        labels: The names of the model's classes; none for one that embeds texts.
        outputs: The model's outputs for token ids.
        max_client_batch_size: Most inputs of a request.
        max_input_length: Most tokens of a text.
        auto_truncate: Whether longer ones are cut off where the request does not say.
        payload_limit: Most bytes of a request.
        validation_status: What versions differ in.
        trouble: What every request meets.
        key: Asked for everywhere but at /health.
        closes: Whether its tokenizer closes texts, as those of encoders do.
    """

    def __init__(
        self,
        *,
        labels: tuple[str, ...] = ("LABEL_0",),
        outputs: Head | None = None,
        max_client_batch_size: int = 32,
        max_input_length: int = 200,
        auto_truncate: bool = True,
        payload_limit: int = 2_000_000,
        validation_status: Literal[413, 422] = 422,
        trouble: Literal["", "overloaded", "backend", "nan"] = "",
        key: str | None = None,
        closes: bool = False,
    ) -> None:
        self.labels = labels
        self.outputs = outputs or head(len(labels))
        self.max_client_batch_size = max_client_batch_size
        self.max_input_length = max_input_length
        self.auto_truncate = auto_truncate
        self.payload_limit = payload_limit
        self.status = {**_STATUS, "Validation": validation_status}
        self.trouble = trouble
        self.key = key
        self.closes = closes
        super().__init__(
            routes=[
                Route("/info", self.info),
                Route("/predict", self.predict, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/rerank", self.rerank, methods=["POST"]),
            ]
        )

    async def info(self, request: Request) -> Response:
        """What is served, and its limits."""
        kind = "reranker" if len(self.labels) == 1 else "classifier"
        names = {"id2label": {str(place): label for place, label in enumerate(self.labels)}}
        facts = {
            "model_id": "reward",
            "model_type": {kind: names} if self.labels else {"embedding": {"pooling": "cls"}},
            "max_input_length": self.max_input_length,
            "max_client_batch_size": self.max_client_batch_size,
            "auto_truncate": self.auto_truncate,
            "version": "1.9.3",
        }
        return self._refused(request) or JSONResponse(facts)

    async def tokenize(self, request: Request) -> Response:
        """The tokens of texts."""
        body = await request.json()
        rows = [tokens(text, special=body.get("add_special_tokens", True), closes=self.closes) for text in body["inputs"]]
        named = [
            [{"id": token, "text": "", "special": token < 3, "start": None, "stop": None} for token in row] for row in rows
        ]
        return self._refused(request) or JSONResponse(named)

    async def predict(self, request: Request) -> Response:
        """Scores by class, the highest first."""
        return await self._answer(request, self._predictions)

    async def rerank(self, request: Request) -> Response:
        """Scores of texts for one query, the highest first."""
        return await self._answer(request, self._ranks)

    async def _answer(self, request: Request, answer: Any) -> Response:
        if refused := self._refused(request):
            return refused
        if len(await request.body()) > self.payload_limit:
            return PlainTextResponse("Failed to buffer the request body: length limit exceeded", 413)
        try:
            if self.trouble == "overloaded":
                raise _Error("Overloaded", "Model is overloaded")
            if self.trouble == "backend":
                raise _Error("Backend", "Inference failed")
            return JSONResponse(answer(await request.json()))
        except _Error as error:
            return JSONResponse({"error": str(error), "error_type": error.kind}, self.status[error.kind])

    def _predictions(self, body: dict[str, Any]) -> Any:
        if not self.labels:
            raise _Error("Backend", "model is not a classification model")
        inputs = body["inputs"]
        if isinstance(inputs, str):
            return self._classes([inputs], body)
        if not inputs:
            raise _Error("Empty", "`inputs` cannot be empty")
        if isinstance(inputs[0], str):  # not a batch: a text, or a pair of them
            if len(inputs) > 2:
                raise _Error("Validation", "invalid length 3, expected a string, a pair of strings or a batch")
            return self._classes(inputs, body)
        self._check_batch(len(inputs))
        return [self._classes(sequence, body) for sequence in inputs]

    def _ranks(self, body: dict[str, Any]) -> Any:
        if not body["texts"]:
            raise _Error("Empty", "`texts` cannot be empty")
        if len(self.labels) != 1:
            raise _Error("Backend", "model is not a re-ranker model")
        self._check_batch(len(body["texts"]))
        scores = [self._scores([body["query"], text], body)[0] for text in body["texts"]]
        return sorted(({"index": place, "score": score} for place, score in enumerate(scores)), key=_score, reverse=True)

    def _classes(self, sequence: list[str], body: dict[str, Any]) -> list[dict[str, Any]]:
        scores = self._scores(sequence, body)
        named = [{"score": score, "label": label} for score, label in zip(scores, self.labels, strict=True)]
        return sorted(named, key=_score, reverse=True)

    def _scores(self, sequence: list[str], body: dict[str, Any]) -> list[float]:
        if not any(sequence):
            raise _Error("Validation", "`inputs` cannot be empty")
        if self.trouble == "nan":
            raise _Error("Backend", "score is NaN")
        single = len(sequence) == 1
        ids = tokens(sequence[0], closes=self.closes) if single else pair_tokens(*sequence, closes=self.closes)
        truncate = body.get("truncate")
        if self.auto_truncate if truncate is None else truncate:
            ids = ids[: self.max_input_length]
        if len(ids) > self.max_input_length:
            raise _Error("Validation", f"`inputs` must have less than {self.max_input_length} tokens. Given: {len(ids)}")
        outputs = self.outputs(ids)
        if body.get("raw_scores", False):
            return outputs
        return [sigmoid(outputs[0])] if len(outputs) == 1 else softmax(outputs)

    def _check_batch(self, size: int) -> None:
        if size > self.max_client_batch_size:
            raise _Error("Validation", f"batch size {size} > maximum allowed batch size {self.max_client_batch_size}")

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return Response(status_code=401)


def _score(entry: dict[str, Any]) -> float:
    return float(entry["score"])
