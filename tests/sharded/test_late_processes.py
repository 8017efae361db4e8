"""Processes of which one is late, has ended or takes other steps: the others say which one, and end themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.made_once import made_once
from tests.sharded.late_cases import CASES, LATE, POLLED, PROCESSES
from tests.warm_process import run_warm

OTHERS = [rank for rank in range(PROCESSES) if rank != LATE]
TOO_LATE = (
    rf"ProcessError: Process (0|2) waited 2 s for process {LATE} to exchange the rewards of a batch \(call 6\)\..*`ddp_timeout`"
)
ENDED = rf"ProcessError: Process (0|2) waited for process {LATE} to exchange the rewards of a batch \(call 6\), and the connection was"
OUT_OF_STEP = (
    r"ProcessError: .* different things \(process 0: the rewards of a batch; process 1: the numbers of items; process 2: the "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What happened in each case, which all ran at once."""
    return made_once(tmp_path_factory, "late", lambda folder: run_warm("tests.sharded.late_cases", folder))


def found(folder: Path, case: str, rank: int) -> Any:
    return json.loads((folder / case / f"{rank}.json").read_text(encoding="utf-8"))


def test_every_case_has_a_test() -> None:
    assert {*CASES} == {"late, but not too late", *ERRORS}


ERRORS = {
    "sleeps": TOO_LATE,
    POLLED: TOO_LATE,
    "is elsewhere": TOO_LATE,
    "ends": ENDED,
    "ends while the others wait": ENDED,
    "fails": ENDED,
    "takes another step": OUT_OF_STEP,
}


@pytest.mark.parametrize("case", ERRORS)
def test_the_process_is_named_and_all_others_end(case: str, folder: Path) -> None:
    for rank in OTHERS:
        assert re.match(ERRORS[case], found(folder, case, rank)["error"], re.DOTALL), found(folder, case, rank)
        assert found(folder, case, rank)["seconds"] < 10
        assert case == POLLED or not found(folder, case, rank)["runs"]
    ended = json.loads((folder / case / "ended.json").read_text(encoding="utf-8"))
    assert [ended[rank] for rank in OTHERS] == [1, 1]


def test_a_process_that_comes_after_a_while_is_a_warning(folder: Path) -> None:
    case = "late, but not too late"
    assert [found(folder, case, rank)["error"] for rank in range(PROCESSES)] == [""] * PROCESSES
    for rank in OTHERS:
        warning = (folder / case / f"{rank}.log").read_text(encoding="utf-8")
        assert re.fullmatch(
            rf"Process {rank} has waited 1 s for process {LATE} to .* \(call 6\)\. After 2 s this is an error\.\n", warning
        )
    assert json.loads((folder / case / "ended.json").read_text(encoding="utf-8")) == [0] * PROCESSES
