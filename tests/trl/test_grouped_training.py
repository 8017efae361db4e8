"""Trainers on two processes, which spread the completions of a prompt over both, and rewards that compare them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rm_plugins_trl import reward_func
from rm_plugins_trl.awaiting import trl_awaits_objects
from tests.made_once import made_once
from tests.trl.conftest import TRL_WARNINGS, made_policy, newest_trl, run_program
from tests.trl.grouped_processes import spec

pytestmark = [*TRL_WARNINGS, pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what each process wrote, and with the agent's training in one process."""

    def launch(folder: Path, *urls: str) -> None:
        run_program(
            *("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module", "tests.trl.grouped_processes"),
            *(made_policy(folder / "policy"), folder),
            *urls,
            PYTHONPATH=os.pathsep.join(sys.path),
            ACCELERATE_USE_CPU="true",
        )

    def train(folder: Path) -> None:
        if not trl_awaits_objects():
            launch(folder)
            return
        from tests.trl import judged_agents  # which needs the newest TRL

        with judged_agents.models_and_servers(folder) as urls:
            launch(folder, *urls)
            (folder / "alone.json").write_text(
                json.dumps({"agent": judged_agents.trained(folder, urls, processes=1)}), encoding="utf-8"
            )

    return made_once(tmp_path_factory, "grouped-training", train)


@pytest.fixture
def processes(folder: Path) -> list[Any]:
    """What each process wrote."""
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_rewards_are_those_of_one_process(kind: str, processes: list[Any]) -> None:
    alone = reward_func(spec())
    for stage, prompts_split in (("train", True), ("eval", None)):
        calls = list(zip(*(found[kind][stage] for found in processes), strict=True))
        assert len(calls) == {"train": 2, "eval": 1}[stage]  # once a generation, whatever is accumulated
        for first, second in calls:
            assert len(first["prompts"]) == len(second["prompts"]) == {"train": 6, "eval": 3}[stage]
            assert {*first["prompts"]} & {*second["prompts"]} or not prompts_split
            whole = {name: first[name] + second[name] for name in first}
            rewards = whole.pop("rewards")
            assert alone(**whole) == rewards
            assert len({*rewards}) > 1


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_both_processes_log_the_same(kind: str, processes: list[Any]) -> None:
    first, _ = (found[kind]["logs"] for found in processes)
    logged = [entry for entry in first if f"rewards/{kind}/mean" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert f"rewards/{kind}/member/0" in entry
        assert entry[f"rewards/{kind}/abstained"] == 0


def test_a_hook_for_the_rows_of_a_process_is_refused(processes: list[Any]) -> None:
    for found in processes:
        assert "its function 'judged' takes `log_extra`, which belongs to the rows of one process" in found["refused"]
        assert "a multiple of num_generations" in found["refused"]


@newest_trl
class TestAgent:
    """One training with a rubric, a judge, the reward of a trained judge, several columns, awaited rewards, tools and an environment."""

    @pytest.fixture
    def alone(self, folder: Path) -> Any:
        """What it wrote in one process."""
        return json.loads((folder / "alone.json").read_text(encoding="utf-8"))["agent"]

    def test_every_reward_of_every_row_is_that_of_one_process(self, alone: Any, processes: list[Any]) -> None:
        first, second = (found["agent"] for found in processes)
        assert alone["rewards"].keys() == first["rewards"].keys() == second["rewards"].keys()
        for name, batches in alone["rewards"].items():
            assert len(batches) == 2
            for whole, one, other in zip(batches, first["rewards"][name], second["rewards"][name], strict=True):
                assert len(one) == len(other) == 8
                assert (one + other) == [None if value is None else pytest.approx(value, abs=1e-5) for value in whole], name
                assert len({*whole}) > 1, name
        assert None in alone["rewards"]["rubric"][0]

    def test_both_orders_of_a_pair_are_in_two_processes(self, processes: list[Any]) -> None:
        for one, other in zip(*(found["agent"]["pairs"] for found in processes), strict=True):
            assert {name for name, _ in one} == {name for name, _ in other}
            assert {order for _, order in one} == {0}
            assert {order for _, order in other} == {1}

    def test_the_trainer_makes_the_same_of_them(self, alone: Any, processes: list[Any]) -> None:
        entries = [found["logs"] for found in (alone, *(found["agent"] for found in processes[:1]))]
        steps = [[entry for entry in log if "reward" in entry] for log in entries]
        for one, two in zip(*steps, strict=True):
            of_rewards = [name for name in one if name.startswith("rewards/") and name.endswith(("/mean", "/std"))]
            assert {"rewards/Wall/mean", "rewards/parts/heads/kind/std"} <= {*of_rewards}
            for name in (*of_rewards, "reward", "reward_std", "tools/call_frequency", "tools/failure_frequency", "num_tokens"):
                assert two[name] == pytest.approx(one[name], abs=1e-5), name
            for name in ("loss", "grad_norm"):
                assert two[name] == pytest.approx(one[name], rel=1e-3), name
            assert 0 < one["tools/failure_frequency"] < 1

    def test_several_columns_are_one_forward(self, alone: Any, processes: list[Any]) -> None:
        assert alone["forwards"] == [16, 16]
        assert [found["agent"]["forwards"] for found in processes] == [[8, 8], [8, 8]]
