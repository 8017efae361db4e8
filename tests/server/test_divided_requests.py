"""The samples of a request are shared by all replicas: the same numbers in the same order, of one reward, accepted or refused together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server.replicas import Place, Replica
from rm_plugins.server.served_reward import RewardGone, ServedReward
from rm_plugins.server.work import Work
from rm_plugins.testing import FixedProvider
from rm_plugins.wire import sample_to_json
from tests.server.conftest import metric, problem, rewarded, served, until, values


class Replicated(ServedReward):
    """A reward in this process that counts as several replicas, and keeps what each call scored.

    Args:
        number: The number of replicas.
        value: Added to the length of a completion.
    """

    def __init__(self, number: int, value: float = 0.0) -> None:
        super().__init__(FixedProvider(scores=lambda sample: len(str(sample.completion)) + value), "source")
        self.number = number
        self.calls: list[list[str]] = []
        self.together = threading.Barrier(number, timeout=20)
        self.meets = False
        self.next: Replicated | None = None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(map(Replica, range(self.number)))

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        self.calls.append([str(sample.completion) for samples in requests for sample in samples])
        if self.meets:
            self.together.wait()
        if "gone" in self.calls[-1]:
            raise RewardGone("the reward's process ended")
        return super().score(requests, names)

    def again(self) -> Replicated:
        assert self.next is not None
        return self.next


def of(*texts: str, prompt: str = "") -> list[Sample]:
    return [Sample(prompt, text) for text in texts]


def ask(client: httpx2.Client, samples: Sequence[Sample]) -> httpx2.Response:
    return client.post("/v1/rewards", json={"samples": [sample_to_json(sample) for sample in samples]})


@given(
    replicas=st.integers(1, 5),
    prompts=st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 50), min_size=60, max_size=60),
    refused=st.sets(st.integers(0, 59)),
)
def test_parts_have_every_valid_sample_once_and_in_order(
    replicas: int, prompts: list[str], sizes: list[int], refused: set[int]
) -> None:
    reward: Any = SimpleNamespace(replicas=[Replica()] * replicas, facts=SimpleNamespace(is_merged=True))
    samples = [Sample(prompt, f"{row}") for row, prompt in enumerate(prompts)]
    work = Work(samples, "a", reward)
    for row in range(len(samples)):
        if row in refused:
            work.refused[row] = DataError("refused")
        else:
            work.sizes[row] = sizes[row]
    if not work.sizes:
        return
    parts = work.divided()
    assert len(parts) <= replicas
    assert [sample for part in parts for sample in part.valid] == work.valid
    assert sum(part.size for part in parts) == work.size
    # A part differs from its share by less than what stays together.
    together = max(sum(sizes[row] for row in rows) for rows in work._of_one_prompt())
    if len(parts) > 1:
        assert all(part.size <= work.size / replicas + together for part in parts)
    for one, other in pairwise(parts):
        last, first = one.valid[-1], other.valid[0]
        assert not last.prompt or last.prompt != first.prompt or len(prompts) > 16
    scored = [Scores(np.array([float(str(sample.completion)) for sample in part.valid])) for part in parts]
    whole = work.together(scored) if len(parts) > 1 else work.completed(scored[0])
    expected = [np.nan if row in work.refused else float(row) for row in range(len(samples))]
    np.testing.assert_array_equal(whole.values, expected)
    assert whole.errors.keys() == work.refused.keys()


def test_all_replicas_score_a_request_at_the_same_time() -> None:
    reward = Replicated(3)
    reward.meets = True  # each call waits for those of the others
    with served(reward) as client:
        texts = ["x" * number for number in range(1, 31)]
        assert values(rewarded(client, of(*texts))) == [float(number) for number in range(1, 31)]
    assert sorted(text for call in reward.calls for text in call) == sorted(texts)
    assert len(reward.calls) == 3


def test_completions_of_a_prompt_stay_together_up_to_sixteen() -> None:
    reward = Replicated(2)
    with served(reward) as client:
        ask(client, of(*"abcdefgh", prompt="one"))
        assert [len(call) for call in reward.calls] == [8]
        reward.calls.clear()
        ask(client, of(*["a"] * 64, prompt="one"))
        assert sum(map(len, reward.calls)) == 64
        assert len(reward.calls) == 2


def test_samples_that_are_compared_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Replicated(2)
    object.__setattr__(reward.facts, "is_merged", False)
    with served(reward) as client:
        ask(client, of(*"abcdefgh"))
    assert [len(call) for call in reward.calls] == [8]


def test_rows_keep_their_places_among_bad_ones() -> None:
    with served(Replicated(2), max_characters=100) as client:
        found = ask(client, of("x" * 200, "a", "bb", "x" * 300, "ccc", "dddd")).json()
    rewards = [row["reward"] for row in found["rewards"]]
    assert rewards == [None, 1.0, 2.0, None, 3.0, 4.0]
    assert ["error" in row for row in found["rewards"]] == [True, False, False, True, False, False]


def test_rendered_samples_are_divided_too() -> None:
    reward = Replicated(2)
    object.__setattr__(reward.facts, "takes_rendered", True)
    with served(reward) as client:
        assert values(rewarded(client, [RenderedSample.of(text) for text in ("a", "bb", "ccc", "dddd")])) == [
            1.0,
            2.0,
            3.0,
            4.0,
        ]
    assert len(reward.calls) == 2


def test_a_request_is_accepted_or_refused_as_a_whole() -> None:
    reward = Replicated(2)
    hold, held = threading.Event(), list[int]()
    score = reward.score

    def held_back(requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        held.append(len(requests))
        hold.wait(20)
        return score(requests, names)

    reward.score = held_back  # type: ignore[method-assign]
    with served(reward, max_queue_items=10) as client, ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, client, of("a")) for _ in range(2)]
        until(lambda: len(held) == 2)
        waiting = pool.submit(ask, client, of(*"bcdefg"))
        until(lambda: metric(client, "queue_items") == 6)
        refused = ask(client, of(*"hijklmno"))
        assert "the queue is full" in problem(refused, 429, "overload")
        assert metric(client, "queue_items") == 6
        hold.set()
        assert values(waiting.result().json()) == [1.0] * 6
        assert all(call.result().status_code == 200 for call in running)


def test_a_part_that_fails_fails_the_request() -> None:
    with served(Replicated(2)) as client:
        found = ask(client, of("a", "b", "c", "gone"))
        assert found.status_code == 503
        assert values(rewarded(client, of("a", "bb"))) == [1.0, 2.0]


def test_all_parts_are_of_one_reward() -> None:
    """The reward is loaded again after the first part was scored, and before the second one."""
    old, new = Replicated(2), Replicated(2, value=100.0)
    old.next = new
    object.__setattr__(new.facts, "fingerprint", "f" * 64)
    begun, go = threading.Event(), threading.Event()
    score = old.score

    def slowly(requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        begun.set()
        go.wait(20)
        return score(requests, names)

    old.score = slowly  # type: ignore[method-assign]
    with served(old) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, client, of("a"))
        begun.wait(20)
        request = pool.submit(ask, client, of("b", "cc", "ddd", "eeee"))
        until(lambda: metric(client, "queue_items") > 0)
        reloaded = pool.submit(client.post, "/v1/reload", headers={"X-RM-Plugins": "reload"})
        until(lambda: client.get("/v1/info").json()["fingerprint"] == "f" * 64)
        go.set()
        assert reloaded.result().json()["changed"]
        assert first.result().status_code == 200
        answered = request.result()
        assert values(answered.json()) == [101.0, 102.0, 103.0, 104.0]
        assert answered.json()["fingerprint"] == "f" * 64


def test_a_reload_refuses_no_request_that_was_accepted() -> None:
    """A reload falls between the parts of a request, and the queue is full when the request is scored again."""
    old, new = Replicated(2), Replicated(2, value=100.0)
    old.next = new
    object.__setattr__(new.facts, "fingerprint", "f" * 64)
    gates = {text: threading.Event() for text in ("block", "x", "yy")}

    def held(reward: Replicated) -> Any:
        score = reward.score

        def hold(requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
            for text in [str(sample.completion) for samples in requests for sample in samples]:
                if text in gates:
                    begun.add(text)
                    gates[text].wait(20)
            return score(requests, names)

        return hold

    begun = set[str]()
    old.score, new.score = held(old), held(new)  # type: ignore[method-assign]
    with served(old, max_queue_items=4) as client, ThreadPoolExecutor(8) as pool:
        blocking = pool.submit(ask, client, of("block"))
        until(lambda: "block" in begun)
        request = pool.submit(ask, client, of("x", "yy"))
        until(lambda: "x" in begun)
        reloaded = pool.submit(client.post, "/v1/reload", headers={"X-RM-Plugins": "reload"})
        until(lambda: client.get("/v1/info").json()["fingerprint"] == "f" * 64)
        gates["x"].set()
        until(lambda: "yy" in begun)
        others = [pool.submit(ask, client, of(text, text)) for text in ("a", "b")]
        until(lambda: metric(client, "queue_items") == 4)
        gates["yy"].set()
        until(lambda: request.done() or metric(client, "queue_items") != 4)
        gates["block"].set()
        assert values(request.result().json()) == [101.0, 102.0]
        assert request.result().json()["fingerprint"] == "f" * 64
        assert all(call.result().status_code == 200 for call in (blocking, *others, reloaded))


def test_a_real_request_uses_every_process(tiny_decoder: Any) -> None:
    from rm_plugins.server.reward_process import Hosting
    from rm_plugins.server.reward_replicas import RewardReplicas

    folder = str(tiny_decoder())
    here = ServedReward.load(folder)
    samples = [Sample(f"Question {number // 4}?", f"It is {number}.") for number in range(40)]
    (expected,) = here.score([samples], ["a"])
    there = RewardReplicas(folder, Hosting(), Place.on(["cpu", "cpu"]))
    with served(there) as client:
        np.testing.assert_allclose(values(rewarded(client, samples)), expected.values, rtol=0, atol=1e-5)
        assert metric(client, "batch_samples_count") == 2.0
