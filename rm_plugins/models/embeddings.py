"""The sizes of a model's token and position embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.engine.partitioned import whole_shape
from rm_plugins.errors import ScoringError
from rm_plugins.rendering.token_types import has_types, ids_and_types

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings|positions_embed)$")


class Embedded:
    """Checks that a model has embeddings for the tokens and positions of rows.

    Args:
        model: The model.
        source: Its name in messages.
    """

    def __init__(self, model: PreTrainedModel, source: str) -> None:
        self.source = source
        self._config = model.config
        self._vocabulary, self._positions = embedded_tokens(model), embedded_positions(model)

    def check(self, ids: Sequence[Sequence[int]]) -> None:
        """Refuse rows with tokens or positions for which the model has no embedding; on a GPU they would crash the process.

        Raises:
            ScoringError: There are such rows.
        """
        vocabulary, positions = self._vocabulary, self._positions
        if any(map(has_types, ids)):
            ids = self._without_types(ids)
        unknown = [row for row, row_ids in enumerate(ids) if max(row_ids) >= vocabulary]
        if unknown:
            raise ScoringError(
                f"The model {self.source} has embeddings of {vocabulary} tokens, but {len(unknown)} of {len(ids)} samples have a token id "
                f"beyond that (first: item {unknown[0]} with the id {max(ids[unknown[0]])}). Its tokenizer belongs to another model, or "
                "tokens were added after the training: name the right tokenizer with the spec's key `tokenizer`.",
                rows=unknown,
            )
        long = [row for row, row_ids in enumerate(ids) if len(row_ids) > positions]
        if long:
            raise ScoringError(
                f"The model {self.source} has positions for {positions} tokens, but {len(long)} of {len(ids)} samples are longer (first: "
                f"item {long[0]} with {len(ids[long[0]])}). Set the spec's key `max_length` to {positions} or less.",
                rows=long,
            )

    def _without_types(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows without their token types, after checking that the model has embeddings of these types."""
        split = [ids_and_types(row_ids) for row_ids in ids]
        most = max(max(types) for _, types in split)
        kinds = getattr(self._config.get_text_config(), "type_vocab_size", None)
        if kinds and most >= kinds:
            raise ScoringError(
                f"The model {self.source} has {kinds} token types, but its tokenizer gives the tokens of a pair types up to {most}. Name "
                "the right tokenizer with the spec's key `tokenizer`, or set `pair: false`."
            )
        return [row_ids for row_ids, _ in split]


def embedded_tokens(model: PreTrainedModel) -> float:
    """The number of token ids, from 0 on, that a model knows; infinity if it has no table of them, like character models."""
    try:
        embeddings = model.get_input_embeddings()
        # The weight itself may be sharded, or flattened with others.
        return int(getattr(embeddings, "num_embeddings", None) or whole_shape(embeddings.weight)[0])
    except (AttributeError, NotImplementedError):
        return math.inf


def embedded_positions(model: PreTrainedModel) -> float:
    """The number of learned positions of a model; infinity if positions are computed, like rotary embeddings.

    Positions of the RoBERTa family start after that of the padding token, and OPT's after an offset.
    """
    from torch import nn

    sizes = [
        module.num_embeddings - (getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name) and "entity" not in name
    ]
    return min(sizes, default=math.inf)
