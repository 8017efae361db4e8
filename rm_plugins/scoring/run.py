"""Runs a sequence classifier over token ids in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.modeling_layers import GenericForSequenceClassification

from rm_plugins.scoring.plan import micro_batches
from rm_plugins.types import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["classifier_outputs", "read_position"]


def read_position(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Where a decoder's score is read: at the last token that is not the padding token; without a padding token, the last.

    This is transformers' rule for one row by itself, which a batch must not change: with ``pad == eos`` it is the token
    before the closing EOS, whatever side the padding is on. A row of nothing but padding tokens is read at its first.

    >>> read_position([5, 6, 2], pad_token_id=2), read_position([5, 6, 2], pad_token_id=None)
    (1, 2)
    """
    if pad_token_id is not None:
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] != pad_token_id:
                return position
        return 0
    return len(ids) - 1


@torch.inference_mode()
def classifier_outputs(model: PreTrainedModel, ids: Sequence[Sequence[int]], max_tokens: int) -> FloatArray:
    """The classification head's outputs, float64 [N, num_labels], in the rows' order.

    Args:
        model: A ``*ForSequenceClassification`` model in evaluation mode.
        ids: Token ids per row, without padding, none of them empty.
        max_tokens: The budget of a padded micro-batch.
    """
    outputs = np.empty((len(ids), model.config.num_labels), dtype=np.float64)
    pad_token_id = model.config.get_text_config().pad_token_id
    decoder = isinstance(model, GenericForSequenceClassification)
    if not decoder and pad_token_id is None:
        max_tokens = 0  # without padding, such a model can only be given one row at a time
    for rows in micro_batches([len(row) for row in ids], max_tokens):
        input_ids, mask = _padded([ids[row] for row in rows], pad_token_id or 0, model.device)
        if decoder:
            backbone = getattr(model, model.base_model_prefix)
            hidden = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
            at = [read_position(ids[row], pad_token_id) for row in rows]
            logits = model.score(hidden[torch.arange(len(rows), device=hidden.device), at])
        else:
            logits = model(input_ids=input_ids, attention_mask=mask).logits
        outputs[rows] = logits.float().cpu().numpy()
    return outputs


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each int64 [rows, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
