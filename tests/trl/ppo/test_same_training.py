"""A training with PPO is the same one on two processes, and when it was killed in between."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM, set_seed

from rm_plugins.errors import DataError, ModelError
from rm_plugins_trl.ppo.critic import make_critic
from tests.conftest import make_tokenizer
from tests.trl.conftest import TRL_WARNINGS, newest_trl, tiny_config
from tests.trl.ppo.train_ppo import run_jobs, state_of, train_job
from tests.warm_process import run_warm, run_warm_group

pytestmark = [newest_trl, *TRL_WARNINGS, pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]

PROGRAM = "tests.trl.ppo.train_ppo"
COMMON: dict[str, Any] = {
    **{"num_ppo_epochs": 2, "gradient_accumulation_steps": 2, "response_length": 7, "temperature": 1.0},
    **{"learning_rate": 2e-3, "save_strategy": "no", "logging_steps": 1, "adam_epsilon": 1e-3},
}
ONE_PASS = {"gradient_accumulation_steps": 1}
"""A rollout is one forward pass, whose first one reads what the rewards need, too."""
SPLIT: dict[str, dict[str, Any]] = {
    "critic of the policy": {"config": {"critic": "policy", "whiten_rewards": True}},
    "head": {"config": {"critic": "head", "vf_coef": 0.5}},
    "adapter and head": {"config": {"critic": "head", "reward_scaling": "running"}, "lora": True},
    "adapter and critic of the policy": {"config": {"critic": "policy", "max_grad_norm": 0.05}, "lora": True},
    "critic of the policy, in one pass": {"config": {"critic": "policy", "whiten_rewards": True, **ONE_PASS}, "rows": 8},
    "head, in one pass": {"config": {"critic": "head", "vf_coef": 0.5, **ONE_PASS}, "rows": 8},
}
"""Trainings whose completions are given: those of two processes must be those of one."""
# A rollout has 2 * 2 optimizer steps, and the 24 prompts are 3 rollouts, which are 12 steps.
LONG: dict[str, Any] = {
    **COMMON,
    **{"num_mini_batches": 2, "max_steps": 20, "critic": "policy", "lr_scheduler_type": "linear", "kl_estimator": "k3"},
    **{"reward_scaling": "running", "adaptive_kl_target": 0.01, "adaptive_kl_horizon": 100, "kl_coef": 0.1},
    **{
        "save_strategy": "steps",
        "save_steps": 1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 5,
        "ref_model_mixup_alpha": 0.5,
    },
}
"""A training that samples."""
RESUMED = {
    "in the middle of a pass over a rollout": 5,
    "between passes over a rollout": 10,
    "between epochs": 12,
    "in a later epoch": 15,
    "between rollouts of a later epoch": 16,
}
IN_TWO_PROCESSES = ("in the middle of a pass over a rollout", "between epochs", "in a later epoch")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random policy of one layer with some likely tokens."""
    tokenizer = make_tokenizer()
    config = tiny_config(tokenizer, initializer_range=0.15)
    set_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def split(policy: str, folder: Path, processes: int) -> list[dict[str, Any]]:
    return [
        {
            **job,
            "model": policy,
            "written": True,
            "config": {
                **COMMON,
                "output_dir": str(folder / name),
                "per_device_train_batch_size": job.get("rows", 4) // processes,
                "total_episodes": 40,
                **job["config"],
            },
        }
        for name, job in SPLIT.items()
    ]


