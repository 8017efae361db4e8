"""What `rm-plugins serve` answers, with a reward that is told here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rm_plugins import Sample
from rm_plugins.wire import sample_from_json

__all__ = ["native"]


def native(
    reward: Callable[[Sample], float | str | None], *, key: str = "", info: Mapping[str, Any] | None = None, status: int = 200
) -> FastAPI:
    """The server; a reward that is a text is a failure's message."""
    app = FastAPI()
    facts = {
        "protocol": "rm-plugins/1",
        "server": "rm-plugins 0.1.0",
        "model": "helpful",
        "fingerprint": "0123456789abcdef" * 4,
        "manifests": {},
        "max_items": 4,
        "rendered": True,
        "spec": None,
        **(info or {}),
    }

    def problem(cause: str, code: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"cause": cause, "message": message, "request_id": "r"}}, code)

    @app.get("/v1/info")
    async def information(request: Request) -> Any:
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return problem("unauthorized", 401, "this server asks for a key")
        return facts if status == 200 else problem("unavailable", status, "loading")

    @app.post("/v1/rewards")
    async def rewards(request: Request) -> Any:
        body = await request.json()
        samples = [sample_from_json(sample) for sample in body["samples"]]
        if len(samples) > facts["max_items"]:
            return problem("too-large", 413, f"at most {facts['max_items']} samples")
        found = [reward(sample) for sample in samples]
        return {
            "id": body.get("id"),
            "model": facts["model"],
            "fingerprint": facts["fingerprint"],
            "manifests": {},
            "rewards": [
                {"index": index, "reward": None, "error": value}
                if isinstance(value, str)
                else {"index": index, "reward": value}
                for index, value in enumerate(found)
            ],
            "details": {"std": [0.5 if isinstance(value, float) else None for value in found]},
            "usage": {"samples": len(samples), "tokens": 0, "truncated": 0},
        }

    return app
