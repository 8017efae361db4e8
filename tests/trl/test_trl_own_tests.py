"""The program that runs TRL's own tests on our classes notices what it must, on a checkout made up here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trl.conftest import newest_trl

pytestmark = newest_trl  # `make test-trl-own` runs with the TRL of constraints.txt

CHECKOUT = {
    "pyproject.toml": "[tool.pytest.ini_options]\n",
    "tests/__init__.py": "",
    "tests/tested.py": "from trl import RewardTrainer as tested\n",
    "tests/test_reward_trainer.py": """
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification
from .tested import tested

def test_ours():
    assert tested.__module__.startswith("rm_plugins_trl.")

def test_stand_ins():
    rows = load_dataset("trl-internal-testing/zen", "standard_preference", split="train")
    assert len(rows) == 17 and rows.column_names == ["prompt", "chosen", "rejected"]
    AutoModelForSequenceClassification.from_pretrained("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5", num_labels=1)

def test_theirs():
    assert tested.__module__ == "trl.trainer.reward_trainer"

def test_differing():
    assert False

def test_agreeing():
    assert True
""",
    "tests/test_rloo_trainer.py": "def test_other():\n    assert False\n",
    "differences.toml": '"test_reward_trainer.py::test_differing" = "Wanted."\n"test_reward_trainer.py::test_agree*" = "Gone."\n',
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in CHECKOUT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def run_on(checkout: Path, *arguments: str) -> tuple[int, dict[str, str]]:
    """The exit code, and the outcome of each test."""
    command = [sys.executable, "-m", "tests.trl_own_tests", str(checkout), "--offline", "-rA", "--tb=no", *arguments]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    outcomes = re.findall(r"^([A-Z]+) \S+::(\w+)(?: - .*XPASS.(strict).)?", finished.stdout, re.MULTILINE)
    return finished.returncode, {test: f"{outcome} {strict}".strip() for outcome, test, strict in outcomes}


def test_outcomes_are_those_on_our_classes(checkout: Path) -> None:
    """A failure fails, an allowed difference does not, and one that no longer exists is reported."""
    assert run_on(checkout, f"--differences={checkout / 'differences.toml'}") == (
        1,
        {
            "test_ours": "PASSED",
            "test_theirs": "FAILED",
            "test_stand_ins": "PASSED",
            "test_differing": "XFAIL",
            "test_agreeing": "FAILED strict",
        },
    )


def test_trls_own_classes_are_tested_on_request(checkout: Path) -> None:
    assert run_on(checkout, "--trls-own", "-k=theirs or stand_ins") == (
        0,
        {"test_theirs": "PASSED", "test_stand_ins": "PASSED"},
    )
