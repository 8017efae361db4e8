"""The tests that need a GPU, run as tests."""

from __future__ import annotations

import os
import subprocess
import sys
from xml.etree import ElementTree

from tests.benchmarks.gpu.plan import ALL_DEVICES
from tests.benchmarks.gpu.run import Run
from tests.benchmarks.gpu.workloads import ROOT


def measure(run: Run) -> None:
    """How many passed, and each that did not."""
    report = run.scratch / "tests.xml"
    chosen = ["-k", "packed and cpu and float32"] if run.is_miniature else ["-m", "gpu"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_devices.py",
        *chosen,
        "--quiet",
        "-W",
        "default",
        f"--junitxml={report}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if visible := os.environ.get(ALL_DEVICES):
        environment["CUDA_VISIBLE_DEVICES"] = visible
    patience = max(1.0, run.left())
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience, check=False)
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-2_000:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    passed = len(cases) - sum(map(len, outcomes.values()))
    run.write("tests", {"passed": passed, **{kind: len(found) for kind, found in outcomes.items()}})
    for kind, found in outcomes.items():
        for case in found:
            what = case.find(kind)
            message = "" if what is None else str(what.get("message"))
            run.write(str(case.get("name")), {}, case=kind, note=message.partition("\n")[0][:300])
