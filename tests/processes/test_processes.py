"""Several processes write what one writes, also if any of them is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rm_plugins.errors import UnsupportedError
from rm_plugins.jobs.crew_member import LoadedReward
from tests.processes.conftest import ROWS, Program, running_in

BATCH = ("--batch-size", "4")
TWO = ("--processes", "2")


def leftovers(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if "part" in name)


@pytest.mark.parametrize(("spec", "most"), [("plain.yaml", 6), ("ranked.yaml", 3)])
def test_whichever_process_is_killed_the_result_is_that_of_one(program: Program, spec: str, most: int) -> None:
    chance = random.Random(spec)
    assert program("score", spec, "in.jsonl", "-o", "whole.jsonl", *BATCH) == 0
    whole = (program.folder / "whole.jsonl").read_bytes()
    kills = 0
    while kills < most:
        for number in range(chance.choice([1, 1, 2])):
            program.kill(number, chance.choice(["worker", "parent", "parent"]), chance.uniform(0, 0.1))
        code = program("score", spec, "in.jsonl", "-o", "out.jsonl", *BATCH, "--processes", chance.choice(["2", "2", "3", "1"]))
        kills += program.kills()
        if (program.folder / "out.jsonl").exists():
            assert (program.folder / "out.jsonl").read_bytes() == whole, program.said
        if code == 0:
            assert leftovers(program.folder) == []
            (program.folder / "out.jsonl").unlink()
        else:
            assert code == -signal.SIGKILL or "Run the same command again to resume" in program.said, program.said
            if (program.folder / "out.jsonl").exists():  # killed when it deleted what it had kept
                (program.folder / "out.jsonl").unlink()
    assert program("score", spec, "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 0, program.said
    assert (program.folder / "out.jsonl").read_bytes() == whole
    assert leftovers(program.folder) == []


def test_a_process_that_ends_is_named_and_another_does_its_work(program: Program) -> None:
    program.kill(0, "worker")
    assert program("score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 0
    assert "(cpu) ended with signal 9 (SIGKILL) while it scored rows " in program.said
    assert "A new one is started." in program.said
    assert "Wrote 64 rows" in program.said
    assert len((program.folder / "out.jsonl").read_text().splitlines()) == len(ROWS)


def test_a_block_that_ends_two_processes_ends_the_job_which_can_be_resumed(program: Program) -> None:
    assert program("score", "rules:deadly", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 1
    assert "ended with signal 9 (SIGKILL) while it scored rows 9 to 12, like process " in program.said
    assert "Run the same command again to resume: what is scored is kept." in program.said
    rules = (program.folder / "rules.py").read_text()
    assert program("score", "rules:deadly", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 1
    assert "Resuming after " in program.said
    (program.folder / "rules.py").write_text(rules.replace('yes" * 5', 'yes" * 50'))
    assert program("score", "rules:deadly", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 1
    assert "cannot be resumed: the reward changed" in program.said
    assert program("score", "rules:deadly", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO, "--overwrite") == 0
    assert leftovers(program.folder) == []


def test_an_error_of_the_reward_is_the_error_of_the_job(
    program: Program, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    assert program("score", "rules:refuses", "in.jsonl", "-o", "one.jsonl", *BATCH) == 1
    alone = program.said
    assert program("score", "rules:refuses", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 1
    assert program.said.splitlines()[-1] == alone.splitlines()[-1]
    eventually(lambda: running_in(program.folder) == [])


def test_ctrl_c_ends_all_processes_and_what_is_scored_is_kept(
    program: Program, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    child = program.start("score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", "--batch-size", "1", *TWO)
    part = program.folder / "out.jsonl.part"
    eventually(lambda: part.exists() and part.stat().st_size > 0)
    os.killpg(child, signal.SIGINT)
    assert program.end(child) == 130
    assert "Run the same command again: it resumes after the last batch that was scored." in program.said
    eventually(lambda: running_in(program.folder) == [])
    assert program("score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", *BATCH) == 0, program.said
    assert "Resuming after " in program.said
    assert [json.loads(line)["n"] for line in (program.folder / "out.jsonl").read_text().splitlines()] == list(range(64))
    assert leftovers(program.folder) == []


def test_evaluate_and_rank_are_shared_too(program: Program) -> None:
    pairs = [{"prompt": f"Q{n}", "chosen": "yes" * (n % 7 + 1), "rejected": "no" * (n % 3 + 1)} for n in range(20)]
    (program.folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs))
    evaluate = ("evaluate", "plain.yaml", "ranked.yaml", "pairs.jsonl", "--batch-size", "8", "--resamples", "10", "-o")
    assert program(*evaluate, "one.json") == 0
    assert program(*evaluate, "two.json", *TWO) == 0, program.said
    one, two = (json.loads((program.folder / name).read_text()) for name in ("one.json", "two.json"))
    assert one["rewards"] == two["rewards"]
    rank = ("rank", "plain.yaml", "in.jsonl", *BATCH, "--gold", "ranked.yaml", "-o")
    assert program(*rank, "one.jsonl") == 0
    assert program(*rank, "two.jsonl", *TWO) == 0, program.said
    assert (program.folder / "one.jsonl").read_bytes() == (program.folder / "two.jsonl").read_bytes()
    assert leftovers(program.folder) == []


def test_a_model_scores_the_same_to_the_last_bit(program: Program, tiny_encoder: Any) -> None:
    model = str(tiny_encoder())
    assert program("score", model, "in.jsonl", "-o", "one.jsonl", *BATCH) == 0, program.said
    assert program("score", model, "in.jsonl", "-o", "two.jsonl", *BATCH, *TWO) == 0, program.said
    assert (program.folder / "one.jsonl").read_bytes() == (program.folder / "two.jsonl").read_bytes()


# --- What cannot be shared ------------------------------------------------------------------------------------------------


def test_a_reward_that_learns_is_refused_with_what_to_do(program: Program) -> None:
    assert program("score", "running.yaml", "in.jsonl", "-o", "out.jsonl", *TWO) == 1
    assert "learns while it scores, so several processes cannot share the rows. Score with one process, or give" in program.said
    assert leftovers(program.folder) == []
    with pytest.raises(
        UnsupportedError, match=r"is split over the processes \(tp_plan\).* spread the model over the devices of one"
    ):
        LoadedReward("big", "", (), (), split=True).check_shared()


@pytest.mark.parametrize(
    ("number", "told"),
    [("0", "neither a number of processes nor `all`"), ("many", "neither a number"), ("all", "torch sees none. Give a number")],
)
def test_a_number_of_processes_that_is_none_is_refused(program: Program, number: str, told: str) -> None:
    if number == "all" and Path("/dev/nvidia0").exists():
        pytest.skip("there is an accelerator")
    assert program("score", "plain.yaml", "in.jsonl", "--processes", number) == 2
    assert told in program.said


# --- Under a launcher -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def launched(program: Program, *arguments: str, processes: int = 2) -> list[tuple[int, str]]:
    """Exit status and output of each process of a command, started as a launcher does."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    children = [
        program.start(
            *arguments,
            environment={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)},
            said=f"said-{rank}",
        )
        for rank in range(processes)
    ]
    ended = []
    for rank, child in enumerate(children):
        code = program.end(child, f"said-{rank}")
        ended.append((code, program.said))
    return ended


