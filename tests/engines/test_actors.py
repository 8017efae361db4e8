"""Actors get a function or a class of an adapter's file by value, and do not import the file; they find the reward's functions anyway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.conftest import ROOT

pytest.importorskip("cloudpickle")

FUNCTIONS = "def short(completions, **columns):\n    return [2.0 * len(completions)] * len(completions)\n"
SENT = {
    "verl": """
from pathlib import Path
import cloudpickle, importlib.util

spec = importlib.util.spec_from_file_location("custom_module_1", "{file}")  # as verl does, without sys.modules
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Path("sent").write_bytes(cloudpickle.dumps(module.compute_score_sync))
""",
    "nemo-rl": """
import sys
from pathlib import Path
from types import SimpleNamespace
import cloudpickle, pytest
from tests.engines.doubles import with_nemo_rl

with pytest.MonkeyPatch.context() as patched:
    with_nemo_rl(patched)
    sys.modules["ray"] = SimpleNamespace(remote=lambda cls: cls)
    sys.path.insert(0, "{folder}")
    import reward
    Path("sent").write_bytes(cloudpickle.dumps(reward.RewardEnvironment))
""",
}
CALLED = {
    "verl": "print(received('source', 'text', None, {})['score'])",
    "nemo-rl": """
log = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "4"}]
print(received({}).step([log], [None]).rewards.tolist()[0])
""",
}
SEEN = "from pathlib import Path\nimport cloudpickle\nreceived = cloudpickle.loads(Path('sent').read_bytes())\n"


@pytest.mark.parametrize("engine", SENT)
def test_an_actor_finds_the_functions_of_the_working_directory(engine: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "rules_of_actors.py").write_text(FUNCTIONS, encoding="utf-8")
    file = tmp_path / "reward.py"
    prompt = ["--prompt", "none"] if engine == "verl" else []
    python = [sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}

    def run(command: list[str], folder: Path) -> str:
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    adapter = [sys.executable, "-m", "rm_plugins", "adapter", engine, "rules_of_actors:short", "-o", str(file), *prompt]
    run(adapter, here)
    run([*python, SENT[engine].format(file=file, folder=tmp_path)], there)
    assert run([*python, SEEN + CALLED[engine]], there) == "2.0\n"
