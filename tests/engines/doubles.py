"""Doubles of engines whose packages cannot be installed here, made from their sources of August 2026.

slime 624b824 (`slime/utils/types.py`, `slime/rollout/rm_hub/__init__.py`), NeMo Gym 07d6b0d (`nemo_gym/base_resources_server.py`), and
NeMo-RL 7ea279a (`nemo_rl/environments/interfaces.py`, `nemo_rl/environments/utils.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict


@dataclass
class SlimeSample:
    """What slime's functions get."""

    prompt: Any = ""
    response: str = ""
    label: Any = None
    reward: Any = None
    metadata: Any = field(default_factory=dict)
    custom_rm_path: str | None = None


async def slime_rewards(function: Any, args: Any, samples: list[SlimeSample]) -> None:
    """Gives samples their rewards as `generate_and_rm` does, or with ``group_rm`` as `generate_and_rm_group` does."""
    if args.group_rm:
        for sample, reward in zip(samples, await function(args, samples), strict=False):
            sample.reward = reward
        return
    import asyncio

    async def one(sample: SlimeSample) -> None:
        sample.reward = await function(args, sample)

    await asyncio.gather(*map(one, samples))


def slime_value(sample: SlimeSample, args: Any) -> Any:
    """`Sample.get_reward_value`."""
    return sample.reward if not args.reward_key else sample.reward[args.reward_key]


class EnvironmentReturn(NamedTuple):
    """What a step of NeMo-RL returns."""

    observations: Any
    metadata: Any
    next_stop_strings: Any
    rewards: Any
    terminateds: Any
    answers: Any


def with_nemo_rl(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Make what the adapter imports of NeMo-RL importable; returns its registries."""
    environments: dict[str, Any] = {}
    actors: dict[str, Any] = {}

    def register_env(env_name: str, actor_class_fqn: str) -> None:
        if env_name in environments:
            raise ValueError(f"Env name {env_name} already registered")
        environments[env_name] = {"actor_class_fqn": actor_class_fqn}

    _install(
        monkeypatch,
        {
            "nemo_rl.environments.interfaces": {
                "EnvironmentInterface": type("EnvironmentInterface", (), {}),
                "EnvironmentReturn": EnvironmentReturn,
            },
            "nemo_rl.environments.utils": {"ENV_REGISTRY": environments, "register_env": register_env},
            "nemo_rl.distributed.ray_actor_environment_registry": {"ACTOR_ENVIRONMENT_REGISTRY": actors},
            "nemo_rl.distributed.virtual_cluster": {"PY_EXECUTABLES": SimpleNamespace(SYSTEM="python")},
        },
    )
    return {"environments": environments, "actors": actors}


class BaseVerifyRequest(BaseModel):
    """NeMo Gym's request; the two parts are OpenAI's models there, which keep what they do not know."""

    responses_create_params: dict[str, Any]
    response: dict[str, Any]


class SimpleResourcesServer(BaseModel):
    """NeMo Gym's server, as far as it concerns verifying."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def setup_webserver(self) -> FastAPI:
        app = FastAPI()
        app.post("/verify")(self.verify)  # type: ignore[attr-defined]  # a subclass has it
        return app


def with_nemo_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what the adapter imports of NeMo Gym importable."""
    names = {"BaseVerifyRequest": BaseVerifyRequest, "SimpleResourcesServer": SimpleResourcesServer}
    _install(monkeypatch, {"nemo_gym.base_resources_server": names})


def gym_request(row: dict[str, Any]) -> dict[str, Any]:
    """What NeMo Gym posts to ``/verify`` for a row."""
    output = [
        {"type": "reasoning", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": row["completion"], "annotations": []}],
        },
    ]
    return {"responses_create_params": {"input": row["messages"]}, "response": {"output": output}, "solution": row["solution"]}


def nemo_rl_logs(rows: Sequence[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """NeMo-RL's message logs of rows, whose prompts are rendered, and the ``extra_env_info`` with their messages.

    The completions have no EOS token, as `nemo_rl/experience/rollouts.py` decodes them without special tokens.
    """
    rendered = {"role": "user", "content": "<|start|>rendered<|end|>"}
    logs = [[rendered, {"role": "assistant", "content": row["completion"]}] for row in rows]
    return logs, [{"messages": row["messages"], "solution": row["solution"]} for row in rows]


def _install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, Any]]) -> None:
    for path, names in modules.items():
        parts = path.split(".")
        for end in range(1, len(parts)):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module = ModuleType(path)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, path, module)
