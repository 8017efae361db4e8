"""The arguments of PPO on TRL's living trainers: names, ranges, what is derived, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from rm_plugins.errors import RmPluginsError, SpecError, UnsupportedError
from tests.trl.conftest import TRL_WARNINGS, last_trl_with_ppo, newest_trl

pytestmark = TRL_WARNINGS

OF_TRL_1_12 = {
    "batch_size": 16,
    "cliprange": 0.1,
    "cliprange_value": 0.1,
    "dataset_num_proc": 2,
    "ds3_gather_for_generation": False,
    "gamma": 0.9,
    "kl_coef": 0.1,
    "kl_estimator": "k3",
    "lam": 0.9,
    "learning_rate": 1e-5,
    "local_batch_size": 16,
    "local_mini_batch_size": 16,
    "local_rollout_forward_batch_size": 4,
    "micro_batch_size": 16,
    "mini_batch_size": 16,
    "missing_eos_penalty": 1.0,
    "model_adapter_name": "policy",
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "num_sample_generations": 5,
    "num_total_batches": 3,
    "push_to_hub": True,
    "ref_adapter_name": "reference",
    "response_length": 20,
    "reward_model_path": "reward",
    "sft_model_path": "policy",
    "stop_token": "eos",
    "stop_token_id": 3,
    "temperature": 1.0,
    "total_episodes": 100,
    "vf_coef": 0.2,
    "whiten_rewards": True,
    "world_size": 4,
}
"""The fields of TRL 1.12's PPOConfig beside those of TrainingArguments, each with a value that is not its default."""
REPLACED = {
    "batch_size": "num_mini_batches",
    "local_batch_size": "num_mini_batches",
    "local_mini_batch_size": "gradient_accumulation_steps",
    "micro_batch_size": "per_device_train_batch_size",
    "mini_batch_size": "gradient_accumulation_steps",
    "num_total_batches": "total_episodes",
    "world_size": "--num_processes",
}


def config_of(**arguments: Any) -> Any:
    return importlib.import_module("rm_plugins_trl.ppo.config").PPOConfig(**arguments)


@last_trl_with_ppo
def test_the_names_are_those_of_trl_1_12() -> None:
    theirs = importlib.import_module("trl.experimental.ppo").PPOConfig
    own = {one.name for one in dataclasses.fields(theirs)} - {one.name for one in dataclasses.fields(TrainingArguments)}
    assert own == set(OF_TRL_1_12) - {"learning_rate", "push_to_hub"}


@newest_trl
@pytest.mark.parametrize("name", sorted(OF_TRL_1_12))
def test_an_argument_of_trl_1_12_works_or_is_refused_with_what_replaces_it(name: str) -> None:
    value = OF_TRL_1_12[name]
    if name in REPLACED:
        with pytest.raises(UnsupportedError, match=f"{name}={value!r} is not an argument of PPO.*{REPLACED[name]}"):
            config_of(**{name: value})
        assert config_of(**{name: None}).kl_coef == 0.05
    else:
        config = config_of(**{name: value})
        assert getattr(config, name) == value
        assert config != config_of()


@newest_trl
def test_what_trl_1_12_derived_can_be_read_and_given_again() -> None:
    config = config_of(per_device_train_batch_size=2, gradient_accumulation_steps=3, num_mini_batches=4, total_episodes=50)
    sizes = {
        "micro_batch_size": 2,
        "mini_batch_size": 6,
        "local_mini_batch_size": 6,
        "batch_size": 24,
        "local_batch_size": 24,
        "num_total_batches": 3,
        "world_size": 1,
    }
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert config.episode_steps == 3 * 4 * 4
    again = config_of(
        per_device_train_batch_size=2, gradient_accumulation_steps=3, num_mini_batches=4, total_episodes=50, **sizes
    )
    assert again.to_dict() == config.to_dict()


@newest_trl
def test_the_living_trainers_arguments_are_derived_and_follow() -> None:
    config = config_of(
        per_device_train_batch_size=1, gradient_accumulation_steps=3, num_mini_batches=5, kl_coef=0.1, response_length=7
    )
    assert (config.beta, config.epsilon, config.num_iterations, config.max_completion_length) == (0.1, 0.2, 4, 7)
    assert (config.steps_per_generation, config.generation_batch_size, config.num_generations) == (15, 15, 1)
    config.num_ppo_epochs, config.kl_coef, config.num_mini_batches = 2, 0.3, 1
    assert (config.num_iterations, config.beta, config.steps_per_generation, config.generation_batch_size) == (2, 0.3, 3, 3)


