"""Facts about a batch that a loss does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What a log needs to know about a batch, and the number of items of its mean.

    Args:
        numbers: The dataset row of each judgement; negative if it only fills up an evaluation's last batch.
        sections: Its section.
        characters: The length of each text's answer.
        items: The number of items that the loss is a mean over.
        tokens: The tokens of all texts.
    """

    numbers: Sequence[int]
    sections: Sequence[str | None]
    characters: Sequence[int]
    items: int
    tokens: int

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> BatchFacts:
        """The facts of a batch of `rm_plugins_trl.reward_training.training_rows.Collator`."""
        tokens = sum(map(len, batch["rows"]))
        return cls(batch["number"].tolist(), batch["sections"], batch["characters"], int(batch["items"]), tokens)

    def of_judgements(self, kept: Sequence[bool], rows: Sequence[bool], items: int) -> BatchFacts:
        """The facts of some judgements.

        Args:
            kept: Whether each judgement is one of them.
            rows: Whether each text belongs to one of them.
            items: The number of their items.
        """
        return BatchFacts(
            [*compress(self.numbers, kept)],
            [*compress(self.sections, kept)],
            [*compress(self.characters, rows)],
            items,
            self.tokens,
        )

    @classmethod
    def joined(cls, shares: Sequence[BatchFacts]) -> BatchFacts:
        """The facts of the batch of all processes."""
        return cls(
            [*chain.from_iterable(share.numbers for share in shares)],
            [*chain.from_iterable(share.sections for share in shares)],
            [*chain.from_iterable(share.characters for share in shares)],
            sum(share.items for share in shares),
            sum(share.tokens for share in shares),
        )
