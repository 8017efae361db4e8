"""A few kills of the cheapest commands; `make kills` kills them all, and often."""

from __future__ import annotations

import os
import subprocess
import sys


def test_killed_commands_end_as_if_undisturbed() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--count", "3", "--seed", "1", "score", "evaluate", "calibrate", "judge-data"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    rows = [line.split() for line in told.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["score", "evaluate", "calibrate", "judge-data"]
    assert all(int(row[1]) >= 3 and row[4] == "0" for row in rows)
