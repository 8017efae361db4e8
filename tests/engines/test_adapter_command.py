"""``rm-plugins adapter`` writes a file that works, or nothing."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import os
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rm_plugins.errors import MissingDependencyError, RmPluginsError
from rm_plugins_engines.adapter import ENGINES, adapter
from rm_plugins_engines.adapter_files import ENGINES as FILES
from rm_plugins_engines.adapter_files import _for_hydra

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
    assert ("gives 0" in header) == (engine in ("areal", "verl"))  # what no function can prevent
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
    folder = tmp_path / ('it\'s, "a" folder' if engine != "openrlhf" else 'it\'s "a" folder')
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


def test_the_home_folder_is_written_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "helpful.yaml").write_text(f"provider: function\nfunction: {SPEC}\n", encoding="utf-8")
    assert run("openrlhf", "~/helpful.yaml", "-o", tmp_path / "reward.py").exit_code == 0
    spec = module_of(tmp_path / "reward.py").SPEC
    assert spec == str(tmp_path / "helpful.yaml")


def test_a_file_does_not_hide_a_provider_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("repetition").touch()
    assert run("openrlhf", "repetition", "-o", "reward.py").exit_code == 0
    assert module_of(tmp_path / "reward.py").SPEC == "repetition"


@pytest.mark.parametrize("as_file", [True, False])
def test_functions_in_the_working_directory_are_found_from_everywhere(
    as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, name = tmp_path / "it's here", f"rules_{'of_a_file' if as_file else 'alone'}"
    here.mkdir()
    (here / f"{name}.py").write_text("def short(completions, **_):\n    return [2.0] * len(completions)\n", encoding="utf-8")
    spec = f"{name}:short"
    if as_file:
        (tmp_path / "reward.yaml").write_text(f"provider: function\nfunction: {spec}\n", encoding="utf-8")
        spec = "../reward.yaml"
    called = "import reward; print(reward.reward_func(['Q 4'], ['Q '], [None])['rewards'].tolist())"
    command = [sys.executable, "-m", "rm_plugins", "adapter", "openrlhf", spec, "-o", str(tmp_path / "reward.py")]
    subprocess.run(command, cwd=here, check=True)
    ended = subprocess.run([sys.executable, "-c", called], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ended.stdout == "[2.0]\n"
    assert f"look_for_functions_in({str(here)!r})" in (tmp_path / "reward.py").read_text(encoding="utf-8")


def test_a_name_that_engines_do_not_find_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rm_plugins.yaml").write_text("helpful: {provider: constant, value: 1.0}\n", encoding="utf-8")
    ended = run("verl", "helpful", "-o", "reward.py")
    assert "'helpful' is a name in rm_plugins.yaml" in str(ended.exception)
    assert os.listdir(tmp_path) == ["rm_plugins.yaml"]


@pytest.mark.parametrize("check", [[], ["--no-check"]])
def test_a_password_in_a_url_is_refused(check: list[str], tmp_path: Path) -> None:
    ended = run("verl", "http://me:secret@10.0.0.5:8000", "-o", tmp_path / "reward.py", *check)
    assert "contains a name or a password" in str(ended.exception)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        *((name, name) for name in ("a,b", "it's", "ü", "a=b(c)[d]{e}", "a b", "$x", "a\\b")),
        ('a "q"', r"a \"q\""),
        (r"a\"", r"a\\\""),
        ("${HOME}", r"\${HOME}"),
        (r"\${HOME}", r"\\\${HOME}"),
    ],
)
def test_a_path_is_quoted_for_hydra(name: str, quoted: str) -> None:
    """Hydra 1.3 reads each of these words as the path."""
    (word,) = shlex.split(_for_hydra(Path("/home") / name / "reward.py"))
    assert word == f'"/home/{quoted}/reward.py"'


def test_toml_reads_the_path(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted", \\ ü folder'
    folder.mkdir()
    assert run("verifiers", SPEC, "-o", folder / "reward.py").exit_code == 0
    lines = (folder / "reward.py").read_text(encoding="utf-8").splitlines()
    table = tomllib.loads("\n".join(line.removeprefix("#") for line in lines if "env.taskset" in line or " fn = " in line))
    assert table["env"]["taskset"]["task"]["rewards"]["rm_plugins"]["fn"] == f"{folder}/reward.py:reward"


def test_openrlhf_s_path_has_no_comma(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert "splits --reward.remote_url at commas" in str(run("openrlhf", SPEC, "-o", tmp_path / "a,b" / "reward.py").exception)


@pytest.mark.parametrize("name", ["verl.py", "random.py", "rm_plugins.py"])
def test_the_output_does_not_hide_a_package(name: str, tmp_path: Path) -> None:
    assert "would hide the package" in run("verl", SPEC, "-o", tmp_path / name).output
    assert os.listdir(tmp_path) == []


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


@pytest.mark.parametrize("name", ["reward.txt", "my-reward.py", "1.py", "class.py", "a².py"])
def test_the_output_must_be_a_module(name: str, tmp_path: Path) -> None:
    ended = run("verl", SPEC, "-o", tmp_path / name)
    assert "must be a Python module" in ended.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_output_does_not_hide_the_package_of_its_engine(engine: str, tmp_path: Path) -> None:
    package = engine.replace("-", "_")
    ended = run(engine, SPEC, "-o", tmp_path / f"{package}.py")
    assert f"would hide the package {package!r}" in " ".join(ended.output.split())
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
