"""Scores rows with a model whose weights are sharded over processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rm_plugins.engine.work import Work
from rm_plugins.processes import all_gathered

if TYPE_CHECKING:
    from rm_plugins.scores import FloatArray


class ShardedEngine:
    """What `rm_plugins.engine.engine.ScoringEngine` is for a whole model: all processes call it together, with the same rows.

    Each computes a share of the distinct rows, with the forward pass of the training, and gets the outputs of all.

    Args:
        is_decoder: Whether the model is a decoder.
        model: The model as it is trained, which takes ``rows``.
    """

    def __init__(self, is_decoder: bool, model: Any) -> None:
        self.is_decoder = is_decoder
        self._model = model

    @torch.no_grad()
    def outputs(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, Work]:
        """The head's outputs, float64 [N, outputs], in the order of the rows, and the work that was done.

        Args:
            ids: Token ids per row, [N] non-empty lists.
        """
        started = time.perf_counter()
        distinct = [*dict.fromkeys(map(tuple, ids))]
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        own = [list(row) for row in distinct[rank::processes]]
        shares = all_gathered(self._model(rows=own).logits.double().cpu().numpy(), "the scores of an evaluation")
        outputs = np.empty((len(distinct), shares[0].shape[1]))
        for process, share in enumerate(shares):
            outputs[process::processes] = share
        place = {row: number for number, row in enumerate(distinct)}
        work = Work(rows=len(ids), duplicates=len(ids) - len(distinct), tokens=sum(map(len, ids)))
        work.unique_tokens = work.padded_tokens = sum(map(len, distinct))
        work.seconds = time.perf_counter() - started
        return outputs[[place[tuple(row)] for row in ids]], work