@newest_trl
@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("beta", 0.0, "kl_coef"),
        ("epsilon", 0.1, "cliprange"),
        ("num_iterations", 1, "num_ppo_epochs"),
        ("max_completion_length", 512, "response_length"),
        ("steps_per_generation", 8, "num_mini_batches"),
        ("generation_batch_size", 64, "num_mini_batches"),
        ("loss_type", "grpo", "cliprange_value"),
        ("scale_rewards", False, "reward_scaling"),
        ("scale_rewards", "batch", "reward_scaling"),
        ("multi_objective_aggregation", "normalize_then_sum", "reward_weights"),
        ("importance_sampling_level", "sequence", "cliprange"),
        ("epsilon_high", 0.28, "cliprange"),
        ("delta", 1.5, "cliprange"),
        ("sapo_temperature_neg", 1.0, "cliprange"),
        ("vespo_k_pos", 1.0, "cliprange"),
        ("mask_truncated_completions", True, "truncated_completions='mask'"),
        ("top_entropy_quantile", 0.2, "entropy_coef"),
        ("use_adaptive_entropy", True, "entropy_coef"),
        ("entropy_target", 1.0, "entropy_coef"),
        ("off_policy_mask_threshold", 0.5, "target_kl"),
        ("use_bias_correction_kl", False, "kl_estimator"),
        ("auto_find_batch_size", True, "per_device_train_batch_size"),
        ("torch_compile", True, "Leave it out"),
    ],
)
def test_an_argument_of_grpo_is_refused_with_what_replaces_it(name: str, value: Any, advice: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}.*{advice}"):
        config_of(**{name: value})


@newest_trl
@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("temperature", 0.1, "Set temperature"),
        ("eos_token_id", [3], "Set stop_token_id"),
        ("stop_strings", ["."], "Set stop_token_id"),
        ("max_new_tokens", 3, "Set response_length"),
        ("num_return_sequences", 2, "Set num_generations"),
    ],
)
def test_a_setting_of_generation_that_the_training_would_not_know_of_is_refused(name: str, value: Any, advice: str) -> None:
    for given in ({name: value}, json.dumps({name: value})):
        with pytest.raises(UnsupportedError, match=f"generation_kwargs sets {name}.*{advice}"):
            config_of(generation_kwargs=given)


@newest_trl
def test_vllm_s_stops_are_refused_where_an_end_counts() -> None:
    stops = {"generation_kwargs": {"stop": ["."]}}
    assert config_of(**stops).generation_kwargs == stops["generation_kwargs"]
    for counts in ({"missing_eos_penalty": 1.0}, {"truncated_completions": "mask"}):
        with pytest.raises(UnsupportedError, match=r"generation_kwargs sets stop, and .*stop_token_id"):
            config_of(**stops, **counts)


@newest_trl
def test_an_argument_of_grpo_at_its_value_here_is_accepted() -> None:
    config = config_of(beta=0.05, max_completion_length=53, loss_type="dapo", scale_rewards=True, epsilon=0.2)
    assert config.to_dict() == config_of().to_dict()


@newest_trl
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5}, "gamma must be a number from 0 to 1, not 1.5"),
        ({"lam": -0.1}, "lam must be a number from 0 to 1"),
        ({"lam": "0.9"}, "lam must be a number from 0 to 1, not '0.9'"),
        ({"cliprange": 0}, "cliprange must be a number above 0, not 0"),
        ({"cliprange": None}, "cliprange must be a number above 0, not None"),
        ({"cliprange_value": float("nan")}, "cliprange_value must be a number above 0"),
        ({"kl_coef": -1}, "kl_coef must be a number of 0 or more"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs must be a whole number of 1 or more, not 0"),
        ({"num_mini_batches": 1.5}, "num_mini_batches must be a whole number of 1 or more, not 1.5"),
        ({"response_length": True}, "response_length must be a whole number"),
        ({"target_kl": 0.0}, "target_kl must be a number above 0, or None"),
        ({"critic": "value"}, "critic must be 'policy' or 'reward' or 'head', not 'value'"),
        ({"kl_estimator": "k2"}, "kl_estimator must be 'k1' or 'k3', not 'k2'"),
        ({"stop_token": "."}, "stop_token must be 'eos' or None"),
        ({"stop_token": "eos", "stop_token_id": 3}, "Give one of them"),
        ({"truncated_completions": "penalty"}, "set missing_eos_penalty"),
        ({"truncated_completions": "mask", "missing_eos_penalty": 1.0}, "Give one of them"),
        ({"adaptive_kl_target": 6.0, "kl_coef": 0}, "Set kl_coef above 0"),
        ({"max_batch_tokens": 100, "pack": False}, "pack is False"),
        ({"num_generations": 3}, "A rollout has 8 completions .* num_generations=3 does not divide"),
        ({"eval_strategy": "epoch", "num_generations_eval": 3}, "num_generations_eval=3 does not divide"),
        ({"eval_strategy": "epoch", "num_generations": 2, "per_device_eval_batch_size": 1}, "Set num_generations_eval=1"),
        ({"total_episodes": 10, "max_steps": 5}, "total_episodes=10 are 8 optimizer steps, and max_steps is 5"),
        ({"num_sample_generations": 4, "eval_strategy": "epoch"}, "log_completions=True"),
    ],
)
def test_a_value_out_of_its_range_or_a_contradiction_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        config_of(**arguments)


