"""TRL's own reward functions as providers, those that a function makes included."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl.rewards
import yaml

import rm_plugins as rm
from rm_plugins.errors import ScoringError, SpecError
from rm_plugins.providers.function import FunctionProvider
from rm_plugins_trl import reward_func

PROMPT = [{"role": "user", "content": "What is two and two?"}]
TEXTS = [r"<think>2 + 2</think>\boxed{4}", r"\boxed{5}", "<think>four", r"<think>x</think>\boxed{\frac{8}{2}} or so"]
SOLUTIONS = ["4", "4", "4", "no number"]
IDS = [[1, 2, 3], [5] * 8, [1, 2] * 5, list(range(12))]
ROWS: dict[str, list[Any]] = {
    "prompts": [PROMPT] * 4,
    "completions": [[{"role": "assistant", "content": text}] for text in TEXTS],
    "solution": SOLUTIONS,
    "completion_ids": IDS,
}
SAMPLES = [
    rm.Sample(PROMPT, text, {"solution": solution, "completion_ids": ids})
    for text, solution, ids in zip(TEXTS, SOLUTIONS, IDS, strict=True)
]
FACTORIES: dict[str, dict[str, Any]] = {
    "get_soft_overlong_punishment": {"max_completion_len": 10, "soft_punish_cache": 4},
    "get_repetition_penalty_reward": {"ngram_size": 2},
    "get_cosine_scaled_reward": {"max_len": 10},
}


def as_floats(rewards: list[float | None]) -> list[float]:
    return [np.nan if reward is None else reward for reward in rewards]


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"])
class TestFunctions:
    def test_the_provider_gives_what_trl_gives(self, name: str) -> None:
        reward = getattr(trl.rewards, name)
        expected = as_floats(reward(**ROWS))
        assert len(set(expected)) > 1
        for spec in (f"trl.rewards:{name}", reward):
            provider = rm.load(spec)
            assert provider.label == name
            np.testing.assert_array_equal(provider.score(SAMPLES).values, expected)

    def test_in_another_thread_too(self, name: str) -> None:
        found: list[Any] = []
        provider = rm.load(f"trl.rewards:{name}")
        thread = threading.Thread(target=lambda: found.append(provider.score(SAMPLES).values))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(found[0], as_floats(getattr(trl.rewards, name)(**ROWS)))


@pytest.mark.parametrize("name", FACTORIES)
class TestFactories:
    def test_a_spec_makes_the_reward(self, name: str, tmp_path: Path) -> None:
        spec = {"provider": "function", "function": f"trl.rewards:{name}", "factory": True, "arguments": FACTORIES[name]}
        (tmp_path / "reward.yaml").write_text(yaml.safe_dump(spec))
        made = getattr(trl.rewards, name)(**FACTORIES[name])
        expected = as_floats(made(**ROWS))
        assert len(set(expected)) > 1
        provider = rm.load(tmp_path / "reward.yaml")
        assert provider.label == made.__name__
        for copy in (provider, pickle.loads(pickle.dumps(provider))):
            np.testing.assert_array_equal(copy.score(SAMPLES).values, expected)

    def test_the_token_ids_of_a_trainer_reach_it(self, name: str) -> None:
        spec = {"provider": "function", "function": f"trl.rewards:{name}", "factory": True, "arguments": FACTORIES[name]}
        expected = getattr(trl.rewards, name)(**FACTORIES[name])(**ROWS)
        reward: Callable[..., Any] = reward_func(spec)
        assert reward(**ROWS) == expected

    def test_without_factory_it_says_what_is_missing(self, name: str) -> None:
        for arguments in ({}, FACTORIES[name]):
            with pytest.raises((SpecError, ScoringError), match=r"(?i)the function .* set `factory: true`"):
                rm.load({"provider": "function", "function": f"trl.rewards:{name}", "arguments": arguments}).score(SAMPLES)


class TestFactoryErrors:
    def test_arguments_that_do_not_fit(self) -> None:
        spec = {"provider": "function", "function": "trl.rewards:get_soft_overlong_punishment", "factory": True}
        with pytest.raises(
            SpecError, match=r"^arguments: they do not fit .*soft_punish_cache.*: missing .* 'max_completion_len'"
        ):
            rm.load(spec)
        with pytest.raises(SpecError, match=r"^arguments: .* unexpected keyword argument 'max_len'"):
            rm.load({**spec, "arguments": {**FACTORIES["get_soft_overlong_punishment"], "max_len": 3}})

    def test_what_the_factory_raises(self) -> None:
        spec = {"provider": "function", "function": "trl.rewards:get_repetition_penalty_reward", "factory": True}
        with pytest.raises(SpecError, match="'function' could not be made: ValueError: max_penalty 1"):
            rm.load({**spec, "arguments": {"max_penalty": 1}})

    def test_a_reward_function_is_no_factory(self) -> None:
        with pytest.raises(SpecError, match=r"^function: the factory 'reward' returned \[1\.0\], which is not a function"):
            FunctionProvider(function=plain(), factory=True, arguments={"samples": [1]})

    def test_what_the_trainer_did_not_hand_over(self) -> None:
        spec = {"provider": "function", "function": "trl.rewards:get_repetition_penalty_reward", "factory": True}
        with pytest.raises(ScoringError, match="'completion_ids'"):
            rm.load(spec).score([rm.Sample("Q", "A")])


def plain() -> Callable[..., Any]:
    def reward(samples: list[Any]) -> list[float]:
        return [1.0] * len(samples)

    return reward


async def later(completions: list[Any]) -> list[float]:
    await asyncio.sleep(0)
    return [1.0] * len(completions)


class Later:
    async def __call__(self, completions: list[Any]) -> list[float]:
        return await later(completions)


@pytest.mark.parametrize(("function", "waits"), [(later, True), (Later(), True), (partial(later), True), (plain(), False)])
def test_an_async_function_waits_unless_the_spec_says_otherwise(function: Callable[..., Any], waits: bool) -> None:
    assert rm.load(function).concurrent is waits
    assert rm.load(function, concurrent=not waits).concurrent is not waits
    assert rm.load(lambda: function, factory=True).concurrent is waits
