"""Rows that are ranked, and the command that ranks them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rm_plugins.cli import main
from tests.policies import make_policy

RULES = '''
from pathlib import Path


def length(samples):
    """The completion's length; it abstains where asked to."""
    return [None if "abstain" in text(s) else float(len(text(s))) for s in samples]


def abstains(samples):
    return [None for _ in samples]


def vowels(samples):
    return [float(sum(letter in "aeiou" for letter in text(s))) for s in samples]


def fails(samples):
    raise RuntimeError("out of memory")


def late(samples):
    """The length; it fails at a word while there is a file ``stop``."""
    if Path("stop").exists() and any("fail" in text(s) for s in samples):
        raise RuntimeError("the power failed")
    return length(samples)


def text(sample):
    return sample.completion if isinstance(sample.completion, str) else sample.completion[-1]["content"]
'''


ASKED = [{"role": "user", "content": "Q"}]


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs the command in a directory that holds ``rules.py``; with ``code=0`` it must succeed."""
    sys.modules.pop("rules", None)
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: object, code: int = 0, **settings: Any) -> Result:
        found = CliRunner().invoke(main, ["rank", *map(str, arguments)], **settings)
        assert found.exit_code == code, found.output
        return found

    yield run
    sys.modules.pop("rules", None)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_policy(tmp_path_factory.mktemp("policy"))


def write(*rows: dict[str, Any], path: str = "in.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(prompt: Any, *completions: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completions": list(completions), **columns}


def read(path: str = "in.ranked.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def left_behind() -> list[str]:
    return sorted(path.name for path in Path().glob("*.ranked.*") if path.name != "in.ranked.jsonl")
