"""The samples that every engine scores: prompts with several completions each, as messages."""

from __future__ import annotations

from typing import Any

import rm_plugins as rm

_SUBJECTS = ("the sea", "a colour", "rain", "two and two", "the Moon", "salt", "a river", "tea")
_ASKED = ("Name {}.", "What is {}?", "Write one sentence about {}.", "Is {} < 3 & > 1?")
_ANSWERS = ("four", " It is blue.", "Minerals from rivers; see <b>salt</b>.\nThat is all.", "é, naïve — 42?")


def engine_rows(count: int = 256) -> list[dict[str, Any]]:
    """Rows with ``messages``, ``completion``, and a column ``solution``."""
    rows = []
    for number in range(count):
        prompt, answer = divmod(number, len(_ANSWERS))
        subject, asked = prompt % len(_SUBJECTS), prompt // len(_SUBJECTS)
        text = _ASKED[asked % len(_ASKED)].format(_SUBJECTS[subject]) + " Please." * (asked // len(_ASKED))
        system = [{"role": "system", "content": "Be brief."}] if prompt % 3 == 0 else []
        messages = [*system, {"role": "user", "content": text}]
        rows.append({"messages": messages, "completion": _ANSWERS[answer], "solution": f"solution {prompt}"})
    return rows


def sample_of(row: dict[str, Any]) -> rm.Sample:
    """The sample of a row, as TRL would make it."""
    return rm.Sample(row["messages"], row["completion"], {"solution": row["solution"]})
