"""SGLang's native scoring endpoint and its tokenizer's, as read in the source of 0.5.23."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.fake_servers import Head, head, softmax, tokens

__all__ = ["FakeSGLang"]


class FakeSGLang(Starlette):
    """A server of one model.

    Args:
        outputs: The model's outputs for token ids.
        is_generation: Whether it was launched without ``--is-embedding``.
        older: Whether it has only the paths that later ones deprecate, and have as well.
        context_length: A text must be shorter.
        auto_truncate: Whether it was launched with ``--allow-auto-truncate``.
        queue_full: Whether its queue is full.
        key: Asked for before it is seen whether there is such a path.
        fault: What is wrong with its answers.
        weight_version: What the last update of its weights was called.
        closes: Whether its tokenizer closes texts, as those of encoders do.
    """

    def __init__(
        self,
        *,
        outputs: Head | None = None,
        is_generation: bool = False,
        older: bool = False,
        context_length: int = 200,
        auto_truncate: bool = False,
        queue_full: bool = False,
        key: str | None = None,
        fault: Literal["", "short", "null", "aborted"] = "",
        weight_version: str = "default",
        closes: bool = False,
    ) -> None:
        self.outputs = outputs or head()
        self.is_generation = is_generation
        self.context_length = context_length
        self.auto_truncate = auto_truncate
        self.queue_full = queue_full
        self.key = key
        self.fault = fault
        self.weight_version = weight_version
        self.closes = closes
        prefixes = ["/get_"] if older else ["/get_", "/"]
        super().__init__(
            routes=[
                *(Route(f"{prefix}model_info", self.model_info) for prefix in prefixes),
                *(Route(f"{prefix}server_info", self.server_info) for prefix in prefixes),
                Route("/v1/models", self.models),
                Route("/classify", self.classify, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/classify", self.classify_with_softmax, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for the key first."""
        given = Headers(scope=scope).get("authorization")
        refused = self.key is not None and given != f"Bearer {self.key}"
        await (JSONResponse({"error": "Unauthorized"}, 401) if refused else super().__call__)(scope, receive, send)

    async def model_info(self, request: Request) -> Response:
        """What is served."""
        facts = {"model_path": "reward", "served_model_name": "reward", "is_generation": self.is_generation}
        return JSONResponse(facts)

    async def server_info(self, request: Request) -> Response:
        """How it was launched."""
        return JSONResponse({"version": "0.5.23", "allow_auto_truncate": self.auto_truncate})

    async def models(self, request: Request) -> Response:
        """As OpenAI has it."""
        return JSONResponse({"object": "list", "data": [{"id": "reward", "owned_by": "sglang"}]})

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a text."""
        body = await request.json()
        ids = tokens(body["prompt"], special=body.get("add_special_tokens", True), closes=self.closes)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.context_length})

    async def classify(self, request: Request) -> Response:
        """Logits: an object for one input, a list for a list."""
        body = await request.json()
        if self.queue_full:
            flat = {"object": "error", "message": "The request queue is full.", "type": "503", "param": None, "code": 503}
            return JSONResponse(flat, 503)
        try:
            texts, ids = body.get("text"), body.get("input_ids")
            if texts is None and ids is None:
                raise ValueError("At least one of text, input_ids, image, video, or audio should be provided")
            if texts is not None and ids is not None:
                raise ValueError("text and input_ids cannot be provided at the same time")
            if texts is not None:
                single = isinstance(texts, str)
                rows = [tokens(text, closes=self.closes) for text in ([texts] if single else texts)]
            else:
                single = not isinstance(ids[0], list)
                rows = [ids] if single else ids
            names = body.get("rid") or [uuid.uuid4().hex for _ in rows]
            if not single and (not isinstance(names, list) or len(set(names)) < len(rows)):
                raise ValueError("The rid should be a list of different ones.")
            found = [self._entry(row, name) for row, name in zip(rows, names, strict=True)]
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        return JSONResponse(found[0] if single else found[: -1 if self.fault == "short" else None])

    async def classify_with_softmax(self, request: Request) -> Response:
        """As OpenAI might have had it: one output is always 1.0."""
        rows = [tokens(text) for text in (await request.json())["input"]]
        data = [{"index": place, "probs": softmax(self.outputs(row)), "num_classes": 1} for place, row in enumerate(rows)]
        return JSONResponse({"object": "list", "data": data})

    def _entry(self, row: list[int], name: str) -> dict[str, Any]:
        if len(row) >= self.context_length:
            if not self.auto_truncate:
                raise ValueError(
                    f"The input ({len(row)} tokens) is longer than the model's context length ({self.context_length} tokens)."
                )
            row = row[: self.context_length]
        if self.is_generation:
            raise ValueError(
                "This model does not appear to be an embedding model by default. "
                "Please add `--is-embedding` when launching the server or try another model."
            )
        reason = (
            {"type": "abort", "message": "Abort in waiting queue"}
            if self.fault == "aborted"
            else {"type": "length", "length": 0}
        )
        meta = {"id": name, "finish_reason": reason, "prompt_tokens": len(row), "weight_version": self.weight_version}
        outputs: list[float] | list[None] = [None] if self.fault == "null" else self.outputs(row)  # orjson's form of NaN
        return {"embedding": outputs, "meta_info": meta}
