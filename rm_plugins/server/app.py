"""The web application: one reward, in every dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rm_plugins import __version__
from rm_plugins.errors import DataError, PluginError
from rm_plugins.provider import Provider
from rm_plugins.registry import Registration, Registry, default_registry
from rm_plugins.server import page, probes
from rm_plugins.server.bodies import BodyChecker, BodyReader
from rm_plugins.server.boundary import Boundary, Endpoints, answer_of, problem_of
from rm_plugins.server.dialects import Dialect, Problem, Scorer
from rm_plugins.server.dialects.dialect import STATUS, Cause
from rm_plugins.server.dialects.rewards import Native
from rm_plugins.server.replicas import Replica
from rm_plugins.server.request_log import current_fields
from rm_plugins.server.security import ClientKeys, Visitors
from rm_plugins.server.served_reward import HostedReward, ServedReward
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings

_MEANINGS: Mapping[Cause, str] = {
    "invalid": "The request is invalid; the message names the field.",
    "too-large": "Too many samples, or samples that are too long.",
    "unsupported": "The body is not sent as JSON, or is compressed.",
    "unauthorized": "The key is missing or wrong.",
    "forbidden": "The request comes from a page of another site, or the client may not operate the server.",
    "not-found": "The model does not exist.",
    "overload": "The queue is full; retry after Retry-After seconds.",
    "unavailable": "The server is stopping.",
    "failed": "The reward failed.",
}
"""The description of each kind of problem, for the OpenAPI document."""

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}


def create_app(
    reward: Provider | HostedReward,
    settings: Settings | None = None,
    *,
    reload_all: Callable[[], None] | None = None,
    registry: Registry | None = None,
    replicas: Callable[[], Sequence[Replica]] | None = None,
) -> FastAPI:
    """The application that serves a reward.

    Args:
        reward: The reward; the application owns it from now on.
        settings: The settings of the server.
        reload_all: Makes all processes of the server reload the reward, if there are several.
        registry: The registry with the dialects; by default that of the installed plug-ins.
        replicas: Returns the state of all processes that have the reward; by default those of `reward`.

    Raises:
        PluginError: A dialect cannot be served.
    """
    settings = settings or Settings()
    served = reward if isinstance(reward, HostedReward) else ServedReward(reward)
    service = Service(served, settings, reload_all)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()
        service.close()

    app = FastAPI(
        title=f"rm-plugins: {service.name}",
        version=__version__,
        summary="Rewards of one reward model, or of any other reward.",
        docs_url=None,  # these pages would load scripts from other sites
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.replicas = replicas or (lambda: service.reward.replicas)
    described = list(app.routes)  # the OpenAPI document
    dialects = [_made(registered, service) for registered in (registry or default_registry()).all("dialect").values()]
    opened = [probes.router, page.router]
    endpoints = Endpoints(
        [(dialect, router.routes) for dialect, router, _ in dialects],
        [route for router in opened for route in router.routes] + described,
        Native(),
    )
    for _, router, errors in dialects:
        app.include_router(router, responses=errors)
    for router in opened:
        app.include_router(router)
    for kind in (Problem, RequestValidationError, HTTPException, DataError):
        app.add_exception_handler(kind, _error_answer)
    app.add_middleware(
        Boundary,
        endpoints=endpoints,
        visitors=Visitors(settings.allowed_hosts, settings.allowed_origins),
        keys=ClientKeys(settings.api_keys),
        bodies=BodyReader(settings.max_body_bytes, settings.max_held_bytes, settings.body_seconds),
        checker=BodyChecker(settings.max_body_values),
        metrics=service.metrics,
    )
    return app


def _made(registered: Registration, scorer: Scorer) -> tuple[Dialect, APIRouter, dict[int | str, dict[str, Any]]]:
    try:
        dialect: Dialect = registered.cls()
        return dialect, dialect.router(scorer), _errors_of(dialect)
    except Exception as error:
        raise PluginError(
            f"The dialect {registered.name!r} of the plug-in {registered.plugin!r} cannot be served: {type(error).__name__}: {error}. "
            "Update or uninstall the plug-in."
        ) from error


def _errors_of(dialect: Dialect) -> dict[int | str, dict[str, Any]]:
    """The error answers of a dialect's endpoints for the OpenAPI document, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for cause, meaning in _MEANINGS.items():
        for status in {STATUS[cause], dialect.statuses.get(cause, STATUS[cause])}:
            body = dialect.error_body(Problem(cause, meaning, status), "REQUEST-ID")
            content = {"application/json": {"schema": _schema_of(body), "example": body}}
            responses.setdefault(status, {"description": meaning, "content": content})
    return responses


def _schema_of(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"type": "object", "properties": {key: _schema_of(item) for key, item in value.items()}, "required": [*value]}
    return {"type": _TYPES[type(value)]} if type(value) in _TYPES else {}


async def _error_answer(request: Request, error: Exception) -> Response:
    dialect: Dialect = request.state.dialect
    problem = problem_of(error, dialect)
    if problem.status == STATUS[problem.cause] and not isinstance(error, HTTPException):
        problem.status = dialect.statuses.get(problem.cause, problem.status)
    fields = current_fields.get()
    if fields is not None:
        fields["cause"] = problem.cause
    return answer_of(problem, dialect, request.state.request_id)
