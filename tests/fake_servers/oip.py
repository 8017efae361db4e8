"""What Triton answers for NeMo-Aligner's reward model, and what servers with a little less of the standard do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.fake_servers.openrlhf import reward_of

__all__ = ["oip"]


def oip(
    *,
    model: str = "reward_model",
    batch: int = -1,
    flat: bool = False,
    double: bool = False,
    ready: bool = True,
    loaded: bool = True,
    metadata: bool = True,
) -> FastAPI:
    """The server.

    Args:
        model: The one model that it has.
        batch: The first dimension that the metadata have; -1 for any.
        flat: Whether tensors are [B], not [B, 1].
        double: Whether the reward is FP64.
        ready: Whether the server is ready.
        loaded: Whether the model is.
        metadata: Whether it has metadata.
    """
    app = FastAPI()
    shape = [batch] if flat else [batch, 1]
    datatype = "FP64" if double else "FP32"

    @app.get("/v2")
    async def server() -> Any:
        return {"name": "triton", "version": "2.50.0", "extensions": ["classification", "statistics"]}

    @app.get("/v2/health/ready")
    async def server_ready() -> Response:
        return Response(status_code=200 if ready else 400)

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        return Response(status_code=404 if name != model else 200 if loaded else 400)

    if metadata:

        @app.get("/v2/models/{name}")
        async def model_metadata(name: str) -> Any:
            if name != model:
                return JSONResponse({"error": f"Request for unknown model: '{name}' is not found"}, 404)
            return {
                "name": model,
                "versions": ["1"],
                "platform": "python",
                "inputs": [
                    {"name": "sentences", "datatype": "BYTES", "shape": shape},
                    {"name": "tokens", "datatype": "INT64", "shape": [batch, -1]},
                ],
                "outputs": [
                    {"name": "rewards", "datatype": datatype, "shape": shape},
                    {"name": "exceeded", "datatype": "BOOL", "shape": shape},
                ],
            }

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Any:
        body = await request.json()
        if name != model:
            return JSONResponse({"error": f"Request for unknown model: '{name}' is not found"}, 404)
        (given,) = body["inputs"]
        size = len(given["data"])
        if given["name"] != "sentences" or given["datatype"] != "BYTES" or given["shape"] != ([size] if flat else [size, 1]):
            return JSONResponse({"error": f"unexpected shape for input 'sentences' for model '{model}'"}, 400)
        shape = [size] if flat else [size, 1]
        exceeded = {"name": "exceeded", "datatype": "BOOL", "shape": shape, "data": [len(text) > 8 for text in given["data"]]}
        rewards = {"name": "rewards", "datatype": datatype, "shape": shape, "data": [reward_of(text) for text in given["data"]]}
        return {"id": body.get("id", ""), "model_name": model, "model_version": "1", "outputs": [exceeded, rewards]}

    return app
