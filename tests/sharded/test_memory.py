"""A process that runs out of memory: no process waits for another, and the gradients are those of a larger device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.made_once import made_once
from tests.sharded.launcher import outcomes
from tests.sharded.memory_cases import ENDED, SURVIVED
from tests.warm_process import run_warm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "memory", lambda folder: run_warm("tests.sharded.memory_cases", folder))


@pytest.mark.parametrize("case", SURVIVED)
def test_a_forward_that_runs_again(case: str, folder: Path) -> None:
    by_rank = outcomes(folder, 2).get(case, {})
    assert by_rank == dict.fromkeys(range(2), "ok"), "\n".join(by_rank.values()) or "the process ended before"


@pytest.mark.parametrize("case", ENDED)
def test_gradients_that_do_not_fit(case: str, folder: Path) -> None:
    by_rank = outcomes(folder / case, 2)[case]
    assert "The gradients do not fit into memory in process 1: gradients are too many." in by_rank[1]
    assert (
        "Process 1 ran out of memory, so process 0 cannot continue either. Train with gradient_checkpointing=True" in by_rank[0]
    )
