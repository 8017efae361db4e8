"""The samples that every engine scores, prompts with several completions each, as messages; and the reward that scores them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rm_plugins as rm
from tests.peers.samples import groups

if TYPE_CHECKING:
    from tests.conftest import MakeFolder

_SUBJECTS = ("the sea", "a colour", "rain", "two and two", "the Moon", "salt", "a river", "tea")
_ASKED = ("Name {}.", "What is {}?", "Write one sentence about {}.", "Is {} < 3 & > 1?")
_ANSWERS = ("four", " It is blue.", "Minerals from rivers; see <b>salt</b>.\nThat is all.", "é, naïve — 42?")
_LONGEST = 200
"""Characters of a real prompt and of a real completion: the models read 512 tokens."""


@cache
def engine_rows() -> list[dict[str, Any]]:
    """256 rows with ``messages``, ``completion``, and a column ``solution``: made ones with odd characters, and real ones."""
    made = [
        (_ASKED[number // len(_SUBJECTS)].format(_SUBJECTS[number % len(_SUBJECTS)]), [*_ANSWERS])
        for number in range(len(_SUBJECTS) * len(_ASKED))
    ]
    rows = []
    for number, (prompt, completions) in enumerate([*made, *groups(_LONGEST)]):
        system = [{"role": "system", "content": "Be brief."}] if number % 3 == 0 else []
        messages = [*system, {"role": "user", "content": prompt}]
        rows += [{"messages": messages, "completion": text, "solution": f"solution {number}"} for text in completions]
    assert len(rows) == 256
    return rows


def sample_of(row: dict[str, Any]) -> rm.Sample:
    """The sample of a row, as TRL would make it."""
    return rm.Sample(row["messages"], row["completion"], {"solution": row["solution"]})


def program_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a data set that ``rm-plugins score`` and Ray Data read."""
    return {"prompt": row["messages"], "completion": row["completion"], "solution": row["solution"]}


def write_reward(folder: Path, decoder: MakeFolder) -> Path:
    """The spec of an ensemble of two small sequence classifiers, written into a folder; returns its file."""
    models = (decoder(), decoder(config={"hidden_act": "relu"}))
    members = [{"provider": "sequence-classifier", "model": str(model)} for model in models]
    spec = folder / "reward.yaml"
    spec.write_text(
        json.dumps({"provider": "ensemble", "aggregate": "mean", "members": members}), encoding="utf-8"
    )  # YAML takes JSON
    return spec
