"""What `swift deploy --task_type seq_cls` of ms-swift 4.6.0 answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.fake_servers.openrlhf import reward_of

__all__ = ["swift"]


def swift(
    *,
    models: Sequence[str] = ("rm",),
    key: str = "",
    kind: Literal["regression", "list", "text", "classifier", "multi-label", "generator"] = "regression",
    failing: str = "",
    prompt_tokens: int = 9,
) -> FastAPI:
    """The server.

    Args:
        models: What it lists: the model, and its adapters by name.
        key: The key that it asks for; a missing one is a 400 like everything else.
        kind: What the model is, or the form of its scores.
        failing: Why every request fails.
        prompt_tokens: How many tokens its template makes of a conversation.
    """
    app = FastAPI()
    app.state.bodies = []

    def error(message: str) -> JSONResponse:
        return JSONResponse({"message": message, "object": "error"}, 400)

    @app.get("/v1/models")
    async def available() -> Any:
        return {
            "data": [{"id": name, "object": "model", "created": 1, "owned_by": "swift"} for name in models],
            "object": "list",
        }

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        app.state.bodies.append(body)
        if body["model"] not in models:
            return error(f"`{body['model']}` is not in the model_list: `{list(models)}`.")
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return error("API key error")
        if failing:
            return error(failing)
        score = reward_of(json.dumps(body["messages"]))
        logprobs = {"content": [{"index": 1, "logprob": -0.2, "top_logprobs": [{"index": 1, "logprob": -0.2}]}]}
        forms: dict[str, tuple[Any, Any]] = {
            "regression": (score, None),
            "list": ([score], None),
            "classifier": (1, logprobs),
            "multi-label": ([1], logprobs),
            "generator": ("The answer is good.", None),
            "calculator": ("42", None),
        }
        content, extra = forms[kind]
        message = {"role": "assistant", "content": content, "tool_calls": None, "reasoning_content": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": extra, "token_ids": None}
        return {
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": prompt_tokens},
            "id": "x",
            "object": "chat.completion",
        }

    return app
