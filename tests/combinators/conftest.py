"""Rewards that combinators are made of in several files of tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import ScoringError

NAN = float("nan")


RULES = '''
import numpy as np
import rm_plugins as rm


def length(samples):
    return [float(len(sample.completion)) for sample in samples]


def longer(samples):
    """Abstains on what is empty."""
    return [len(sample.completion) + 10.0 if sample.completion else None for sample in samples]


def is_long(sample):
    return len(sample.completion) > 2


def topic(sample):
    return sample.columns.get("topic")


def with_details(samples):
    values = np.array(length(samples))
    return rm.Scores(values, {"std": values / 2}, {"tokens": len(samples), "truncated": 1})


def fails(samples):
    raise RuntimeError("no network")
'''


SAMPLES = [
    rm.Sample("p", "", {"topic": "math"}),
    rm.Sample("p", "a", {"topic": "code"}),
    rm.Sample("q", "bb", {"topic": "math"}),
    rm.Sample("q", "ccc", {"topic": "code"}),
]


LENGTH, LONGER = "combinator_rules:length", "combinator_rules:longer"  # 0 1 2 3; NaN 11 12 13


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with functions to score by."""
    (tmp_path / "combinator_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def scored(samples: Sequence[rm.Sample] = SAMPLES, **spec: Any) -> rm.Scores:
    return rm.load(spec).score(samples)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def seen(seen_by: list[list[str]], value: float | None = 1.0) -> rm.Provider:
    """A reward that writes down which completions it is asked about."""

    def function(samples: list[rm.Sample]) -> list[float | None]:
        seen_by.append([str(sample.completion) for sample in samples])
        return [value] * len(samples)

    return rm.load(function)


def failing_on(*completions: str, value: float = 5.0) -> rm.Provider:
    """A reward that fails on some samples and names them."""

    def function(samples: list[rm.Sample]) -> list[float]:
        rows = [row for row, sample in enumerate(samples) if sample.completion in completions]
        if rows:
            raise ScoringError("the judge is away", rows=rows)
        return [value] * len(samples)

    return rm.load(function, label="judge")
