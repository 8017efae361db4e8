"""What a language model's answers mean: label probabilities, numbers, verdicts and JSON objects in them."""

from __future__ import annotations

from rm_plugins.replies.answer_scale import answer_scale
from rm_plugins.replies.chat_choice import ChatText, chat_text, is_cut_off, only_choice, tokens_used, withheld
from rm_plugins.replies.grade import Grade
from rm_plugins.replies.json_answer import JsonAnswer, json_in
from rm_plugins.replies.label_scale import LabelScale
from rm_plugins.replies.labels import LabelMasses, Labels, first_word, is_probability, with_spaces
from rm_plugins.replies.number_scale import NumberScale
from rm_plugins.replies.reasoning import (
    after_reasoning,
    end_of_reasoning,
    has_open_reasoning,
    opens_reasoning_at_end,
    without_reasoning_tags,
)
from rm_plugins.replies.verdict import Verdict, alike_verdicts, verdict_in

__all__ = [
    "ChatText",
    "Grade",
    "JsonAnswer",
    "LabelMasses",
    "LabelScale",
    "Labels",
    "NumberScale",
    "Verdict",
    "after_reasoning",
    "alike_verdicts",
    "answer_scale",
    "chat_text",
    "end_of_reasoning",
    "first_word",
    "has_open_reasoning",
    "is_cut_off",
    "is_probability",
    "json_in",
    "only_choice",
    "opens_reasoning_at_end",
    "tokens_used",
    "verdict_in",
    "with_spaces",
    "withheld",
    "without_reasoning_tags",
]
