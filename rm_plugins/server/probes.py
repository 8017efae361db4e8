"""Endpoints for monitoring: liveness, readiness and metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from rm_plugins.server.metrics import CONTENT_TYPE
from rm_plugins.server.replicas import State
from rm_plugins.server.service import Service

router = APIRouter(tags=["probes"])


class Workers(BaseModel):
    """The processes of the server."""

    wanted: int
    serving: int


class ReplicaHealth(BaseModel):
    """A process of the server."""

    device: str = Field(description="The device that was chosen with --devices; auto where none was.")
    state: State = Field(description="Starting until it serves, restarting while the process of its reward is started again.")
    restarts: int = Field(description="How often the process was replaced; with --workers, it or its reward's process.")


class Health(BaseModel):
    """The health of the server."""

    status: Literal["alive", "degraded"] = Field(description="Degraded while a process or the reward is being restarted.")
    reward: Literal["loaded", "starting"] = Field(description="Whether the answering process has a reward that can score.")
    loading_seconds: float | None = Field(description="How long a reload has been loading the reward in the answering process.")
    workers: Workers
    replicas: list[ReplicaHealth]


@router.get("/health")
async def health(request: Request) -> Health:
    """The health of the process and of its reward; 200 as long as the process is alive."""
    replicas = request.app.state.replicas()
    wanted, serving = len(replicas), sum(one.state == "serving" for one in replicas)
    service: Service = request.app.state.service
    is_loaded, seconds = service.reward.is_alive, service.loading_seconds
    return Health(
        status="alive" if is_loaded and wanted == serving else "degraded",
        reward="loaded" if is_loaded else "starting",
        loading_seconds=None if seconds is None else round(seconds, 1),
        workers=Workers(wanted=wanted, serving=serving),
        replicas=[ReplicaHealth(device=one.device, state=one.state, restarts=one.restarts) for one in replicas],
    )


@router.get("/ping", responses={503: {"description": "The reward is being restarted."}})
@router.post("/ping", responses={503: {"description": "The reward is being restarted."}})
async def ping(request: Request, response: Response) -> Health:
    """The same at the path of Amazon SageMaker, which vLLM and TEI also use; 503 while the reward cannot score."""
    state = await health(request)
    response.status_code = 200 if state.reward == "loaded" else 503
    return state


@router.get("/ready", responses={503: {"description": "The server is stopping, or its reward is being restarted."}})
async def ready(request: Request, response: Response) -> dict[str, str]:
    """Whether requests are accepted."""
    service: Service = request.app.state.service
    response.status_code = 200 if service.is_ready else 503
    return {"status": "ready" if service.is_ready else "starting" if not service.reward.is_alive else "stopping"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics in the format of Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(request.app.state.replicas()), media_type=CONTENT_TYPE)
