"""What watches over a server asks: is it alive, is it ready, how does it do."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from rm_plugins.server.metrics import CONTENT_TYPE
from rm_plugins.server.service import Service

router = APIRouter(tags=["probes"])


class Workers(BaseModel):
    """The processes of the server."""

    wanted: int
    serving: int


class Health(BaseModel):
    """How the server is."""

    status: Literal["alive", "degraded"] = Field(description="Degraded where something is started again that should be there.")
    reward: Literal["loaded", "starting"] = Field(description="Whether the process that answers has a reward that can score.")
    workers: Workers


@router.get("/health")
async def health(request: Request) -> Health:
    """The process is alive, whatever its reward does."""
    wanted, serving = request.app.state.workers()
    is_loaded = request.app.state.service.reward.is_alive
    return Health(
        status="alive" if is_loaded and wanted == serving else "degraded",
        reward="loaded" if is_loaded else "starting",
        workers=Workers(wanted=wanted, serving=serving),
    )


@router.get("/ping", responses={503: {"description": "The reward is started again."}})
@router.post("/ping", responses={503: {"description": "The reward is started again."}})
async def ping(request: Request, response: Response) -> Health:
    """The same for Amazon SageMaker, whose name for it vLLM and TEI have; 503 while nothing can be scored."""
    found = await health(request)
    response.status_code = 200 if found.reward == "loaded" else 503
    return found


@router.get("/ready", responses={503: {"description": "The server is stopping, or its reward is started again."}})
async def ready(request: Request, response: Response) -> dict[str, str]:
    """Whether requests are accepted."""
    service: Service = request.app.state.service
    response.status_code = 200 if service.is_ready else 503
    return {"status": "ready" if service.is_ready else "starting" if not service.reward.is_alive else "stopping"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures, in the format that Prometheus reads."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
