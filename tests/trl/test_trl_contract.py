"""What TRL hands to a reward function reaches one that was handed to `reward_func`, wherever it is inside a reward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins_trl import reward_func
from rm_plugins_trl.inner_logs import InnerLogs
from tests.trl.conftest import TRL_WARNINGS, settings
from tests.trl.test_reward_function import ROWS

pytestmark = TRL_WARNINGS

HOOKS = ("log_extra", "log_metric")


def recording() -> tuple[Callable[..., list[float]], list[dict[str, Any]]]:
    """A reward function that keeps what it is called with, and what it has kept."""
    calls: list[dict[str, Any]] = []

    def record(**everything: Any) -> list[float]:
        calls.append(everything)
        return [0.5] * len(everything["prompts"])

    return record, calls


def recording_async() -> tuple[Callable[..., Any], list[dict[str, Any]]]:
    record, calls = recording()

    async def record_async(**everything: Any) -> list[float]:
        return record(**everything)

    return record_async, calls


def function(made: Callable[..., Any]) -> dict[str, Any]:
    return {"provider": "function", "function": made}


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "itself": lambda made: made,
    "in its failure's shadow": lambda made: {**function(made), "on_error": "abstain"},
    "sum": lambda made: {"provider": "sum", "members": [function(made), function(len_of_completions)], "weights": [1.0, 0.0]},
    "ensemble": lambda made: {"provider": "ensemble", "members": [function(made), function(len_of_completions)]},
    "route": lambda made: {"provider": "route", "by": kind, "routes": {"any": function(made)}},
    "fallback": lambda made: {**function(broken), "on_error": {"fallback": function(made)}},
    "cached": lambda made: {"provider": "cached", "path": "memory", "reward": function(made)},
    "deep": lambda made: {
        "provider": "gate",
        "gate": function(len_of_completions),
        "at": -1.0,
        "reward": {"provider": "sum", "members": [{"provider": "threshold", "reward": function(made), "at": 0.0}]},
    },
}


def len_of_completions(completions: Sequence[Any]) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


def kind(sample: rm.Sample) -> str:
    return "any"


def broken(samples: Sequence[rm.Sample]) -> list[float]:
    raise RuntimeError("no network")


def assert_equal_calls(ours: dict[str, Any], trls: dict[str, Any], *, same_hooks: bool) -> None:
    assert ours.keys() == trls.keys()
    for name, value in trls.items():
        if name in HOOKS and not same_hooks:
            assert callable(ours[name])
            continue
        assert type(ours[name]) is type(value), name
        assert ours[name] == value, name
    assert ours["trainer_state"] is trls["trainer_state"]


@pytest.mark.filterwarnings("ignore:The function 'record")  # that it gives one score to all
@pytest.mark.parametrize("record", [recording, recording_async], ids=["sync", "async"])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_of_a_group_trainer(record: Any, trainer_class: Any, config_class: Any, tiny_policy: Path, tmp_path: Path) -> None:
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    by_trl, of_trl = record()
    inside = {name: record() for name in WRAPPED}
    trainer = trainer_class(
        model=str(tiny_policy),
        reward_funcs=[by_trl, *(reward_func(wrap(inside[name][0]), name=name) for name, wrap in WRAPPED.items())],
        args=config_class(**settings(tmp_path, num_generations=2, max_completion_length=8, log_completions=False)),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    assert {*HOOKS, "answer", "completion_ids", "trainer_state"} < of_trl[0].keys()
    for name, (_, calls) in inside.items():
        if name != "cached":  # which has seen the same batch before
            assert len(calls) == len(of_trl) == 2, name
        for ours, trls in zip(calls, of_trl, strict=False):
            if name != "cached" or len(ours["prompts"]) == len(trls["prompts"]):
                assert_equal_calls(ours, trls, same_hooks=name in ("itself", "in its failure's shadow"))


def test_of_online_dpo(tiny_policy: Path, tmp_path: Path) -> None:
    by_trl, of_trl = recording()
    inside = {name: recording() for name in WRAPPED}
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        reward_funcs=[by_trl, *(reward_func(wrap(inside[name][0]), name=name) for name, wrap in WRAPPED.items())],
        args=OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8)),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    trainer.train()
    assert {"answer", "completion_ids", "trainer_state"} < of_trl[0].keys()
    for name, (_, calls) in inside.items():
        for ours, trls in zip(calls, of_trl, strict=name != "cached"):
            assert_equal_calls(ours, trls, same_hooks=True)


class Environment:
    """What an agent acts in."""


@pytest.mark.parametrize("name", WRAPPED)
def test_environments_and_what_a_later_trl_may_add(name: str) -> None:
    """Whole batches, lists of any length, objects: whatever is handed over."""
    record, calls = recording()
    metrics: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    handed = {
        "answer": ["4", "5"],
        "completion_ids": [[1, 2], [3]],
        "environments": [Environment(), Environment()],
        "trainer_state": TrainerState(),
        "log_metric": metrics.__setitem__,
        "log_extra": extra.__setitem__,
        "rollout_server": object(),
        "reward_names": ["one", "two", "three"],
        "logprobs": [[-0.5, -0.25], [-1.0]],
        "temperature": 0.7,
    }
    reward_func(WRAPPED[name](record))(["Q", "Q"], ["a", "b"], **handed)
    trls = {"prompts": ["Q", "Q"], "completions": ["a", "b"], **handed}
    assert_equal_calls(calls[0], trls, same_hooks=name in ("itself", "in its failure's shadow"))
    assert calls[0]["environments"][1] is handed["environments"][1]


def test_by_name_and_beside_the_samples() -> None:
    seen: list[Any] = []

    def of_samples(samples: list[rm.Sample], *, trainer_state: TrainerState) -> list[float]:
        seen.append((trainer_state, samples[0].columns))
        return [0.0] * len(samples)

    def of_environments(environments: list[Environment], **_: Any) -> list[float]:
        seen.append(environments)
        return [1.0] * len(environments)

    state, environments = TrainerState(), [Environment()]
    both = {"provider": "sum", "members": [function(of_samples), function(of_environments)]}
    assert reward_func(both)(["Q"], ["a"], answer=["4"], trainer_state=state, environments=environments) == [1.0]
    assert seen == [(state, {"answer": "4"}), environments]


def test_outside_a_trainer_a_function_lacks_what_only_one_has() -> None:
    def progressing(completions: list[str], trainer_state: TrainerState) -> list[float]:
        return [trainer_state.global_step] * len(completions)

    with pytest.raises(ScoringError, match="'trainer_state'"):
        rm.load(progressing).score([rm.Sample("Q", "a")])
    with pytest.raises(DataError, match="'answer' must be a list of 2 items"):
        reward_func(len_of_completions)(["a", "b"], ["x", "y"], answer=["blue"])


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=8))
def test_each_function_gets_the_rows_that_it_scores(kinds: list[str]) -> None:
    """Equal rows too, whose environments differ."""
    environments = [Environment() for _ in kinds]
    extra: dict[str, list[Any]] = {}
    metrics: defaultdict[str, list[float]] = defaultdict(list)

    def scoring(of: str) -> Callable[..., list[float]]:
        def score(
            completions: list[str], kind: list[str], environments: list[Environment], log_extra: Any, log_metric: Any
        ) -> list[float]:
            assert kind == [of] * len(completions)
            log_extra("place", [every.index(environment) for environment in environments])
            log_metric("rows", len(completions))
            return [float(every.index(environment)) for environment in environments]

        return score

    every = environments
    routes = {name: function(scoring(name)) for name in "xyz"}
    reward = reward_func({"provider": "route", "column": "kind", "routes": routes}, name="mine")
    scores = reward(
        ["Q"] * len(kinds),
        ["a"] * len(kinds),
        kind=kinds,
        environments=environments,
        log_extra=extra.__setitem__,
        log_metric=lambda name, value: metrics[name].append(value),
    )
    assert scores == [float(place) for place in range(len(kinds))]
    assert extra["place"] == list(range(len(kinds)))  # one value per row, as TRL's table of completions needs it
    assert metrics["rows"] == [pytest.approx(len(kinds) / len({*kinds}))]


def test_processes_log_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a function scored no row of one of them: TRL's gathering would wait for ever."""
    logs = [InnerLogs(2), InnerLogs(3)]
    logs[0].log_extra_of([1])("seen", ["x"])
    with pytest.raises(ValueError, match=r"log_extra\('seen', ...\) takes one value for each of the 2 rows, not 1"):
        logs[0].log_extra_of([0, 1])("seen", ["x"])
    logs[0].log_metric("share", 1.0)
    logs[1].log_metric("other", 2.0)
    logs[1].log_metric("share", 0.0)
    monkeypatch.setattr(
        "rm_plugins_trl.inner_logs.all_gathered", lambda value, _: [(list(one._columns), one._metrics) for one in logs]
    )
    told = []
    for one in logs:
        extra: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        one.hand_on(metrics.__setitem__, extra.__setitem__)
        told.append((extra, metrics))
    assert told[0] == ({"seen": [None, "x"]}, {"other": 2.0, "share": 0.5})
    assert told[1] == ({"seen": [None] * 3}, {"other": 2.0, "share": 0.5})


