"""Judges: language models that are asked questions, and what their answers mean."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hooks import hookimpl
from rm_plugins.judges.caching_judge import CachingJudge
from rm_plugins.judges.cost import COSTS, cost_of
from rm_plugins.judges.judge import Judge, Question, Reply
from rm_plugins.judges.openai_judge import OpenAIServerJudge
from rm_plugins.judges.reply_cache import ReplyCache
from rm_plugins.judges.template import Template, shipped_templates
from rm_plugins.judges.transformers_judge import TransformersJudge
from rm_plugins.judges.verdict_of import verdict_of
from rm_plugins.judges.vllm_judge import VLLMJudge

__all__ = [
    "COSTS",
    "CachingJudge",
    "Judge",
    "OpenAIServerJudge",
    "Question",
    "Reply",
    "ReplyCache",
    "Template",
    "TransformersJudge",
    "VLLMJudge",
    "cost_of",
    "rm_register_judges",
    "shipped_templates",
    "verdict_of",
]


@hookimpl
def rm_register_judges() -> Sequence[type[Judge]]:
    """The built-in judges."""
    return [OpenAIServerJudge, TransformersJudge, VLLMJudge]
