"""verl's reward loop: the two methods of its worker that ask a server, compiled out of its file, for importing that takes ray and torch."""

from __future__ import annotations

import ast
import asyncio
import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from tests.peers.clients.talk import talk

_METHODS = ("_post_request", "compute_score_disrm")


def _methods() -> dict[str, Any]:
    spec = find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "experimental" / "reward_loop" / "reward_loop.py"
    tree = ast.parse(path.read_text())
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name in _METHODS]
    for method in methods:
        method.args.args = [
            ast.arg(argument.arg) for argument in method.args.args
        ]  # their annotations name what is not imported
        method.returns = None
    module = ast.fix_missing_locations(ast.Module(body=[*methods], type_ignores=[]))
    names: dict[str, Any] = {"aiohttp": aiohttp, "asyncio": asyncio, "logger": logging.getLogger("verl")}
    exec(compile(module, str(path), "exec"), names)
    return names


_VERL = _methods()


class _Worker:
    def __init__(self, url: str, model: str, engine: str) -> None:
        reward_model = SimpleNamespace(rollout=SimpleNamespace(name=engine), model_path=model)
        self.config = SimpleNamespace(reward=SimpleNamespace(reward_model=reward_model))
        self.reward_router_address = url.removeprefix("http://")

    async def _preprocess_reward_inputs(self, data: Any) -> Any:
        return data

    async def _post_request(self, payload: Any, endpoint: str) -> Any:
        return await _VERL["_post_request"](self, payload, endpoint, max_retries=5)

    async def score(self, text: str) -> float:
        answer = await _VERL["compute_score_disrm"](self, text)
        return float(answer["reward_score"])


def _scored(url: str, model: str, texts: list[str], engine: str) -> list[float]:
    worker = _Worker(url, model, engine)

    async def all_at_once() -> list[float]:
        return list(await asyncio.gather(*map(worker.score, texts)))

    return asyncio.run(all_at_once())


def vllm(url: str, model: str, texts: list[str]) -> list[float]:
    """As of vLLM: ``/classify``, all texts at once, one a request."""
    return _scored(url, model, texts, "vllm")


def sglang(url: str, model: str, texts: list[str]) -> list[float]:
    """As of SGLang: ``/v1/embeddings``."""
    return _scored(url, model, texts, "sglang")


if __name__ == "__main__":
    talk("verl", vllm, sglang)
