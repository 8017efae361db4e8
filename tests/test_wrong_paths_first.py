"""A wrong path is refused before what takes seconds: imports of torch, and loading a model. No output replaces an input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rm_plugins.cli import main

WRONG = {
    "score ./model absent.jsonl": "There is no file 'absent.jsonl'",
    "score ./model rows.jsonl -o used.jsonl": "used.jsonl exists already",
    "rank ./model absent.jsonl": "There is no file 'absent.jsonl'",
    "rank ./model ./absent": "There is no file or folder './absent'",
    "evaluate ./model absent.jsonl": "There is no file 'absent.jsonl'",
    "diff ./model ./model absent.jsonl": "There is no file 'absent.jsonl'",
    "merge ./model ./model -o merged --data absent.jsonl": "There is no file 'absent.jsonl'",
    "judge-data absent.jsonl -o questions": "There is no file 'absent.jsonl'",
    "judge-data rows.jsonl -o model": "model has other files than questions for a judge, such as model.safetensors",
    "judge-data rows.jsonl -o questions": "rows.jsonl, row 1: ",
    "calibrate ./model rows.jsonl": "needs at least 30 scores for its statistics, and rows.jsonl has 2 samples",
    "demo --output-dir trained": "trained is not empty",
    "demo --output-dir new --dataset absent.jsonl": "There is no file 'absent.jsonl'",
    "train --model_name_or_path m --dataset_name rows.jsonl --output_dir trained": "trained holds a finished model",
    "train --model_name_or_path m --dataset_name=rows.jsonl --output-dir=trained": "trained holds a finished model",
    "train --model_name_or_path m --dataset_name absent.jsonl --output_dir new": "There is no file 'absent.jsonl'",
    "train --dataset_name rows.jsonl --eval_dataset_name absent.jsonl --output_dir new": "There is no file 'absent.jsonl'",
}
PROGRAM = """
import json, sys
from click.testing import CliRunner
from rm_plugins.cli import main

for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command.split())
    imported = [name for name in ("torch", "transformers", "trl") if name in sys.modules]
    print(json.dumps([result.exit_code, " ".join(result.output.split()), imported]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two rows, a finished training and an output."""
    monkeypatch.chdir(tmp_path)
    text = "".join(json.dumps({"prompt": "Q", "completion": answer}) + "\n" for answer in ("a", "bb"))
    for name in ("rows.jsonl", "used.jsonl"):
        Path(name).write_text(text, encoding="utf-8")
    for name in ("trained", "model"):
        Path(name).mkdir()
        (Path(name) / "model.safetensors").touch()
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_before_heavy_imports() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(list(WRONG))], capture_output=True, text=True, check=True, timeout=300
    )
    for (command, message), line in zip(WRONG.items(), told.stdout.splitlines(), strict=True):
        code, output, imported = json.loads(line)
        assert code == 1, (command, output)
        assert message in output, command
        assert imported == [], command


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("score x:y rows.jsonl -o rows.jsonl --overwrite", "FILE and the output"),
        ("score x:y rows.jsonl -o ./second.jsonl --overwrite", "FILE and the output"),
        ("score x:y rows.jsonl -o link.jsonl --overwrite", "FILE and the output"),
        ("rank x:y rows.jsonl -o second.jsonl --overwrite", "FILE and the output"),
        ("calibrate spec.yaml rows.jsonl -o spec.yaml --overwrite", "SPEC and the output"),
        ("evaluate x:y rows.jsonl -o rows.jsonl", "DATA and --output"),
        ("evaluate x:y spec.yaml rows.jsonl --report spec.yaml", "SPEC and --report"),
        ("evaluate x:y rows.jsonl -o out.json --report out.json", "--output and --report"),
        ("diff x:y spec.yaml rows.jsonl -o spec.yaml", "B and --output"),
        ("diff x:y x:z rows.jsonl --report rows.jsonl", "DATA and --report"),
    ],
)
def test_no_output_replaces_an_input(command: str, named: str) -> None:
    Path("spec.yaml").write_text("provider: constant\nvalue: 1\n", encoding="utf-8")
    os.link("rows.jsonl", "second.jsonl")
    Path("link.jsonl").symlink_to("rows.jsonl")
    before = {path: path.read_bytes() for path in Path().glob("*.*")}
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 2, result.output
    assert f"{named} are the same file" in " ".join(result.output.split())
    assert {path: path.read_bytes() for path in Path().glob("*.*")} == before


def test_merging_does_not_replace_the_folder_of_its_data(folder: Path) -> None:
    (folder / "model" / "pairs.jsonl").write_text("", encoding="utf-8")
    result = CliRunner().invoke(main, ["merge", "a", "b", "-o", "model", "--data", "model/pairs.jsonl", "--overwrite"])
    assert result.exit_code == 2
    assert "is in the output folder 'model'" in " ".join(result.output.split())
