"""Judges that are asked equal questions once, and whose replies are cached."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from rm_plugins.errors import ScoringError
from rm_plugins.judges.judge import Judge, Question, Reply
from rm_plugins.judges.reply_cache import ReplyCache


class CachingJudge(Judge):
    """Implements `ask`: subclasses answer different questions.

    Args:
        cache: A folder for the replies, relative to the working directory, which any number of processes may share; None for no cache.

    Raises:
        SpecError: The folder cannot be made.
    """

    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"cache"})

    def __init__(self, *, cache: str | None = None) -> None:
        self.cache = cache
        self._cache: ReplyCache | None = None
        if cache is not None:
            ReplyCache(cache, "")  # refuses a folder that cannot be used, before the judge's own identity is known

    @abstractmethod
    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer different questions, none of which is in the cache; arguments and errors are those of `ask`."""

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer questions, equal ones once, and those whose replies are cached without asking."""
        cache = self._replies()
        keys = [question.key for question in questions]
        known: dict[bytes, Reply] = {}
        unknown: dict[bytes, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if key in known or key in unknown:
                continue
            reply = None if cache is None else cache.get(question)
            if reply is None or (
                reply.label_probabilities is not None and set(reply.label_probabilities) != set(question.labels)
            ):
                unknown[key] = question
            else:
                known[key] = reply
        asked = self.answers([*unknown.values()]) if unknown else []
        if len(asked) != len(unknown):
            raise ScoringError(f"The judge {self.name!r} gave {len(asked)} replies to {len(unknown)} questions.")
        fresh = dict(zip(unknown, asked, strict=True))
        if cache is not None:
            for key, reply in fresh.items():
                cache.put(unknown[key], reply)
        replies = []
        for key in keys:
            replies.append(fresh.pop(key) if key in fresh else known[key])
            known[key] = replace(replies[-1], prompt_tokens=0, completion_tokens=0, cached=True)
        return replies

    def _replies(self) -> ReplyCache | None:
        if self.cache is not None and self._cache is None:
            self._cache = ReplyCache(self.cache, [self.name, self.identity])
        return self._cache
