"""A directory with a reward, rows for it, and the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rm_plugins.cli import main
from rm_plugins.training.journal import Journal

RULES = '''
calls = []


def length(samples):
    """The completion's length."""
    calls.append(len(samples))
    return [float(len(s.completion)) for s in samples]
'''

ROWS = [{"prompt": f"Q{number}", "chosen": "yes" * (number % 5 + 1), "rejected": "no"} for number in range(16)]


def scored() -> int:
    """How many samples the reward has been given."""
    return sum(sys.modules["rules"].calls) if "rules" in sys.modules else 0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the program in a directory with ``rules.py``, ``in.jsonl`` and ``journal``."""
    sys.modules.pop("rules", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("rules.py").write_text(RULES, encoding="utf-8")
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    journal = Journal("journal")
    journal.add_figures(1, "r", {"samples": 1.0, "reward": 1.0})
    journal.flush()
    yield lambda *arguments: CliRunner().invoke(main, list(map(str, arguments)))
    sys.modules.pop("rules", None)
