"""Runs a checkout's trainer tests on our classes; the exit code is pytest's."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.trl_own_tests.selection import SELECTED

PROJECT = Path(__file__).parents[2]


def main() -> int:
    """Run the tests in a process of their own, which learns from its environment where the hub's files are."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.trl_own_tests",
        description="Run TRL's tests of its trainers on the classes of rm_plugins_trl.",
        epilog="Further arguments are pytest's. --trls-own replaces no class, to see that the tests pass where they are run; "
        "--differences FILE lists the tests that may fail, by default differences.toml.",
    )
    parser.add_argument("checkout", type=Path, help="a folder with TRL's repository")
    parser.add_argument(
        "--offline", action="store_true", help="make stand-ins for models and datasets (or set HF_HUB_OFFLINE=1)"
    )
    options, pytest_arguments = parser.parse_known_args()
    checkout = options.checkout.resolve()
    files = [file for file in SELECTED if (checkout / "tests" / file).is_file()]
    if not files:
        parser.error(f"{checkout} has no tests/ with any of {', '.join(SELECTED)}.")
    given = [path for path in [os.environ.get("PYTHONPATH")] if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*given, str(PROJECT), str(PROJECT / "integrations")])}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        # Under another name: ours are a package `tests`, too. Away from the checkout's `trl/`: the installed one is tested.
        tests = scratch / "trl_tests"
        tests.symlink_to(checkout / "tests", target_is_directory=True)
        stand_ins = []
        if options.offline or environment.get("HF_HUB_OFFLINE") == "1":
            environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "home")}
            stand_ins = ["--stand-ins", str(scratch / "home" / "hub")]
        command = [
            *(sys.executable, "-m", "pytest", "-p", "tests.trl_own_tests.plugin", "-p", "no:cacheprovider", "-rx", *stand_ins),
            *("--import-mode", "importlib", "--rootdir", str(scratch), "-c", str(checkout / "pyproject.toml")),
            *pytest_arguments,
            *(str(tests / file) for file in files),
        ]
        return subprocess.run(command, cwd=scratch, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
