"""A reward in several processes: each call goes to one that is free, and to another one if that ends."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rm_plugins.errors import ModelError, RmPluginsError, SpecError, UnsupportedError
from rm_plugins.samples import Sample
from rm_plugins.server.replicas import Place
from rm_plugins.server.reward_process import Hosting, RewardProcess
from rm_plugins.server.reward_replicas import RewardReplicas
from rm_plugins.server.served_reward import RewardGone, RewardLate, ServedReward
from tests.server.conftest import SAMPLES, served, until

RULES = """
import os
import pathlib
import time


def process(completions):
    for completion in completions:
        if completion == "slow":
            time.sleep(0.3)
        if completion == "hang":
            time.sleep(1e6)
        if completion == "exit":
            os._exit(7)
        if completion == "exit once":
            once = pathlib.Path(__file__).with_name("once")
            if not once.exists():
                once.touch()
                os._exit(7)
    return [float(os.getpid())] * len(completions)
"""
FUSSY = """
import pathlib, time

try:
    pathlib.Path(__file__).with_name("first").mkdir()
except FileExistsError:
    raise ValueError("only one of us")
time.sleep(60)

def zero(completions):
    return [0.0] * len(completions)
"""
Replicated = Callable[..., RewardReplicas]


@pytest.fixture
def replicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicated]:
    """Has processes hold a reward until the end of the test."""
    (tmp_path / "process_rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("rm_plugins.server.reward_process.pauses", lambda: iter([0.05] * 1_000))
    rewards: list[RewardReplicas] = []

    def hold(source: Any = "process_rules:process", number: int = 2, **hosting: Any) -> RewardReplicas:
        rewards.append(RewardReplicas(source, Hosting(**hosting), Place.on(["cpu"] * number)))
        return rewards[-1]

    yield hold
    for reward in rewards:
        reward.close()


def processes(reward: RewardReplicas) -> list[int]:
    """The ids of its processes."""
    return [one._process.pid for one in reward._processes]


def answered_by(reward: RewardReplicas, *texts: str) -> int:
    """The process that scores texts."""
    (scores,) = reward.score([[Sample("", text) for text in texts]], ["a"])
    return int(scores.values[0])


def was_replaced(reward: RewardReplicas, times: int) -> bool:
    """Whether its processes were replaced so often, together."""
    return sum(replica.restarts for replica in reward.replicas) == times


def test_all_processes_give_the_scores_of_one(replicated: Replicated, tiny_decoder: Any) -> None:
    folder = str(tiny_decoder())
    here, there = ServedReward.load(folder), replicated(folder)
    assert there.facts == here.facts
    assert [(one.number, one.device, one.state) for one in there.replicas] == [(0, "cpu", "serving"), (1, "cpu", "serving")]
    (expected,) = here.score([SAMPLES], ["a"])
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda number: there.score([SAMPLES], [f"{number}"])[0], range(8)):
            assert scores.values.tolist() == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert there.render(SAMPLES) == here.render(SAMPLES)
    assert there.lengths(SAMPLES) == here.lengths(SAMPLES)
    tokens = here.tokenize(["rivers"], True)
    assert there.tokenize(["rivers"], True) == tokens
    assert there.detokenize([[token.id for token in tokens[0]]], False) == ["rivers"]


def test_each_process_has_one_call_at_a_time(replicated: Replicated) -> None:
    reward = replicated()
    with ThreadPoolExecutor(4) as pool:
        answered = list(pool.map(lambda _: answered_by(reward, "slow"), range(4)))
    assert sorted(answered) == sorted(2 * processes(reward))


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_another_process_answers_for_one_that_ends(how: str, replicated: Replicated) -> None:
    reward = replicated()
    before = processes(reward)
    if how == "crash":
        answered = answered_by(reward, "exit once")
    else:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(answered_by, reward, "slow")
            until(lambda: bool(any(reward._calls.values())))
            busy = next(one for one, calls in reward._calls.items() if calls)
            os.kill(busy._process.pid, signal.SIGKILL)
            answered = call.result()
    assert answered in before
    assert reward.is_alive
    until(lambda: all(one.state == "serving" for one in reward.replicas))
    assert sorted(one.restarts for one in reward.replicas) == [0, 1]


def test_what_ends_two_processes_gets_no_third_one(replicated: Replicated) -> None:
    reward = replicated(number=3)
    with pytest.raises(RewardGone, match="process ended"):
        answered_by(reward, "exit")
    assert answered_by(reward, "a") in processes(reward)
    until(lambda: sorted(one.restarts for one in reward.replicas) == [0, 1, 1])


def test_what_takes_too_long_gets_no_second_one(replicated: Replicated) -> None:
    reward = replicated(seconds=1.0)
    started = time.monotonic()
    with pytest.raises(RewardLate, match="did not answer within 1 s"):
        answered_by(reward, "hang")
    assert answered_by(reward, "a") in processes(reward)
    assert time.monotonic() - started < 30


def test_all_have_ended_until_one_is_back(replicated: Replicated, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = replicated()
    monkeypatch.setattr("rm_plugins.server.reward_process.pauses", lambda: iter([1.0] * 1_000))
    for one in processes(reward):
        os.kill(one, signal.SIGKILL)
    until(lambda: not reward.is_alive)
    assert [one.state for one in reward.replicas] == ["restarting", "restarting"]
    with pytest.raises(RewardGone, match="process ended"):
        answered_by(reward, "a")
    until(lambda: reward.is_alive)
    assert answered_by(reward, "a") in processes(reward)


def test_calls_are_answered_while_processes_die(replicated: Replicated) -> None:
    """At any moment, one of the processes lives, and no call loses two of them, so that none is lost."""
    reward = replicated()
    choose = random.Random(0)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(answered_by, reward, f"{number}") for number in range(400)]
        for killed in range(1, 5):
            time.sleep(choose.random() / 20)
            running = [call for call in calls if call.running()]
            os.kill(choose.choice(processes(reward)), signal.SIGKILL)
            until(partial(was_replaced, reward, killed))
            wait(running)  # a call that loses two processes gets no third one
        assert all(call.result() for call in calls)


def test_what_cannot_be_loaded_is_said_once(replicated: Replicated) -> None:
    with pytest.raises(SpecError) as one:
        ServedReward.load({"provider": "constant"})
    with pytest.raises(SpecError) as several:
        replicated({"provider": "constant"})
    assert str(several.value) == str(one.value)


def test_if_one_cannot_load_the_reward_the_others_are_ended(replicated: Replicated, tmp_path: Path) -> None:
    (tmp_path / "fussy_rules.py").write_text(FUSSY, encoding="utf-8")
    with pytest.raises(RmPluginsError, match="only one of us"):
        replicated("fussy_rules:zero")
    until(lambda: not multiprocessing.active_children())


def test_one_that_learns_is_not_shared(replicated: Replicated) -> None:
    learning = {"provider": "constant", "value": 1.0, "transform": {"name": "zscore", "running": True}}
    with pytest.raises(
        UnsupportedError, match=r"^'constant' learns from the samples that it scores, and each of the 2 replicas"
    ):
        replicated(learning)
    assert replicated(learning, number=1).is_alive


def test_files_that_change_while_they_are_loaded_are_noticed(
    replicated: Replicated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "reward.yaml"
    values = iter(("1.0", "2.0"))
    one_after_the_other = threading.Lock()
    load = RewardProcess.__init__

    def changed(self: RewardProcess, *arguments: Any) -> None:
        with one_after_the_other:
            spec.write_text(f"{{provider: constant, value: {next(values)}}}", encoding="utf-8")
            load(self, *arguments)

    monkeypatch.setattr(RewardProcess, "__init__", changed)
    with pytest.raises(ModelError, match="The files of the reward have changed while it was loaded"):
        replicated(str(spec))


def test_it_is_loaded_again_in_new_processes(replicated: Replicated, tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    reward = replicated(str(spec))
    os.kill(processes(reward)[1], signal.SIGKILL)
    until(lambda: was_replaced(reward, 1))
    spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
    other = reward.again()
    assert [one.restarts for one in other.replicas] == [0, 1], "a counter of a server never decreases"
    assert [len(one.replicas) for one in (reward, other)] == [2, 2]
    assert [one.score([[Sample("", "a")]], ["a"])[0].values.tolist() for one in (reward, other)] == [[1.0], [2.0]]
    other.close()
    assert not any(process._process.is_alive() for process in other._processes)
    spec.write_text("{provider: constant}", encoding="utf-8")
    with pytest.raises(RmPluginsError):
        reward.again()
    assert reward.is_alive


def test_reloading_an_unchanged_reward_replaces_processes_that_ended(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = replicated({"provider": "constant", "value": 1.0})
    monkeypatch.setattr("rm_plugins.server.reward_process.pauses", lambda: iter([1_000.0]))
    with served(reward) as client:
        os.kill(processes(reward)[0], signal.SIGKILL)
        until(lambda: client.get("/health").json()["status"] == "degraded")
        assert not client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()["changed"]
        assert client.get("/health").json()["workers"] == {"wanted": 2, "serving": 2}
