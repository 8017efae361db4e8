"""OpenRLHF's own client: the method of its executor that asks a remote reward model."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tests.peers.clients.talk import talk


def _executor() -> Any:
    # Its packages import a whole trainer; the module that is wanted needs aiohttp alone.
    spec = find_spec("openrlhf")
    assert spec is not None and spec.submodule_search_locations
    package = ModuleType("openrlhf.utils")
    package.__path__ = [f"{spec.submodule_search_locations[0]}/utils"]
    sys.modules["openrlhf.utils"] = package
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    return SingleTurnAgentExecutor


def get_reward(url: str, model: str, texts: list[str], prompts: list[str] | None = None) -> list[float]:
    """One text a request, as its rollouts ask."""
    executor = _executor()(f"{url}/get_reward")

    async def one(text: str, prompt: str) -> float:
        (answer,) = await executor._fetch_rewards_via_http([text], [prompt], [None])
        assert len(answer["rewards"]) == 1 and len(answer["scores"]) == 1, answer
        return float(answer["rewards"][0])

    async def each() -> list[float]:
        return [await one(text, prompt) for text, prompt in zip(texts, prompts or [""] * len(texts), strict=True)]

    return asyncio.run(each())


if __name__ == "__main__":
    talk("openrlhf", get_reward)