def test_what_is_of_the_run_is_no_column_and_no_part_of_an_identity() -> None:
    seen: list[rm.Sample] = []

    class Seeing(rm.Provider):
        name = "seeing"

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            seen.extend(samples)
            return rm.Scores([1.0] * len(samples))  # type: ignore[arg-type]

    reward = reward_func(Seeing())
    keys = set()
    for step in range(2):
        state = TrainerState(global_step=step)
        reward(["Q"], ["a"], answer=["4"], trainer_state=state, environments=[Environment()], server=object())
        keys.add(seen[-1].key)
    assert [sample.columns for sample in seen] == [{"answer": "4"}] * 2
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["environments", "trainer_state"])
def test_what_depends_on_the_run_is_not_cached(name: str) -> None:
    source = f"def scored(completions, {name}): return [0.0] * len(completions)"
    scope: dict[str, Any] = {}
    exec(source, scope)
    with pytest.raises(SpecError, match=f"'scored' takes {name}, which changes during training"):
        rm.load({"provider": "cached", "path": "memory", "reward": function(scope["scored"])})


CONTENTS = [
    [{"role": "assistant", "content": [{"type": "text", "text": "4"}]}],
    [{"role": "assistant", "content": ["4"]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}],
    [{"role": "tool", "name": "f", "content": ["one", "two"]}, {"role": "assistant", "content": "4"}],
    [{"role": "tool", "name": "f", "content": [1, {"title": "x"}]}, {"role": "assistant", "content": "4"}],
]


@pytest.mark.parametrize("completion", CONTENTS)
def test_contents_reach_functions_as_they_are_and_models_as_text(completion: Any, tiny_decoder: Any) -> None:
    prompt = [{"role": "user", "content": [{"type": "text", "text": "2+"}, "2?"]}]
    record, calls = recording()
    both = {"provider": "sum", "members": [function(record), str(tiny_decoder())]}
    (score,) = reward_func(both)([prompt], [completion])
    assert calls[0]["completions"][0] is completion
    assert calls[0]["prompts"][0] is prompt
    texts = rm.Sample(prompt, completion).text_messages
    assert all(isinstance(message["content"], str) for message in texts)
    assert texts[0]["content"] == "2+2?"
    as_text = rm.load(str(tiny_decoder())).score([rm.Sample(texts[:1], texts[1:])]).values[0]
    assert score == pytest.approx(0.5 + as_text)
