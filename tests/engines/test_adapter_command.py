"""``rm-plugins adapter`` writes a file that works, or nothing."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rm_plugins.errors import MissingDependencyError, RmPluginsError
from rm_plugins_engines.adapter import ENGINES, adapter
from rm_plugins_engines.adapter_files import ENGINES as FILES

SPEC = "tests.engines.failing:by_text"

FLAGS = {
    "areal": "python3 train.py --config CONFIG.yaml scheduler.type=local",
    "nemo-gym": "entrypoint: app.py",
    "nemo-rl": "data.default.env_name=rm_plugins ++env.rm_plugins={}",
    "openrlhf": "python3 -m openrlhf.cli.train_ppo_ray ... --reward.remote_url {path}",
    "slime": "--custom-rm-path reward.custom_rm",
    "swift": "swift rlhf --rlhf_type grpo ... --external_plugins {path} --reward_funcs rm_plugins",
    "verifiers": '[env.taskset.task.rewards.rm_plugins]\n#     fn = "{path}:reward"',
    "verl": "reward.reward_manager.module.path={path}",
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(adapter, [str(argument) for argument in arguments])


def module_of(path: Path) -> Any:
    """The adapter, imported as engines import files."""
    spec = importlib.util.spec_from_file_location("reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ENGINES)
def test_the_file_begins_with_the_flags_of_the_engine(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    assert run(engine, SPEC, "-o", path).exit_code == 0
    text = path.read_text(encoding="utf-8")
    header = text.partition("\n\nSPEC = ")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert FLAGS[engine].replace("{path}", str(path)) in header
    assert FILES[engine].engine in header
    assert "no_reward='raise'" in text
    compile(text, str(path), "exec")
    assert set(FILES) == set(ENGINES)


def test_the_file_works(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    assert run("openrlhf", SPEC, "-o", path, "--no-reward", "-2").exit_code == 0
    scored = module_of(path).reward_func(["Q 4</s>", "Q none</s>"], ["Q ", "Q "], [None, None])
    assert scored["rewards"].tolist() == [4.0, -2.0]
    assert scored["extra_logs"]["rm_no_reward"].tolist() == [0.0, 1.0]
    assert run("nemo_gym", SPEC, "-o", path, "--no-reward", "drop", "--overwrite").exit_code == 0
    request = {"responses_create_params": {"input": "Q"}, "response": {"output": [{"role": "assistant", "content": "4"}]}}
    assert asyncio.run(module_of(path).REWARD.verify(request))["reward"] == 4.0


@pytest.mark.parametrize("engine", ENGINES)
def test_unusual_names_are_quoted(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s, "a" folder'
    folder.mkdir()
    prompt = [] if FILES[engine].prompt is None else ["--prompt", 'column:it\'s, "a" column']
    ended = run(engine, SPEC, "-o", folder / "reward.py", *prompt)
    assert ended.exit_code == 0
    text = (folder / "reward.py").read_text(encoding="utf-8")
    compile(text, "reward.py", "exec")
    assert (repr(prompt[1]) in text) if prompt else ("prompt=" not in text)
    assert "cannot be shown" in run(engine, SPEC, "-o", folder / "a\nfolder" / "reward.py").output


def test_functions_need_no_classes_of_their_engine(tmp_path: Path) -> None:
    """An older verl has no reward loop, and an AReaL without its trainer no workflows."""
    path = tmp_path / "reward.py"
    assert run("verl", SPEC, "-o", path, "--prompt", "none").exit_code == 0
    verl = module_of(path)
    assert verl.compute_score_sync("source", "4", "truth", {})["score"] == 4.0
    assert asyncio.run(verl.compute_score("source", "5", "truth", {}, reward_router_address="a"))["score"] == 5.0
    assert run("areal", SPEC, "-o", path, "--prompt", "none", "--overwrite").exit_code == 0
    areal = module_of(path)
    assert areal.reward_fn("Q", "4", [1], [2], answer="4") == 4.0
    for module, name in ((verl, "RewardManager"), (areal, "Workflow")):
        with pytest.raises(MissingDependencyError):
            getattr(module, name)


def test_the_spec_of_a_file_is_written_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("helpful.yaml").write_text(f"provider: function\nfunction: {SPEC}\n", encoding="utf-8")
    assert run("slime", "helpful.yaml", "-o", "reward.py", "--prompt", "column:messages", "--detail", "std").exit_code == 0
    tree = ast.parse(Path("reward.py").read_text(encoding="utf-8"))
    (spec,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SPEC"]
    assert ast.literal_eval(spec) == str(tmp_path / "helpful.yaml")
    assert "prompt='column:messages', details=['std']" in ast.unparse(tree)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    path.write_text("mine = 1\n", encoding="utf-8")
    path.chmod(0o640)
    ended = run("verl", SPEC, "-o", path)
    assert "--overwrite" in str(ended.exception)
    assert path.read_text(encoding="utf-8") == "mine = 1\n"
    assert run("verl", SPEC, "-o", path, "--overwrite").exit_code == 0
    assert "compute_score" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["reward.py"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ver", SPEC), "not an engine"),
        (("verl", "no_such.yaml"), "no_such.yaml"),
        (("verl", SPEC, "--no-reward", "drop"), "cannot leave out"),
        (("verl", SPEC, "--no-reward", "zero"), "neither raise nor drop nor a number"),
        (("verl", SPEC, "--no-reward", "nan"), "finite"),
        (("verl", SPEC, "--prompt", "rendered"), "Allowed: none"),
        (("swift", SPEC, "--prompt", "none"), "no --prompt to choose"),
        (("swift", SPEC, "--detail", "std"), "no --detail to choose"),
    ],
)
def test_a_wrong_argument_writes_nothing(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run(*arguments, "-o", tmp_path / "reward.py")
    assert ended.exit_code != 0
    assert message in f"{ended.output}{ended.exception}"
    assert isinstance(ended.exception, (RmPluginsError, SystemExit))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["reward.txt", "my-reward.py", "1.py", "class.py"])
def test_the_output_must_be_a_module(name: str, tmp_path: Path) -> None:
    ended = run("verl", SPEC, "-o", tmp_path / name)
    assert "must be a Python module" in ended.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_does_not_hide_the_package_of_its_engine(engine: str, tmp_path: Path) -> None:
    package = engine.replace("-", "_")
    ended = run(engine, SPEC, "-o", tmp_path / f"{package}.py")
    assert f"would hide the package {package}" in " ".join(ended.output.split())
    assert os.listdir(tmp_path) == []


def test_a_reward_that_the_engine_cannot_call_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "ranked.yaml"
    spec.write_text(f"provider: function\nfunction: {SPEC}\ntransform: rank-in-group\n", encoding="utf-8")
    ended = run("verl", spec, "-o", tmp_path / "reward.py")
    assert "one by one" in str(ended.exception)
    assert os.listdir(tmp_path) == ["ranked.yaml"]
    assert run("verl", spec, "-o", tmp_path / "reward.py", "--no-check").exit_code == 0
    assert run("slime", spec, "-o", tmp_path / "reward.py", "--overwrite").exit_code == 0


def test_the_help_names_the_engines() -> None:
    ended = run("--help")
    assert all(engine in ended.output for engine in ENGINES)
