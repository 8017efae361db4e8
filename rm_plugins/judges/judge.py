"""The interface of judges: language models that are asked questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from rm_plugins.canonical_json import canonical_json
from rm_plugins.component import Component
from rm_plugins.errors import ScoringError
from rm_plugins.samples import Message


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked.

    Args:
        messages: The conversation that the judge continues.
        labels: The answer is one of these; their probabilities are wanted where the judge gives them. Empty for free text.
        schema: The JSON schema of the answer, for judges that can be made to follow one.

    >>> Question(({"role": "user", "content": "2+2?"},)) == Question(({"content": "2+2?", "role": "user"},))
    True
    """

    messages: tuple[Message, ...]
    labels: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None

    @property
    def key(self) -> bytes:
        """32 bytes that are equal for equal questions only."""
        whole = canonical_json([list(self.messages), list(self.labels), self.schema])
        return blake2b(whole.encode(), digest_size=32).digest()


CUT_OFF = "\u2026"
"""The end of the text of an answer to a question with labels that was cut off; its first token is known."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge answered.

    Args:
        text: The answer without its reasoning (``<think>...</think>``, ``reasoning_content``); empty if there is an error.
        label_probabilities: The probability of each of `Question.labels` at the first token of the answer, not normalized; None if the
            judge gives none.
        error: Why there is no answer: the judge refused, the answer was cut off or filtered, the request failed. Empty if there is one.
        prompt_tokens: The number of tokens that the judge read for this reply; 0 if unknown or `cached`.
        completion_tokens: The number of tokens that it wrote, including its reasoning; 0 if unknown or `cached`.
        cached: Whether the question was not asked, because the answer was known: from the cache, or from an equal question of the same
            call.
    """

    text: str
    label_probabilities: Mapping[str, float] | None = None
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


class Judge(Component):
    """A language model that is asked questions; used as ``judge: NAME`` or ``judge: {name: NAME, ...}`` in the specs of rewards.

    `rm_plugins.judges.CachingJudge` implements `ask` for judges that are asked equal questions once and whose replies are cached. The
    `identity` of a judge is what its answers depend on besides the questions: the model and its sampling settings.
    """

    kind: ClassVar[str] = "judge"

    concurrent: ClassVar[bool] = False
    """Whether asking mostly waits instead of computing here; `ask` must then be safe to call in several threads at once."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer questions.

        Args:
            questions: Any number of questions, [N]; equal ones may be among them.

        Returns:
            One reply per question, [N], in their order; a question without an answer has a `Reply.error`.

        Raises:
            ScoringError: No question can be answered, because the judge itself does not work.
        """

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """What `ask` answers, checked: one reply per question; no questions are not asked.

        Raises:
            ScoringError: As for `ask`, or the judge did not give one reply per question.
        """
        replies = self.ask(questions) if questions else []
        if len(replies) != len(questions) or not all(isinstance(reply, Reply) for reply in replies):
            raise ScoringError(
                f"The judge {self.name!r} gave {len(replies)} replies to {len(questions)} questions; one `Reply` each is needed."
            )
        return list(replies)

    def close(self) -> None:
        """Free what it holds: connections, the memory of a model. Asking again opens it again."""
