"""What can be sent to servers: samples, or questions to a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rm_plugins.protocols.protocol import Item, ServerFacts
from rm_plugins.samples import Sample


class Sendable(Protocol):
    """What a call sends: N different items."""

    @property
    def has_texts(self) -> bool:
        """Whether some are unrendered texts, so that the server's tokenizer decides their token ids."""

    @property
    def open_texts(self) -> bool:
        """Whether such texts are known to have no EOS."""

    def __len__(self) -> int: ...

    def items(self, server: ServerFacts) -> Sequence[Item]:
        """All of them as items for a server, [N]."""

    def has_other_tokens(self, server: ServerFacts) -> bool:
        """Whether the server's tokenizer is known to give other token ids than the local one."""


class SendableQuestions:
    """Questions, for a protocol whose answers have `Answer.replies`.

    Args:
        questions: The questions, [N], of the type that the protocol asks.
    """

    has_texts = False
    open_texts = False

    def __init__(self, questions: Sequence[Any]) -> None:
        self._items = [Item(Sample("", ""), question=question) for question in questions]

    def __len__(self) -> int:
        return len(self._items)

    def items(self, server: ServerFacts) -> Sequence[Item]:
        """The questions as items, which are the same for every server."""
        return self._items

    def has_other_tokens(self, server: ServerFacts) -> bool:
        """False, because no tokens are sent."""
        return False
