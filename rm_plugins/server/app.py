"""The web application: one reward, in every dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rm_plugins import __version__
from rm_plugins.errors import DataError
from rm_plugins.provider import Provider
from rm_plugins.server import page, probes
from rm_plugins.server.bodies import BodyReader
from rm_plugins.server.boundary import Boundary, Endpoints, answer_of, problem_of
from rm_plugins.server.dialects import oip, openrlhf, rewards, tei, vllm
from rm_plugins.server.dialects.dialect import Dialect, Problem, Scorer
from rm_plugins.server.hosted import Hosted
from rm_plugins.server.request_log import current_fields
from rm_plugins.server.security import ClientKeys
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings

__all__ = ["DIALECTS", "create_app"]


DIALECTS: tuple[Callable[[Scorer], Dialect], ...] = (
    rewards.dialect,
    vllm.dialect,
    tei.dialect,
    openrlhf.dialect,
    oip.dialect,
)
"""What makes each dialect of a scorer, in the order in which their paths are tried."""


def create_app(
    reward: Provider | Hosted, settings: Settings | None = None, *, reload_all: Callable[[], None] | None = None
) -> FastAPI:
    """The application that serves a reward.

    Args:
        reward: The reward, which the application owns from now on.
        settings: How it is served.
        reload_all: Has all processes of the server load the reward again, where there are several.
    """
    settings = settings or Settings()
    hosted = reward if isinstance(reward, Hosted) else Hosted(reward)
    service = Service(hosted, settings, reload_all)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()
        service.close()

    app = FastAPI(
        title=f"rm-plugins: {service.name}",
        version=__version__,
        summary="Rewards of one reward model, or of whatever else is served here.",
        docs_url=None,  # their pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    described = list(app.routes)  # the OpenAPI document
    dialects = [make(service) for make in DIALECTS]
    opened = [probes.router, page.router]
    for router in [*(dialect.router for dialect in dialects), *opened]:
        app.include_router(router)
    for kind in (Problem, RequestValidationError, HTTPException, DataError):
        app.add_exception_handler(kind, _told)
    app.add_middleware(
        Boundary,
        endpoints=Endpoints(dialects, [route for router in opened for route in router.routes] + described),
        keys=ClientKeys(settings.api_keys),
        bodies=BodyReader(settings.max_body_bytes),
        metrics=service.metrics,
    )
    return app


async def _told(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    fields = current_fields.get()
    if fields is not None:
        fields["cause"] = problem.cause
    return answer_of(problem, request.state.dialect, request.state.request_id)
