"""Threads that share a reward get the numbers of calls one by one."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import rm_plugins as rm
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.models.as_loaded import as_loaded
from rm_plugins.one_thread import OneThread
from rm_plugins.per_process import PerProcess
from rm_plugins.providers.models.model_in_memory import ModelInMemory
from rm_plugins.testing import FixedProvider, check_provider
from tests.cheap_ensembles.conftest import adapters_of
from tests.conftest import MakeFolder

SAMPLES = [
    rm.Sample("The sea is salty. Question: what is", f" number {number} {'of it ' * (number % 5)}") for number in range(8)
]


@pytest.fixture(autouse=True)
def quick_turns() -> Iterator[None]:
    """Threads take turns often, for what they do to each other to show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call: Callable[[int], Any], calls: int, threads: int = 4) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, range(calls)))


def agrees(provider: rm.Provider, calls: int = 32) -> None:
    """Whether calls at once get the numbers of calls one by one."""
    alone = [provider.score([sample]).values[0] for sample in SAMPLES]
    together = in_threads(lambda call: provider.score([SAMPLES[call % len(SAMPLES)]]).values[0], calls)
    np.testing.assert_allclose(together, [alone[call % len(SAMPLES)] for call in range(calls)], atol=1e-4)


@pytest.mark.parametrize("kind", ["lora-ensemble", "mc-dropout", "sequence-classifier", "of adapters in a sum"])
def test_models(kind: str, tiny_decoder: MakeFolder, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
    adapters: dict[str, Any] = {"provider": "lora-ensemble", "adapters": []}
    if kind in ("lora-ensemble", "of adapters in a sum"):
        adapters["adapters"] = adapters_of(tiny_decoder(), tmp_path)
    spec: dict[str, Any] = {
        "lora-ensemble": adapters,
        "mc-dropout": {"provider": kind, "model": str(tiny_encoder()), "passes": 3, "rate": 0.5},
        "sequence-classifier": {"provider": kind, "model": str(tiny_decoder())},
        "of adapters in a sum": {"provider": "sum", "members": [adapters, {"provider": "constant", "value": 1.0}]},
    }[kind]
    provider = rm.load(spec)
    agrees(provider)
    if kind != "of adapters in a sum":
        check_provider(provider, SAMPLES[:3], pickles=False)


def test_models_that_are_loaded_at_once(tiny_decoder: MakeFolder, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
    decoder = {"provider": "sequence-classifier", "model": str(tiny_decoder())}
    specs: list[Any] = [
        decoder,
        {"provider": "sequence-classifier", "model": str(tiny_encoder())},
        {"provider": "lora-ensemble", "adapters": adapters_of(tiny_decoder(), tmp_path, 2)},
        *({**decoder, "dtype": dtype} for dtype in ("bfloat16", "float16")),
    ]
    alone = [rm.load(spec).score(SAMPLES).values for spec in specs]
    together = in_threads(lambda call: rm.load(specs[call % len(specs)]).score(SAMPLES).values, 40, threads=6)
    for call, scores in enumerate(together):
        np.testing.assert_array_equal(scores, alone[call % len(specs)])
    assert torch.get_default_dtype() == torch.float32


def test_what_uses_a_model_without_its_provider(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    provider: Any = rm.load({"provider": "lora-ensemble", "adapters": adapters_of(tiny_decoder(), tmp_path)})
    alone = [provider.trained.outputs([sample]).values for sample in SAMPLES]
    together = in_threads(lambda call: provider.trained.outputs([SAMPLES[call % len(SAMPLES)]]).values, 32)
    for call, outputs in enumerate(together):
        np.testing.assert_allclose(outputs, alone[call % len(SAMPLES)], atol=1e-4)


def test_two_rewards_of_one_model_that_is_being_trained(tiny_encoder: MakeFolder) -> None:
    loaded: Any = rm.load(tiny_encoder())
    model = loaded.model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    rewards = [ModelInMemory(model, loaded.renderer, loaded.trained.heads) for _ in range(2)]
    expected = [rewards[0].score([sample]).values[0] for sample in SAMPLES]
    scores = in_threads(lambda call: rewards[call % 2].score([SAMPLES[call % len(SAMPLES)]]).values[0], 32)
    np.testing.assert_allclose(scores, [expected[call % len(SAMPLES)] for call in range(32)], atol=1e-4)
    assert model.training


class Forgetful(rm.Provider):
    """Keeps the batch in itself while it scores, as an author might."""

    name: ClassVar[str] = "forgetful"

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.batch = samples
        time.sleep(1e-3)
        return rm.Scores(np.array([float(len(sample.completion)) for sample in self.batch]))


class Hasty(Forgetful):
    """The same, and says that it may be called in several threads at once."""

    name: ClassVar[str] = "hasty"
    concurrent = True


def test_a_providers_own_state_is_guarded() -> None:
    agrees(Forgetful())
    check_provider(Forgetful(), SAMPLES)


def test_one_that_only_says_it_is_safe_breaks_the_contract() -> None:
    with pytest.raises(AssertionError, match="several threads at once"):
        check_provider(Hasty(), SAMPLES)


def test_those_that_wait_do_so_at_the_same_time() -> None:
    meeting = threading.Barrier(4, timeout=20)

    class Waiting(FixedProvider):
        concurrent = True

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            meeting.wait()
            return super().score_batch(samples)

    provider = Waiting(scores=lambda sample: 1.0)
    assert in_threads(lambda call: provider.score(SAMPLES).values.tolist(), 4) == [[1.0] * len(SAMPLES)] * 4


class Slow(rm.Transform):
    """Learns how many scores it has seen, slowly."""

    name: ClassVar[str] = "slow"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, values: Any, samples: Sequence[rm.Sample]) -> Any:
        seen = self.seen
        time.sleep(1e-4)
        self.seen = seen + len(values)
        return values


@pytest.mark.parametrize("concurrent", [False, True])
def test_what_is_learned_and_counted_misses_nothing(concurrent: bool) -> None:
    provider = FixedProvider(scores=lambda sample: 1.0)
    provider.concurrent = concurrent
    provider.transform = slow = Slow()
    observed: list[int] = [0]

    def observe(provider: rm.Provider, samples: Sequence[rm.Sample], scores: rm.Scores) -> None:
        before = observed[0]
        time.sleep(1e-4)
        observed[0] = before + len(samples)

    provider.observer = observe
    in_threads(lambda call: provider.score(SAMPLES), 100)
    assert slow.seen == observed[0] == provider.counts["samples"] == 100 * len(SAMPLES)


def test_what_a_route_is_chosen_by_is_guarded() -> None:
    chosen: list[str] = []

    def by(sample: rm.Sample) -> str:
        chosen.append(sample.completion[-1])  # type: ignore[arg-type]
        time.sleep(1e-4)
        return chosen.pop()

    rewards = {name: FixedProvider(scores=lambda sample: float(len(sample.completion))) for name in "ab"}
    rewards["b"] = FixedProvider(scores=lambda sample: -1.0)
    for reward in rewards.values():
        reward.concurrent = True
    provider: Any = rm.load({"provider": "route", "by": by, "routes": rewards})
    samples = [rm.Sample("", "aa"), rm.Sample("", "bb")]
    scores = in_threads(lambda call: provider.score([samples[call % 2]]).values[0], 200)
    assert scores == [2.0, -1.0] * 100


def test_a_cache_that_forgets_while_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_plugins.engine.score_cache._ENTRIES_IN_MEMORY", 2)
    inner = FixedProvider(scores=lambda sample: float(len(sample.completion)))
    inner.concurrent = True
    provider: Any = rm.load({"provider": "cached", "reward": inner, "path": "memory"})
    scores = in_threads(lambda call: provider.score(SAMPLES[call % 6 :]).values.tolist(), 300)
    expected = [float(len(sample.completion)) for sample in SAMPLES]
    assert all(scores[call] == expected[call % 6 :] for call in range(300))


@hypothesis_settings(max_examples=15)
@given(calls=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5), min_size=2, max_size=8))
def test_any_calls_at_once_get_the_scores_of_calls_one_by_one(calls: list[list[int]], adapters: Any) -> None:
    alone = [adapters.score([SAMPLES[row] for row in rows]) for rows in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: adapters.score([SAMPLES[row] for row in rows]), calls))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.values, one.values, atol=1e-4)
        for member in "012":
            np.testing.assert_allclose(other.parts[member].values, one.parts[member].values, atol=1e-4)


