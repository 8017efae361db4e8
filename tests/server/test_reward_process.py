"""A reward in a process of its own: the same scores, whatever becomes of the process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import AnswerError, DataError, ScoringError, SpecError, plain_error
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server import ServedReward
from rm_plugins.server.reward_process import Hosting, RewardProcess, pauses
from rm_plugins.server.served_reward import RewardGone, RewardLate
from tests.server.conftest import SAMPLES, problem, rewarded, served, until, values

RULES = """
import os, pathlib, re, time
from rm_plugins.errors import DataError, ScoringError

def fork():
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    (pathlib.Path(__file__).parent / "child").write_text(str(child))

def odd(completions):
    for completion in completions:
        if completion == "lock":
            re.match("(a+)+$", "a" * 60 + "b")
        if completion == "hang":
            time.sleep(1e6)
        if completion == "exit":
            os._exit(7)
        if completion == "fork":
            fork()
        if completion == "data":
            raise DataError("it cannot be read")
        if completion == "bug":
            raise ZeroDivisionError("a bug")
    return [None if completion == "abstain" else float(len(completion)) for completion in completions]
"""

SLOW = """
import pathlib, time

folder = pathlib.Path(__file__).parent
if (folder / "slow").exists():
    (folder / "loading").touch()
    time.sleep(60)

def zero(completions):
    return [0.0] * len(completions)