@newest_trl
def test_samples_are_shown_as_often_as_asked_for() -> None:
    config = config_of(num_sample_generations=4)
    assert (config.eval_strategy, config.eval_steps, config.log_completions) == ("steps", 0.25, True)
    assert config_of().log_completions is False


@newest_trl
@pytest.mark.parametrize("per_device", [1, 3])
def test_one_generation_and_odd_batches_work(per_device: int) -> None:
    config = config_of(per_device_train_batch_size=per_device, per_device_eval_batch_size=per_device, eval_strategy="epoch")
    assert (config.num_generations, config.num_generations_eval, config.generation_batch_size) == (1, None, per_device)


@newest_trl
def test_a_configuration_can_be_made_again_from_its_own_values(tmp_path: Path) -> None:
    config = config_of(
        output_dir=str(tmp_path),
        kl_coef=0.2,
        num_mini_batches=2,
        num_sample_generations=4,
        stop_token="eos",
        missing_eos_penalty=1.0,
        total_episodes=100,
        report_to="none",
    )
    values = config.to_dict()
    assert dataclasses.replace(config).to_dict() == values
    assert copy.copy(config).to_dict() == values
    assert type(config)(**values).to_dict() == values
    assert type(config)(**json.loads(config.to_json_string())).to_dict() == values
    changed = dataclasses.replace(config, num_mini_batches=4, kl_coef=0.1, total_episodes=200)
    assert (changed.beta, changed.steps_per_generation, changed.episode_steps) == (0.1, 4, 7 * 4 * 4)
    (parsed,) = HfArgumentParser(type(config)).parse_dict(values)
    assert parsed.to_dict() == values


@newest_trl
def test_a_command_line_and_a_yaml_file_make_the_same_configuration(tmp_path: Path) -> None:
    trl = importlib.import_module("trl")
    kind = type(config_of())
    file = tmp_path / "ppo.yaml"
    file.write_text(
        "kl_coef: 0.1\ncritic: head\nstop_token: eos\npack: false\nlearning_rate: 1e-5\ntarget_kl: 0.2\nbf16: false\n"
    )
    (from_file,) = trl.TrlParser(kind).parse_args_and_config(["--config", str(file)])
    settings = {"kl_coef": 0.1, "critic": "head", "stop_token": "eos", "pack": "false", "target_kl": 0.2, "bf16": "false"}
    line = [str(part) for name, value in {**settings, "learning_rate": "1e-5"}.items() for part in (f"--{name}", value)]
    (from_line,) = trl.TrlParser(kind).parse_args_and_config(line)
    assert from_file.to_dict() == from_line.to_dict()
    assert (from_line.kl_coef, from_line.critic, from_line.pack, from_line.learning_rate) == (0.1, "head", False, 1e-5)


@newest_trl
def test_every_own_argument_has_a_help() -> None:
    kind = type(config_of())
    own = {name for name in vars(kind)["__annotations__"] if kind.__dataclass_fields__[name].init}
    assert [name for name in sorted(own) if not kind.__dataclass_fields__[name].metadata.get("help")] == []


@newest_trl
def test_an_unknown_argument_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="kl_koef") as caught:
        config_of(kl_koef=0.1)
    assert not isinstance(caught.value, RmPluginsError)
