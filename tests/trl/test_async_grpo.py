"""AsyncGRPO: our rewards are pickled into TRL's spawned worker, which gets its completions from a server as from vLLM."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState
from datasets import Dataset
from fastapi import FastAPI, Request

import rm_plugins as rm
from rm_plugins.server import Settings, create_app
from rm_plugins_trl import reward_func, reward_funcs
from tests.conftest import make_tokenizer
from tests.servers import serving
from tests.trl.conftest import TRL_WARNINGS, newest_trl
from tests.trl.test_environments import QWEN3, WaitingRoom

pytestmark = [*TRL_WARNINGS, newest_trl]

ANSWERS = ["It is blue.", "two", "The sea is salty.", "one, two"]


def vllm_like(tokenizer: Any) -> FastAPI:
    """Completions as vLLM gives them: token ids and log-probabilities."""
    app, answers = FastAPI(), itertools.cycle(ANSWERS)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        assert (await request.json())["return_token_ids"]
        ids = [*tokenizer(next(answers))["input_ids"], tokenizer.eos_token_id]
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}]}

    return app


@pytest.fixture
def worker_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from trl.experimental.async_grpo import async_rollout_worker

    monkeypatch.setattr(async_rollout_worker, "is_vllm_available", lambda *arguments: True)
    yield async_rollout_worker.AsyncRolloutWorker


def test_a_served_reward_a_rule_and_columns_score_in_the_spawned_process(worker_class: Any, tiny_decoder: Any) -> None:
    PartialState()  # as a trainer makes it, for TRL's log
    tokenizer = make_tokenizer(chat_template=QWEN3.read_text())
    local = rm.load(tiny_decoder())
    rules = {
        "provider": "sum",
        "members": [{"provider": "length-window", "low": 5, "soft": 5}, {"provider": "phrases", "required": ["blue"]}],
    }
    prompts = [{"prompt": [{"role": "user", "content": "Name a colour."}], "text": "ab"}]
    with serving(create_app(local, Settings())) as url, serving(vllm_like(tokenizer), lifespan="off") as policy:
        rewards: list[Any] = [reward_func(url, name="served"), *reward_funcs(rules, name="rules")]
        worker = worker_class(
            model_name="policy",
            dataset=Dataset.from_list(prompts),
            reward_funcs=rewards,
            processing_class=tokenizer,
            eos_token_ids=[tokenizer.eos_token_id],
            environment_factory=WaitingRoom,
            num_generations=2,
            max_inflight_tasks=4,
            queue_maxsize=8,
            vllm_server_url=policy,
            max_tokens=32,
        )
        worker.start()
        try:
            samples = [worker.rollout_buffer.get(timeout=120) for _ in range(4)]
            worker.check_health(120)
        finally:
            worker.stop()

        async def in_grpo(prompts: list[Any], completions: list[Any]) -> Any:
            return await asyncio.gather(*[reward(prompts, completions) for reward in rewards])

        expected = asyncio.run(in_grpo([sample.prompt for sample in samples], [sample.completion for sample in samples]))
        rewards[0].provider.close()
    said = [rm.Sample(sample.prompt, sample.completion).completion_text for sample in samples]
    assert sorted(said) == sorted(ANSWERS)
    for place, (sample, text) in enumerate(zip(samples, said, strict=True)):
        names = ("rewards/served", "rewards/rules/length-window", "rewards/rules/phrases")
        found = [sample.metrics[name] for name in names]
        np.testing.assert_allclose(found, [column[place] for column in expected], atol=1e-4)
        assert found[2] == ("blue" in text)
        assert sample.metrics["rewards/WaitingRoom"] == 2
