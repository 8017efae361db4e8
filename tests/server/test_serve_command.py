"""The command as its operators use it: a process that starts, loads again, and ends without losing a request."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins.errors import ModelError
from rm_plugins.server import ServedReward, Settings
from rm_plugins.server.agreement import Agreement
from tests.server.conftest import metric, until
from tests.servers import workers_of

ROOT = Path(__file__).parents[2]
RULES = """
import time


def slow_length(samples):
    time.sleep(0.2)
    return [float(len(str(sample.completion))) for sample in samples]
"""


class Process:
    """A running ``rm-plugins serve``, with what it logs as JSON.

    Args:
        folder: Where it runs.
        arguments: Of the command.
        environment: Further variables.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rm_plugins", "serve", *arguments, "--port", "0", "--log-format", "json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(json.loads(line) if line.startswith("{") else {"message": line})

    def said(self, pattern: str, times: int = 1) -> list[str]:
        """What it logged that has the pattern, once it did so often enough."""
        for _ in range(6_000):
            found = [str(line.get("message", "")) for line in self.lines if re.search(pattern, str(line.get("message", "")))]
            if len(found) >= times:
                return found
            assert self._process.poll() is None or self._reader.is_alive(), self.lines
            time.sleep(0.01)
        raise AssertionError(self.lines)

    @property
    def url(self) -> str:
        """Where it serves."""
        found = re.search(r"at (http://\S+),", self.said("^Serving ")[0])
        assert found is not None
        return found[1]

    def workers(self) -> list[int]:
        """The processes that serve, where there are several."""
        return workers_of(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def ended(self) -> int:
        """Its exit status, once it ended."""
        code = self._process.wait(60)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """End it, however it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        assert self._process.stderr is not None
        self._process.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command in a folder with ``rules.py``, and ends it after the test."""
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    processes: list[Process] = []

    def begin(*arguments: str, **environment: str) -> Process:
        processes.append(Process(tmp_path, *arguments, **environment))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def score(client: httpx2.Client, text: str) -> httpx2.Response:
    return client.post("/v1/rewards", json={"samples": [{"prompt": "", "completion": text}]})


def test_a_signal_ends_it_after_everything_that_was_accepted(start: Start) -> None:
    process = start("rules:slow_length", "--max-batch-tokens", "40", "--model-name", "lengths")
    with httpx2.Client(base_url=process.url, timeout=20) as client, ThreadPoolExecutor(24) as pool:
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/info").json()["model"] == "lengths"
        answers = [pool.submit(score, client, "x" * number) for number in range(1, 21)]
        for _ in range(200):
            waiting = re.search(r"^rm_plugins_queue_items ([\d.]+)", client.get("/metrics").text, re.MULTILINE)
            if waiting is not None and float(waiting[1]) >= 14:
                break
            time.sleep(0.005)
        process.send(signal.SIGTERM)
        process.said("^Stopping")
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        late = score(client, "late")
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json()["error"]["cause"] == "unavailable"
        answered = 0
        for number, answer in enumerate(answers, start=1):
            if answer.result().status_code != 503:  # it came after the signal
                assert answer.result().json()["rewards"] == [{"index": 0, "reward": float(number)}]
                answered += 1
        assert answered >= 14
    assert process.ended() == 0


def test_a_signal_ends_it_while_the_reward_is_being_loaded(start: Start, tmp_path: Path) -> None:
    """As a container's first process, too, which ignores a signal that it has no handler for."""
    loads = "import os, pathlib, time\npathlib.Path('loading').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    (tmp_path / "loads.py").write_text(loads, encoding="utf-8")
    process, loading = start("loads:reward"), tmp_path / "loading"
    while not (loading.exists() and loading.read_text(encoding="utf-8")):
        assert process._process.poll() is None, process.lines
        time.sleep(0.01)
    process.send(signal.SIGTERM)
    assert process.ended() == 128 + signal.SIGTERM
    running = Path("/proc", loading.read_text(encoding="utf-8"), "cmdline")
    assert not running.exists() or running.read_bytes() == b"", "the process that loads has ended"


def test_a_signal_has_the_reward_loaded_again(start: Start, tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    process = start("reward.yaml", "--api-key-env", "REWARD_KEY", "--host", "0.0.0.0", REWARD_KEY="secret")
    url = process.url.replace("0.0.0.0", "127.0.0.1")
    with httpx2.Client(base_url=url, timeout=20, headers={"Authorization": "Bearer secret"}) as client:
        first = score(client, "x").json()
        assert first["fingerprint"] == ServedReward.load(str(spec)).fingerprint  # as in any other process
        spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
        process.send(signal.SIGHUP)
        process.said("The reward has changed: ")
        second = score(client, "x").json()
        assert [found["rewards"][0]["reward"] for found in (first, second)] == [1.0, 2.0]
        spec.write_text("{provider: constant}", encoding="utf-8")
        process.send(signal.SIGHUP)
        process.said("the previous one stays in use")
        assert score(client, "x").json()["fingerprint"] == second["fingerprint"]
    process.send(signal.SIGINT)
    assert process.ended() == 0
    assert not any("secret" in json.dumps(line) for line in process.lines)
    assert next(line for line in process.lines if line.get("path") == "/v1/rewards")["client"] == "127.0.0.1#key1"


def test_several_processes_count_load_again_are_replaced_and_end_together(start: Start, tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    process = start("reward.yaml", "--workers", "2")
    process.said("^Serving ", times=2)
    with httpx2.Client(base_url=process.url, timeout=20, headers={"Connection": "close"}) as client:

        def restarts() -> int:
            return sum(one["restarts"] for one in client.get("/health").json()["replicas"])

        for _ in range(12):
            assert score(client, "x").json()["rewards"][0]["reward"] == 1.0
        assert "rm_plugins_samples_total 12.0" in client.get("/metrics").text
        spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
        assert client.post("/v1/reload", headers={"X-RM-Plugins": "reload"}).json()["changed"]
        process.said("The reward has changed: ", times=2)
        assert {score(client, "x").json()["rewards"][0]["reward"] for _ in range(12)} == {2.0}
        (reward,) = workers_of(process.workers()[0])
        os.kill(reward, signal.SIGKILL)
        process.said("The reward has a new process")
        until(lambda: restarts() == 1)
        os.kill(process.workers()[0], signal.SIGKILL)
        process.said("it is replaced in")
        process.said("^Serving ", times=3)
        until(lambda: restarts() == 2)
        assert metric(client, "replica_restarts_total") == 2
        assert score(client, "x").status_code == 200
    process.send(signal.SIGTERM)
    assert process.ended() == 0


def test_a_process_serves_what_the_others_serve_or_nothing(start: Start, tmp_path: Path) -> None:
    spec = tmp_path / "reward.yaml"
    spec.write_text("{provider: constant, value: 1.0}", encoding="utf-8")
    process = start("reward.yaml", "--workers", "2")
    process.said("^Serving ", times=2)
    with httpx2.Client(base_url=process.url, timeout=20, headers={"Connection": "close"}) as client:

        def scores() -> set[float]:
            return {score(client, "x").json()["rewards"][0]["reward"] for _ in range(24)}

        spec.write_text("{provider: constant, value: 2.0}", encoding="utf-8")
        os.kill(process.workers()[0], signal.SIGKILL)
        assert "restore the files" in process.said("The reward in the spec has changed", times=2)[0]
        assert scores() == {1.0}
        reload = {"X-RM-Plugins": "reload"}
        assert client.post("/v1/reload", headers=reload).json()["changed"]
        process.said("^Serving ", times=3)  # it is tried again until it is what the others serve
        assert scores() == {2.0}
        spec.write_text("{provider: constant}", encoding="utf-8")
        assert client.post("/v1/reload", headers=reload).status_code == 500
        spec.write_text("{provider: constant, value: 3.0}", encoding="utf-8")
        process.said("the previous one stays in use", times=2)
        os.kill(process.workers()[0], signal.SIGKILL)
        process.said("The reward in the spec has changed: .*, but the server's processes serve", times=3)
        assert scores() == {2.0}
    process.send(signal.SIGTERM)
    process.ended()


class TestAgreement:
    @pytest.fixture
    def agreement(self) -> Agreement:
        return Agreement(multiprocessing.get_context("spawn"))

    def test_the_first_decides_until_it_is_renewed(self, agreement: Agreement) -> None:
        one, other = "1" * 64, "2" * 64
        agreement.join(one)
        agreement.join(one)
        with pytest.raises(
            ModelError, match="its fingerprint is now 222222222222, but the server's processes serve 111111111111"
        ):
            agreement.join(other)
        agreement.renew()
        agreement.join(other)
        with pytest.raises(ModelError):
            agreement.join(one)

    def test_nobody_waits_for_a_process_that_was_killed(self, agreement: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rm_plugins.server.agreement._SECONDS_TO_WAIT", 0.01)
        agreement._lock.acquire()
        agreement.join("1" * 64)
        agreement.renew()


def test_what_cannot_be_loaded_ends_all_processes(start: Start, tmp_path: Path) -> None:
    process = start("rules:absent", "--workers", "2")
    assert process.ended() == 1
    assert any("'rules:absent' cannot be imported" in str(line["message"]) for line in process.lines)


def test_every_option_and_every_limit_is_documented() -> None:
    serve: Any = main.get_command(click.Context(main), "serve")
    of_all_commands = ("help_all", "quiet", "verbose")
    parameters = [parameter for parameter in serve.params if parameter.name not in of_all_commands]
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    pages = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("serving", "security")}
    assert not [option for option in options if option not in pages["serving"]]
    for setting in fields(Settings):
        option = next((one for one in serve.params if one.name == setting.name), None)
        if option is not None and isinstance(setting.default, float | int) and option.opts[0] != "--max-batch-tokens":
            row = next(
                line for line in pages["security"].splitlines() if line.startswith("| ") and f"`{option.opts[0]}`" in line
            )
            value: Any = setting.default
            shown = (
                f"{value // 2**20} MiB"
                if value % 2**20 == 0
                else f"{value // 1024} KiB"
                if "bytes" in setting.name
                else f"{value:,g}"
            )
            assert shown in row or f"{value:,.0f}" in row, (option.opts, shown)


class TestBeforeItStarts:
    @pytest.fixture(autouse=True)
    def as_before(self) -> Iterator[None]:
        """Gives this process back what the command changes of its own: logging and a signal."""
        handlers, level = logging.root.handlers[:], logging.root.level
        handler = signal.getsignal(signal.SIGHUP)
        yield
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        signal.signal(signal.SIGHUP, handler)

    def run(self, *arguments: str) -> str:
        found = CliRunner().invoke(main, ["serve", *arguments])
        assert found.exit_code == 1
        return found.output

    def test_a_key_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EMPTY", " , ")
        assert "EMPTY, which is empty or not set" in self.run("constant", "--api-key-env", "EMPTY")

    def test_a_port_in_use(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert f"Cannot listen on 127.0.0.1, port {port}" in self.run("constant", "--port", str(port))

    @pytest.mark.parametrize(
        "where", [("--port", "99999"), ("--port", "-1"), ("--host", "a..b"), ("--host", "no.such.host.invalid")]
    )
    def test_an_address_that_is_none(self, where: tuple[str, str]) -> None:
        told = CliRunner().invoke(main, ["serve", "constant", *where])
        assert isinstance(told.exception, SystemExit), told.exc_info
        assert where[1] in told.output

    def test_a_spec_that_is_wrong(self) -> None:
        assert "'value'" in self.run("constant", "--port", "0")

    def test_an_open_server_that_others_reach_is_warned_of(self) -> None:
        assert "Anyone who can reach 0.0.0.0 can use this server" in self.run("constant", "--port", "0", "--host", "0.0.0.0")

    def test_a_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("rm_plugins.server.")]:
            monkeypatch.delitem(sys.modules, name)
        import rm_plugins.server

        for name in ("process", "request_log"):
            monkeypatch.delattr(rm_plugins.server, name, raising=False)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        assert "The server needs the package uvicorn: pip install 'rm-plugins[serve]'" in self.run("constant", "--port", "0")
