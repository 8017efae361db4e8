"""Trainers on two processes, which spread the completions of a prompt over both, and rewards that compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rm_plugins_trl import reward_func
from tests.made_once import made_once
from tests.trl.conftest import TRL_WARNINGS, made_policy
from tests.trl.grouped_processes import spec
from tests.warm_process import run_warm_group

pytestmark = TRL_WARNINGS


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each process wrote."""

    def train(folder: Path) -> None:
        policy = made_policy(folder / "policy")
        run_warm_group(2, "tests.trl.grouped_processes", policy, folder, ACCELERATE_USE_CPU="true")

    folder = made_once(tmp_path_factory, "grouped-training", train)
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
