"""The Open Inference Protocol, version 2, for clients of Triton, KServe and NeMo-Aligner's reward model server.

Tested with tritonclient 2.73, PyTriton's client 0.7 and kserve's 0.21; the answers follow those of Triton's server 2.51.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from rm_plugins import __version__
from rm_plugins.protocols.binary_tensors import JSON_LENGTH
from rm_plugins.server.dialects.dialect import Cause, Problem, Scorer, check_model, score_all
from rm_plugins.server.dialects.drop_in import DropIn
from rm_plugins.server.dialects.oip_bodies import EXAMPLES, Index, Infer, Inferred, answer_of, check_outputs, samples_of

_VERSION = "1"
"""The only version of the model."""
_WORTH_PACKING = 1024
"""The smallest answer, in bytes, that is compressed for a client that accepts compression."""
_PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
"""The phases in Triton's statistics; only the first two are counted here."""


class OpenInference(DropIn):
    """The Open Inference Protocol of Triton, KServe and NeMo-Aligner: /v2/models/MODEL/infer."""

    name: ClassVar[str] = "oip"
    prefix: ClassVar[str] = "/v2/"
    takes_binary: ClassVar[bool] = True
    statuses: ClassVar[Mapping[Cause, int]] = {"invalid": 400}

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The error body of the protocol."""
        return {"error": problem.message}

    def router(self, scorer: Scorer) -> APIRouter:
        """The protocol's endpoints."""
        router = APIRouter(tags=["Open Inference Protocol"])
        statistics = _Statistics()

        @router.get("/v2", summary="This server")
        async def server() -> dict[str, Any]:
            extensions = ["binary_tensor_data", "model_configuration", "parameters", "statistics"]
            return {"name": "rm-plugins", "version": __version__, "extensions": extensions}

        @router.get("/v2/health/live", summary="Whether the server answers")
        async def live() -> dict[str, bool]:
            return {"live": True}

        @router.get("/v2/health/ready", summary="Whether the server scores")
        async def ready() -> dict[str, bool]:
            _check_ready(scorer)
            return {"ready": True}

        @router.get("/v2/models", summary="The models' names, as KServe lists them")
        async def models() -> dict[str, list[str]]:
            return {"models": [scorer.name]}

        @router.post("/v2/repository/index", summary="The models, as Triton lists them")
        async def index(body: Index | None = None) -> list[dict[str, str]]:
            state = "READY" if scorer.is_ready else "UNAVAILABLE"
            listed = {"name": scorer.name, "version": _VERSION, "state": state, "reason": ""}
            return [] if body and body.ready and not scorer.is_ready else [listed]

        @router.get("/v2/models/stats", summary="How much was scored")
        async def all_statistics() -> dict[str, Any]:
            return statistics.of(scorer.name)

        # A model's name may be a path with slashes. Of the two routes, the one below (with a version) is registered and tried first.
        @router.get("/v2/models/{model:path}/ready", summary="Whether a model scores")
        @router.get("/v2/models/{model:path}/versions/{version}/ready", summary="Whether a version of it scores")
        async def model_ready(model: str, version: str = _VERSION) -> dict[str, Any]:
            _check_served(scorer, model, version, status=400)  # as Triton does
            _check_ready(scorer)
            return {"name": model, "ready": True}

        @router.get("/v2/models/{model:path}/config", summary="A model's configuration")
        @router.get("/v2/models/{model:path}/versions/{version}/config", summary="The configuration of a version of it")
        async def configuration(model: str, version: str = _VERSION) -> dict[str, Any]:
            _check_served(scorer, model, version)
            return {
                "name": model,
                "platform": "rm-plugins",
                "backend": "rm-plugins",
                "max_batch_size": scorer.max_items,
                "version_policy": {"latest": {"num_versions": 1}},
                "input": [{"name": "sentences", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}],
                "output": [{"name": "rewards", "data_type": "TYPE_FP32", "dims": [1]}],
            }

        @router.get("/v2/models/{model:path}/stats", summary="How much a model scored")
        @router.get("/v2/models/{model:path}/versions/{version}/stats", summary="How much a version of it scored")
        async def model_statistics(model: str, version: str = _VERSION) -> dict[str, Any]:
            _check_served(scorer, model, version)
            return statistics.of(model)

        @router.get("/v2/models/{model:path}", summary="A model's tensors")
        @router.get("/v2/models/{model:path}/versions/{version}", summary="The tensors of a version of it")
        async def metadata(model: str, version: str = _VERSION) -> dict[str, Any]:
            _check_served(scorer, model, version)
            return {
                "name": model,
                "versions": [_VERSION],
                "platform": "rm-plugins",
                "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}],
                "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}],
            }

        @router.post("/v2/models/{model:path}/infer", summary="Rewards of texts, pairs or token ids", response_model=Inferred)
        @router.post(
            "/v2/models/{model:path}/versions/{version}/infer",
            summary="Rewards from a version of the model",
            response_model=Inferred,
        )
        async def infer(
            request: Request, model: str, body: Annotated[Infer, Body(openapi_examples=EXAMPLES)], version: str = _VERSION
        ) -> Response:
            _check_served(scorer, model, version)
            check_outputs(body)
            samples = samples_of(scorer, body, request.state.binary)
            with statistics.counting(len(samples)):
                values, scored = await score_all(scorer, samples)
            return _sent(*answer_of(body, model, version, values, scored), request.headers.get("accept-encoding", ""))

        return router