def long(policy: str, folder: Path, processes: int, **changes: Any) -> dict[str, Any]:
    config = {**LONG, "output_dir": str(folder), "per_device_train_batch_size": 2 // processes}
    config |= changes.pop("config", {})
    return {"model": policy, "config": config, **changes}


def resumed(policy: str, folder: Path, processes: int) -> list[dict[str, Any]]:
    return [
        long(policy, folder / f"from-{step}", processes, resume=str(folder / "whole" / f"checkpoint-{step}"))
        for name, step in RESUMED.items()
        if processes == 1 or name in IN_TWO_PROCESSES
    ]


def written_jobs(folder: Path, name: str, jobs: list[dict[str, Any]]) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    return file


def states(folder: Path, processes: int = 1) -> list[dict[str, Any]]:
    return [torch.load(folder / f"state-{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def one(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings of one process."""
    folder = tmp_path_factory.mktemp("one")
    run_jobs(written_jobs(folder, "jobs", [*split(policy, folder, 1), long(policy, folder / "whole", 1)]))
    return folder


@pytest.fixture(scope="module")
def two(policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of two processes, and then, in other processes, the resumed ones."""
    folder = tmp_path_factory.mktemp("two")
    first = written_jobs(folder, "first", [*split(policy, folder, 2), long(policy, folder / "whole", 2)])
    run_warm_group(2, PROGRAM, first, ACCELERATE_USE_CPU="true")
    run_warm_group(2, PROGRAM, written_jobs(folder, "second", resumed(policy, folder, 2)), ACCELERATE_USE_CPU="true")
    return folder


def same(found: Any, expected: Any, where: str = "state", **close: Any) -> None:
    """Whether two states are equal, or their tensors close."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            same(found[name], expected[name], f"{where}.{name}", **close)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, **(close or {"atol": 0, "rtol": 0}), msg=lambda said: f"{where}: {said}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            same(*pair, f"{where}[{number}]", **close)
    else:
        assert found == (pytest.approx(expected, rel=1e-6) if close and isinstance(expected, float) else expected), where


@pytest.mark.parametrize("name", SPLIT)
def test_two_processes_give_the_weights_of_one(name: str, one: Path, two: Path, policy: str) -> None:
    (expected,) = states(one / name)
    first, second = states(two / name, 2)
    for part in ("policy", "critic"):
        same(first[part], second[part], part)
        same(first[part], expected[part], part, atol=1e-6, rtol=0)
    assert first["prompts"] == expected["prompts"]
    assert first["step"] == expected["step"] == 10
    assert first["scale"] == second["scale"] == pytest.approx(expected["scale"])
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    changed = [key for key, tensor in expected["policy"].items() if key not in before or not torch.equal(before[key], tensor)]
    assert len(changed) >= 4
    assert all(tensor.abs().max() > 1e-4 for key, tensor in expected["critic"].items() if "score" in key)


@pytest.mark.parametrize("name", ["critic of the policy", "head"])
def test_a_minibatch_in_one_forward_pass_or_two_gives_the_same_weights(name: str, one: Path) -> None:
    (two_passes,), (one_pass,) = states(one / name), states(one / f"{name}, in one pass")
    assert one_pass["prompts"] == two_passes["prompts"]
    for part in ("policy", "critic"):
        same(one_pass[part], two_passes[part], part, atol=1e-6, rtol=0)


def test_the_schedule_counts_optimizer_steps(one: Path) -> None:
    (whole,) = states(one / "whole")
    rates = torch.tensor(whole["rates"], dtype=torch.float64)
    assert len(rates) == LONG["max_steps"]
    torch.testing.assert_close(
        rates.diff(), torch.full((19,), -COMMON["learning_rate"] / LONG["max_steps"], dtype=torch.float64)
    )


@pytest.mark.parametrize(("name", "processes"), [*((name, 1) for name in RESUMED), *((name, 2) for name in IN_TWO_PROCESSES)])
def test_a_resumed_training_is_the_same(name: str, processes: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("resumed_alone" if processes == 1 else "two")
    whole = states(folder / "whole", processes)
    found = states(folder / f"from-{RESUMED[name]}", processes)
    for of_whole, of_resumed in zip(whole, found, strict=True):
        prompts = of_resumed.pop("prompts")
        assert prompts == of_whole["prompts"][-len(prompts) or len(of_whole["prompts"]) :]
        same(of_resumed, {key: value for key, value in of_whole.items() if key != "prompts"})
    assert whole[0]["step"] == 20
    assert whole[0]["kl_weight"] != LONG["kl_coef"]
    assert len(whole[0]["prompts"]) == 40
    assert whole[0]["prompts"][:24] != whole[0]["prompts"][24:]


@pytest.fixture(scope="module")
def resumed_alone(policy: str, one: Path) -> Path:
    """The trainings of one process, with those that were resumed in another process."""
    killed = long(policy, one / "killed", 1, kill=14, config={"save_steps": 3})
    run_warm(PROGRAM, written_jobs(one, "killed", [killed]), status=-signal.SIGKILL)
    unfinished = shutil.copytree(one / "killed" / "checkpoint-12", one / "killed" / "checkpoint-13")
    (unfinished / "trainer_state.json").unlink()  # as if it had been killed while it saved
    again = long(policy, one / "killed", 1, resume=True, config={"save_steps": 3})
    run_warm(PROGRAM, written_jobs(one, "resumed", [*resumed(policy, one, 1), again]))
    return one


def test_a_killed_training_goes_on_from_its_last_checkpoint(resumed_alone: Path) -> None:
    (whole,), (found,) = states(resumed_alone / "whole"), states(resumed_alone / "killed")
    assert found["prompts"] == whole["prompts"][-16:]  # from step 12 on
    for part in ("policy", "critic", "optimizer", "scale", "kl_weight", "random"):
        same(found[part], whole[part], part)


@pytest.mark.parametrize("has_one", [False, True], ids=["a new adapter", "an adapter of the policy"])
def test_a_resumed_training_of_an_adapter_is_the_same(has_one: bool, policy: str, tmp_path: Path) -> None:
    def model() -> Any:
        if not has_one:
            return policy
        set_seed(1)
        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(policy), adapter)

    config = {
        **COMMON,
        **{"critic": "head", "kl_coef": 0.5, "max_steps": 6, "save_strategy": "steps", "save_steps": 3},
        **{"output_dir": str(tmp_path), "per_device_train_batch_size": 2},
    }
    whole = train_job({"model": model(), "lora": not has_one, "written": True, "config": config})
    expected = state_of(whole)
    again = {"model": model(), "lora": not has_one, "written": True, "resume": str(tmp_path / "checkpoint-3"), "config": config}
    found = state_of(train_job(again))
    for part in ("policy", "critic", "optimizer", "random"):
        same(found[part], expected[part], part)
    assert found["prompts"] == expected["prompts"][-4:]


CHANGED = {
    "num_ppo_epochs": ({"num_ppo_epochs": 3}, "num_ppo_epochs: 2 before, 3 now"),
    "num_mini_batches": ({"num_mini_batches": 1}, "num_mini_batches: 2 before, 1 now"),
    "per_device_train_batch_size": ({"per_device_train_batch_size": 1}, "per_device_train_batch_size: 2 before, 1 now"),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps: 2 before, 1 now"),
    "num_generations": ({"num_generations": 2}, "num_generations: 1 before, 2 now"),
}


@pytest.mark.parametrize(("config", "said"), CHANGED.values(), ids=CHANGED)
def test_changed_settings_are_refused(config: dict[str, Any], said: str, one: Path, policy: str, tmp_path: Path) -> None:
    checkpoint = one / "whole" / "checkpoint-6"
    with pytest.raises(DataError) as refused:
        train_job(long(policy, tmp_path, 1, resume=str(checkpoint), config=config))
    assert f"cannot be resumed from {checkpoint} with other settings: {said}." in str(refused.value)


def test_another_critic_is_refused(one: Path, policy: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a value model, but this training has a value head"):
        train_job(long(policy, tmp_path, 1, resume=str(one / "whole" / "checkpoint-6"), config={"critic": "head"}))


def test_a_checkpoint_of_another_trainer_is_refused(one: Path, policy: str, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(one / "whole" / "checkpoint-6", tmp_path / "checkpoint-6")
    (checkpoint / "ppo_state-0.pt").unlink()
    shutil.rmtree(checkpoint / "critic")
    with pytest.raises(DataError, match=r"has no ppo_state-0.pt\. It is not a checkpoint of PPOTrainer"):
        train_job(long(policy, tmp_path / "out", 1, resume=str(checkpoint)))


def test_one_process_does_not_resume_what_two_began(two: Path, policy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="processes: 2 before, 1 now"):
        train_job(long(policy, tmp_path, 1, resume=str(two / "whole" / "checkpoint-6")))


def test_a_checkpoint_is_a_policy_and_a_critic(one: Path) -> None:
    (whole,) = states(one / "whole")
    checkpoint = one / "whole" / "checkpoint-20"
    policy = AutoModelForCausalLM.from_pretrained(checkpoint)
    same(dict(policy.state_dict()), whole["policy"])
    for place in (checkpoint, checkpoint / "critic"):
        critic = make_critic(place, policy, None, AutoTokenizer.from_pretrained(checkpoint))
        same(dict(critic.state_dict()), whole["critic"])


def test_a_trainer_trains_again(policy: str, tmp_path: Path) -> None:
    config = {"output_dir": str(tmp_path), "per_device_train_batch_size": 2, "max_steps": 1}
    trainer = train_job({"model": policy, "written": True, "config": {**COMMON, **config}})
    trainer.train()
    assert len(trainer.prompts) == 2 * 4, "a rollout each time"