"""

Hosted = Callable[..., RewardProcess]


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    """Has a process hold a reward until the end of the test."""
    (tmp_path / "odd_rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("rm_plugins.server.reward_process.pauses", lambda: iter([0.05] * 1_000))
    rewards: list[RewardProcess] = []

    def hold(source: Any, **hosting: Any) -> RewardProcess:
        rewards.append(RewardProcess(source, Hosting(**hosting)))
        return rewards[-1]

    yield hold
    for reward in rewards:
        reward.close()


def of(*texts: str) -> list[Sample]:
    return [Sample("", text) for text in texts]


def test_scores_renders_and_says_the_same_as_in_this_process(hosted: Hosted, tiny_decoder: Any) -> None:
    folder = str(tiny_decoder())
    spec = {"provider": "ensemble", "members": [folder, {"provider": "sequence-classifier", "model": folder}]}
    here, there = ServedReward.load(spec), hosted(spec)
    assert there.facts == here.facts
    requests: list[list[Sample]] = [SAMPLES[:2], SAMPLES[2:], [RenderedSample.of([5, 6]), RenderedSample.of("rivers")]]
    names = ["a", "b", "c"]
    for mine, theirs in zip(here.score(requests, names), there.score(requests, names), strict=True):
        np.testing.assert_allclose(theirs.values, mine.values, rtol=0, atol=1e-5)
        assert theirs.columns.keys() == mine.columns.keys()
        assert theirs.tokens is not None and mine.tokens is not None
        np.testing.assert_array_equal(theirs.tokens.used, mine.tokens.used)
    assert there.render(SAMPLES) == here.render(SAMPLES)
    assert there.lengths(SAMPLES) == here.lengths(SAMPLES)
    tokens = here.tokenize(["rivers", "naïve"], True)
    assert there.tokenize(["rivers", "naïve"], True) == tokens
    rows = [[token.id for token in row] for row in tokens]
    assert there.detokenize(rows, False) == here.detokenize(rows, False) == ["rivers", "naïve"]


def test_models_with_different_tokens_have_none_in_common(tiny_decoder: Any, tiny_encoder: Any) -> None:
    reward = ServedReward.load({"provider": "ensemble", "members": [str(tiny_decoder()), str(tiny_encoder())]})
    with pytest.raises(DataError, match="different tokens"):
        reward.tokenize(["rivers"], True)
    decoder, encoder = (ServedReward.load(str(make())) for make in (tiny_decoder, tiny_encoder))
    texts = [RenderedSample.of("rivers of colour")]
    assert reward.lengths(texts) == [max(decoder.lengths(texts)[0], encoder.lengths(texts)[0])]


def test_failures_keep_their_kind_row_and_message(hosted: Hosted) -> None:
    reward = hosted("odd_rules:odd")
    (scores,) = reward.score([of("abc", "data", "abstain", "bug")], ["a"])
    assert scores.values[0] == 3.0 and np.isnan(scores.values[1:]).all()
    assert {row: type(error) for row, error in scores.errors.items()} == {1: DataError, 3: ScoringError}
    assert "a bug" in str(scores.errors[3])
    assert str(scores.errors[1]) == "it cannot be read"


def test_an_error_of_a_plug_ins_own_kind_becomes_the_nearest_that_everybody_knows() -> None:
    class Fussy(AnswerError):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and {other}")

    assert type(plain_error(Fussy(1, 2))) is AnswerError
    assert str(plain_error(Fussy(1, 2))) == "1 and 2"
    assert type(plain_error(KeyError("x"))) is ScoringError


def test_an_error_that_is_sent_names_the_reward_that_failed() -> None:
    error = DataError("it cannot be read")
    error.provider, error.path = "brief", "members[1]"
    sent = pickle.loads(pickle.dumps(plain_error(error, "row 3")))
    assert (str(sent), sent.provider, sent.path) == ("row 3: it cannot be read", "brief", "members[1]")


def test_what_cannot_be_loaded_is_said_as_in_this_process(hosted: Hosted) -> None:
    with pytest.raises(SpecError) as here:
        rm.load({"provider": "constant"})
    with pytest.raises(SpecError) as there:
        hosted({"provider": "constant"})
    assert str(there.value) == str(here.value)


def test_one_that_ends_is_noticed_although_its_own_child_goes_on(hosted: Hosted, tmp_path: Path) -> None:
    """A child that was forked keeps the connection open."""
    reward = hosted("odd_rules:odd", seconds=20.0)
    assert reward.score([of("fork")], ["a"])[0].values.tolist() == [4.0]
    before = reward._process.pid
    try:
        with pytest.raises(RewardGone, match="process ended"):
            reward.score([of("exit")], ["a"])
        until(lambda: reward.is_alive and reward._process.pid != before)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("end", ["crash", "signal"])
def test_one_that_ends_is_started_again(end: str, hosted: Hosted) -> None:
    reward = hosted("odd_rules:odd")
    before = reward._process.pid
    if end == "crash":
        with pytest.raises(RewardGone, match="process ended"):
            reward.score([of("exit")], ["a"])
    else:
        os.kill(before, signal.SIGKILL)
    until(lambda: reward.is_alive and reward._process.pid != before)
    assert reward.score([of("abc")], ["a"])[0].values.tolist() == [3.0]


def test_only_the_call_that_takes_too_long_is_late(hosted: Hosted) -> None:
    reward = hosted("odd_rules:odd", seconds=2.0)
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(reward.score, [of("hang")], ["a"])
        until(lambda: bool(reward._waiting))
        time.sleep(0.5)
        waiting = pool.submit(reward.score, [of("abc")], ["b"])
        assert type(late.exception()) is RewardLate
        assert type(waiting.exception()) is RewardGone


def test_one_that_is_being_started_again_ends_when_it_is_closed(hosted: Hosted, tmp_path: Path) -> None:
    (tmp_path / "slow_rules.py").write_text(SLOW, encoding="utf-8")
    reward = hosted("slow_rules:zero")
    (tmp_path / "slow").touch()
    os.kill(reward._process.pid, signal.SIGKILL)
    until(lambda: (tmp_path / "loading").exists())
    reward.close()
    until(lambda: not multiprocessing.active_children())


def test_a_reload_that_does_not_return_is_given_up(hosted: Hosted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "slow_rules.py").write_text(SLOW, encoding="utf-8")
    reward = hosted("slow_rules:zero")
    (tmp_path / "slow").touch()
    with served(reward) as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/health").json()["loading_seconds"] is None
        reward._hosting = Hosting(load_seconds=1.0)
        late = pool.submit(client.post, "/v1/reload", headers={"X-RM-Plugins": "reload"})
        until(lambda: client.get("/health").json()["loading_seconds"] is not None)
        assert values(rewarded(client, of("a"))) == [0.0]
        assert "the previous one stays in use" in problem(late.result(), 500, "failed")
        assert "was not loaded within 1 s" in caplog.text
        reward._hosting = Hosting()
        (tmp_path / "slow").unlink()
        assert client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()["changed"] is False
        assert values(rewarded(client, of("a"))) == [0.0]
        assert client.get("/health").json()["loading_seconds"] is None
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("word", ["hang", "lock"])
def test_one_that_does_not_return_is_given_up(word: str, hosted: Hosted) -> None:
    reward = hosted("odd_rules:odd", seconds=1.0)
    started = time.monotonic()
    with pytest.raises(RewardGone, match="did not answer within 1 s"):
        reward.score([of(word)], ["a"])
    assert time.monotonic() < started + 30
    until(lambda: reward.is_alive)
    assert reward.score([of("abc")], ["a"])[0].values.tolist() == [3.0]


def test_one_that_does_not_return_is_closed_in_time(hosted: Hosted) -> None:
    reward = hosted("odd_rules:odd")

    def ask() -> None:
        with pytest.raises(RewardGone):
            reward.score([of("lock")], ["a"])

    asked = threading.Thread(target=ask)
    asked.start()
    time.sleep(0.3)
    started = time.monotonic()
    reward.close()
    asked.join(30)
    assert not asked.is_alive() and not reward._process.is_alive()
    assert time.monotonic() < started + 30


def test_other_files_do_not_take_over_by_themselves(hosted: Hosted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    reward = hosted(str(spec))
    spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
    reward._process.kill()
    until(lambda: "files have changed" in caplog.text)
    with pytest.raises(RewardGone, match="files have changed"):
        reward.score([of("a")], ["a"])
    other = reward.again()
    assert other.score([of("a")], ["a"])[0].values.tolist() == [2.0]
    other.close()
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    until(lambda: reward.is_alive)
    assert reward.score([of("a")], ["a"])[0].values.tolist() == [1.0]


def test_the_pauses_grow_and_have_an_end() -> None:
    growing = pauses()
    assert [next(growing) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
