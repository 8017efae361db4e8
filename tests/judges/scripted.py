"""A judge whose answers are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rm_plugins.judges import CachingJudge, Question, Reply

__all__ = ["ScriptedJudge", "text_of"]


class ScriptedJudge(CachingJudge):
    """Answers each question by a function, and remembers what it was asked.

    Args:
        answer: The reply to a question.
        cache: As of every caching judge.
    """

    name: ClassVar[str] = "scripted"

    def __init__(self, answer: Callable[[Question], Reply | str], *, cache: str | None = None) -> None:
        self.answer = answer
        self.asked: list[Question] = []
        super().__init__(cache=cache)

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        self.asked += questions
        replies = [self.answer(question) for question in questions]
        return [Reply(found, None, "", 10, 2) if isinstance(found, str) else found for found in replies]


def text_of(question: Question) -> str:
    """The last message."""
    return str(question.messages[-1]["content"])
