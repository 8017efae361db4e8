"""Where a decoder's score head reads a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rm_plugins.rendering.rendering import Read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Readout(Protocol):
    """Chooses the tokens of a row whose hidden states the score head is given.

    An answer is scored at one token. A model of steps is scored at several, one for each step: a row then has as many outputs.
    """

    def positions(self, ids: Sequence[int]) -> Sequence[int]:
        """The tokens to read of a row without padding, ascending, one or more.

        A row that is cut off after one of them must have the same positions up to there.
        """


@dataclass(frozen=True, slots=True)
class LastToken:
    """Reads a row at its last token that is not the padding token; without a padding token, at its last.

    This is transformers' rule for one row by itself, which a batch must not change: with ``pad == eos`` it is the token
    before the closing EOS, whatever side the padding is on. A row of nothing but padding tokens is read at its first.

    Args:
        pad_token_id: The padding token, if there is one.

    >>> LastToken(pad_token_id=2).positions([5, 6, 2]), LastToken(None).positions([5, 6, 2])
    ((1,), (2,))
    """

    pad_token_id: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, read: Read = "before-padding") -> LastToken:
        """The readout of a classifier as transformers has it; with ``last``, at a row's very last token, whatever it is."""
        return cls(model.config.get_text_config().pad_token_id if read == "before-padding" else None)

    def positions(self, ids: Sequence[int]) -> tuple[int]:
        """The one token to read."""
        if self.pad_token_id is None:
            return (len(ids) - 1,)
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] != self.pad_token_id:
                return (position,)
        return (0,)