@dataclass(slots=True)
class _Statistics:
    """Counts of this process in the form of Triton's statistics."""

    last: int = 0
    samples: int = 0
    successes: int = 0
    success_ns: int = 0
    failures: int = 0
    failure_ns: int = 0

    @contextmanager
    def counting(self, samples: int) -> Iterator[None]:
        """Count the samples of the block as a success, or as a failure if it raises."""
        started = time.monotonic_ns()
        try:
            yield
        except BaseException:
            self.failures += 1
            self.failure_ns += time.monotonic_ns() - started
            raise
        self.successes += 1
        self.success_ns += time.monotonic_ns() - started
        self.samples += samples
        self.last = time.time_ns() // 1_000_000

    def of(self, model: str) -> dict[str, Any]:
        """The statistics of the only model, under one of its names."""
        phases = {name: {"count": 0, "ns": 0} for name in _PHASES}
        phases["success"] = {"count": self.successes, "ns": self.success_ns}
        phases["fail"] = {"count": self.failures, "ns": self.failure_ns}
        counts = {"last_inference": self.last, "inference_count": self.samples, "execution_count": self.successes}
        return {"model_stats": [{"name": model, "version": _VERSION, **counts, "inference_stats": phases, "batch_stats": []}]}


def _check_ready(scorer: Scorer) -> None:
    if not scorer.is_ready:
        raise Problem("unavailable", "the server is stopping")


def _check_served(scorer: Scorer, model: str, version: str, status: int = 0) -> None:
    """Check the model's name and version."""
    try:
        check_model(scorer, model)
        if version != _VERSION:
            raise Problem("not-found", f"the model {model!r} has no version {version!r:.40}; it has {_VERSION!r}")
    except Problem as problem:
        problem.status = status or problem.status
        raise


def _sent(content: bytes, binary: bytes, accepted: str) -> Response:
    """An answer with the bytes after its JSON, compressed if the client accepts it and the answer is long enough."""
    headers = {JSON_LENGTH: str(len(content))} if binary else {}
    media_type = "application/octet-stream" if binary else "application/json"
    content += binary
    if len(content) >= _WORTH_PACKING:
        headers["Vary"] = "Accept-Encoding"
        codings = [coding.strip().lower() for coding in accepted.split(",")]
        for name, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            if name in codings:  # codings with a weight (";q=0") may be refused by the client, so they are not used
                headers["Content-Encoding"] = name
                return Response(pack(content), headers=headers, media_type=media_type)
    return Response(content, headers=headers, media_type=media_type)
