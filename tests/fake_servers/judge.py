"""What OpenAI's chat completions, and those of vLLM and others that follow them, answer."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

__all__ = ["Choice", "choice", "judge"]

Choice: TypeAlias = dict[str, Any]


def choice(
    *tokens: str | tuple[str, Mapping[str, float]],
    content: str | None = None,
    finish_reason: str = "stop",
    logprobs: bool = True,
    **message: Any,
) -> Choice:
    """A choice of an answer.

    Args:
        tokens: Each as text, or with the probabilities of the most likely tokens at its position.
        content: Where it is not all tokens' text.
        finish_reason: Why it ends.
        logprobs: Whether the server has them at all.
        message: Further keys of the message.
    """
    entries: list[dict[str, Any]] = []
    for found in tokens:
        token, top = found if isinstance(found, tuple) else (found, {found: 1.0})
        named = [{"token": other, "logprob": math.log(chance), "bytes": None} for other, chance in top.items()]
        entries.append({"token": token, "logprob": math.log(top.get(token, 0.001)), "bytes": None, "top_logprobs": named})
    text = "".join(entry["token"] for entry in entries) if content is None else content
    return {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
        "logprobs": {"content": entries} if logprobs else None,
    }


def judge(answer: Callable[[str], Choice], *, models: Sequence[str] = ("judge",), takes_only_uuids: bool = False) -> FastAPI:
    """The server, whose answer to the last message is told; it names as many tokens as it is asked for.

    `takes_only_uuids` has it answer 400 and no body where ``X-Request-ID`` is something else, as llama-cpp-python's of 0.3.36 does.
    """
    app = FastAPI()
    app.state.bodies = []

    @app.middleware("http")
    async def checked(request: Request, call_next: Any) -> Any:
        try:
            uuid.UUID(request.headers.get("x-request-id") or uuid.uuid4().hex, version=4)
        except ValueError:
            if takes_only_uuids:
                return Response(status_code=400)
        return await call_next(request)

    @app.get("/v1/models")
    async def listed() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "vllm"} for name in models]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        app.state.bodies.append(body)
        if body["model"] not in models:
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}, 404)
        if body.get("top_logprobs", 0) > 20:
            return JSONResponse({"error": {"message": "top_logprobs must be at most 20", "code": 400}}, 400)
        found = answer(body["messages"][-1]["content"])
        if not body.get("logprobs"):
            found["logprobs"] = None
        for entry in (found["logprobs"] or {}).get("content", []):
            entry["top_logprobs"] = entry["top_logprobs"][: body["top_logprobs"]]
        return {
            "id": "x",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [found],
            "usage": {"total_tokens": 9},
        }

    return app
