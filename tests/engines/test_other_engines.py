"""What adapters do beside the scores, on doubles of slime, NeMo Gym and NeMo-RL; and what engines get without a reward."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import rm_plugins as rm
from rm_plugins.errors import DataError, MissingDependencyError, ScoringError, UnsupportedError
from rm_plugins_engines.areal import AReaLReward
from rm_plugins_engines.engine_reward import NoReward, Outcome
from rm_plugins_engines.nemo_gym import NeMoGymReward
from rm_plugins_engines.nemo_rl import environment, register
from rm_plugins_engines.nemo_rl import sample_of as nemo_rl_sample
from rm_plugins_engines.openrlhf import OpenRLHFReward
from rm_plugins_engines.prompts import PromptSource
from rm_plugins_engines.slime import SlimeReward
from rm_plugins_engines.swift import async_orm, model_plugin, orm, samples_of
from rm_plugins_engines.swift import register as register_in_swift
from rm_plugins_engines.verifiers import VerifiersReward
from rm_plugins_engines.verifiers import sample_of as verifiers_sample
from rm_plugins_engines.verl import VerlReward, _result
from tests.engines.doubles import SlimeSample, gym_request, nemo_rl_logs, slime_rewards, with_nemo_rl
from tests.engines.engine_samples import engine_rows

MIXED = "tests.engines.failing:by_text"
LENGTH = "tests.engines.failing:prompt_length"
ROWS = engine_rows()


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return str(folder / "reward.yaml")


def test_slime_finds_the_messages_of_a_rendered_prompt(model: str, expected: list[float]) -> None:
    row = ROWS[0]
    sample = SlimeSample("<|start|>user\nrendered<|end|>", row["completion"], metadata={"messages": row["messages"]})
    args = SimpleNamespace(group_rm=False, reward_key=None)
    asyncio.run(slime_rewards(SlimeReward(model, prompt="column:messages").custom_rm, args, [sample]))
    assert sample.reward == pytest.approx(expected[0], abs=1e-4)
    assert sample.metadata["rm_plugins"]["rm_no_reward"] == 0.0
    with pytest.raises(DataError, match="would render it again"):
        asyncio.run(slime_rewards(SlimeReward(model).custom_rm, args, [sample]))


def test_slime_leaves_out_the_group_of_a_sample_without_a_reward() -> None:
    reward = SlimeReward(MIXED, no_reward="drop")
    samples = [SlimeSample("Q", "1"), SlimeSample("Q", "none")]
    args = SimpleNamespace(group_rm=True, reward_key="score", dynamic_sampling_filter_path="reward.keep_group")
    asyncio.run(slime_rewards(reward.custom_rm, args, samples))
    assert (samples[0].reward["score"], samples[1].reward) == (1.0, None)
    assert not reward.keep_group(args, samples)
    assert reward.keep_group(args, samples[:1])
    with pytest.raises(UnsupportedError, match="--dynamic-sampling-filter-path"):
        asyncio.run(slime_rewards(reward.custom_rm, SimpleNamespace(group_rm=True, reward_key=None), samples))


def test_slime_compares_groups_only() -> None:
    """A custom generation may return several samples, which slime hands over as a list without --group-rm."""
    ranked = {"provider": "function", "function": MIXED, "transform": "rank-in-group"}
    samples = [SlimeSample("Q", "1"), SlimeSample("Q", "2")]
    grouped, alone = (SimpleNamespace(group_rm=group, reward_key=None) for group in (True, False))
    assert asyncio.run(SlimeReward(ranked).custom_rm(grouped, samples)) == [0.0, 1.0]
    with pytest.raises(UnsupportedError, match="one by one"):
        asyncio.run(SlimeReward(ranked).custom_rm(alone, samples))
    assert asyncio.run(SlimeReward(MIXED).custom_rm(alone, samples)) == [1.0, 2.0]


def test_nemo_gym_s_answer_repeats_the_request(model: str, expected: list[float]) -> None:
    with TestClient(NeMoGymReward(model).app()) as client:
        answer = client.post("/verify", json=gym_request(ROWS[0])).json()
        assert client.post("/seed_session", json={}).json() == {}
        assert client.get("/healthz").json() == {"status": "ok"}
    assert answer == {
        **gym_request(ROWS[0]),
        "reward": pytest.approx(expected[0], abs=1e-4),
        "rm_no_reward": 0.0,
        "rm_error": "",
        "rm_fingerprint": answer["rm_fingerprint"],
    }


def test_nemo_gym_s_components_add_up_to_the_reward() -> None:
    parts = {"provider": "sum", "members": [MIXED, {"provider": "constant", "value": 2.0}]}
    names = list(rm.load(parts).score([rm.Sample("", "1")]).columns)
    request = gym_request({"messages": [{"role": "user", "content": "Q"}], "completion": "1", "solution": ""})
    answer = asyncio.run(NeMoGymReward(parts, components=names).verify(request))
    assert sum(answer["reward_components"].values()) == answer["reward"] == 3.0
    with TestClient(NeMoGymReward(parts, components=names[:1]).app()) as client:
        told = client.post("/verify", json=request)
    assert (told.status_code, "add up to" in told.json()["detail"]) == (500, True)  # the request is right


def test_nemo_rl_s_environment_ends_the_episode_and_counts(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registries = with_nemo_rl(monkeypatch)
    (log,), (info,) = nemo_rl_logs(ROWS[:1])
    made = environment(model, prompt="column:messages")({})
    step = made.step([log], [info])
    assert step.terminateds.all()
    _, metrics = made.global_post_process_and_metrics({"extra_env_info": step.metadata})
    assert metrics == {"rm_plugins/rm_no_reward": 0.0, "rm_plugins/samples_without_reward": 0.0}
    with pytest.raises(DataError, match="would render it again"):
        environment(model)({}).step([log], [info])
    for _ in range(2):  # a module that is imported twice
        register("rm_plugins", "reward.RewardEnvironment")
    assert registries["environments"] == {"rm_plugins": {"actor_class_fqn": "reward.RewardEnvironment"}}


def test_nemo_rl_s_plain_messages_are_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nemo_rl(monkeypatch)
    log = [
        {"role": "user", "content": "2+2?"},
        {"role": "environment", "content": "Hm."},
        {"role": "assistant", "content": "4"},
    ]
    assert environment(LENGTH)({}).step([log], [None]).rewards.tolist() == [7.0]


def test_what_looks_like_an_eos_token_in_nemo_rl_s_completion_is_its_text() -> None:
    log = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "It ends with </s>"}]
    for source, where in (("auto", {}), ("column:asked", {"asked": "Q"})):
        sample = nemo_rl_sample(log, where, PromptSource(source, "NeMo-RL", "extra_env_info", has_eos=False))
        assert sample.completion_text == "It ends with </s>"


def test_nemo_rl_s_contents_in_parts_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def log(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        answer = [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]
        return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]

    with_nemo_rl(monkeypatch)
    text, image = {"type": "text", "text": "<|user|>6*7?"}, {"type": "image", "image": "sea.png"}
    source = PromptSource("rendered", "NeMo-RL", "extra_env_info")
    assert nemo_rl_sample(log(text), None, source).completion == "<|user|>6*7?42"
    with pytest.raises(DataError, match="'image'"):
        nemo_rl_sample(log(image, text), None, source)
    step = environment(MIXED, prompt="none")({}).step([log(image, text)], [None])
    assert (step.rewards.tolist(), step.answers) == ([42.0], ["42"])


def test_swift_s_arguments_of_the_run_are_no_columns() -> None:
    messages = [*ROWS[0]["messages"], {"role": "assistant", "content": "4", "loss": True}]
    (sample,) = samples_of(["4"], {"messages": [messages], "solution": ["4"], "request_id": ["r"], "trainer_state": None})
    assert sample == rm.Sample(ROWS[0]["messages"], "4", {"solution": "4"})


def test_swift_s_rows_may_have_a_column_of_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_plugins_engines.swift._base", lambda name: object)
    columns = {"completions": ["none", "none"], "messages": [[{"role": "assistant", "content": ""}]] * 2}
    assert orm(MIXED)()(["4", "5"], **columns) == [4.0, 5.0]
    assert asyncio.run(async_orm(MIXED)()(["4", "5"], **columns)) == [4.0, 5.0]


def test_the_turns_that_ms_swift_s_scheduler_has_generated_are_the_completion() -> None:
    """Otherwise each sample of a group would have a prompt of its own, and would be compared with nothing."""
    user, tool = {"role": "user", "content": "Q"}, {"role": "tool", "content": "sunny"}
    said = [{"role": "assistant", "content": text} for text in ("1", "2", "3")]
    turns = [user, said[0], user, said[1], tool, said[2]]
    for ids, start in (([[5], [6]], 3), ([[5], [6], [7]], 1), ([5, 6], 5), ([], 5), (None, 5), ([[5]] * 9, 1)):
        (sample,) = samples_of(["3"], {"messages": [turns], "response_token_ids": [ids]})
        assert (sample.prompt, sample.completion, sample.columns) == (turns[:start], turns[start:], {})
    row = {"messages": turns, "response_token_ids": [[5], [6]]}
    ranked = {"provider": "function", "function": MIXED, "transform": "rank-in-group"}
    other = {
        **row,
        "messages": [*turns[:3], {"role": "assistant", "content": "4"}, tool, {"role": "assistant", "content": "4"}],
    }
    assert model_plugin(ranked)()([row, other]) == [0.0, 1.0]


@pytest.mark.parametrize("content", [[5, 6], [], {"token_ids": [5], "loss_mask": [1]}])
def test_a_turn_that_ms_swift_keeps_as_token_ids_is_an_error(content: Any) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": content}, {"role": "user", "content": "Q"}]
    with pytest.raises(DataError, match=r"messages\[1\] as token ids"):
        samples_of(["4"], {"messages": [[*turns, {"role": "assistant", "content": "4"}]]})


def test_swift_s_null_columns_are_null_as_in_trl() -> None:
    columns = {"messages": [[{"role": "assistant", "content": ""}]] * 2, "solution": ["4", None]}
    assert [sample.columns for sample in samples_of(["4", "5"], columns)] == [{"solution": "4"}, {"solution": None}]


def test_swift_s_columns_may_be_arrays() -> None:
    messages = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]] * 2
    columns = {
        "messages": messages,
        "solution": np.array(["a", "b"]),
        "level": torch.tensor([1, 2]),
        "temperature": np.float32(1),
    }
    assert [sample.columns for sample in samples_of(["4", "5"], columns)] == [
        {"solution": "a", "level": 1},
        {"solution": "b", "level": 2},
    ]


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "4"}]])
def test_swift_s_conversation_ends_with_the_assistant(messages: list[Any]) -> None:
    with pytest.raises(DataError, match="must end with the assistant's message"):
        samples_of(["4"], {"messages": [messages]})


def test_areal_s_rows_may_have_columns_with_the_names_of_its_arguments() -> None:
    row = {"prompt": "2+2?", "completions": ["3"], "prompt_ids": [3], "completion_ids": [4], "self": 5}
    reward = AReaLReward(LENGTH, prompt="column:prompt")
    assert reward.reward_fn("<|user|>2+2?<|assistant|>", "4<|end|>", [1], [2], **row) == 4.0
    sample = reward._sample("<|user|>2+2?<|assistant|>", "4<|end|>", row)
    assert sample == rm.Sample("2+2?", "4", row)


def test_areal_s_workflow_for_images_passes_its_arguments_by_name() -> None:
    passed = {"prompt": "<|user|>rendered", "completions": "4<|end|>", "prompt_ids": [1], "completion_ids": [2]}
    reward = AReaLReward(LENGTH)
    assert reward.reward_fn(**passed, messages=[{"role": "user", "content": "2+2?"}]) == 4.0
    sample = reward._sample(None, None, {**passed, "messages": [{"role": "user", "content": "2+2?"}], "solution": "4"})
    assert set(sample.columns) == {"messages", "solution"}
    with pytest.raises(DataError, match="a completion that is not text: None"):
        reward.reward_fn("2+2?", messages="2+2?")


def test_areal_s_function_raises_no_timeout_for_which_areal_gives_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(spec: Any) -> Any:
        raise TimeoutError("the hub did not answer")

    monkeypatch.setattr("rm_plugins_engines.engine_reward.shared_reward", late)
    with pytest.raises(ScoringError, match="the hub did not answer") as raised:
        AReaLReward(MIXED, prompt="none").reward_fn("Q", "4", [1], [2])
    assert not isinstance(raised.value, TimeoutError)


def test_slime_s_prompt_that_is_missing_is_an_error() -> None:
    sample = SlimeSample(None, "4")
    args = SimpleNamespace(group_rm=False)
    with pytest.raises(DataError, match="slime hands over a prompt that is not text"):
        asyncio.run(SlimeReward(MIXED).custom_rm(args, sample))
    assert asyncio.run(SlimeReward(MIXED, prompt="none").custom_rm(args, sample)) == 4.0


def test_the_root_agent_s_branch_of_a_trace_is_scored() -> None:
    def node(role: str, text: str, *, sampled: bool = False) -> Any:
        return SimpleNamespace(
            sampled=sampled, tools=[], message=SimpleNamespace(model_dump=lambda **_: {"role": role, "content": text})
        )

    root, other = (
        SimpleNamespace(nodes=[node("user", asked), node("assistant", said, sampled=True)])
        for asked, said in (("2+2?", " 4\n"), ("Look up.", "found"))
    )
    unanswered = SimpleNamespace(nodes=[*other.nodes, node("tool", "4")])
    for branches, reply, text in (
        ([root, other, unanswered], "4", " 4\n"),
        ([root, other], None, "found"),
        ([root, other], "a reply that no branch ends with", "found"),
    ):
        assert verifiers_sample({}, SimpleNamespace(branches=branches, root_reply=reply)).completion_text == text


ANSWERS = {"1": 1.0, "none": None, "error": None}


def _openrlhf(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    scored = OpenRLHFReward(MIXED, no_reward=no_reward).reward_func([f"Q {text}</s>"], ["Q "], ["label"])
    return scored["rewards"].tolist()[0], scored["extra_logs"]["rm_no_reward"].tolist()[0]


def _verl(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    scored = VerlReward(MIXED, no_reward=no_reward, prompt="none").compute_score_sync("source", text, "truth", {})
    return scored["score"], scored["rm_no_reward"]


def _slime(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    sample = SlimeSample("Q", text)
    args = SimpleNamespace(group_rm=False)
    asyncio.run(slime_rewards(SlimeReward(MIXED, no_reward=no_reward).custom_rm, args, [sample]))
    return sample.reward, sample.metadata["rm_plugins"]["rm_no_reward"]


def _gym(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    request = gym_request({"messages": [{"role": "user", "content": "Q"}], "completion": text, "solution": ""})
    answer = asyncio.run(NeMoGymReward(MIXED, no_reward=no_reward).verify(request))
    return answer["reward"], answer["rm_no_reward"]


def _areal(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    reward = AReaLReward(MIXED, no_reward=no_reward, prompt="none")
    value = reward.reward_fn("Q", text, [1], [2], answer="4")
    return value, float(reward.reward.counts["without"])


def _verifiers(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    message = SimpleNamespace(model_dump=lambda **_: {"role": "assistant", "content": text})
    node = SimpleNamespace(sampled=True, message=message, tools=[])
    metrics: dict[str, float] = {}
    trace = SimpleNamespace(branches=[SimpleNamespace(nodes=[node])], record_metrics=metrics.update, info={})
    value = asyncio.run(VerifiersReward(MIXED, no_reward=no_reward).reward({"answer": "4"}, trace))
    return value, metrics["rm_no_reward"]


def _swift(no_reward: NoReward, text: str) -> tuple[Any, Any]:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
    (value,) = model_plugin(MIXED, no_reward=no_reward)()([{"messages": messages}])
    return value, float(value == no_reward)


ENGINES = {
    "openrlhf": _openrlhf,
    "swift": _swift,
    "verl": _verl,
    "slime": _slime,
    "nemo-gym": _gym,
    "areal": _areal,
    "verifiers": _verifiers,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", ANSWERS)
def test_an_engine_gets_an_error_or_the_number_that_the_user_chose(engine: str, text: str) -> None:
    if ANSWERS[text] is None:
        with pytest.raises(ScoringError, match="gave no score"):
            ENGINES[engine]("raise", text)
    assert ENGINES[engine](-3.0, text) == ((1.0, 0.0) if text == "1" else (-3.0, 1.0))


def test_nemo_gym_sets_aside_a_row_without_a_number() -> None:
    request = gym_request({"messages": [{"role": "user", "content": "Q"}], "completion": "none", "solution": ""})
    app = NeMoGymReward(MIXED, no_reward="drop").app()
    with TestClient(app) as client:
        answer = client.post("/verify", json=request).json()
    assert answer["reward"] is None
    assert answer["_ng_failure_class"] == "judge_failed"
    assert answer["_ng_failure_judge_error"] == "it abstained"
    with TestClient(NeMoGymReward(MIXED).app()) as client:
        assert client.post("/verify", json=request).status_code == 500


@pytest.mark.parametrize("engine", ["openrlhf", "verl", "areal", "verifiers", "swift"])
def test_leaving_out_is_refused_where_the_engine_cannot(engine: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot leave out"):
        ENGINES[engine]("drop", "1")


def test_verl_needs_the_prompt_in_the_row() -> None:
    row = {"prompt": json.dumps([{"role": "user", "content": "2+2?"}])}
    assert VerlReward(LENGTH).compute_score_sync("source", "4", "4", row)["score"] == 4.0
    with pytest.raises(DataError, match="extra_info has none in 'prompt'"):
        VerlReward(LENGTH).compute_score_sync("source", "4", "4", {"index": 3})


@pytest.mark.parametrize("extra", ["text", ["a"], 5, float("nan")])
def test_verl_s_extra_info_must_be_a_mapping(extra: Any) -> None:
    with pytest.raises(DataError, match="hands over 'extra_info' that is not a mapping"):
        VerlReward(LENGTH, prompt="none").compute_score_sync("source", "4", "4", extra)


def test_slime_s_group_of_lists_is_refused() -> None:
    args = SimpleNamespace(group_rm=True)
    with pytest.raises(UnsupportedError, match="Remove --group-rm"):
        asyncio.run(SlimeReward(MIXED).custom_rm(args, [[SlimeSample("Q", "1")], [SlimeSample("Q", "2")]]))


def test_what_looks_like_an_eos_token_in_verl_s_completion_is_its_text() -> None:
    """verl has left out the tokens themselves."""
    sample = VerlReward(LENGTH, prompt="none")._sample("source", "<s>no</s> means <s>struck</s></s>", None, None)
    assert sample.completion == "<s>no</s> means <s>struck</s></s>"


def test_a_detail_does_not_replace_verl_s_score() -> None:
    outcome = Outcome(1.0, "", {"score": 9.0}, "fingerprint")
    assert _result(outcome)["score"] == 1.0


def test_an_item_named_label_of_openrlhf_s_label_is_the_column() -> None:
    label = json.dumps({"label": "7", "messages": [{"role": "user", "content": "2+2?"}]})
    spec = "tests.engines.failing:labels"
    assert OpenRLHFReward(spec, prompt="column:messages").reward_func(["2+2? 4"], ["2+2?"], [label])["rewards"].tolist() == [
        7.0
    ]
    assert OpenRLHFReward(spec).reward_func(["2+2? 4"], ["2+2?"], ["7"])["rewards"].tolist() == [7.0]


def test_openrlhf_s_plain_prompt_is_cut_off_the_query() -> None:
    values = OpenRLHFReward(LENGTH).reward_func(["2+2? 4</s>", "Sea? salt"], ["2+2? ", "Sea? "], [None, "label"])["rewards"]
    assert values.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (lambda: environment(MIXED), "NeMo-RL"),
        (lambda: NeMoGymReward(MIXED).resources_server(), "NeMo Gym"),
        (lambda: AReaLReward(MIXED).workflow(), "AReaL"),
        (lambda: register_in_swift(MIXED), "needs `swift.rewards`, as in version 4.6"),
    ],
)
def test_an_engine_that_is_not_installed_is_named(make: Any, engine: str) -> None:
    with pytest.raises(MissingDependencyError, match=engine):
        make()


def test_details_that_are_missing_are_not_numbers(tmp_path: Path) -> None:
    parts = {"provider": "ensemble", "aggregate": "mean", "members": [MIXED, MIXED]}
    scored = VerlReward(parts, no_reward=0.5, prompt="none", details=["member/0"]).compute_score_sync("s", "error", "t", {})
    assert (scored["score"], scored["rm_no_reward"]) == (0.5, 1.0)
    assert isinstance(scored["member/0"], float) and math.isnan(scored["member/0"])
    assert "no reward for 'error'" in str(scored["rm_error"])
