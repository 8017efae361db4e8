"""What Triton answers for NeMo-Aligner's reward model, and what servers with a little less of the standard do.

As seen with Triton 2.51: the readiness of a model that there is not is a 400, and everything else of it a 404; its index lists the models.
As seen with KServe 0.21: the metadata of a model that describes no tensors have empty lists, and the list of models has another path. A
model that raises at one text is a 500 for the whole request in both, and in MLServer 1.7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.fake_servers.openrlhf import reward_of

__all__ = ["oip"]


def oip(
    *,
    model: str = "reward_model",
    others: Sequence[str] = (),
    name: str = "triton",
    text: str = "sentences",
    reward: str = "rewards",
    batch: int = -1,
    flat: bool = False,
    double: bool = False,
    binary: bool = False,
    ready: bool = True,
    loaded: bool = True,
    metadata: bool = True,
    described: bool = True,
    lists: str = "/v2/repository/index",
    failing: str = "",
) -> FastAPI:
    """The server.

    Args:
        model: The model that it has.
        others: Further models that it lists.
        name: What it calls itself.
        text: The model's input.
        reward: The model's output.
        batch: The first dimension that the metadata have; -1 for any.
        flat: Whether tensors are [B], not [B, 1].
        double: Whether the reward is FP64.
        binary: Whether the reward is answered as bytes.
        ready: Whether the server is ready.
        loaded: Whether the model is.
        metadata: Whether it has metadata.
        described: Whether these describe the tensors.
        lists: Where it lists its models; empty where it does not, as PyTriton's Triton, which keeps its list to itself.
        failing: What the model raises at.
    """
    app = FastAPI()
    app.state.bodies = []
    shape = [batch] if flat else [batch, 1]
    datatype = "FP64" if double else "FP32"

    def unknown(name: str) -> JSONResponse:
        return JSONResponse({"error": f"Request for unknown model: '{name}' is not found"}, 404)

    @app.get("/v2")
    async def server() -> Any:
        return {"name": name, "version": "2.51.0", "extensions": ["classification", "statistics"]}

    @app.get("/v2/health/ready")
    async def server_ready() -> Response:
        return Response(status_code=200 if ready else 400)

    if lists == "/v2/repository/index":

        @app.post(lists)
        async def index() -> Any:
            return [{"name": name, "version": "1", "state": "READY"} for name in (model, *others)]

    elif lists:

        @app.get(lists)
        async def models() -> Any:
            return {"models": [model, *others]}

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        return Response(status_code=200 if name == model and loaded else 400)

    if metadata:

        @app.get("/v2/models/{name}")
        async def model_metadata(name: str) -> Any:
            if name != model:
                return unknown(name)
            inputs = [
                {"name": text, "datatype": "BYTES", "shape": shape},
                {"name": "tokens", "datatype": "INT64", "shape": [batch, -1]},
            ]
            outputs = [
                {"name": reward, "datatype": datatype, "shape": shape},
                {"name": "exceeded", "datatype": "BOOL", "shape": shape},
            ]
            tensors = {"inputs": inputs, "outputs": outputs} if described else {"inputs": [], "outputs": []}
            return {"name": model, "versions": ["1"], "platform": "python", **tensors}

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Any:
        body = await request.json()
        app.state.bodies.append(body)
        if name != model:
            return unknown(name)
        (given,) = body["inputs"]
        size = len(given["data"])
        if given["name"] != text or given["datatype"] != "BYTES" or given["shape"] != ([size] if flat else [size, 1]):
            return JSONResponse({"error": f"unexpected shape for input '{text}' for model '{model}'"}, 400)
        if failing and any(failing in entry for entry in given["data"]):
            return JSONResponse({"error": "Failed to process the request(s) for model instance: the model failed"}, 500)
        shape = [size] if flat else [size, 1]
        exceeded = {"name": "exceeded", "datatype": "BOOL", "shape": shape, "data": [len(entry) > 8 for entry in given["data"]]}
        rewards: dict[str, Any] = {"name": reward, "datatype": datatype, "shape": shape}
        numbers = [reward_of(entry) for entry in given["data"]]
        answer = {"id": body.get("id", ""), "model_name": model, "model_version": "1", "outputs": [exceeded, rewards]}
        if not binary:
            rewards["data"] = numbers
            return answer
        data = np.array(numbers, "<f8" if double else "<f4").tobytes()
        rewards["parameters"] = {"binary_data_size": len(data)}
        content = json.dumps(answer).encode()
        return Response(content + data, headers={"Inference-Header-Content-Length": str(len(content))})

    return app
