"""Judges: language models that are asked questions, and what their answers mean."""

from __future__ import annotations

from rm_plugins.judges.judge import Judge, Question, Reply

__all__ = ["Judge", "Question", "Reply"]
