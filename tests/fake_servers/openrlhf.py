"""What `openrlhf.cli.serve_rm` of OpenRLHF 0.11.2 answers; a text without a token has the score of the padding there, seen as 0.0."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

__all__ = ["openrlhf", "reward_of"]


def reward_of(text: str) -> float:
    """A number that is another one for another text."""
    return (sum(place * byte for place, byte in enumerate(text.encode(), start=1)) % 1009) / 100 - 5


def openrlhf(*, nested: bool = False, old: bool = False) -> FastAPI:
    """The server; `nested` gives lists of one number, `old` answers as releases did that had rewards alone."""
    app = FastAPI()
    app.state.bodies = []

    @app.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        data = await request.json()
        app.state.bodies.append(data)
        rewards: list[Any] = [reward_of(query) if query else 0.0 for query in data.get("query")]
        if nested:
            rewards = [[reward] for reward in rewards]
        if old:
            return JSONResponse({"rewards": rewards})
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards, "model": "rm"}})

    return app
