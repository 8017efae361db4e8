"""Two processes that start different trainings say what differs, both of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sharded.launcher import outcomes
from tests.sharded.start_cases import CASES
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS


def test_what_differs_is_named_in_both_processes(tiny_policy: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.sharded.start_cases", str(tmp_path), str(tiny_policy)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found = outcomes(tmp_path, 2)
    assert found == {case: {0: "ok", 1: "ok"} for case in CASES}, "\n".join(
        outcome for by_rank in found.values() for outcome in by_rank.values()
    )
