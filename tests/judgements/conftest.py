"""Rows that are judged."""

from __future__ import annotations

from typing import Any

from rm_plugins.data.judgements import Judgement

USER = {"role": "user", "content": "2+2?"}


FOUR = {"role": "assistant", "content": "4"}


PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def completions(*texts: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": "Q", "completions": list(texts or "abc"), **columns}


def verdict(found: Judgement) -> tuple[Any, ...]:
    return found.pairs, found.ties, found.ranks, found.labels


NAN = float("nan")
