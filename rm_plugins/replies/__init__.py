"""What a language model's answers mean: label probabilities, numbers, verdicts and JSON objects in them."""

from __future__ import annotations

from rm_plugins.replies.answer_scale import answer_scale
from rm_plugins.replies.chat_choice import ChatText, chat_text, only_choice, tokens_used, withheld
from rm_plugins.replies.grade import Grade
from rm_plugins.replies.json_answer import JsonAnswer, json_in
from rm_plugins.replies.label_scale import LabelScale
from rm_plugins.replies.labels import LabelMasses, Labels, first_word
from rm_plugins.replies.number_scale import NumberScale
from rm_plugins.replies.reasoning import after_reasoning, end_of_reasoning
from rm_plugins.replies.verdict import Verdict, verdict_in

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
    "answer_scale",
    "chat_text",
    "end_of_reasoning",
    "first_word",
    "json_in",
    "only_choice",
    "tokens_used",
    "verdict_in",
    "withheld",
]
