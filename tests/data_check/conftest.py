"""Rows that are checked, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_plugins.data.check import DataCheck
from rm_plugins.data.check_report import DataReport

USER = {"role": "user", "content": "2+2?"}


FOUR = {"role": "assistant", "content": "4"}


FIVE = {"role": "assistant", "content": "5"}


def pair(prompt: str, chosen: str, rejected: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def problems(report: DataReport) -> dict[str, tuple[int, list[tuple[str, int]]]]:
    """Kind to count and places."""
    return {
        problem.kind: (problem.count, [(example.source, example.row) for example in problem.examples])
        for problem in report.problems
    }


CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}


def checked(*sources: Sequence[dict[str, Any]], **settings: Any) -> DataReport:
    """The report on sources called a, b and so on."""
    check = DataCheck(**settings)
    for name, rows in zip("abcdef", sources, strict=False):
        check.begin(name)
        for row in rows:
            check.add(row)
    return check.report()
