"""Reward models trained under DeepSpeed's ZeRO, which are those of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.reward_training.checkpoints import checkpoint_to_resume, last_checkpoint
from rm_plugins_trl.reward_training.deepspeed_files import DeepSpeedStates, deepspeed_states, problem_of_deepspeed
from tests.conftest import make_tokenizer
from tests.made_once import made_once
from tests.sharded.launcher import outcomes
from tests.sharded.zero_training import SAVED, STEPS
from tests.trl.conftest import TRL_WARNINGS, tiny_config

pytestmark = TRL_WARNINGS

CASES = {
    ("two", 2): (
        *("a whole training", "odin", "grm", "members", "lora", "merged under stage 2", "an untied head"),
        *("resumed from stage 2", "weights that are not finite", "refused"),
    ),
    ("again", 2): ("resumed",),
    ("four", 4): ("a whole training", "another number of processes"),
}
LAST, BEFORE = f"checkpoint-{STEPS}", f"checkpoint-{STEPS - SAVED}"
STATES = f"global_step{STEPS}"
SAMPLES = [rm.Sample("Name a colour.", text) for text in (" Blue.", " two", " It is blue, or perhaps a shade of green." * 3)]


def deepspeed_path() -> str | None:
    """The folder to import DeepSpeed from: of the environment, or beside it, where `make test` puts it; None if there is none."""
    if importlib.util.find_spec("deepspeed") is not None:
        return ""
    named = os.environ.get("RM_PLUGINS_DEEPSPEED")
    folders = [Path(named)] if named else sorted((Path(sys.prefix) / "worlds").glob("deepspeed-*"))
    return next((str(folder) for folder in folders if (folder / "deepspeed").is_dir()), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all trainings."""
    place = deepspeed_path()
    if place is None:
        pytest.skip("DeepSpeed is not installed, in the environment or in its worlds/deepspeed-VERSION (`make test` does that)")
    return made_once(tmp_path_factory, "zero", lambda folder: train_all(folder, place))


def train_all(folder: Path, place: str) -> None:
    """Run all trainings with the DeepSpeed of a place."""
    tokenizer = make_tokenizer()
    for name, tied in (("policy", True), ("untied", False)):
        set_seed(0)
        config: Qwen2Config = tiny_config(tokenizer, tie_word_embeddings=tied)
        Qwen2ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sys.path, place]),
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "tests.sharded.zero_training", *map(str, (folder / "policy", folder / "untied", folder))]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1_600)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("group", "processes", "case"), [(*group, case) for group, cases in CASES.items() for case in cases])
def test_processes(group: str, processes: int, case: str, trained: Path) -> None:
    by_rank = outcomes(trained / f"group-{group}", processes).get(case, {})
    assert by_rank == dict.fromkeys(range(processes), "ok"), "\n".join(by_rank.values()) or "the processes ended before"


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        *(("long", "long-3-2"), ("long", "long-2-2"), ("long", "long-3-4"), ("odin", "odin-3-2")),
        *(("grm", "grm-3-2"), ("members", "members-3-2"), ("lora", "lora-3-2"), ("merged", "merged-2-2")),
    ],
)
def test_saved_models_load_anywhere(name: str, saved: str, trained: Path) -> None:
    """They have the same files and scores as those of one process, and golden scores that a reward checks when it is loaded."""
    folder, alone = trained / saved, trained / "alone" / name
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    manifest, plain = Manifest.read(folder / "reward_manifest.json"), Manifest.read(alone / "reward_manifest.json")
    assert (manifest.heads, manifest.dtype) == (plain.heads, plain.dtype)
    assert [golden.score for golden in manifest.golden] == pytest.approx([golden.score for golden in plain.golden], abs=1e-4)
    assert len(manifest.golden) == len(plain.golden) > 0
    expected = json.loads((trained / "alone" / f"{name}.json").read_text(encoding="utf-8"))["scores"]
    assert rm.load(str(folder)).score(SAMPLES).values.tolist() == pytest.approx(expected, abs=1e-4)


def test_states_of_checkpoints(trained: Path) -> None:
    assert deepspeed_states(trained / "long-3-2" / LAST) == DeepSpeedStates(partitioned=True, processes=2)
    assert deepspeed_states(trained / "long-2-2" / LAST) == DeepSpeedStates(partitioned=False, processes=2)
    assert deepspeed_states(trained / "alone" / "long" / LAST) is None


def test_resumed_without_deepspeed(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "long-3-2" / BEFORE, tmp_path / BEFORE)
    pairs = Dataset.from_list([{"prompt": "Name a colour.", "chosen": " Blue.", "rejected": " two"}])
    args = RewardConfig(str(tmp_path), use_cpu=True, report_to="none", preset="none")
    trainer = RewardTrainer(str(trained / "policy"), args, train_dataset=pairs)
    with pytest.raises(
        DataError, match="was saved under stage 3 of ZeRO on 2 processes, and this training runs without DeepSpeed"
    ):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("saved", ["long-3-2", "long-2-2"])
def test_incomplete_checkpoints(saved: str, trained: Path, tmp_path: Path) -> None:
    """Without any one of DeepSpeed's files, or with a part of one, a checkpoint is skipped, and refused if it is asked for."""
    source = trained / saved / LAST
    files = [path.relative_to(source) for path in (source / "latest", *(source / STATES).iterdir())]
    assert len(files) == (5 if "-3-" in saved else 4)
    before, checkpoint = tmp_path / BEFORE, tmp_path / LAST
    shutil.copytree(trained / saved / BEFORE, before)
    for file in files:
        for cut in (True, False):
            shutil.copytree(source, checkpoint)
            assert problem_of_deepspeed(checkpoint, 2) == ""
            if cut:
                os.truncate(checkpoint / file, (checkpoint / file).stat().st_size // 2)
            else:
                (checkpoint / file).unlink()
            last = last_checkpoint(tmp_path)
            assert last is not None and last.path == before, (file, cut)
            with pytest.raises(DataError, match=rf"is not a checkpoint to resume from: (it has|{STATES})"):
                checkpoint_to_resume(checkpoint, tmp_path)
            shutil.rmtree(checkpoint)
