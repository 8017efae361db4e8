"""A process is given a device of its own, and a server has a replica on each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from rm_plugins import devices
from rm_plugins.cli import main
from rm_plugins.devices import chosen_devices, environment, environment_of
from rm_plugins.errors import SpecError
from rm_plugins.usable_cpus import usable_cpus
from tests.server.conftest import until
from tests.server.test_serve_command import Start, score, start

__all__ = ["start"]


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerators", lambda: tuple(f"cuda:{index}" for index in range(4)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        ("0, 2", ("cuda:0", "cuda:2")),
        ("cuda:1,cpu,cpu", ("cuda:1", "cpu", "cpu")),
        ("cuda", ("cuda:0",)),
        ("0,0", ("cuda:0", "cuda:0")),
    ],
)
def test_devices_are_named_in_several_ways(text: str, expected: tuple[str, ...]) -> None:
    assert chosen_devices(text) == expected


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("text", ["4", "cuda:0,tpu", "", "0,,1", "all,0"])
def test_a_device_that_is_not_there_is_named(text: str) -> None:
    with pytest.raises(SpecError, match=r"--devices names '.*', which this machine does not have\. There are cpu, cuda:0, "):
        chosen_devices(text)


def test_all_accelerators_of_a_machine_without_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerators", lambda: ())
    with pytest.raises(SpecError, match=r"torch sees none on this machine\. --devices cpu,cpu starts two processes on CPUs"):
        chosen_devices("all")
    assert chosen_devices("cpu,cpu") == ("cpu", "cpu")
    assert environment_of("cpu", 2).keys() <= {"OMP_NUM_THREADS"}


@pytest.mark.usefixtures("four_gpus")
def test_a_process_sees_its_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.hip", None)
    threads = str(max(1, usable_cpus() // 4))
    assert environment_of("cuda:2", 4) == {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "2"}
    assert environment_of("cpu", 4) == {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "-1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6,7")
    assert environment_of("cuda:2", 4) == {"CUDA_VISIBLE_DEVICES": "GPU-6"}
    monkeypatch.setattr("torch.version.hip", "6.2")
    assert environment_of("cuda:1", 4) == {"HIP_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/jobs/mine", {"jobs/mine/cpu.max": "max 100000\n", "jobs/cpu.max": "200000 100000\n"}, 2),
        ("0::/of/the/host", {"cpu.max": "400000 100000\n"}, 4),
        ("3:cpuset:/\n2:cpu,cpuacct:/mine", {"cpu/mine/cpu.cfs_quota_us": "150000", "cpu/mine/cpu.cfs_period_us": "100000"}, 2),
        ("2:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {"cpu.max": "much\n"}, 8),
    ],
)
def test_the_limits_of_a_container_count(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr("rm_plugins.usable_cpus._GROUPS", tmp_path)
    monkeypatch.setattr("rm_plugins.usable_cpus._OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(f"{groups}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus() == expected


def test_workers_share_the_cpus_that_they_may_use() -> None:
    """The shell's taskset, which a scheduler of jobs does as well."""
    code = "from rm_plugins.devices import shared_threads; print(shared_threads(1))"
    allowed = sorted(os.sched_getaffinity(0))
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed[:1]),
    )
    assert ran.stdout.strip() == "{'OMP_NUM_THREADS': '1'}"


def test_an_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_ONE", "1")
    with environment({"RM_ONE": "2", "RM_TWO": "2"}):
        assert (os.environ["RM_ONE"], os.environ["RM_TWO"]) == ("2", "2")
    assert os.environ["RM_ONE"] == "1"
    assert "RM_TWO" not in os.environ


# --- A server -------------------------------------------------------------------------------------------------------------


def test_a_server_has_a_replica_on_each_device_and_reports_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    process = start("reward.yaml", "--devices", "cpu,cpu")
    process.said("^Serving ")
    assert sorted(process.said("^Replica "))[0] == "Replica 0 of 2 loads the reward for cpu"
    with httpx2.Client(base_url=process.url, timeout=20) as client:

        def replicas() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = client.get("/health").json()["replicas"]
            return found

        assert replicas() == [{"device": "cpu", "state": "serving", "restarts": 0}] * 2
        metrics = client.get("/metrics").text
        assert 'rm_plugins_replica_serving{device="cpu",replica="1"} 1.0' in metrics
        assert 'rm_plugins_replica_restarts_total{device="cpu",replica="1"} 0.0' in metrics
        os.kill(process.workers()[1], signal.SIGKILL)
        ended = re.search(
            r"\(replica ([01]) on cpu\) ended with exit status -9; it is replaced", process.said("is replaced")[0]
        )
        assert ended is not None
        number = int(ended[1])
        assert replicas()[number]["state"] == "restarting"
        health = client.get("/health").json()
        assert (health["status"], health["reward"]) == ("degraded", "loaded")
        assert client.get("/ready").status_code == client.get("/ping").status_code == 200
        serving = f'rm_plugins_replica_serving{{device="cpu",replica="{number}"}} 0.0'
        assert serving in client.get("/metrics").text
        assert score(client, "x").status_code == 200
        process.said(rf"new process, .* \(replica {number} on cpu\)")
        assert replicas()[number] == {"device": "cpu", "state": "serving", "restarts": 1}
    process.send(signal.SIGTERM)
    assert process.ended() == 0


def test_a_reward_that_learns_has_one_replica(start: Start, tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text(
        "{provider: constant, value: 1.0, transform: {name: zscore, running: true}}", encoding="utf-8"
    )
    for options in (("--devices", "cpu,cpu"), ("--workers", "2")):
        process = start("reward.yaml", *options)
        assert process.ended() == 1
        assert any("each of the 2 replicas would learn from other samples" in str(line["message"]) for line in process.lines)
        assert not any("it is replaced" in str(line["message"]) for line in process.lines)


def test_devices_and_workers_are_not_given_together(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["serve", "reward.yaml", "--devices", "cpu,cpu", "--workers", "2"])
    assert told.exit_code == 2
    assert "--devices starts a replica per device, so leave out --workers." in told.output


@pytest.mark.parametrize("options", [("--devices", "cpu,cpu"), ("--workers", "2")])
def test_signals_to_processes_that_are_being_started_do_not_end_them(options: tuple[str, ...], start: Start) -> None:
    """A terminal, for example, sends them to all processes."""
    process = start("rules:slow_length", *options)
    until(lambda: len(process.workers()) == 2)
    for one in process.workers():
        os.kill(one, signal.SIGHUP)
    with httpx2.Client(base_url=process.url, timeout=20) as client:
        assert score(client, "abc").json()["rewards"][0]["reward"] == 3.0
    assert not any("ended with exit status" in str(line.get("message")) for line in process.lines)


def test_ctrl_c_ends_replicas_that_are_being_loaded(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow_rules.py").write_text("import time\ntime.sleep(60)", encoding="utf-8")
    process = start("slow_rules:zero", "--devices", "cpu,cpu")
    process.said("^Replica 1 of 2")
    process.send(signal.SIGINT)
    assert process.ended() == 128 + signal.SIGINT


def test_workers_end_with_a_parent_that_ends_while_they_are_started(start: Start) -> None:
    process = start("rules:slow_length", "--workers", "2")
    until(lambda: len(process.workers()) == 2)
    workers = process.workers()
    process.send(signal.SIGKILL)
    process.ended()
    until(lambda: not any(Path(f"/proc/{one}").exists() for one in workers), seconds=60)
