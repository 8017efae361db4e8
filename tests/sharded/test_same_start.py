"""Two processes that start different trainings say what differs, both of them."""

from __future__ import annotations

from pathlib import Path

from tests.sharded.launcher import outcomes
from tests.sharded.start_cases import CASES
from tests.trl.conftest import TRL_WARNINGS
from tests.warm_process import run_warm

pytestmark = TRL_WARNINGS


def test_what_differs_is_named_in_both_processes(tiny_policy: Path, tmp_path: Path) -> None:
    run_warm("tests.sharded.start_cases", tmp_path, tiny_policy)
    found = outcomes(tmp_path, 2)
    assert found == {case: {0: "ok", 1: "ok"} for case in CASES}, "\n".join(
        outcome for by_rank in found.values() for outcome in by_rank.values()
    )
