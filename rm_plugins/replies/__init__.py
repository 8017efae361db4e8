"""What a language model's answers mean: label probabilities, numbers, verdicts and JSON objects in them."""

from __future__ import annotations

from rm_plugins.replies.reasoning import after_reasoning
from rm_plugins.replies.verdict import Verdict, verdict_in

__all__ = ["Verdict", "after_reasoning", "verdict_in"]