@pytest.fixture(scope="module")
def adapters(tiny_decoder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders = adapters_of(tiny_decoder(), tmp_path_factory.mktemp("adapters"))
    return rm.load({"provider": "lora-ensemble", "adapters": folders})


def test_a_model_keeps_its_mode_for_who_is_in(tiny_encoder: MakeFolder) -> None:
    loaded: Any = rm.load(tiny_encoder())
    loaded.model.train()

    def look(call: int) -> bool:
        with as_loaded(loaded.model):
            time.sleep(1e-3)
            return bool(loaded.model.training)

    assert not any(in_threads(look, 40))
    assert loaded.model.training


def test_engines_of_one_model_take_turns(tiny_decoder: MakeFolder) -> None:
    loaded: Any = rm.load(tiny_decoder())
    inside, most = [0], [0]

    def activate() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(1e-3)
        inside[0] -= 1

    engines = [ScoringEngine(loaded.model, variants=[activate]) for _ in range(2)]
    in_threads(lambda call: engines[call % 2].outputs([[5, 6]]), 20)
    assert most == [1]


class TestOneThread:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
    def test_a_copy_is_free(self, copied: Callable[[OneThread], OneThread]) -> None:
        alone = OneThread()
        with alone:
            other = copied(alone)
            assert in_threads(lambda call: enters(other), 1, threads=1) == [True]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork_is_free(self) -> None:
        alone, held, done = OneThread(), threading.Event(), threading.Event()

        def hold() -> None:
            with alone:
                held.set()
                done.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(30)
        child = multiprocessing.get_context("fork").Process(target=enters, args=[alone])
        child.start()
        child.join(20)
        ended = child.exitcode
        child.kill()
        done.set()
        holder.join()
        assert ended == 0


class TestPerProcess:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
    def test_a_copy_is_empty(self, copied: Callable[[PerProcess[object]], PerProcess[object]]) -> None:
        held = PerProcess[object]()
        own = held.made(object)
        other = copied(held)
        assert other.value is None
        assert other.made(object) is not own
        assert held.take() is own
        assert held.take() is None

    def test_threads_that_ask_at_once_share_one(self) -> None:
        held = PerProcess[object]()
        assert len({id(value) for value in in_threads(lambda call: held.made(object), 32, threads=8)}) == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork_makes_its_own_also_while_a_thread_of_the_parent_makes_one(self) -> None:
        held, later, making, done = PerProcess[list[int]](), PerProcess[object](), threading.Event(), threading.Event()
        own = held.made(lambda: [os.getpid()])

        def slowly() -> object:
            making.set()
            return done.wait(30)

        maker = threading.Thread(target=later.made, args=[slowly])
        maker.start()
        making.wait(30)
        if (child := os.fork()) == 0:
            own_is_not_given = held.value is held.take() is None
            is_right = own_is_not_given and held.made(lambda: [os.getpid()]) == [os.getpid()] and later.made(object) is not None
            os._exit(0 if is_right else 1)
        ends = time.monotonic() + 20
        while (waited := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < ends:
            time.sleep(0.01)
        if waited[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        done.set()
        maker.join()
        assert waited == (child, 0)
        assert held.made(lambda: []) is own


def enters(alone: OneThread) -> bool:
    with alone:
        return True
