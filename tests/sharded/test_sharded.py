"""Weights that are sharded over processes: the losses and gradients are those of one process, and no process waits for another."""

from __future__ import annotations

import pytest

from tests.made_once import made_once
from tests.sharded.cases import GROUPS
from tests.sharded.launcher import outcomes
from tests.warm_process import run_warm

Outcomes = dict[int, dict[str, dict[int, str]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What happened to each case in each process, by the number of processes."""

    folder = made_once(tmp_path_factory, "sharded", lambda folder: run_warm("tests.sharded.cases", folder))
    return {processes: outcomes(folder, processes) for processes in GROUPS}


@pytest.mark.parametrize(("processes", "case"), [(processes, case) for processes, cases in GROUPS.items() for case in cases])
def test_processes(processes: int, case: str, found: Outcomes) -> None:
    by_rank = found[processes].get(case, {})
    assert by_rank == dict.fromkeys(range(processes), "ok"), "\n".join(by_rank.values()) or "the process ended before"
