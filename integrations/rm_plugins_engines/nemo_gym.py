"""Rewards for NeMo Gym: a resources server whose ``/verify`` scores the response of a task.

NeMo Gym sends the messages of the task and the items of the response, so the reward renders them itself. Run the adapter as an application
of its own (``uvicorn reward:app``), or let NeMo Gym run it, which needs NeMo Gym's own classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import DataError, MissingDependencyError, RmPluginsError, SpecError
from rm_plugins.files import in_utf8
from rm_plugins_engines.engine_reward import ERROR, EngineReward, NoReward, Outcome
from rm_plugins_engines.gym_requests import checked, request_of, sample_of
from rm_plugins_engines.shared_reward import Spec

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

ENGINE = "NeMo Gym"

_DROPS = "its collection of rollouts sets aside rows with a failure class"
_FAILURE = {"_ng_failure_class": "judge_failed"}


class NeMoGymReward:
    """Answers NeMo Gym's ``/verify``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a response without a reward becomes: ``"raise"``, status 500; a number; or ``"drop"``, a row without a number that
            NeMo Gym's collection of rollouts sets aside as ``judge_failed``.
        components: The details of the reward that are its ``reward_components``; the reward must be their sum.
        details: Further details of the reward to add to the answer, such as ``member/0``.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(
        self, spec: Spec, *, no_reward: NoReward = "raise", components: Sequence[str] = (), details: Sequence[str] = ()
    ) -> None:
        names = tuple(dict.fromkeys([*components, *details]))
        self.reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=names, drops=_DROPS)
        self.components = tuple(components)

    async def verify(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Score a response.

        Args:
            body: The request: ``responses_create_params``, ``response``, and the other columns of the row.

        Returns:
            The request with ``reward``, ``reward_components`` if there are any, the details, ``rm_no_reward``, ``rm_error`` and
            ``rm_fingerprint``.

        Raises:
            DataError: The request is wrong, as in `sample_of`.
            SpecError: The components do not add up to the reward.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        (outcome,) = await self.reward.score_async([sample_of(body)])
        answer = {**body, **outcome.json_facts, "reward": outcome.value}
        if outcome.value is None:
            return {**answer, **_FAILURE, "_ng_failure_judge_error": outcome.facts[ERROR]}
        return {**answer, **self._components(outcome)}

    async def _answer(self, content: bytes | Mapping[str, Any]) -> Response:
        """The answer to a request: status 422 if the request is wrong, and 500 if there is no reward."""
        from starlette.responses import JSONResponse

        try:
            return JSONResponse(await self.verify(request_of(content) if isinstance(content, bytes) else checked(content)))
        except RmPluginsError as error:
            return JSONResponse({"detail": in_utf8(str(error))}, status_code=422 if isinstance(error, DataError) else 500)

    def _components(self, outcome: Outcome) -> dict[str, Any]:
        if not self.components or outcome.why_none or outcome.value is None:
            return {}
        parts = {name: outcome.details[name] for name in self.components}
        if not math.isclose(sum(parts.values()), outcome.value, rel_tol=1e-5, abs_tol=1e-6):
            raise SpecError(
                f"The reward is {outcome.value:g}, but its components add up to {sum(parts.values()):g} ({parts}). NeMo-RL needs the sum. "
                "Name the parts whose sum the reward is in `components`, or leave it empty."
            )
        return {"reward_components": parts}

    def app(self) -> FastAPI:
        """The application: ``/verify``, ``/seed_session``, ``/reverify_mode`` and ``/healthz``.

        Raises:
            MissingDependencyError: FastAPI is not installed.
        """
        try:
            from fastapi import FastAPI
        except ImportError as error:
            raise MissingDependencyError("The server for NeMo Gym needs FastAPI: pip install 'rm-plugins[serve]'.") from error
        app = FastAPI(title="rm-plugins for NeMo Gym")

        async def verify(request: Request) -> Response:
            return await self._answer(await request.body())

        app.add_route("/verify", verify, methods=["POST"])

        @app.post("/seed_session")
        async def seed_session() -> dict[str, Any]:
            return {}

        @app.get("/reverify_mode")
        async def reverify_mode() -> str:
            return "stateless"

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        return app

    def resources_server(self) -> type[Any]:
        """A class for NeMo Gym's own launcher, with its sessions and metrics.

        Raises:
            MissingDependencyError: NeMo Gym is not installed.
        """
        try:
            from nemo_gym.base_resources_server import BaseVerifyRequest, SimpleResourcesServer
        except ImportError as error:
            raise MissingDependencyError(
                f"A resources server that NeMo Gym runs needs NeMo Gym itself ({error}). `app` needs only FastAPI."
            ) from error
        from pydantic import ConfigDict

        reward = self

        class AnyVerifyRequest(BaseVerifyRequest):
            """A request with all columns of its row."""

            model_config = ConfigDict(extra="allow")

        class RMPluginsResourcesServer(SimpleResourcesServer):
            """Scores responses."""

            async def verify(self, body: AnyVerifyRequest) -> Any:
                return await reward._answer(body.model_dump(mode="json"))

        RMPluginsResourcesServer.verify.__annotations__["body"] = (
            AnyVerifyRequest  # FastAPI cannot find a class inside a function by name
        )
        return RMPluginsResourcesServer
