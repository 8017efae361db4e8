"""Rewards that do not block: which trainers await them, what overlaps, and what stays in order."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.trainer import utils as trl_utils

import rm_plugins as rm
from rm_plugins.errors import ScoringError, SpecError
from rm_plugins_trl import awaiting, reward_func
from rm_plugins_trl.turns import Turns
from tests.fake_servers.native import native
from tests.servers import serving
from tests.trl import awaited_scorers
from tests.trl.conftest import TRL_WARNINGS, newest_trl, settings
from tests.trl.test_reward_function import ROWS
from tests.warm_process import run_warm_group

pytestmark = TRL_WARNINGS


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


async def lengths_later(samples: Sequence[rm.Sample]) -> list[float]:
    await asyncio.sleep(0.01)
    return lengths(samples)


RULE = {"provider": "length-window", "unit": "characters", "low": 1, "high": 3}


class TestWhoAwaits:
    def test_what_is_known_of_trl_is_so(self) -> None:
        assert awaiting.trl_awaits_objects() == hasattr(trl_utils, "is_async_callable")

    @newest_trl
    @pytest.mark.parametrize(
        ("spec", "is_awaited"),
        [
            (RULE, True),
            ("http://127.0.0.1:9", True),
            (lengths_later, True),
            (lengths, False),  # it may need the main thread
            ({"provider": "sum", "members": [RULE, lengths]}, False),
            ({"provider": "sum", "members": [RULE, lengths_later]}, True),
        ],
        ids=["rule", "remote", "async", "function", "with a function", "with an async function"],
    )
    def test_rewards_that_need_no_main_thread_are_awaited(self, spec: Any, is_awaited: bool) -> None:
        reward = reward_func(spec)
        for one in (reward, pickle.loads(pickle.dumps(reward)), partial(reward)):
            assert trl_utils.is_async_callable(one) is is_awaited
        assert trl_utils.is_async_callable(reward_func(spec, awaitable=True))
        assert not trl_utils.is_async_callable(reward_func(spec, awaitable=False))

    def test_an_older_trl_would_not_await_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(awaiting, "trl_awaits_objects", lambda: False)
        assert not reward_func(RULE).awaitable
        with pytest.raises(SpecError, match="awaitable=True needs TRL"):
            reward_func(RULE, awaitable=True)

    @newest_trl
    def test_whoever_does_not_await_gets_the_rewards_at_once(self) -> None:
        """Also where an event loop runs, as in a notebook."""
        reward = reward_func(RULE)

        def trainer() -> Any:
            return reward(["Q", "Q"], ["ab", ""])

        async def notebook() -> Any:
            return trainer(), await asyncio.to_thread(reward, ["Q"], ["ab"]), await asyncio.to_thread(trainer)

        assert reward(["Q", "Q"], ["ab", ""]) == [1, 0]
        assert asyncio.run(notebook()) == ([1, 0], [1], [1, 0])

    @newest_trl
    def test_async_functions_get_an_awaitable(self) -> None:
        reward: Any = reward_func(RULE)

        async def trainer() -> Any:
            direct = await reward(["Q"], ["ab"])
            listed = await asyncio.gather(*[one(["Q"], ["ab"]) for one in [reward, partial(reward)]])
            generated = await asyncio.gather(*(one(["Q"], ["ab"]) for one in [reward]))
            yielded = [one async for one in rollouts()]
            return direct, listed, generated, yielded, await reward.__call__(["Q"], ["ab"])

        async def rollouts() -> AsyncIterator[Any]:
            yield await reward(["Q"], ["ab"])

        assert asyncio.run(trainer()) == ([1], [[1], [1]], [[1]], [[1]], [1])


class Meeting:
    """A server whose answers wait until requests of several rewards are there at the same time."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties, timeout=20)
        self.lock = threading.Lock()
        self.in_flight = 0
        self.most = 0

    @contextmanager
    def served(self) -> Iterator[str]:
        app = native(lambda sample: float(len(str(sample.completion))), info={"max_items": 64})

        async def meeting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] == "/v1/rewards":
                with self.lock:
                    self.in_flight += 1
                    self.most = max(self.most, self.in_flight)
                await asyncio.to_thread(self.barrier.wait)
                with self.lock:
                    self.in_flight -= 1
            await app(scope, receive, send)

        with serving(meeting, lifespan="off") as url:
            yield url


class Local(rm.Provider):
    """Scores here, and only if the requests to servers are under way."""

    name = "local"

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.threads: set[str] = set()

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.threads.add(threading.current_thread().name)
        self.meeting.barrier.wait()
        return rm.Scores(np.array(lengths(samples)))


