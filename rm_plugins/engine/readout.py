"""The tokens of a row that a decoder's score head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rm_plugins.rendering.rendering import Read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Readout(Protocol):
    """Chooses the tokens of a row whose hidden states are passed to the score head.

    An answer is scored at one token. A process reward model scores several tokens, one per step: the row then has as many outputs.
    """

    def positions(self, ids: Sequence[int]) -> Sequence[int]:
        """The positions to read in a row without padding: one or more, ascending.

        If the row is cut off after one of them, the positions up to there must stay the same.
        """


@dataclass(frozen=True, slots=True)
class LastToken:
    """Reads a row at its last token that is not the padding token; if there is no padding token, at its last token.

    This is transformers' rule for a single row, which a batch must not change: with ``pad == eos`` it is the token before the closing
    EOS, regardless of the padding side. A row that consists of padding tokens only is read at its first token.

    Args:
        pad_token_id: The padding token, if there is one.

    >>> LastToken(pad_token_id=2).positions([5, 6, 2]), LastToken(None).positions([5, 6, 2])
    ((1,), (2,))
    """

    pad_token_id: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, read: Read = "before-padding") -> LastToken:
        """The readout of transformers' classifiers; with ``read="last"``, always the very last token of a row."""
        return cls(model.config.get_text_config().pad_token_id if read == "before-padding" else None)

    def positions(self, ids: Sequence[int]) -> tuple[int]:
        """The position of the token to read."""
        if self.pad_token_id is None:
            return (len(ids) - 1,)
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] != self.pad_token_id:
                return (position,)
        return (0,)