def test_the_processes_of_a_launcher_write_one_result(program: Program) -> None:
    assert program("score", "plain.yaml", "in.jsonl", "-o", "one.jsonl", *BATCH) == 0
    ended = launched(program, "score", "plain.yaml", "in.jsonl", "-o", "two.jsonl", *BATCH, processes=3)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert [said.count("Wrote 64 rows to two.jsonl: 64 samples scored now") for _, said in ended] == [1, 0, 0]
    assert (program.folder / "one.jsonl").read_bytes() == (program.folder / "two.jsonl").read_bytes()
    assert leftovers(program.folder) == []


def test_the_other_processes_of_a_launcher_end_with_process_0(program: Program) -> None:
    ended = launched(program, "score", "running.yaml", "in.jsonl", "-o", "out.jsonl")
    assert [code for code, _ in ended] == [1, 0]
    assert "learns while it scores" in ended[0][1]
    ended = launched(program, "score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", *TWO)
    assert [code for code, _ in ended] == [2, 2]
    assert "A launcher has started 2 processes already. Leave out --processes" in ended[0][1]
    ended = launched(program, "score", "plain.yaml", "nothing.jsonl", "-o", "out.jsonl")
    assert ended[0][0] == 1
    assert ended[1][0] == 0 or "process 0, which has probably ended" in ended[1][1]  # the store may have gone already


def test_variables_of_a_launcher_without_one(program: Program) -> None:
    """As a cluster's own job scripts set them."""
    child = program.start("score", "plain.yaml", "in.jsonl", environment={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""})
    assert program.end(child) == 1
    assert "RANK=0 and WORLD_SIZE=2 in the environment" in program.said and "or unset both variables" in program.said


def test_torchrun_ends_with_a_killed_process_and_other_processes_resume(program: Program) -> None:
    assert program("score", "plain.yaml", "in.jsonl", "-o", "one.jsonl", "--batch-size", "1") == 0
    program.kill(0, "worker", 0.1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rm_plugins"]
    command += ["score", "rules:length", "in.jsonl", "-o", "out.jsonl", "--batch-size", "1"]
    path = os.pathsep.join([str(program.folder), *sys.path])
    told = subprocess.run(
        command, cwd=program.folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert program.kills() == 1, told.stderr
    assert "ended with signal 9 (SIGKILL)" in told.stderr or "has ended, or its connection was lost" in told.stderr
    if told.returncode:
        assert program("score", "rules:length", "in.jsonl", "-o", "out.jsonl", *BATCH, *TWO) == 0, program.said
        assert "Resuming after " in program.said
    assert (program.folder / "one.jsonl").read_bytes() == (program.folder / "out.jsonl").read_bytes()
    assert leftovers(program.folder) == []
