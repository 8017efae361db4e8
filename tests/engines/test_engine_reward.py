"""What all adapters share: common batches, one load for each process, and samples without a reward."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins_engines.engine_reward import NO_REWARD, EngineReward, NoReward
from rm_plugins_engines.prompts import PromptSource
from rm_plugins_engines.shared_reward import shared_reward
from tests.engines import failing

MIXED = "tests.engines.failing:by_text"
PROCESS = "tests.engines.failing:process"


def reward(spec: Any = MIXED, *, no_reward: NoReward = "raise", drops: str = "it is left out", **settings: Any) -> EngineReward:
    return EngineReward(spec, "an engine", no_reward=no_reward, drops=drops, **settings)


def samples(*texts: str) -> list[rm.Sample]:
    return [rm.Sample("", text) for text in texts]


def pid_of(adapter: EngineReward) -> float | None:
    return adapter.score(samples("x"))[0].value


TEXTS = st.lists(st.one_of(st.integers(-9, 9).map(str), st.sampled_from(["none", "error"])), min_size=1, max_size=12)


@settings(max_examples=40)
@given(TEXTS, st.sampled_from(["raise", "drop", -100.0]))
def test_a_sample_without_a_reward_never_gets_a_number_that_nobody_chose(texts: list[str], no_reward: NoReward) -> None:
    adapter = reward(no_reward=no_reward)

    async def calls() -> list[Any]:
        return await asyncio.gather(*(adapter.score_async(samples(text)) for text in texts), return_exceptions=True)

    for text, result in zip(texts, asyncio.run(calls()), strict=True):
        failed = text in ("none", "error")
        if failed and no_reward == "raise":
            assert isinstance(result, ScoringError)
            continue
        (outcome,) = result
        assert outcome.value == ((None if no_reward == "drop" else -100.0) if failed else float(text))
        assert bool(outcome.why_none) == failed == bool(outcome.numbers[NO_REWARD])
    assert adapter.counts["abstained"] == texts.count("none")
    assert adapter.counts["failed"] == texts.count("error")
    assert adapter.counts["samples"] == len(texts)


@settings(max_examples=40)
@given(TEXTS)
def test_a_batch_with_a_failure_names_it_and_keeps_the_others(texts: list[str]) -> None:
    outcomes = reward(no_reward="drop").score(samples(*texts))
    assert [outcome.value for outcome in outcomes] == [None if text in ("none", "error") else float(text) for text in texts]
    if any(text in ("none", "error") for text in texts):
        with pytest.raises(ScoringError, match="gave no score for"):
            reward().score(samples(*texts))


def test_the_log_counts_samples_without_a_reward(caplog: pytest.LogCaptureFixture) -> None:
    adapter = reward(no_reward=-1.0)
    for _ in range(12):
        adapter.score(samples("none", "1"))
    told = [record.getMessage() for record in caplog.records if record.name == "rm_plugins_engines.engine_reward"]
    assert [line.split(" (")[0] for line in told] == [
        "1 of 2 samples of an engine had no reward so far",
        "10 of 20 samples of an engine had no reward so far",
    ]
    assert "Each gets -1.0. The last: it abstained" in told[1]


def test_calls_of_threads_and_of_several_event_loops_meet() -> None:
    adapter = reward()
    adapter.score(samples("0"))
    failing.calls.clear()
    numbers = [str(number) for number in range(64)]

    async def scored(text: str) -> float | None:
        return (await adapter.score_async(samples(text)))[0].value

    async def several(texts: Sequence[str]) -> list[float | None]:
        return await asyncio.gather(*map(scored, texts))

    with ThreadPoolExecutor(18) as pool:
        loops = [pool.submit(lambda texts: asyncio.run(several(texts)), numbers[place::2]) for place in range(2)]
        threads = list(pool.map(lambda text: adapter.score(samples(text))[0].value, numbers))
        assert [loop.result() for loop in loops] == [[float(text) for text in numbers[place::2]] for place in range(2)]
    assert threads == [float(text) for text in numbers]
    assert sum(failing.calls) == 128
    assert len(failing.calls) < 64


def test_a_reward_is_loaded_once_however_many_ask_at_the_same_time(tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text(f"provider: function\nfunction: {MIXED}\n", encoding="utf-8")
    barrier = threading.Barrier(8)

    def first() -> Any:
        barrier.wait()
        return shared_reward(str(spec))

    with ThreadPoolExecutor(8) as pool:
        assert len({id(future.result()) for future in [pool.submit(first) for _ in range(8)]}) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_another_process_loads_its_own(method: str) -> None:
    adapter = reward(PROCESS)
    assert pid_of(adapter) == os.getpid()  # its threads run, and its locks exist
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(pid_of, adapter).result(600) == pool.submit(os.getpid).result(600) != os.getpid()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_in_one_thread() -> None:
    """torch crashes or waits forever where a child uses the threads that its parent had started."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        adapter = reward("tests.engines.failing:threads")
        assert pid_of(adapter) == 2
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(pid_of, adapter).result(600) == 1
    finally:
        torch.set_num_threads(before)