@newest_trl
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_remote_rewards_and_a_local_one_score_at_the_same_time(
    trainer_class: Any, config_class: Any, tiny_policy: Path, tmp_path: Path
) -> None:
    """Each of the three waits for the other two, in both steps."""
    meeting = Meeting(3)
    local = Local(meeting)
    with meeting.served() as url:
        remote = {"provider": "remote", "url": url, "protocol": "rm-plugins", "deadline": 60.0}
        rewards = [reward_func(remote, name="one"), reward_func(local, name="local"), reward_func(remote, name="two")]
        trainer = trainer_class(
            model=str(tiny_policy),
            reward_funcs=list(rewards),
            args=config_class(**settings(tmp_path, num_generations=2, max_completion_length=8)),
            train_dataset=Dataset.from_list(ROWS),
        )
        trainer.train()
        for reward in rewards:
            reward.provider.close()
    assert meeting.most == 2
    assert local.threads == {"rm-plugins-compute"}
    logged = [entry for entry in trainer.state.log_history if "rewards/one/mean" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry["rewards/one/mean"] == entry["rewards/two/mean"] == entry["rewards/local/mean"] > 0
        assert entry["rewards/one/requests"] == 1


def test_online_dpo_calls_them(tiny_policy: Path, tmp_path: Path) -> None:
    with serving(native(lambda sample: float(len(str(sample.completion)))), lifespan="off") as url:
        reward = reward_func({"provider": "remote", "url": url, "protocol": "rm-plugins"})
        trainer = OnlineDPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_policy),
            reward_funcs=[reward],
            args=OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        )
        trainer.train()
        reward.provider.close()
    assert reward.provider.counts["samples"] == 8


@newest_trl
class TestErrors:
    @pytest.mark.parametrize("trainer_awaits", [True, False])
    def test_name_the_reward(self, trainer_awaits: bool) -> None:
        async def broken(samples: Sequence[rm.Sample]) -> list[float]:
            raise RuntimeError("no network")

        rewards: list[Any] = [reward_func(lengths_later), reward_func(broken, name="judge")]

        async def trainer() -> Any:
            return await asyncio.gather(*[one(["Q"], ["a"]) for one in rewards])

        with pytest.raises(ScoringError, match="'broken' failed: RuntimeError: no network") as caught:
            asyncio.run(trainer()) if trainer_awaits else rewards[1](["Q"], ["a"])
        assert caught.value.__notes__ == ["This is of the reward 'judge'."]

    def test_wrong_arguments_are_seen_before_anything_is_scored(self) -> None:
        async def trainer() -> Any:
            reward: Any = reward_func(RULE)
            return await reward(["Q"], [])

        with pytest.raises(rm.errors.DataError, match="'completions' must be a list of 1 items"):
            asyncio.run(trainer())

    def test_a_timeout_ends_it(self) -> None:
        begun, ended = threading.Event(), threading.Event()

        async def endless(samples: Sequence[rm.Sample]) -> list[float]:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return []

        async def trainer() -> None:
            reward: Any = reward_func(endless)
            async with asyncio.timeout(0.3):
                await reward(["Q"], ["a"])

        with pytest.raises(TimeoutError):
            asyncio.run(trainer())
        assert ended.wait(10) or not begun.is_set()


class TestTurns:
    def test_come_in_the_order_in_which_they_were_taken(self) -> None:
        order: list[int] = []

        async def one(turns: Turns, number: int) -> None:
            with turns.take() as turn:
                await asyncio.sleep(0.01 * (5 - number))
                await turn.come()
                order.append(number)

        async def all_of() -> None:
            turns = Turns()
            await asyncio.gather(*(one(turns, number) for number in range(5)))

        asyncio.run(all_of())
        assert order == [0, 1, 2, 3, 4]

    def test_one_that_fails_or_is_cancelled_lets_the_next_come_after_those_before_it(self) -> None:
        order: list[str] = []

        async def slow(turns: Turns) -> None:
            with turns.take() as turn:
                await turn.come()
                await asyncio.sleep(0.05)
                order.append("slow")

        async def fails(turns: Turns) -> None:
            with turns.take():
                raise ValueError("at once")

        async def waits(turns: Turns) -> None:
            with turns.take() as turn:
                await turn.come()

        async def last(turns: Turns) -> None:
            with turns.take() as turn:
                await turn.come()
                order.append("last")

        async def all_of() -> None:
            turns = Turns()
            tasks = [asyncio.ensure_future(one(turns)) for one in (slow, fails, waits, last)]
            await asyncio.sleep(0.01)
            tasks[2].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in found] == [type(None), ValueError, asyncio.CancelledError, type(None)]

        asyncio.run(all_of())
        assert order == ["slow", "last"]


@newest_trl
def test_two_processes_agree_whichever_reward_is_first_in_each(tmp_path: Path) -> None:
    """Rewards end in other orders in the two processes; all that they exchange stays in one order, and the free ones overlap."""
    alone = awaited_scorers.scored(0, 1)
    run_warm_group(2, "tests.trl.awaited_scorers", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert {**first["rewards"], **second["rewards"]} == json.loads(json.dumps(alone["rewards"]))
    assert first["state"] == second["state"] == alone["state"]
    assert first["logged"] == second["logged"]
    assert "rewards/first/even" in first["logged"][0]
    assert "rewards/first/odd" in first["logged"][0]
