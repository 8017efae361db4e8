"""Rewards for NeMo Gym: a resources server whose ``/verify`` scores the response of a task.

NeMo Gym sends the messages of the task and the items of the response, so the reward renders them itself. Run the adapter as an application
of its own (``uvicorn reward:app``), or let NeMo Gym run it, which needs NeMo Gym's own classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import DataError, MissingDependencyError, RmPluginsError
from rm_plugins.samples import Message, Sample
from rm_plugins_engines.engine_reward import ERROR, EngineReward, NoReward, Outcome
from rm_plugins_engines.shared_reward import Spec

if TYPE_CHECKING:
    from fastapi import FastAPI

ENGINE = "NeMo Gym"

_DROPS = "its collection of rollouts sets aside rows with a failure class"
_FAILURE = {"_ng_failure_class": "judge_failed"}
_REQUEST = ("responses_create_params", "response")


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
            DataError: The request has no messages, or the components do not add up to the reward.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        (outcome,) = await self.reward.score_async([sample_of(body)])
        facts = {name: None if isinstance(fact, float) and math.isnan(fact) else fact for name, fact in outcome.facts.items()}
        answer = {**body, **facts, "reward": outcome.value}
        if outcome.value is None:
            return {**answer, **_FAILURE, "_ng_failure_judge_error": outcome.facts[ERROR]}
        return {**answer, **self._components(outcome)}

    def _components(self, outcome: Outcome) -> dict[str, Any]:
        if not self.components or outcome.why_none or outcome.value is None:
            return {}
        parts = {name: outcome.details[name] for name in self.components}
        if not math.isclose(sum(parts.values()), outcome.value, rel_tol=1e-5, abs_tol=1e-6):
            raise DataError(
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
            from fastapi import Body, FastAPI
            from fastapi.responses import JSONResponse
        except ImportError as error:
            raise MissingDependencyError("The server for NeMo Gym needs FastAPI: pip install 'rm-plugins[serve]'.") from error
        app = FastAPI(title="rm-plugins for NeMo Gym")

        @app.post("/verify")
        async def verify(body: dict[str, Any] = Body()) -> JSONResponse:  # noqa: B008 - as FastAPI has it
            try:
                return JSONResponse(await self.verify(body))
            except RmPluginsError as error:
                return JSONResponse({"detail": str(error)}, status_code=422 if isinstance(error, DataError) else 500)

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
                from fastapi.responses import JSONResponse

                return JSONResponse(await reward.verify(body.model_dump(mode="json")))

        RMPluginsResourcesServer.verify.__annotations__["body"] = (
            AnyVerifyRequest  # FastAPI cannot find a class inside a function by name
        )
        return RMPluginsResourcesServer


def sample_of(body: Mapping[str, Any]) -> Sample:
    """The sample of a request: the task's messages as prompt, and the response's items as completion.

    Raises:
        DataError: There is no input or no output, or an item is of an unknown kind or has another form.
    """
    params, response = (_object(body.get(name) or {}, f"`{name}`") for name in _REQUEST)
    given, output = params.get("input"), response.get("output")
    if given is None or not isinstance(output, list):
        raise DataError(
            "The request has no `responses_create_params.input` or no `response.output`. Send both, as NeMo Gym's agents do."
        )
    prompt = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    if params.get("instructions"):
        prompt = [{"role": "system", "content": params["instructions"]}, *prompt]
    columns = {name: value for name, value in body.items() if name not in _REQUEST}
    tools = [_tool(_object(tool, "A tool")) for tool in params.get("tools") or ()]
    return Sample(prompt, _messages(output), {**columns, **({"tools": tools} if tools else {})})


def _messages(items: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Items of OpenAI's Responses API as messages; reasoning is left out, as chat templates leave it out of earlier turns."""
    messages: list[Message] = []
    for item in items:
        kind = _object(item, "An item").get("type") or "message"
        if kind == "message":
            role = item.get("role", "assistant")
            messages.append({"role": role, "content": _text(item.get("content"))})
        elif kind == "function_call":
            if not isinstance(item.get("name"), str):
                raise DataError(f"A function call has no name: {item!r:.200}.")
            call = {
                "type": "function",
                "id": item.get("call_id"),
                "function": {"name": item["name"], "arguments": _arguments(item)},
            }
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": _text(item.get("output")), "tool_call_id": item.get("call_id")})
        elif kind != "reasoning":
            raise DataError(
                f"A response has an item of the type {kind!r}, which has no message form. Allowed: message, function_call, "
                "function_call_output, reasoning."
            )
    return messages


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{name} must be an object, not {value!r:.80}. Send requests in the form of OpenAI's Responses API.")
    return value


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    objects = [{"text": part} if isinstance(part, str) else _object(part, "A part of a message") for part in content]
    parts = [part.get("text", part.get("refusal")) for part in objects]
    if None in parts:
        raise DataError("A message has a part that is not text. Only text can be scored here.")
    return "".join(map(str, parts))


def _arguments(item: Mapping[str, Any]) -> Any:
    try:
        return json.loads(item.get("arguments") or "{}")
    except ValueError:  # a policy may write anything
        return item["arguments"]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of the Responses API in the form of chat templates."""
    if "function" in tool:
        return dict(tool)
    return {
        "type": "function",
        "function": {name: tool[name] for name in ("name", "description", "parameters") if name in tool},
    }
