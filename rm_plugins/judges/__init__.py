"""Judges: language models that are asked questions, and what their answers mean."""

from __future__ import annotations

from rm_plugins.judges.judge import Judge, Question, Reply
from rm_plugins.judges.verdict_of import verdict_of
from rm_plugins.replies import Verdict

__all__ = ["Judge", "Question", "Reply", "Verdict", "verdict_of"]
