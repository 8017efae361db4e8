"""Chat completions as vLLM, SGLang, llama.cpp and OpenAI answer them, with what each of them refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tests.fake_servers.judge import Choice

__all__ = ["REFUSALS", "chat"]

REFUSALS: dict[str, tuple[int, Any]] = {
    # OpenAI's reasoning models
    "max_tokens": (
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            }
        },
    ),
    "logprobs": (403, {"error": {"message": "You are not allowed to request logprobs from this model."}}),
    # llama.cpp and older vLLM
    "response_format": (
        400,
        {
            "object": "error",
            "message": "response_format type 'json_schema' is not supported",
            "type": "BadRequestError",
            "code": 400,
        },
    ),
}
"""What a server answers to a request with a key that it does not take."""


def chat(
    answer: Callable[[str], Choice],
    *,
    refuses: Collection[str] = (),
    has_logprobs: bool = True,
    before: Callable[[int], JSONResponse | None] = lambda number: None,
) -> FastAPI:
    """The server.

    Args:
        answer: The choice for the last message.
        refuses: Keys of a request that are answered with an error.
        has_logprobs: Whether it gives log-probabilities where they are asked for; if not, it leaves them out without a word.
        before: Called with the number of a request, from 0; what it returns is answered.
    """
    app = FastAPI()
    app.state.bodies = []
    lock = threading.Lock()

    @app.get("/v1/models")
    async def listed() -> Any:
        return {"object": "list", "data": [{"id": "judge", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        with lock:
            number = len(app.state.bodies)
            app.state.bodies.append(body)
        if (early := before(number)) is not None:
            return early
        for key in refuses:
            if body.get(key):
                status, content = REFUSALS[key]
                return JSONResponse(content, status)
        choice = answer(body["messages"][-1]["content"])
        if not (body.get("logprobs") and has_logprobs):
            choice["logprobs"] = None
        prompt_tokens = sum(len(str(message["content"]).split()) for message in body["messages"])
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": prompt_tokens + 2}
        request_id = request.headers.get("x-request-id")
        return {"id": f"chatcmpl-{request_id}", "model": body["model"], "choices": [choice], "usage": usage}

    return app
