"""What watches over a server asks: is it alive, is it ready, how does it do."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from rm_plugins.server.metrics import CONTENT_TYPE
from rm_plugins.server.service import Service

router = APIRouter(tags=["probes"])


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/ready", responses={503: {"description": "The server is stopping."}})
async def ready(request: Request, response: Response) -> dict[str, str]:
    """Whether requests are accepted."""
    service: Service = request.app.state.service
    response.status_code = 200 if service.is_ready else 503
    return {"status": "ready" if service.is_ready else "stopping"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures, in the format that Prometheus reads."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