def test_a_relative_path_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward.yaml").write_text(f"provider: function\nfunction: {MIXED}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    adapters = [reward("reward.yaml"), reward(Path("reward.yaml")), reward("~/reward.yaml")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [pickle.loads(pickle.dumps(adapter)).score(samples("2"))[0].value for adapter in adapters] == [2.0] * 3
    with pytest.raises(SpecError, match=f"{tmp_path}/elsewhere/reward.yaml is not on the machine"):
        reward("reward.yaml")


def test_a_pickled_adapter_keeps_its_choices() -> None:
    copy = pickle.loads(pickle.dumps(reward(no_reward=-1.0)))
    assert copy.score(samples("none"))[0].value == -1.0


def test_a_load_that_fails_is_an_error_every_time(tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("provider: nothing\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(rm.RmPluginsError, match="nothing"):
            reward(str(spec)).score(samples("1"))
    spec.write_text(f"provider: function\nfunction: {MIXED}\n", encoding="utf-8")
    assert reward(str(spec)).score(samples("1"))[0].value == 1.0


def test_a_spec_that_is_not_here_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not on the machine"):
        reward(str(tmp_path / "reward.yaml"))


@pytest.mark.parametrize("no_reward", ["zero", float("nan"), float("inf"), True, None])
def test_a_choice_that_is_none_is_refused(no_reward: Any) -> None:
    with pytest.raises(SpecError, match="`no_reward` must be"):
        reward(no_reward=no_reward)


def test_leaving_out_is_refused_where_the_engine_cannot() -> None:
    with pytest.raises(UnsupportedError, match="cannot leave out a sample"):
        reward(no_reward="drop", drops="")


def test_a_reward_that_compares_samples_needs_groups() -> None:
    spec = {"provider": "function", "function": MIXED, "transform": "rank-in-group"}
    with pytest.raises(UnsupportedError, match="one by one"):
        reward(spec).score(samples("1", "2"))
    outcomes = reward(spec, groups=True).score([rm.Sample("Q", "1"), rm.Sample("Q", "2")])
    assert outcomes[0].value != outcomes[1].value


def test_a_weight_that_would_follow_the_training_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    spec = {"provider": "sum", "members": [{"provider": "function", "function": MIXED}], "weights": [{"from": 0.5, "to": 2.0}]}
    (outcome,) = reward(spec).score(samples("3"))
    assert outcome.value == 6.0
    assert "have their final values" in caplog.text


def test_a_reward_that_learns_needs_steps() -> None:
    spec = {"provider": "function", "function": MIXED, "transform": {"name": "zscore", "running": True}}
    with pytest.raises(UnsupportedError, match="learns from the samples"):
        reward(spec).score(samples("1", "2"))
    assert len(reward(spec, groups=True, in_step=True).score(samples("1", "2"))) == 2


def test_an_unknown_detail_is_an_error() -> None:
    spec = {"provider": "ensemble", "aggregate": "mean", "members": [MIXED, MIXED]}
    assert reward(spec, details=["member/0"]).score(samples("3"))[0].details == {"member/0": 3.0}
    with pytest.raises(SpecError, match="member/0"):
        reward(spec, details=["member/9"]).score(samples("3"))


def test_a_detail_that_a_reward_without_details_lacks_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"no detail 'std'\. It has: none"):
        reward(details=["std"]).score(samples("3"))
    assert math.isnan(reward(details=["std"], no_reward=0.0).score(samples("none"))[0].details["std"])


def test_a_detail_of_a_part_that_did_not_score_is_missing() -> None:
    ensemble = {"provider": "ensemble", "aggregate": "mean", "members": [MIXED, MIXED]}
    route = {"provider": "route", "column": "kind", "routes": {"a": ensemble, "b": {"provider": "constant", "value": 5.0}}}
    adapter = reward(route, details=["route/a/member/0"])
    assert adapter.score([rm.Sample("", "3", {"kind": "a"})])[0].details == {"route/a/member/0": 3.0}
    (outcome,) = adapter.score([rm.Sample("", "3", {"kind": "b"})])
    assert outcome.value == 5.0
    assert math.isnan(outcome.details["route/a/member/0"])
    with pytest.raises(SpecError, match="route/a/member/9"):
        reward(route, details=["route/a/member/9"]).score([rm.Sample("", "3", {"kind": "a"})])


def test_a_detail_of_a_reward_that_a_fallback_replaced_is_missing() -> None:
    spec = {"provider": "function", "function": MIXED, "on_error": {"fallback": {"provider": "constant", "value": 7.0}}}
    (outcome,) = reward(spec, details=["std"]).score(samples("error"))
    assert outcome.value == 7.0
    assert math.isnan(outcome.details["std"])


RENDERED = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [{"role": "user", "content": "2+2?"}]


@pytest.mark.parametrize(
    ("source", "prompt", "expected"),
    [
        ("auto", "2+2?", rm.Sample("2+2?", "4", {"row": {"messages": MESSAGES}})),
        ("text", RENDERED, rm.Sample(RENDERED, "4", {"row": {"messages": MESSAGES}})),
        ("none", RENDERED, rm.Sample("", "4", {"row": {"messages": MESSAGES}})),
        ("column:row.messages", RENDERED, rm.Sample(MESSAGES, "4", {"row": {"messages": MESSAGES}})),
    ],
)
def test_prompts_come_from_where_the_user_says(source: str, prompt: str, expected: rm.Sample) -> None:
    found = PromptSource(source, "an engine", "the row").sample(prompt, "4<|im_end|>", {"row": {"messages": MESSAGES}})
    assert found == expected


def test_a_rendered_prompt_is_refused_and_never_rendered_again() -> None:
    with pytest.raises(DataError, match="would render it again"):
        PromptSource("auto", "an engine", "the row").sample(RENDERED, "4", {})


def test_a_prompt_that_is_missing_is_an_error() -> None:
    with pytest.raises(DataError, match="has none in 'messages'"):
        PromptSource("column:messages", "an engine", "the row").sample("", "4", {"solution": "4"})


@pytest.mark.parametrize("held", [7, [], {"role": "user", "content": "2+2?"}])
def test_a_prompt_of_another_kind_is_named(held: Any) -> None:
    with pytest.raises(DataError, match=rf"has none in 'messages', only .*\({type(held).__name__}\)"):
        PromptSource("column:messages", "an engine", "the row").sample("", "4", {"messages": held})


def test_messages_may_be_a_tuple() -> None:
    found = PromptSource("column:messages", "an engine", "the row").sample("", "4", {"messages": tuple(MESSAGES)})
    assert found.prompt == MESSAGES


@pytest.mark.parametrize("source", ["auto", "text", "rendered", "none", "column:messages"])
def test_what_is_not_text_is_refused(source: str) -> None:
    for prompt, completion, part in ((None, "4", "prompt"), ("2+2?", [1, 2], "completion")):
        with pytest.raises(DataError, match=f"a {part} that is not text"):
            PromptSource(source, "an engine", "the row").sample(prompt, completion, {"messages": MESSAGES})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a prompt that is not text"):
        PromptSource(source, "an engine", "the row").query_sample("4", None, {"messages": MESSAGES})  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["columns", "column:", "rendered "])
def test_an_unknown_source_is_refused(source: str) -> None:
    with pytest.raises(SpecError, match="Allowed"):
        PromptSource(source, "an engine", "the row")
