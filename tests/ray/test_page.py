"""What docs/ray.md shows works as it is printed: its commands, its files and its Python."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.data.row_files import read_rows, write_rows
from tests.benchmarks.ray_scaling import Constants, table
from tests.conftest import MakeFolder
from tests.servers import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")
SERVING, _, REST = PAGE.partition("## Rewards in other Ray jobs")
ACTORS, _, DATA_SETS = REST.partition("## Scoring data sets")
SAMPLES = [rm.Sample("2+2?", "4"), rm.Sample("2+2?", "5")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.removeprefix("$ ") for code in blocks(PAGE, "console") for line in code.splitlines()]
    return [line for line in lines if line.startswith("serve ")]


@pytest.fixture(scope="module")
def folder(tiny_decoder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the model and the files of the page."""
    folder = tmp_path_factory.mktemp("page")
    tiny_decoder().rename(folder / "Qwen2.5-Reward")
    spec, config, *_ = blocks(SERVING, "yaml")
    (folder / "helpful.yaml").write_text(spec, encoding="utf-8")
    content = yaml.safe_load(config)
    (arguments,) = [each["args"] for each in content["applications"]]
    arguments.update(num_gpus=0, num_cpus=0.1, replicas=1, max_replicas=1)  # what the page says needs GPUs
    arguments["spec"] = arguments["spec"].replace("/shared", str(folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@contextmanager
def running(command: str, folder: Path, address: str) -> Iterator[None]:
    """The command in a process, ended like by Ctrl-C."""
    program = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", *shlex.split(command)[1:]]
    environment = {**os.environ, "RAY_ADDRESS": address}
    with (folder / "log").open("w") as log:
        # A shell that runs the tests in the background has them, and so their children, ignore Ctrl-C.
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=heeding)
        try:
            yield
        except BaseException:
            print((folder / "log").read_text())
            raise
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def until_it_answers(url: str, seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {seconds} s")


def test_the_commands_for_serving_work(cluster: Any, folder: Path) -> None:
    from ray import serve

    assert commands() == ["serve run rm_plugins_ray:app spec=helpful.yaml", "serve run config.yaml"]
    # Serve starts here for the first command, and with the file's options for the second: where the page has port 8000, one is free.
    ports = {"spec=helpful.yaml": free_port(), "config.yaml": free_port()}
    serve.start(http_options={"port": ports["spec=helpful.yaml"]})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["http_options"]["port"] = ports["config.yaml"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    expected = rm.load(folder / "Qwen2.5-Reward").score(SAMPLES).values
    try:
        for command in commands():
            port = ports[command.split()[-1]]
            with running(command, folder, cluster.address):
                until_it_answers(f"http://127.0.0.1:{port}")
                found: dict[str, Any] = {}
                (code,) = blocks(SERVING, "python")
                exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), "docs/ray.md", "exec"), found)
                np.testing.assert_allclose(found["scores"].values, expected, atol=1e-4)
    finally:
        serve.shutdown()  # other tests start it with options of their own


def test_the_code_for_actors_works(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    for code in blocks(ACTORS, "python"):
        exec(compile(code.replace("num_gpus=0", "num_cpus=0.1"), "docs/ray.md", "exec"), found)
    expected = rm.load("helpful.yaml").score(SAMPLES).values
    np.testing.assert_allclose(found["scores"].values, expected, atol=1e-4)
    (spec,) = blocks(ACTORS, "yaml")
    np.testing.assert_allclose(rm.load(yaml.safe_load(spec)).score(SAMPLES).values, expected, atol=1e-4)
    ray.kill(ray.get_actor("reward", namespace="rewards"))


def test_the_command_and_the_code_for_data_sets_work(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rm_plugins_ray.data_engine import quiet_data_context

    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    write_rows([{"prompt": sample.prompt, "completion": sample.completion} for sample in SAMPLES], folder / "completions.jsonl")
    expected = rm.load("helpful.yaml").score(SAMPLES).values
    (command,) = [line.removeprefix("$ ") for line in "".join(blocks(DATA_SETS, "console")).splitlines()]
    told = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    np.testing.assert_allclose([row["score"] for row in read_rows("on-ray.jsonl")], expected, atol=1e-4)
    found: dict[str, Any] = {}
    (code,) = blocks(DATA_SETS, "python")
    with quiet_data_context():
        exec(compile(code, "docs/ray.md", "exec"), found)
        np.testing.assert_allclose([row["score"] for row in found["scored"].take_all()], expected, atol=1e-4)


def test_the_table_of_scaling_is_what_the_program_prints() -> None:
    assert table(Constants()) in DATA_SETS


def test_every_argument_is_on_the_page() -> None:
    from rm_plugins_ray import ServeArguments

    shown = dict(re.findall(r"^\| `(\w+)` \| (\w*) ?\|", SERVING, re.MULTILINE))
    fields = ServeArguments.model_fields
    assert set(fields) == set(shown) | set(
        re.findall(r"`(\w+)`", SERVING.partition("The settings of the server")[2].split("\n\n")[0])
    ) - {"Settings"}
    assert {name: fields[name].default for name, value in shown.items() if value} == {
        name: int(value) for name, value in shown.items() if value
    }
